"""Parameters, FLOPs and activations of the named models: python -m gspn_dit.models [NAME ...]"""

import argparse
from collections.abc import Sequence

from gspn_dit import errors
from gspn_dit.errors import UserError
from gspn_dit.models.settings import MODEL_NAMES
from gspn_dit.schema import suggestion

EPILOG = """\
example: python -m gspn_dit.models GSPN-XL/2 GSPN-DiT-XL/2 DiT-XL/2

For images of 256 x 256 pixels (latents 4 x 32 x 32), 1000 classes, noise and variance predicted.
GFLOP: of one forward per image, a multiplication and an addition being two (papers on DiT count one for both).
Products of matrices, convolutions and attention count as torch.utils.flop_counter counts them, scan and gates as
ops/flops.py does; norms and activation functions do not count.
Activations: what a training step keeps of each image for its backward, under autocast to bf16. Weights, gradients,
optimiser and EMA come on top: benchmarks/bench_memory.py has the whole step.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Print a row for each model as it is known; the exit status."""
    parser = errors.ArgumentParser(
        prog="python -m gspn_dit.models",
        description="Print what models cost: parameters, FLOPs, memory of activations. Nothing is computed.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", metavar="NAME", nargs="*", help="default: all of them")
    names = parser.parse_args(argv).names or MODEL_NAMES
    for name in names:
        if name not in MODEL_NAMES:
            raise UserError(f"no model '{name}'; {suggestion(name, MODEL_NAMES)}")
    # Speed: `--help` and an unknown name answer without waiting for torch.
    from gspn_dit.models.costs import model_costs

    print(f"{'model':<16}{'parameters':>12}{'forward':>14}{'of it scan':>12}{'activations':>14}")
    print(f"{'':<16}{'':>12}{'GFLOP/image':>14}{'GFLOP':>12}{'MB/image':>14}")
    for name in names:
        costs = model_costs(name)
        print(
            f"{name:<16}{costs.parameters / 1e6:>11.1f}M{costs.flops / 1e9:>14.2f}{costs.scan_flops / 1e9:>12.2f}"
            f"{costs.activation_bytes / 1e6:>14.1f}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    errors.run(main)
