"""The result of an evaluation: sizes, speed and quality of models side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from ..base.precisions import PrecisionName
from ..base.units import number_of
from .display import Displayed
from .evaluation_sentences import quality_sentences, speed_sentences
from .evaluation_tables import comparison_table, evaluation_table
from .measured import Estimate, Fidelity, Metric, ModelResult
from .table import Table
from .verdicts import MIRRORED, Kind, Verdict, worded

MODEL_ORDER = ("dense", "pruned", "compensated", "recovered")


@dataclass(frozen=True)
class Comparison:
    """The difference of a metric between models `a` and `b`.

    `difference` is b - a on the same samples, with its standard deviation and 95 % interval; it is `unclear` if the
    interval contains 0.
    """

    metric: str
    a: str
    b: str
    difference: float
    std: float
    low: float
    high: float
    verdict: Kind


@dataclass(frozen=True)
class Change:
    """An amount of the reference and of the final model."""

    before: float
    after: float

    @property
    def ratio(self) -> float:
        """after / before."""
        return self.after / self.before


@dataclass(frozen=True)
class DataInfo:
    """The data of the evaluation: its name, number of images, their shape, and the names of its classes."""

    name: str
    images: int
    shape: tuple[int, ...]
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Environment:
    """The machine and libraries of the evaluation."""

    device: str
    threads: int
    torch: str


@dataclass(frozen=True)
class Evaluation(Displayed):
    """Models side by side, and how they were measured.

    Attributes:
        reference: name of the model that the others are compared with: the first.
        models: by name, in the order of the stages that made them.
        metrics: descriptions of the keys of the models' estimates.
        comparisons: every pair of models, for every metric that both have.
        data, environment: the data, and the machine.
        config: the settings.
        notes: remarks for readers.
        captions: prompts of the samples that are kept.
        reconstructions: whether the images are reconstructions of the data by decoders, instead of samples.
    """

    reference: str
    models: Mapping[str, ModelResult]
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    comparisons: tuple[Comparison, ...] = ()
    data: DataInfo | None = None
    environment: Environment | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()
    reconstructions: bool = False
    format: Literal[1] = 1

    def __post_init__(self) -> None:
        if self.reference not in self.models:
            raise ValueError(f"the reference {self.reference!r} is not among the models")
        unknown = {key for model in self.models.values() for key in model.estimates} - self.metrics.keys()
        if unknown:
            raise ValueError(f"the metric {min(unknown)!r} is not described")
        for found in self.comparisons:
            for name in (found.a, found.b):
                if name not in self.models or found.metric not in self.models[name].estimates:
                    raise ValueError(f"{found.metric!r} of {name!r} is compared, and was not measured")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.models)

    @property
    def dense(self) -> ModelResult:
        """The reference."""
        return self.models[self.reference]

    @property
    def final_name(self) -> str:
        """The last model beside the reference that is no copy of another in some precision; or the last copy of the
        reference."""
        others = [name for name in self.names if name != self.reference and name not in get_args(PrecisionName)]
        return others[-1] if others else self.names[-1]

    @property
    def final(self) -> ModelResult:
        """The final result."""
        return self.models[self.final_name]

    @property
    def compares(self) -> bool:
        """Whether there are models beside the reference."""
        return len(self.models) > 1

    def __getitem__(self, metric: str) -> Estimate:
        """The estimate of a metric of the final model.

        Raises:
            KeyError: it was not measured; the message names those that were.
        """
        return self.final[metric]

    @property
    def macs(self) -> Change:
        """MACs of one call on one sample."""
        return Change(self.dense.macs, self.final.macs)

    @property
    def parameters(self) -> Change:
        return Change(self.dense.parameters, self.final.parameters)

    @property
    def weights_bytes(self) -> Change:
        return Change(self.dense.weights_bytes, self.final.weights_bytes)

    @property
    def latency(self) -> dict[str, Change]:
        """Median milliseconds of one call, by batch size."""
        shared = [batch for batch in self.dense.latency if batch in self.final.latency]
        return {
            batch: Change(self.dense.latency[batch].median_ms, self.final.latency[batch].median_ms) for batch in shared
        }

    def clear_time(self, batch: str) -> bool:
        """Whether latencies differ by more than noise: by their interval, or without one by their quartiles."""
        verdict = self.verdict(f"latency_{batch}", self.final_name, self.reference)
        one, other = self.dense.latency[batch], self.final.latency[batch]
        apart = one.lower_ms > other.upper_ms or other.lower_ms > one.upper_ms
        return apart if verdict is None else verdict != "unclear"

    def verdict(self, metric: str, model: str, other: str) -> Kind | None:
        """The verdict of a metric on `model` beside `other`; None if the two were not compared."""
        for found in self.comparisons:
            if found.metric == metric and {found.a, found.b} == {model, other}:
                return found.verdict if found.b == model else MIRRORED[found.verdict]
        return None

    def verdicts(self, metric: str, model: str) -> tuple[Verdict, ...]:
        """The verdicts of a metric on `model` beside the reference, and beside the model before it."""
        place = self.names.index(model)
        others = dict.fromkeys([self.reference, self.names[place - 1]]) if place else {}
        kinds = {other: self.verdict(metric, model, other) for other in others}
        return tuple(worded(kind, metric, other) for other, kind in kinds.items() if kind)

    @property
    def fidelity(self) -> Fidelity | None:
        """How the Fréchet distances were measured."""
        return next((model.fidelity for model in self.models.values() if model.fidelity is not None), None)

    @property
    def loss(self) -> str:
        """The name of the loss by timestep."""
        return "reconstruction error" if self.reconstructions else "denoising loss"

    @property
    def start(self) -> str:
        """What compared images of different models have in common: noise, or latents."""
        return "latents" if self.reconstructions else "noise"

    @property
    def device(self) -> str:
        """The device of the evaluation, in words."""
        found = self.environment
        if found is None:
            return ""
        threads = f", {number_of(found.threads, 'thread')}" if found.device == "cpu" else ""
        return f"{found.device}{threads}"

    def all_notes(self) -> tuple[str, ...]:
        """Notes on the evaluation, then those on models, each once with their names."""
        of_models: dict[str, list[str]] = {}
        for name, model in self.models.items():
            for note in (*model.notes, *_bias(model.fidelity)):
                of_models.setdefault(note, []).append(name)
        return (*self.notes, *(f"{', '.join(names)}: {note}" for note, names in of_models.items()))

    def sentences(self) -> tuple[str, ...]:
        """The final model's speed beside the reference, and every model's quality."""
        return (*speed_sentences(self), *quality_sentences(self))

    def tables(self) -> dict[str, Table]:
        """Every quantity by model, and every difference."""
        found = {"evaluation": evaluation_table(self)}
        return found | ({"comparisons": comparison_table(self)} if self.comparisons else {})

    def __str__(self) -> str:
        return evaluation_table(self).to_text()


def _bias(fidelity: Fidelity | None) -> tuple[str, ...]:
    """A note on a Fréchet distance that too few images bias."""
    if fidelity is None or fidelity.full_rank:
        return ()
    few = f"{fidelity.metric} rests on fewer images than its {fidelity.dims} features, which biases it strongly"
    return (few,)
