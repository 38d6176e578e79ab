"""docs/experiments.md and its charts, from the results alone: nothing is run here."""

from pathlib import Path

from experiments import sections
from experiments.classification import classification_section, load_classification
from experiments.curves_section import curves_section, load_curves
from experiments.distil_section import distil_section, load_distil
from experiments.kernel_section import kernel_section
from experiments.mixers_section import load_mixers, mixers_section
from experiments.plan import COMPARED, Scale, rate_runs, training_runs
from experiments.sizes_section import load_sizes, sizes_section
from experiments.stability_section import stability_section
from experiments.summary import load_json, load_settings
from experiments.text_to_image import NAME, text_to_image_section
from experiments.training_sections import attention_section, local_section, merge_section, positions_section
from gspn_dit.files import replacing

BUILDERS = (
    kernel_section,
    stability_section,
    local_section,
    positions_section,
    merge_section,
    attention_section,
)
MEASURED = ("kernel", "propagation", "untrained", "throughput")


def write_report(scale: Scale, results: Path, docs: Path) -> Path:
    """Write the report of a scale and its charts; missing results are shown as "not measured"."""
    name = "experiments" if scale.name == "cpu" else f"experiments-{scale.name}"
    charts = docs / name
    charts.mkdir(parents=True, exist_ok=True)
    trainings = {run.name: run.key for run in training_runs(scale, tuple(COMPARED))}
    rates = {run.name: run.key for run in rate_runs(scale)}
    data = sections.Data(
        scale=scale,
        settings=load_settings(results, trainings),
        rates=[
            found
            for run in rates
            if (found := load_json(results / "runs" / f"{run}.json")) and found["key"] == rates[run]
        ],
        **{name: load_json(results / f"{name}.json") for name in MEASURED},
    )
    built = [build(data, charts) for build in BUILDERS]
    mixers = load_mixers(scale.name, results)
    if mixers:
        built.append(mixers_section(mixers, charts))
    distilled = load_json(results / f"{NAME}.json")
    if distilled:
        built.append(text_to_image_section(distilled, results / f"{NAME}.png", charts))
    distil = load_distil(scale.name, results)
    if distil:
        built.append(distil_section(distil, charts))
    curves = load_curves(scale.name, results)
    if curves:
        built.append(curves_section(curves, charts))
    classified = load_classification(scale.name, results)
    if classified:
        built.append(classification_section(classified, charts))
    sizes = load_sizes(scale.name, results)
    if sizes:
        built.append(sizes_section(sizes, charts))
    text = "\n\n".join(
        [sections.header(data), summary(built), *(section.markdown(name) for section in built)]
    )
    path = docs / f"{name}.md"
    with replacing(path) as file:
        file.write((text + "\n").encode())
    return path


def summary(built: list[sections.Section]) -> str:
    """The first answers of each experiment, in a line."""
    lines = [
        f"{number}. **{section.title}**: {'; '.join(section.answers[: section.headlines])}"
        for number, section in enumerate(built, 1)
    ]
    return "\n".join(["## The answers", "", *lines])
