"""Evaluate a classifier: python -m gspn_dit.classification.evaluate RUN FOLDER"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gspn_dit import errors
from gspn_dit.errors import UserError, require_packages
from gspn_dit.files import check_output, home_folder, home_path, refuse_inputs, replacing, write_json
from gspn_dit.names import printable

EPILOG = """\
example:
  python -m gspn_dit.classification.evaluate runs/cifar10_cpu_classifier data/cifar10

FOLDER has a folder for each class of the run, or train/ and test/ with such folders, of which test/ is taken.
Prints top-1, top-5 (of more than five classes) and the accuracy of each class; writes them with the confusion
matrix to FILE.json, and draws it in FILE.png beside.
"""
NAMED = 40
"""Classes up to which a picture names each, and the table has a row for each."""


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = errors.ArgumentParser(
        prog="python -m gspn_dit.classification.evaluate",
        description="Measure how often a trained classifier is right about the pictures of a folder.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", metavar="RUN", type=home_path, help="run or checkpoint folder")
    parser.add_argument("folder", metavar="FOLDER", type=home_folder, help="pictures, by classes")
    parser.add_argument("--json", metavar="FILE", type=home_folder, help="default: RUN/evaluation.json")
    parser.add_argument(
        "--weights", choices=("ema", "last"), default="ema", help="averaged or last (default: ema)"
    )
    parser.add_argument("--batch-size", metavar="N", type=int, default=100, help="at once (default: 100)")
    parser.add_argument("--workers", metavar="N", type=int, default=0, help="that read (default: 0, none)")
    return parser.parse_args(argv)


def check(arguments: argparse.Namespace) -> None:
    """Raise `UserError` for what is wrong whatever the run is; fill in where the results go."""
    for option, value, least in (
        ("--batch-size", arguments.batch_size, 1),
        ("--workers", arguments.workers, 0),
    ):
        if value < least:
            raise UserError(f"{option} {value}: expected at least {least}")
    require_packages("matplotlib")
    arguments.json = arguments.json or Path(arguments.run) / "evaluation.json"
    if arguments.json.suffix != ".json":
        raise UserError(f"--json {arguments.json}: expected a name that ends in .json")
    if not Path(arguments.run).is_dir():
        raise UserError(
            f"{arguments.run} is no run: expected a folder that gspn_dit.classification.train made"
        )
    # Speed: `--help` answers without waiting for torch.
    from gspn_dit.checkpoint import find_checkpoint, parts_of_run

    inputs = [*parts_of_run(find_checkpoint(arguments.run)), ("FOLDER", arguments.folder)]
    for path in (arguments.json, arguments.json.with_suffix(".png")):
        check_output("--json", path)
        refuse_inputs("--json", path, inputs)


def evaluate(arguments: argparse.Namespace) -> dict[str, Any] | None:
    """The scores of a run on a folder, as JSON types; None on all processes but the main one."""
    # Speed: a bad argument is rejected without waiting for torch.
    from gspn_dit.checkpoint import read_state
    from gspn_dit.classification.classifier import load_classifier
    from gspn_dit.classification.pictures import Pictures, pictures_of_run
    from gspn_dit.classification.scoring import predict
    from gspn_dit.processes import connect

    accelerator = connect()
    model, config, info = load_classifier(
        arguments.run, ema=arguments.weights == "ema", device=accelerator.device
    )
    class_names = read_state(Path(info["path"]))["dataset"]["class_names"]
    images = pictures_of_run(arguments.folder, class_names)
    found = predict(
        model,
        Pictures(images, config.data, None),
        accelerator,
        batch_size=arguments.batch_size,
        workers=arguments.workers,
        bar=True,
    )
    accelerator.end_training()
    if not accelerator.is_main_process:
        return None
    confusion = found.confusion()
    counts = confusion.sum(dim=1)
    classes = {
        name: {"images": int(count), "accuracy": float(right / count) if count else None}
        for name, count, right in zip(images.class_names, counts, confusion.diagonal(), strict=True)
    }
    return {
        "run": arguments.run,
        "step": info["step"],
        "weights": info["hash"],
        "folder": str(arguments.folder),
        "images": len(images.paths),
        **found.measures(),
        "classes": classes,
        "confusion": confusion.tolist(),
    }


def format_table(scores: dict[str, Any]) -> str:
    """The scores in words; of many classes those that it is least often right about."""
    lines = [f"{scores['images']:,} images, step {scores['step']:,}"]
    lines += [f"{name}  {scores[name]:.2%}" for name in ("top1", "top5") if name in scores]
    rows = [(c["accuracy"], name, c["images"]) for name, c in scores["classes"].items() if c["images"]]
    if len(rows) > NAMED:
        rows = sorted(rows)[:NAMED]
        lines.append(f"the {NAMED} classes that it is least often right about:")
    width = max(len(printable(name)) for _, name, _ in rows)
    lines += [f"{printable(name):{width}}  {share:8.2%}  of {count:,}" for share, name, count in rows]
    return "\n".join(lines)


def draw_confusion(scores: dict[str, Any], path: Path) -> None:
    """The confusion matrix, each row a share of its class."""
    # Speed: matplotlib takes a second.
    from matplotlib.figure import Figure

    names = [printable(name) for name in scores["classes"]]
    shares = [[count / max(sum(row), 1) for count in row] for row in scores["confusion"]]
    named = len(names) <= NAMED
    side = max(5.0, 0.45 * len(names)) if named else 9.0
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    figure.colorbar(picture, label="share of the class")
    axes.set(xlabel="prediction", ylabel="class", title=f"top-1 {scores['top1']:.2%}")
    if named:
        for setter, turn in ((axes.set_xticks, 90), (axes.set_yticks, 0)):
            for label in setter(range(len(names)), names, rotation=turn):
                label.label1.set_parse_math(False)  # a $ in a name is one
        for row, values in enumerate(shares):
            for column, share in enumerate(values):
                if share >= 0.005:
                    color = "white" if share > 0.5 else "black"
                    axes.text(column, row, f"{share:.0%}", ha="center", va="center", color=color, fontsize=7)
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=120)


def main(argv: Sequence[str] | None = None) -> int:
    """Read the arguments, evaluate, print and write; the exit status."""
    arguments = parse_arguments(argv)
    check(arguments)
    scores = evaluate(arguments)
    if scores is None:
        return 0
    print(format_table(scores))
    write_json(arguments.json, scores)
    draw_confusion(scores, arguments.json.with_suffix(".png"))
    print(f"written: {arguments.json}, {arguments.json.with_suffix('.png')}")
    return 0


if __name__ == "__main__":
    errors.run(main)
