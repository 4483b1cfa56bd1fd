"""Whether a difference between two models exceeds its uncertainty, in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..results.evaluation import Evaluation

Kind = Literal["better", "worse", "different", "unclear"]
MIRRORED: dict[Kind, Kind] = {"better": "worse", "worse": "better", "different": "different", "unclear": "unclear"}
WORDS: dict[Kind, str] = {
    "better": "better than {}",
    "worse": "worse than {}",
    "different": "not as {}",
    "unclear": "not told apart from {}",
}
OF_TIMES: dict[Kind, str] = WORDS | {"better": "faster than {}", "worse": "slower than {}"}


@dataclass(frozen=True)
class Verdict:
    """What a metric says of a model beside another one."""

    kind: Kind
    text: str


def verdict_of(evaluation: Evaluation, metric: str, model: str, other: str) -> Kind | None:
    """What `metric` says of `model` beside `other`; None where the two were not compared."""
    for found in evaluation.comparisons:
        if found["metric"] == metric and {found["a"], found["b"]} == {model, other}:
            kind: Kind = found["verdict"]
            return kind if found["b"] == model else MIRRORED[kind]
    return None


def verdicts(evaluation: Evaluation, metric: str, model: str) -> tuple[Verdict, ...]:
    """What `metric` says of `model` beside the reference, and beside the model before it."""
    names = [found.name for found in evaluation.models]
    place = names.index(model)
    others = dict.fromkeys([names[0], names[place - 1]]) if place else {}
    words = OF_TIMES if metric.startswith(("latency_", "compiled_latency_")) else WORDS
    kinds = {other: verdict_of(evaluation, metric, model, other) for other in others}
    return tuple(Verdict(kind, words[kind].format(other)) for other, kind in kinds.items() if kind)
