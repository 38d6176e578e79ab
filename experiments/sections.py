"""A section of the report (question, set-up, table, chart, answer, command) and the parts that sections share."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from experiments.plan import BASE, COMPARED, DIT, EXPERIMENTS, Scale
from experiments.summary import Setting, Values, compare, sentence

MISSING = "not measured"
LABELS = {
    BASE: "GSPN-DiT",
    "gspn-sigmoid": "GSPN-DiT (sigmoid)",
    "gspn-16-lines": "GSPN-DiT (16 lines)",
    "gspn-16-lines-sigmoid": "GSPN-DiT (16 lines, sigmoid)",
    "gspn-local-2": "no global block (segment 2)",
    "gspn-local-4": "no global block (segment 4)",
    "gspn-global-2": "last two global (segment 2)",
    "gspn-sincos": "GSPN-DiT (sin-cos)",
    "gspn-learned": "GSPN-DiT (learned)",
    "dit-none": "DiT (none)",
    DIT: "DiT (sin-cos)",
    "dit-learned": "DiT (learned)",
    "gspn-merge-channel": "merge per channel",
    "gspn-merge-linear": "merge linear",
    "gspn-groups-all": "G = C",
    "gspn-groups-1": "G = 1",
    "conv-attention": "DiT with the module's convolutions and gate",
    "identity": "GSPN-DiT (scan left out)",
    "identity-16-lines": "GSPN-DiT (16 lines, scan left out)",
    "gspn-ddpm": "GSPN-DiT (ddpm)",
    "dit-ddpm": "DiT (ddpm)",
}


@dataclass(frozen=True, kw_only=True)
class Data:
    """All results of a scale; None for what was not measured."""

    scale: Scale
    settings: dict[str, Setting]
    rates: list[dict[str, Any]]
    kernel: dict[str, Any] | None = None
    propagation: dict[str, Any] | None = None
    untrained: dict[str, Any] | None = None
    throughput: dict[str, Any] | None = None

    def labelled(self, experiment: str) -> list[tuple[str, Setting]]:
        """The settings of an experiment that have results, with their names in the report."""
        return [
            (LABELS[name], self.settings[name]) for name in EXPERIMENTS[experiment] if name in self.settings
        ]

    def against(self, first: str, second: str, key: str = "fid", **words: Any) -> str:
        """Whether `second` differs from `first`, in words."""
        found = compare(self.settings.get(first), self.settings.get(second), key)
        return sentence(LABELS[first], LABELS[second], found, **words)

    def speed(self, variant: str, kind: str) -> str:
        """Images per second over the base's, with the quartiles of the rounds."""
        row = self.speed_row(variant)
        return "{ratio:.2f} ({low:.2f} to {high:.2f})".format(**row[kind]) if row else MISSING

    def speed_in_words(self, variant: str) -> str:
        """Training speed against the base's; none where the quartiles include the same speed."""
        row = self.speed_row(variant)
        if row is None:
            return f"{LABELS[variant]}: {MISSING}"
        ratio, low, high = (row["training"][key] for key in ("ratio", "low", "high"))
        found = f"{ratio:.2f} times" if high < 1 or low > 1 else "no difference"
        return f"{LABELS[variant]} {found}"

    def speed_row(self, variant: str) -> dict[str, Any] | None:
        rows = self.throughput["rows"] if self.throughput else []
        return next((row for row in rows if row["variant"] == variant), None)


@dataclass(frozen=True)
class Section:
    name: str
    title: str
    question: str
    setup: str
    answers: list[str]
    tables: list[str]
    pictures: list[str] = field(default_factory=list)
    headlines: int = 1
    """How many of the answers, the first ones, stand at the head of the report."""

    def markdown(self, folder: str) -> str:
        pictures = [f"![{self.title}]({folder}/{picture})" for picture in self.pictures]
        parts = [
            f"## {self.title}",
            f"**Question.** {self.question}",
            f"**Set-up.** {self.setup}",
            *self.tables,
            *pictures,
            "**Answer.**\n\n" + "\n".join(f"- {answer}." for answer in self.answers),
            f"**Command.** `python -m experiments --only {self.name}`",
        ]
        return "\n\n".join(parts)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def show(values: Values | None, digits: int = 2, factor: float = 1.0) -> str:
    """Mean and half of the range over the seeds; of a single one the value alone."""
    if values is None:
        return MISSING
    if len(values.values) == 1:
        return f"{factor * values.mean:.{digits}f} (one seed)"
    return f"{factor * values.mean:.{digits}f} ± {factor * values.half_range:.{digits}f}"


def header(data: Data) -> str:
    """What all training runs share, and the rule by which settings differ."""
    scale = data.scale
    results = [result for setting in data.settings.values() for result in setting.results]
    images = scale.train["steps"] * scale.train["batch_size"]
    devices = " and ".join(sorted({result["device"] for result in results})) or MISSING
    dates = sorted(result["date"] for result in results)
    versions = ", ".join(sorted({f"torch {result['torch']}" for result in results}))
    halves = next((result["fid_real_halves"] for result in results if "fid_real_halves" in result), None)
    minutes = sum(result["seconds"] for result in [*results, *data.rates]) / 60
    in_plan = set().union(*EXPERIMENTS.values())
    planned = sum(len(setting.results) for name, setting in data.settings.items() if name in in_plan)
    checks = len(results) + len(data.rates) - planned
    beyond = f" and {checks} of checks beyond it" if checks else ""
    flow, ddpm = scale.sampling["flow"], scale.sampling["ddpm"]
    command = "make experiments" + ("" if scale.name == "cpu" else f" SCALE={scale.name}")
    when = f"{dates[0]} to {dates[-1]}" if dates else MISSING
    apart = f" (two halves of these are {halves:.2f} apart)" if halves else ""
    text = f"""# The paper's claims, tested

Made by `{command}` from `results/experiments/{scale.name}/`; nothing here is written by hand. What is there is not
measured again: `make experiments ARGS="--out FOLDER"` does it all anew, elsewhere.

The models are small and learn digits for a short time: what is found here holds at this scale. {planned}
training runs of the plan{beyond} are in ({minutes:.0f} minutes of one worker; {devices}, {versions},
{when}). All of them: width {scale.width}, depth {scale.depth}, 4,000 digits of 32x32 pixels in patches of 4 (8 lines
of 8 tokens) where nothing else is said, {images:,} images in batches of {scale.train["batch_size"]}, AdamW at
{scale.train["learning_rate"]:g} with a cosine, the same for all families.

Scores: {scale.samples:,} unguided samples with balanced labels from the averaged weights
(flow: {flow["sampler"]}, {flow["steps"]} steps; ddpm: {ddpm["sampler"]}, {ddpm["steps"]} steps). FID and KID are in
the features of a digit classifier, against 1,000 held-out digits{apart}; class accuracy is the share that the
classifier reads as the class asked for. A score is the mean ± half the range over the seeds. Two settings **differ**
when their ranges over three seeds or more do not overlap and their means are more than two pooled standard deviations
apart; else there is *no difference*. Some 5 % of equal settings would pass: one or two of the comparisons below may."""
    return text


def score_table(data: Data, experiment: str, base: str | None = BASE, speed: bool = False) -> str:
    """The runs of an experiment: seeds, images, parameters, scores, and whether they differ from the base."""
    head = ["setting", *SEEN, "FID", "KID x 1000", "class accuracy", "diverged"]
    head += ["FID against the first"] if base else []
    head += ["training speed", "sampling speed"] if speed else []
    rows = []
    for name in COMPARED[experiment]:
        setting = data.settings.get(name)
        if setting is None:
            rows.append([LABELS[name], "0", *[MISSING] * (len(head) - 2)])
            continue
        row = [
            LABELS[name],
            *seen(setting),
            show(setting.get("fid")) + survivors(setting),
            show(setting.get("kid"), 1, 1000),
            show(setting.get("accuracy"), 3),
            f"{setting.diverged} of {len(setting.results)}",
        ]
        if base:
            row.append("" if name == base else verdict(data, base, name))
        row += [data.speed(name, "training"), data.speed(name, "sampling")] if speed else []
        rows.append(row)
    return table(head, rows)


SEEN = ("seeds", "images", "parameters")


def seen(setting: Setting | None) -> list[str]:
    """The columns that every table of trainings has: seeds, images seen, parameters."""
    if setting is None:
        return ["0", MISSING, MISSING]
    parameters = setting.one("parameters")
    return [
        str(len(setting.results)),
        f"{setting.one('images'):,}",
        f"{parameters:,}" if parameters else MISSING,
    ]


def survivors(setting: Setting) -> str:
    """How many runs a mean is over, where some have no score."""
    scores = setting.get("fid")
    return f" ({len(scores.values)} of {len(setting.results)})" if scores and setting.diverged else ""


def verdict(data: Data, first: str, second: str, key: str = "fid") -> str:
    found = compare(data.settings.get(first), data.settings.get(second), key)
    if found is None:
        return MISSING
    if found.found is None:
        return "too few seeds"
    return f"{found.gain:+.2f}" if found.found else "no difference"
