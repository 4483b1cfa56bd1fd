"""Targets that a user understands: "macs=56%", "3.4G", "params=20M", "latency=20ms", "blocks=6"."""

import re
from dataclasses import dataclass
from typing import Literal, get_args

from ..errors import TargetError

Metric = Literal["macs", "params", "latency", "blocks"]
_METRICS = get_args(Metric)
_SUFFIXES = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_HELP = "write for example macs=56%, macs=3.4G, params=20M, latency=20ms or blocks=6"


@dataclass(frozen=True)
class Target:
    """What is asked: a metric, and a fraction of the dense value or an amount (MACs, parameters, ms, blocks)."""

    metric: Metric
    value: float
    is_fraction: bool

    def amount(self, dense: float) -> float:
        """The amount asked for, when the dense model has `dense`."""
        return self.value * dense if self.is_fraction else self.value

    def __str__(self) -> str:
        if self.is_fraction:
            return f"{self.metric}={100 * self.value:g}%"
        return f"{self.metric}={format_amount(self.metric, self.value)}"


def parse_target(text: str) -> Target:
    """Parse "METRIC=AMOUNT" or "AMOUNT" (MACs, or latency when the unit is ms or s).

    Raises:
        TargetError: the text is not a target, or asks for nothing or more than everything.
    """
    name, equals, amount = text.strip().partition("=")
    if not equals:
        name, amount = "", name
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(%|[KMGT]|ms|s|)\s*", amount, re.IGNORECASE)
    if match is None or (name and name.strip() not in _METRICS):
        raise TargetError(f"cannot read the target {text!r}; {_HELP}")
    number, unit = float(match[1]), match[2]
    is_time = unit.lower() in ("ms", "s")
    metric: Metric = name.strip() or ("latency" if is_time else "macs")  # type: ignore[assignment]
    if unit == "%" or (not unit and 0 < number < 1) or (not unit and number == 1 and metric != "blocks"):
        value = number / 100 if unit == "%" else number
        if not 0 < value <= 1:
            raise TargetError(f"the target {text!r} must be above 0 and at most 100%")
        return Target(metric, value, True)
    if is_time != (metric == "latency") or (metric == "blocks" and unit):
        raise TargetError(f"the target {text!r} has the wrong unit; {_HELP}")
    value = number * ({"ms": 1.0, "s": 1e3}[unit.lower()] if is_time else _SUFFIXES[unit.upper()])
    if value <= 0:
        raise TargetError(f"the target {text!r} must be above 0")
    return Target(metric, value, False)


def format_amount(metric: Metric, value: float) -> str:
    """`value` with the unit that `metric` is read in."""
    if metric == "latency":
        return f"{value:.3g}ms"
    if metric == "blocks":
        return f"{value:g}"
    return format_count(value)


def format_count(value: float) -> str:
    """A count with three significant digits and K, M, G or T."""
    for suffix in ("T", "G", "M", "K"):
        if value >= 0.9995 * _SUFFIXES[suffix]:
            return f"{value / _SUFFIXES[suffix]:#.3g}".rstrip(".") + suffix
    return f"{value:g}"
