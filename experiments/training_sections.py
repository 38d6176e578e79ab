"""The sections of the report that rest on training runs."""

from pathlib import Path

from experiments import charts
from experiments.plan import BASE, DIT
from experiments.sections import LABELS, MISSING, SEEN, Data, Section, score_table, seen, show, table
from experiments.summary import Values, compare

LEGIBLE = 0.3
"""Class accuracy below which samples are not digits yet; chance is 0.1."""


def runs_setup(data: Data, experiment: str) -> str:
    """Seeds that are there, and whether the models are equally large."""
    labelled = data.labelled(experiment)
    sizes = [size for _, setting in labelled if (size := setting.one("parameters"))]
    if not sizes:
        return MISSING
    seeds = sorted({len(setting.results) for _, setting in labelled})
    spread = max(sizes) / min(sizes) - 1
    setup = (
        f"{' or '.join(map(str, seeds))} seeds of each setting; parameters within {spread:.1%} of each other"
    )
    illegible = [name for name, setting in labelled if (v := setting.get("accuracy")) and v.mean < LEGIBLE]
    if illegible:
        setup += (
            f". Samples of {', '.join(illegible)} are read as the class asked for in under {LEGIBLE:.0%} of the cases: "
            "they are hardly digits yet, and their FIDs among each other say little"
        )
    return setup


def local_section(data: Data, folder: Path) -> Section:
    charts.draw_scores(data.labelled("local"), folder / "local.png")
    answers = [
        "; ".join(data.against(BASE, name) for name in ("gspn-local-2", "gspn-local-4", "gspn-global-2")),
        "training speed against that of all blocks global: "
        + ", ".join(data.speed_in_words(n) for n in ("gspn-local-2", "gspn-local-4", "gspn-global-2")),
    ]
    return Section(
        "local",
        "Local against global",
        "What do global blocks bring over local ones, and what do they cost?",
        f"{runs_setup(data, 'local')}. The first row has all blocks global. {speed_note(data)}",
        answers,
        [score_table(data, "local", speed=True)],
        ["local.png"],
    )


def speed_note(data: Data) -> str:
    if data.throughput is None:
        return f"Images/s: {MISSING}."
    s, base = data.throughput["settings"], data.speed_row(BASE)
    return (
        f"Speeds are images/s over those of the base run ({LABELS[BASE]}: "
        f"{base['training']['images_per_second']:.0f} in training, "
        f"{base['sampling']['images_per_second']:.0f} in sampling), timed in turns in one process: medians and, in "
        f"brackets, quartiles of {s['rounds']} rounds, batch {s['batch']}, {data.throughput['device']}"
        f"{', one thread' if s['threads'] else ''}."
    )


def positions_section(data: Data, folder: Path) -> Section:
    charts.draw_scores(data.labelled("positions"), folder / "positions.png")
    answers = [
        "; ".join(
            [
                *(data.against(BASE, n) for n in ("gspn-sincos", "gspn-learned")),
                *(data.against("dit-none", n) for n in (DIT, "dit-learned")),
            ]
        ),
        "class accuracy: "
        + "; ".join(
            data.against(first, second, key="accuracy", score="class accuracy", digits=3)
            for first, second in (
                (BASE, "gspn-sincos"),
                (BASE, "gspn-learned"),
                ("dit-none", DIT),
                ("dit-none", "dit-learned"),
            )
        ),
        probe_answer(data),
        untrained_answer(data),
    ]
    return Section(
        "positions",
        "Positional embeddings",
        "What does it cost to leave positional embeddings out, and does the scan alone know where it is?",
        f"{runs_setup(data, 'positions')}. Probe: ridge regression from the middle block's tokens to row "
        f"and column, "
        f"{data.scale.probe_images} held-out digits to fit and as many to judge; R² is 0 for a token that "
        f"knows nothing of its "
        "place. Digits half noised carry content that itself tells of the place; pure noise carries none, "
        "so what is read "
        "there comes from the model. The untrained parts see white noise, and are probed through their "
        "outputs and these "
        "squared, since a place may show in the size of a signal alone.",
        answers,
        [score_table(data, "positions", base=None), probe_table(data), untrained_table(data)],
        ["positions.png"],
    )


PROBED = (BASE, "gspn-sincos", "gspn-learned", "dit-none", DIT, "dit-learned", "conv-attention", "identity")


def probe_table(data: Data) -> str:
    keys = ("digits.linear", "digits.squares", "noise.linear", "noise.squares")
    rows = []
    for name in PROBED:
        setting = data.settings.get(name)
        cells = [show(setting.get(f"probe.{key}"), 3) if setting else MISSING for key in keys]
        rows.append([LABELS[name], *seen(setting), *cells])
    head = ["R² of position", *SEEN, "digits", "digits, with squares", "noise", "noise, with squares"]
    return table(head, rows)


def untrained_rows(data: Data) -> dict[str, dict[str, list[float]]]:
    """Part -> "linear" or "squares" -> R² of each draw."""
    rows: dict[str, dict[str, list[float]]] = {}
    for row in data.untrained["rows"] if data.untrained else []:
        part = rows.setdefault(row["part"], {"linear": [], "squares": []})
        for key, values in part.items():
            values.append(row[key])
    return rows


def untrained_table(data: Data) -> str:
    rows = [
        [
            part,
            str(len(values["linear"])),
            "0",
            f"{data.untrained['parameters'][part]:,}",
            *(show(Values(tuple(v)), 3) for v in values.values()),
        ]
        for part, values in untrained_rows(data).items()
    ]
    return table(["untrained, on white noise: R² of position", *SEEN, "outputs", "with squares"], rows)


def probe_answer(data: Data) -> str:
    """What the trained models without positions know on noise, where content tells nothing."""
    parts = []
    for name in (BASE, "identity", "conv-attention", "dit-none"):
        values = data.settings[name].get("probe.noise.linear") if name in data.settings else None
        parts.append(f"{LABELS[name]} {show(values)}")
    found = compare(data.settings.get("identity"), data.settings.get(BASE), "probe.noise.linear")
    if found is None or found.found is None:
        verdict = "whether the scan adds to it is not known: too few seeds"
    elif not found.found:
        verdict = "the scan makes no difference to it beyond the spread between seeds"
    elif found.gain > 0:
        verdict = f"the scan adds {found.gain:.2f} to what is read without it"
    else:
        verdict = f"with the scan {-found.gain:.2f} less is read than without it"
    return (
        f"R² of position on pure noise, trained without positional embeddings: {', '.join(parts)}; {verdict}"
    )


def untrained_answer(data: Data) -> str:
    rows = untrained_rows(data)
    if not rows:
        return f"untrained parts: {MISSING}"
    means = {part: sum(values["squares"]) / len(values["squares"]) for part, values in rows.items()}
    least = min(rows["scan alone"]["squares"])
    known = "knows something of its place" if least > 0.01 else "shows nothing of its place to this probe"
    listed = ", ".join(f"{part} {value:.3f}" for part, value in means.items())
    return (
        f"The untrained scan alone {known} (R² through squares: {listed}; above 0.01 in every draw counts as "
        "something)"
    )


def merge_section(data: Data, folder: Path) -> Section:
    charts.draw_scores(data.labelled("merge"), folder / "merge.png")
    names = ("gspn-merge-channel", "gspn-merge-linear", "gspn-groups-all", "gspn-groups-1")
    answers = [
        "; ".join(data.against(BASE, name) for name in names),
        "training speed against the first row's: " + ", ".join(data.speed_in_words(n) for n in names),
    ]
    return Section(
        "merge",
        "Merge and groups",
        "How should the four directions be merged, and how many channels may share an affinity map?",
        f"{runs_setup(data, 'merge')}: here the parameters are part of the question, and not made equal. "
        f"The first row has a "
        f"scalar merge and G = C/16. {speed_note(data)}",
        answers,
        [score_table(data, "merge", speed=True)],
        ["merge.png"],
    )


def attention_section(data: Data, folder: Path) -> Section:
    charts.draw_scores(data.labelled("attention"), folder / "attention.png")
    charts.draw_losses(data.labelled("attention"), folder / "losses.png")
    answers = [
        f"{data.against(DIT, BASE)} (flow); {data.against('dit-ddpm', 'gspn-ddpm')}",
        f"what the scan itself adds: {data.against('identity', BASE)}; {data.against('conv-attention', BASE)}",
        "what it adds on lines twice as long (`python -m experiments --only lines`): "
        + data.against("identity-16-lines", "gspn-16-lines"),
        "what the surroundings add to attention, neither with positions: "
        + data.against("dit-none", "conv-attention"),
        "class accuracy: "
        + "; ".join(
            data.against(first, second, key="accuracy", score="class accuracy", digits=3)
            for first, second in ((DIT, BASE), ("dit-ddpm", "gspn-ddpm"), ("identity", BASE))
        ),
        f"final training loss: {data.against(DIT, BASE, key='final_loss', score='training loss', digits=4)}",
        rate_answer(data),
    ]
    return Section(
        "attention",
        "GSPN against DiT",
        "At equal parameters and equal images, is the scan better than attention, and is it the scan that is?",
        f"{runs_setup(data, 'attention')}. Two controls: DiT with the GSPN module's convolutions and gate "
        f"around its attention "
        "(no positions), and the GSPN module without its scan (h = lam x), the latter also on 16 lines of 16 tokens, "
        "the grid of a patch-2 model at 256 pixels. DiT has sin-cos positions. FID "
        "of ddpm is to be "
        f"compared with ddpm's alone. {speed_note(data)}",
        answers,
        [
            score_table(data, "attention", base=None, speed=True),
            score_table(data, "lines", base="gspn-16-lines"),
            rate_table(data),
        ],
        ["attention.png", "losses.png"],
        headlines=4,
    )


def rate_scores(data: Data) -> dict[str, dict[float, float]]:
    """Variant -> learning rate -> FID of seed 0; infinite where it diverged."""
    scores: dict[str, dict[float, float]] = {BASE: {}, DIT: {}}
    plan = [r for v in scores if v in data.settings for r in data.settings[v].results if r["seed"] == 0]
    for result in [*plan, *data.rates]:
        rate = result["settings"]["config"]["train"]["learning_rate"]
        scores[result["variant"]][rate] = result.get("fid", float("inf"))
    return scores


def rate_table(data: Data) -> str:
    scores = rate_scores(data)
    rows = []
    for variant, fids in scores.items():
        cells = [f"{fids[r]:.2f}" if r in fids else MISSING for r in data.scale.learning_rates]
        rows.append([LABELS[variant], "1", *seen(data.settings.get(variant))[1:], *cells])
    head = ["FID at the learning rate", *SEEN, *(f"{rate:g}" for rate in data.scale.learning_rates)]
    return table(head, rows)


def rate_answer(data: Data) -> str:
    """Whether the shared rate is the best of those tried, for each family."""
    scores = rate_scores(data)
    if any(len(fids) < len(data.scale.learning_rates) for fids in scores.values()):
        return f"learning-rate check (`python -m experiments --only rates`): {MISSING}"
    best = {variant: min(fids, key=fids.__getitem__) for variant, fids in scores.items()}
    shared = data.scale.train["learning_rate"]
    words = ", ".join(f"{LABELS[variant]} is best at {rate:g}" for variant, rate in best.items())
    if set(best.values()) == {shared}:
        return f"learning rate (one seed): both families are best at the shared {shared:g} of the rates tried"
    gap = {v: scores[v][shared] - scores[v][best[v]] for v in scores}
    at_best = scores[BASE][best[BASE]] - scores[DIT][best[DIT]]
    return (
        f"learning rate (one seed): {words}; at the shared {shared:g} GSPN-DiT gives away {gap[BASE]:.2f} "
        f"and DiT {gap[DIT]:.2f}; "
        f"each at its best, GSPN-DiT's FID minus DiT's is {at_best:+.2f}"
    )
