"""The section of the report on time and memory: see `kernel`."""

from pathlib import Path
from typing import Any

from experiments import charts, kernel
from experiments.sections import MISSING, Data, Section, table

NAMES = {"gspn": "GSPN module", "attention": "attention", "scan": "scan alone"}


def kernel_section(data: Data, folder: Path) -> Section:
    record = data.kernel
    question = (
        "Does the time of the scan grow with the square root of the tokens, and where does it pass attention?"
    )
    if record is None:
        return Section("kernel", "Kernel against attention", question, MISSING, [MISSING], [])
    charts.draw_kernel(record, folder / "kernel.png")
    setup = (
        f"Whole mixers of size S (width {record['settings']['width']}), batch 1, {record['dtype']}, "
        f"{record['device']}, "
        f"{record['threads']} threads, torch {record['torch']}, {record['date']}; a token is 16 pixels "
        f"wide. The scan alone "
        f"has {record['settings']['scan_channels']} channels and one group. Parameters: "
        f"{record['parameters']['gspn']:,} in the GSPN module, {record['parameters']['attention']:,} in "
        "attention, none in the scan. Times are medians, with the quartiles, of up to "
        f"{record['settings']['rounds']} rounds, three at least, in which all take turns. "
        f"Memory: {record['memory']}, weights included. "
        f"No training: no seeds, no images. Attention's time beyond {record['settings']['attention_to']} pixels is "
        f"extrapolated as "
        "a N + b N² (in brackets). Attention is torch's fused one, which keeps no N x N matrix."
    )
    return Section(
        "kernel",
        "Kernel against attention",
        question,
        setup,
        kernel_answers(record),
        kernel_tables(record),
        ["kernel.png"],
    )


def kernel_tables(record: dict[str, Any]) -> list[str]:
    measures = {
        "forward, ms": ("forward", "seconds"),
        "forward and backward, ms": ("both", "seconds"),
        "memory of both, MiB": ("both", "bytes"),
    }
    tables = []
    for title, (mode, key) in measures.items():
        rows = []
        for pixels in sorted({row["pixels"] for row in record["rows"]}):
            cells = [kernel_cell(record, part, mode, key, pixels) for part in NAMES]
            rows.append([f"{pixels}", f"{(pixels // kernel.PIXELS_PER_TOKEN) ** 2:,}", *cells])
        tables.append(table(["pixels", "tokens", *(f"{name}: {title}" for name in NAMES.values())], rows))
    exponents = [
        [name, *(format_exponent(record, part, mode, key) for mode, key in measures.values())]
        for part, name in NAMES.items()
    ]
    return [
        *tables,
        "Exponents in the number of tokens, fitted over the measured sizes (in brackets: between the two largest):",
        table(["part", "forward", "forward and backward", "memory"], exponents),
    ]


def kernel_cell(record: dict[str, Any], part: str, mode: str, key: str, pixels: int) -> str:
    rows = kernel.rows_of(record, part, mode)
    row = next((row for row in rows if row["pixels"] == pixels), None)
    if row is None:
        return ""
    if key == "bytes":
        return f"{row['bytes'] / 2**20:,.1f}"
    if row["seconds"] is None:
        return f"({1e3 * kernel.extrapolated(rows, row['tokens']):,.0f})"
    median, low, high = (1e3 * row[key] for key in ("seconds", "low", "high"))
    return f"{median:,.2f} [{low:,.2f} to {high:,.2f}]"


def format_exponent(record: dict[str, Any], part: str, mode: str, key: str) -> str:
    rows = [row for row in kernel.rows_of(record, part, mode) if row[key]]
    whole, last = kernel.exponent(rows, key), kernel.exponent(rows[-2:], key)
    return MISSING if whole is None else f"{whole:.2f} ({last:.2f})"


def kernel_answers(record: dict[str, Any]) -> list[str]:
    answers = []
    for mode, words in (("both", "forward and backward"), ("forward", "forward")):
        cross = kernel.crossover_of(record, mode)
        if sum(row["seconds"] is not None for row in kernel.rows_of(record, "attention", mode)) < 2:
            where = f"the crossover is {MISSING}"
        elif cross is None:
            where = "attention is the faster at the largest size"
        elif cross == 0:
            where = "the GSPN module is faster than attention at every size"
        else:
            side = cross**0.5 * kernel.PIXELS_PER_TOKEN
            where = (
                f"the GSPN module is faster than attention from {cross:,.0f} tokens ({side:,.0f} pixels) on"
            )
        powers = {p: format_exponent(record, p, mode, "seconds") for p in ("gspn", "attention", "scan")}
        answers.append(
            f"{words}: {where}; time grows as tokens to the power {powers['gspn']} for the module, "
            f"{powers['attention']} for "
            f"attention and {powers['scan']} for the scan alone (in brackets: between the two largest sizes)"
        )
    last = kernel.exponent(kernel.rows_of(record, "scan", "both")[-2:], "seconds")
    if last is not None:
        grows = "is not seen" if last > 0.75 else "is seen"
        answers.append(
            f"Time as the square root of the tokens {grows} on this device: between the two largest sizes "
            f"the scan's grows "
            f"as tokens to the power {last:.2f}; the square root counts the steps that follow one another, "
            f"not the work"
        )
    return answers
