"""Names of layers that differ only in their numbers, as one: transformer_blocks.*.attn."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

_DOTTED = re.compile(r"\b[A-Za-z_]\w*(?:\.\w+)+")


def starred(text: str) -> str:
    """`text`, with stars for the numbers in names of layers."""
    return _DOTTED.sub(lambda name: re.sub(r"\.\d+\b", ".*", name[0]), text)


def counted(names: Iterable[str]) -> tuple[str, ...]:
    """Each name with stars, and how many of `names` it stands for: ("blocks.*.attn (3)", "proj_in")."""
    counts = Counter(map(starred, names))
    return tuple(name if count == 1 and "*" not in name else f"{name} ({count})" for name, count in counts.items())


def grouped(reasons: Mapping[str, str]) -> tuple[tuple[tuple[str, ...], str], ...]:
    """Names and why they are left out, those with the same reason together; of numbers in it, those of the first."""
    names: dict[str, list[str]] = {}
    first: dict[str, str] = {}
    for name, reason in reasons.items():
        key = re.sub(r"\b\d+\b", "#", starred(reason))
        names.setdefault(key, []).append(name)
        first.setdefault(key, starred(reason))
    return tuple((counted(alike), first[key]) for key, alike in names.items())
