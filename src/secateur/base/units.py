"""Formatting amounts: 3.4G, 20M, 2,000 steps."""

SUFFIXES = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}


def format_count(value: float) -> str:
    """A count with three significant digits and K, M, G, T or P."""
    for suffix in ("P", "T", "G", "M", "K"):
        if value >= 0.9995 * SUFFIXES[suffix]:
            return f"{value / SUFFIXES[suffix]:#.3g}".rstrip(".") + suffix
    return f"{value:g}"


def number_of(count: int, thing: str) -> str:
    """A count with its noun: "1 block", "2,000 steps"."""
    ending = "" if count == 1 else "es" if thing.endswith("s") else "s"
    return f"{count:,} {thing}{ending}"
