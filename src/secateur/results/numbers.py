"""Numbers formatted for readers."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from ..base.units import format_count

Value = str | int | float | None


def format_value(value: Value) -> str:
    """Whole numbers below 100,000 with commas, others with K, M, G or T; floats as `format_number`; a dash for None."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return format_count(value) if abs(value) >= 100_000 else f"{value:,}"
    return format_number(value)


def format_number(value: float) -> str:
    """Four digits below 10, three above, no trailing zeros: 1.005, 0.3245, 16.8, 2,860, 1.2e-5."""
    if not math.isfinite(value):
        return "–" if math.isnan(value) else "∞" if value > 0 else "−∞"
    rounded, decimals = _rounded(value)
    if abs(rounded) >= 1e6:
        return format_count(value)
    if rounded == 0 or abs(rounded) >= 1e-4:
        text = f"{rounded:,.{decimals}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    mantissa, exponent = f"{rounded:.3e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def format_series(values: Sequence[float]) -> list[str]:
    """Numbers beside each other, as `format_number`; a zero at the end stays if another has a digit in that place."""
    texts = [format_number(value) for value in values]
    plain = {text for text in texts if re.fullmatch(r"-?[\d,.]+", text)}
    most = max((len(text.partition(".")[2]) for text in plain), default=0)

    def padded(value: float, text: str) -> str:
        if text not in plain:
            return text
        rounded, decimals = _rounded(value)
        return f"{rounded:,.{min(most, decimals)}f}"

    return [padded(value, text) for value, text in zip(values, texts, strict=True)]


def _rounded(value: float) -> tuple[float, int]:
    """The value to four digits below 10, three above, and how many of them are decimals."""
    digits = 4 if abs(value) < 10 else 3
    rounded = float(f"{value:.{digits}g}")
    return rounded, max(0, digits - 1 - math.floor(math.log10(abs(rounded)))) if rounded else 0


def format_measured(value: float, std: float | None) -> str:
    """A value with its standard deviation, to two digits of the latter: 41.20 ± 0.23, 6 ± 1."""
    if std is None or not math.isfinite(std):
        return format_number(value)
    if std == 0:
        return f"{format_number(value)} ± 0"
    spread = float(f"{std:.2g}")
    decimals = max(0, 1 - math.floor(math.log10(spread)))
    if decimals > 6:
        return f"{format_number(value)} ± {format_number(spread)}"
    both = [f"{number:,.{decimals}f}" for number in (value, spread)]
    if decimals and all(text.endswith("0") for text in both):
        both = [text[:-1].rstrip(".") for text in both]
    return " ± ".join(both)


def format_change(before: float, after: float) -> str:
    """Two amounts of one unit with as many decimals each, three digits of the smaller: 13.90 → 8.95."""
    smaller = min(abs(before), abs(after))
    if not (math.isfinite(before) and math.isfinite(after)) or smaller == 0:
        return f"{format_number(before)} → {format_number(after)}"
    decimals = min(max(0, 2 - math.floor(math.log10(smaller))), 6)
    return f"{before:,.{decimals}f} → {after:,.{decimals}f}"


def format_seconds(seconds: float) -> str:
    """A duration: 0.03 s, 8.1 s, 4.5 min, 40.1 h."""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1g} s" if seconds < 1 else f"{seconds:.1f} s"


def percent(part: float, whole: float) -> str:
    """A share with one decimal, without a trailing zero."""
    return f"{100 * part / whole:.1f}".removesuffix(".0") + "%" if whole else "–"
