"""Targets that a user understands: "macs=56%", "3.4G", "params=20M", "latency=20ms", "blocks=6", "ssim=0.95"."""

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal, get_args

from ..base.errors import TargetError
from ..base.units import SUFFIXES, format_count

Metric = Literal["macs", "params", "latency", "blocks", "ssim", "loss"]
QUALITIES = ("ssim", "loss")  # quality that the pruned model must keep; these do not fix its size
_METRICS = get_args(Metric)
_HELP = "write for example macs=56%, macs=3.4G, params=20M, latency=20ms, blocks=6, ssim=0.95 or loss=5%"


@dataclass(frozen=True)
class Target:
    """A metric, and a fraction of the dense value or an amount (MACs, parameters, ms, blocks).

    Or a quality, given as a fraction: the SSIM to the dense model's samples, or how much the loss may rise.
    """

    metric: Metric
    value: float
    is_fraction: bool

    @property
    def is_quality(self) -> bool:
        """Whether it is reached by searching for the size, not by cutting to a given one."""
        return self.metric in QUALITIES

    def amount(self, dense: float) -> float:
        """The amount asked for, given the dense model's."""
        return self.value * dense if self.is_fraction else self.value

    def __str__(self) -> str:
        """The shortest text that `parse_target` reads as exactly this target; it is used in names, so nothing is
        rounded."""
        exact = Decimal(repr(self.value))
        if self.metric == "ssim":
            return f"ssim={_digits(exact)}"
        if self.is_fraction:
            return f"{self.metric}={_digits(100 * exact)}%"
        if self.metric == "latency":
            return f"latency={_digits(exact)}ms"
        if self.metric == "blocks":
            return f"blocks={_digits(exact)}"
        # Without a suffix, 1 and less would be read as fractions.
        suffix = "K" if exact <= 1 else [name for name, unit in SUFFIXES.items() if unit <= exact][-1]
        return f"{self.metric}={_digits(exact / SUFFIXES[suffix])}{suffix}"


def parse_target(text: str) -> Target:
    """Parse "METRIC=AMOUNT" or "AMOUNT" (MACs, or latency when the unit is ms or s).

    Raises:
        TargetError: the text is not a target, or asks for nothing or more than everything.
    """
    name, equals, amount = text.strip().partition("=")
    if not equals:
        name, amount = "", name
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(%|[KMGTP]|ms|s|)\s*", amount, re.IGNORECASE)
    if match is None or (name and name.strip() not in _METRICS):
        raise TargetError(f"cannot read the target {text!r}; {_HELP}")
    number, unit = Decimal(match[1]), match[2]
    is_time = unit.lower() in ("ms", "s")
    if name.strip() == "latency" and not unit:
        raise TargetError(f"the target {text!r} has no unit; write latency={amount.strip()}ms, or a share in %")
    metric: Metric = name.strip() or ("latency" if is_time else "macs")  # type: ignore[assignment]
    if unit == "%" or (not unit and 0 < number < 1) or (not unit and number == 1 and metric != "blocks"):
        value = float(number / 100 if unit == "%" else number)
        if not 0 < value <= 1:
            raise TargetError(f"the target {text!r} must be above 0 and at most 100%")
        if value == 1 and metric not in QUALITIES:
            raise TargetError(f"the target {text!r} is the whole model, of which nothing would be cut; ask for less")
        return Target(metric, value, True)
    if metric in QUALITIES:
        raise TargetError(f"the target {text!r} must be above 0 and at most 1; {_HELP}")
    if is_time != (metric == "latency") or (metric == "blocks" and unit):
        raise TargetError(f"the target {text!r} has the wrong unit; {_HELP}")
    if metric == "blocks" and number % 1:
        raise TargetError(f"the target {text!r} is no whole number of blocks; {_HELP}")
    value = float(number * ({"ms": 1, "s": 1000}[unit.lower()] if is_time else SUFFIXES[unit.upper()]))
    if value <= 0:
        raise TargetError(f"the target {text!r} must be above 0")
    return Target(metric, value, False)


def _digits(value: Decimal) -> str:
    """All digits, without trailing zeros and exponents."""
    return f"{value.normalize():f}"


def format_amount(metric: Metric, value: float) -> str:
    """`value` with the unit that `metric` is read in."""
    if metric == "latency":
        return f"{value:.3g}ms"
    if metric == "blocks":
        return f"{value:g}"
    return format_count(value)
