"""Whether a difference between two models exceeds its uncertainty, in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["better", "worse", "different", "unclear"]
MIRRORED: dict[Kind, Kind] = {"better": "worse", "worse": "better", "different": "different", "unclear": "unclear"}
WORDS: dict[Kind, str] = {
    "better": "better than {}",
    "worse": "worse than {}",
    "different": "differs from {}",
    "unclear": "no measurable difference from {}",
}
OF_TIMES: dict[Kind, str] = WORDS | {"better": "faster than {}", "worse": "slower than {}"}


@dataclass(frozen=True)
class Verdict:
    """The verdict of a metric on a model beside another one."""

    kind: Kind
    text: str


def is_time(metric: str) -> bool:
    """Whether a metric's key is that of a latency."""
    return metric.startswith(("latency_", "compiled_latency_"))


def worded(kind: Kind, metric: str, other: str) -> Verdict:
    """A verdict on a model beside `other`, in words that fit the metric."""
    return Verdict(kind, (OF_TIMES if is_time(metric) else WORDS)[kind].format(other))
