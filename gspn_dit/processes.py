"""Several processes: which there are, and what one does and shows for all.

The launcher decides processes and devices. Its other wishes are not taken, or refused: `accelerate launch` and an
environment left over from it can ask for compilation, mixed precision, gradient accumulation and other ways of
sharding. Here the config decides these, so that it tells all that decides a number.
"""

import contextlib
import ctypes
import os
import platform
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import (
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    KwargsHandler,
    broadcast_object_list,
)
from tqdm import tqdm

from gspn_dit.errors import UserError

Result = TypeVar("Result")

NOT_TAKEN = {
    "ACCELERATE_MIXED_PRECISION": "train.precision",
    "ACCELERATE_DYNAMO_BACKEND": "train.compile",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "train.micro_batch",
}
"""Variables, and what decides in their place."""
REFUSED = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism of several axes",
}
REFUSED_OF_FSDP = {
    "FSDP_OFFLOAD_PARAMS": "offloading",
    "FSDP_ACTIVATION_CHECKPOINTING": "its checkpoints of activations (model.checkpoint_activations has the same)",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "loading on one process",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "classes to wrap (the models name their blocks)",
    "FSDP_IGNORED_MODULES": "modules left out",
}
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Of malloc.h: the free memory at which it trims its heap (-1: never), and how many blocks it maps one by one."""
NOTHING = ("", "0", "1", "no", "none", "false", "off", "f", "n")
"""Values that ask for nothing; 1 is one step of accumulation. Those of flags are read by `is_set`."""


def connect(*handlers: KwargsHandler) -> Accelerator:
    """The processes and the device that the launcher gives. They may finish hours apart, which must not end the run.

    `UserError` where it asks for what this program cannot do as it promises.
    """
    check_launcher()
    on_cpu = not torch.accelerator.is_available()
    if on_cpu:
        keep_pages()
    return Accelerator(
        cpu=on_cpu,  # else accelerate leaves CPU processes unconnected
        mixed_precision="no",
        dynamo_backend="no",
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        kwargs_handlers=[*handlers, InitProcessGroupKwargs(timeout=timedelta(days=7))],
    )


def keep_pages() -> None:
    """Make glibc's malloc keep the memory of freed tensors for the next ones, unless MALLOC_* variables tune it.

    Speed: it gives large blocks back to the system at once, and each page comes back by a fault and zeroed.
    """
    chosen = any(name.startswith("MALLOC_") for name in os.environ)
    if platform.libc_ver()[0] == "glibc" and not chosen:
        libc = ctypes.CDLL(None)
        for parameter, value in {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1}.items():
            libc.mallopt(parameter, value)


def is_set(variable: str) -> bool:
    """Whether a variable of the environment says yes, or names something."""
    value = os.environ.get(variable, "").lower()
    return value == "1" or value not in NOTHING


def check_launcher() -> None:
    """Raise `UserError` for a way of training on several processes that is not supported."""
    unsupported = {name: what for name, what in REFUSED.items() if is_set(name)}
    if is_set("ACCELERATE_USE_FSDP"):
        unsupported |= {name: f"FSDP with {what}" for name, what in REFUSED_OF_FSDP.items() if is_set(name)}
        if os.environ.get("FSDP_VERSION", "1") != "2":
            unsupported["ACCELERATE_USE_FSDP"] = "FSDP of another version than 2"
    for name, what in unsupported.items():
        raise UserError(
            f"the launcher asks for {what} ({name}={os.environ[name]}), which is not supported: launch with "
            "configs/accelerate/ddp.yaml or fsdp2.yaml, or unset it"
        )


def not_taken() -> list[str]:
    """A line for each wish of the launcher that the config decides."""
    wishes = {name: os.environ.get(name, "") for name in NOT_TAKEN}
    return [
        f"{name}={value} of the launcher has no effect: {NOT_TAKEN[name]} decides"
        for name, value in wishes.items()
        if value.lower() not in NOTHING
    ]


def on_main_process(main: bool, action: Callable[[], Result]) -> Result:
    """The result of `action`, done on the main process alone; its `UserError` is raised on every process.

    Raised on one alone, it would leave the others waiting. Every process must call this.
    """
    result, problem = None, None
    if main:
        try:
            result = action()
        except UserError as error:
            problem = str(error)
    result, problem = broadcast_object_list([result, problem])
    if problem is not None:
        raise UserError(problem)
    return result


@contextlib.contextmanager
def held_for_all(main: bool, lock: contextlib.AbstractContextManager[None]) -> Iterator[None]:
    """Hold a lock on the main process, on behalf of all; see `on_main_process`."""
    with contextlib.ExitStack() as stack:
        on_main_process(main, lambda: stack.enter_context(lock))
        yield


def progress_bar(**settings: Any) -> tqdm:
    """tqdm's bar on stderr; where no terminal shows it, and each state adds to a log, it is drawn twice a minute."""
    return tqdm(mininterval=0.2 if sys.stderr.isatty() else 30, **settings)
