"""train.py with FSDP2 on CPU processes, which accelerate leaves to DDP: it is told that they are GPUs."""

from accelerate import Accelerator
from accelerate.state import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

import train
from gspn_dit import errors
from gspn_dit.training import trainer

create_accelerator = trainer.create_accelerator


def create_sharding_accelerator(*arguments) -> Accelerator:
    accelerator = create_accelerator(*arguments)
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap")
    accelerator.state.fsdp_plugin = plugin
    accelerator.state.distributed_type = DistributedType.FSDP
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    return accelerator


if __name__ == "__main__":
    trainer.create_accelerator = create_sharding_accelerator
    errors.run(train.main)
