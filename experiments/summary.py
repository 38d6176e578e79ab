"""Means, spreads, and whether two settings differ: the rules by which the report answers."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Values:
    """What the seeds of one setting gave."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def half_range(self) -> float:
        return (max(self.values) - min(self.values)) / 2

    @property
    def deviation(self) -> float:
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """The lower and the upper quartile, each one of the values."""
    ordered = sorted(values)
    quarter = len(ordered) // 4
    return ordered[quarter], ordered[-1 - quarter]


def differ(a: Values, b: Values, seeds: int = 3) -> bool | None:
    """Whether two settings differ: their ranges are apart, and their means by over two pooled deviations.

    None with fewer than `seeds` values of either: then nothing is claimed. (Two pooled deviations of three values each
    are t = 2.45 with four degrees of freedom: 7 % of equal settings pass that alone.)
    """
    if min(len(a.values), len(b.values)) < seeds:
        return None
    apart = max(a.values) < min(b.values) or max(b.values) < min(a.values)
    pooled = ((a.deviation**2 + b.deviation**2) / 2) ** 0.5
    return apart and abs(a.mean - b.mean) > 2 * pooled


@dataclass(frozen=True)
class Setting:
    """The results of one variant, one for each seed that is there."""

    variant: str
    results: tuple[dict[str, Any], ...]

    @property
    def diverged(self) -> int:
        return sum(result["diverged"] is not None for result in self.results)

    def get(self, key: str) -> Values | None:
        """A score over the seeds that have it, e.g. "fid" or "probe.digits.linear"; None where none has."""
        values = [value for result in self.results if (value := lookup(result, key)) is not None]
        return Values(tuple(values)) if values else None

    def one(self, key: str) -> Any:
        """Something that is the same for all seeds."""
        return next((value for result in self.results if (value := lookup(result, key)) is not None), None)


def lookup(result: dict[str, Any], key: str) -> Any:
    """The value under a dotted key, None where it is missing."""
    value: Any = result
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def load_json(path: Path) -> Any:
    """A result, None where it is not there."""
    return json.loads(path.read_text()) if path.exists() else None


def load_settings(folder: Path, keys: dict[str, str]) -> dict[str, Setting]:
    """Settings by variant from the runs in a folder; `keys` names the run files wanted and their settings' hash.

    A run of another plan, whose hash is another, does not count.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for name, key in keys.items():
        result = load_json(folder / "runs" / f"{name}.json")
        if result and result["key"] == key:
            found.setdefault(result["variant"], []).append(result)
    return {variant: Setting(variant, tuple(results)) for variant, results in found.items()}


@dataclass(frozen=True)
class Comparison:
    """Two settings by one score."""

    found: bool | None
    """Whether they differ; None when there are too few seeds."""
    gain: float
    """Mean of the second minus mean of the first."""


def compare(first: Setting | None, second: Setting | None, key: str = "fid") -> Comparison | None:
    """How `second` differs from `first`; None when either has no such score."""
    a, b = (setting.get(key) if setting else None for setting in (first, second))
    if a is None or b is None:
        return None
    return Comparison(differ(a, b), b.mean - a.mean)


def sentence(
    first: str,
    second: str,
    comparison: Comparison | None,
    score: str = "FID",
    lower: str = "lower",
    higher: str = "higher",
    digits: int = 2,
) -> str:
    """The comparison in words, from the point of view of `second`."""
    if comparison is None:
        return f"{second} against {first}: not measured"
    if comparison.found is None:
        return f"{second} against {first}: too few seeds to tell"
    if not comparison.found:
        return f"{second} against {first}: no difference in {score} beyond the spread between seeds"
    word = higher if comparison.gain > 0 else lower
    return f"{second} has a {word} {score} than {first} by {abs(comparison.gain):.{digits}f}"
