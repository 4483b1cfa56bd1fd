"""What an evaluation measured: sizes, speed and quality of models side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from .display import Displayed
from .evaluation_sentences import quality_sentences, speed_sentences
from .evaluation_tables import comparison_table, evaluation_table
from .measured import Estimate, Fidelity, Metric, ModelResult
from .table import Table
from .verdicts import MIRRORED, Kind, Verdict, worded

MODEL_ORDER = ("dense", "pruned", "compensated", "recovered")


@dataclass(frozen=True)
class Comparison:
    """What a metric says of model `b` beside model `a`.

    `difference` is b - a on the same samples, with its standard deviation and 95 % interval; it is `unclear` where that
    holds 0.
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
        """What stays of it: after / before."""
        return self.after / self.before


@dataclass(frozen=True)
class DataInfo:
    """The data that was measured on: its name, how many images it has, their shape, and the names of its classes."""

    name: str
    images: int
    shape: tuple[int, ...]
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Environment:
    """Where it was measured."""

    device: str
    threads: int
    torch: str


@dataclass(frozen=True)
class Evaluation(Displayed):
    """Models side by side, and what the numbers rest on.

    Attributes:
        reference: the name of the model that the others are compared with, which is the first.
        models: by name, in the order of the work.
        metrics: what the keys of the models' estimates mean.
        comparisons: every pair of models, for every metric that both have.
        data, environment: what and where it was measured.
        config: how.
        notes: what a reader should know.
        captions: the prompts of the samples that are kept to look at.
        reconstructions: whether images are reconstructions of the data's by decoders, not samples.
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
        return self.names[-1]

    @property
    def final(self) -> ModelResult:
        """The last model: what the work came to."""
        return self.models[self.final_name]

    @property
    def compares(self) -> bool:
        """Whether there is more than the reference."""
        return len(self.models) > 1

    def __getitem__(self, metric: str) -> Estimate:
        """The estimate of a metric of the final model.

        Raises:
            KeyError: it was not measured; names those that were.
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
        """Whether latencies differ by more than noise: by their interval, or where none is known by their quartiles."""
        verdict = self.verdict(f"latency_{batch}", self.final_name, self.reference)
        one, other = self.dense.latency[batch], self.final.latency[batch]
        apart = one.lower_ms > other.upper_ms or other.lower_ms > one.upper_ms
        return apart if verdict is None else verdict != "unclear"

    def verdict(self, metric: str, model: str, other: str) -> Kind | None:
        """What a metric says of `model` beside `other`; None where the two were not compared."""
        for found in self.comparisons:
            if found.metric == metric and {found.a, found.b} == {model, other}:
                return found.verdict if found.b == model else MIRRORED[found.verdict]
        return None

    def verdicts(self, metric: str, model: str) -> tuple[Verdict, ...]:
        """What a metric says of `model` beside the reference, and beside the model before it."""
        place = self.names.index(model)
        others = dict.fromkeys([self.reference, self.names[place - 1]]) if place else {}
        kinds = {other: self.verdict(metric, model, other) for other in others}
        return tuple(worded(kind, metric, other) for other, kind in kinds.items() if kind)

    @property
    def fidelity(self) -> Fidelity | None:
        """What the Fréchet distances rest on."""
        return next((model.fidelity for model in self.models.values() if model.fidelity is not None), None)

    @property
    def loss(self) -> str:
        """What the loss at a timestep is called."""
        return "reconstruction error" if self.reconstructions else "denoising loss"

    @property
    def start(self) -> str:
        """What is the same for all models in images that are compared one by one."""
        return "latents" if self.reconstructions else "noise"

    @property
    def device(self) -> str:
        """Where it was measured, for people."""
        found = self.environment
        if found is None:
            return ""
        threads = f", {found.threads} thread{'s' * (found.threads != 1)}" if found.device == "cpu" else ""
        return f"{found.device}{threads}"

    def all_notes(self) -> tuple[str, ...]:
        """Notes on the evaluation, then on each model by its name."""
        of_models = [f"{name}: {note}" for name, model in self.models.items() for note in model.notes]
        biased = [
            f"{name}: {model.fidelity.metric} rests on fewer images than its {model.fidelity.dims} features, which "
            "biases it strongly"
            for name, model in self.models.items()
            if model.fidelity is not None and not model.fidelity.full_rank
        ]
        return (*self.notes, *of_models, *biased)

    def sentences(self) -> tuple[str, ...]:
        """How fast the final model is beside the reference, and how good every model is."""
        return (*speed_sentences(self), *quality_sentences(self))

    def tables(self) -> dict[str, Table]:
        """Every quantity by model, and every difference."""
        found = {"evaluation": evaluation_table(self)}
        return found | ({"comparisons": comparison_table(self)} if self.comparisons else {})

    def __str__(self) -> str:
        return evaluation_table(self).to_text()
