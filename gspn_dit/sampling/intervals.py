"""Published intervals of classifier-free guidance, by name. Imports nothing heavy."""

from dataclasses import dataclass

from gspn_dit.errors import UserError
from gspn_dit.schema import suggestion


@dataclass(frozen=True)
class Interval:
    """Where a published result was guided."""

    low: float
    high: float
    """Noise over signal, from `low` (not included) to `high`, for data of unit standard deviation."""
    source: str
    """The network, its scale, what it gave, and where that is written."""


PAPER = "arXiv 2404.07724, table 1, ImageNet 512 px"
INTERVALS = {
    "dit-xl2": Interval(0.34, 1.02, f"DiT-XL/2, scale 2.5: FID 2.40 for 3.04 ({PAPER})"),
    # EDM2's data have a standard deviation of 0.5: of its sigma, (0.28, 2.90] and (0.19, 1.61], the double.
    "edm2-s": Interval(0.56, 5.80, f"EDM2-S, scale 2.1: FID 1.68 for 2.23 ({PAPER})"),
    "edm2-xxl": Interval(0.38, 3.22, f"EDM2-XXL, scale 2.0: FID 1.40 for 1.81 ({PAPER})"),
    # t from 0 to 0.7 on the linear path: noise over signal is t / (1 - t).
    "repa": Interval(
        0.0, 7 / 3, "SiT-XL/2 with REPA, scale 1.8: FID 1.42 (arXiv 2410.06940, ImageNet 256 px)"
    ),
}


def parse_interval(text: str | None) -> tuple[float, float] | str | None:
    """The interval that an option gives, as two numbers LOW,HIGH or the name of a published one."""
    if text is None or text in INTERVALS:
        return text
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        known = suggestion(text, INTERVALS)
        raise UserError(
            f"--cfg-interval {text}: expected two numbers, LOW,HIGH, or a name; {known}"
        ) from None
    return low, high


def help_text() -> str:
    """A line for each name."""
    width = max(map(len, INTERVALS))
    return "\n".join(
        f"  {name:{width}}  noise / signal {interval.low:.2f} to {interval.high:.2f}: {interval.source}"
        for name, interval in INTERVALS.items()
    )
