"""What an evaluation measured: sizes, speed and quality of models side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from .display import Displayed
from .evaluation_sentences import quality_sentences, speed_sentences
from .evaluation_tables import comparison_table, evaluation_table
from .numbers import format_measured
from .table import Table
from .verdicts import MIRRORED, Kind, Verdict, worded

MODEL_ORDER = ("dense", "pruned", "compensated", "recovered")
Better = Literal["lower", "higher"]


@dataclass(frozen=True)
class Metric:
    """How people should read a number.

    Attributes:
        label: its name for people.
        better: which direction is good; None where neither is.
        against: what it is measured against: the data, the reference model, or nothing.
        unit: such as dB or ms.
    """

    label: str
    better: Better | None = None
    against: Literal["data", "reference"] | None = None
    unit: str | None = None


@dataclass(frozen=True)
class Estimate:
    """A measured value, with its standard deviation and the ends of its 95 % interval where these are known."""

    value: float
    std: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Both ends of the 95 % interval."""
        return None if self.low is None or self.high is None else (self.low, self.high)

    def __str__(self) -> str:
        return format_measured(self.value, self.std)


@dataclass(frozen=True)
class Latency:
    """Wall-clock time of one call, in milliseconds: median and quartiles over `rounds`.

    `times_ms` holds every round; round k of two models that were timed together is one moment.
    """

    median_ms: float
    lower_ms: float
    upper_ms: float
    rounds: int = 0
    times_ms: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.lower_ms <= self.median_ms <= self.upper_ms:
            raise ValueError("a latency has a median between its quartiles, all above 0")

    def throughput(self, batch: int) -> float:
        """Samples per second of calls at that batch size."""
        return 1000 * batch / self.median_ms


@dataclass(frozen=True)
class Layer:
    """One module, without the modules inside it.

    Attributes:
        name: in the model.
        kind: class of the module.
        weight: shape, outputs first; empty without one.
        parameters: of its own.
        macs: of one call; products of attention stand at the attention module.
    """

    name: str
    kind: str
    weight: tuple[int, ...]
    parameters: int
    macs: int


@dataclass(frozen=True)
class Losses:
    """Loss on the data by timestep; None where it is not finite."""

    timesteps: tuple[float, ...]
    losses: tuple[float | None, ...]

    def __post_init__(self) -> None:
        if len(self.timesteps) != len(self.losses):
            raise ValueError("there are as many losses as timesteps")


@dataclass(frozen=True)
class Fidelity:
    """What a Fréchet distance rests on.

    Attributes:
        metric: FID, or FD[feature network].
        samples: of the model.
        reference_samples: images of the data; None where a file of statistics does not say.
        dims: features of an image.
        full_rank: False where there are fewer images than features, which biases the value strongly.
    """

    metric: str
    samples: int
    reference_samples: int | None
    dims: int
    full_rank: bool


@dataclass(frozen=True)
class ClassScores:
    """Scores of one class; None with too few images of it.

    Attributes:
        label, name: of the class.
        samples, real: how many images of the model and of the data.
        precision, recall, density, coverage: of the class's images among themselves.
        diversity: 1 is as varied as the data, 0 one image over and over.
    """

    label: int
    name: str
    samples: int
    real: int
    precision: float | None = None
    recall: float | None = None
    density: float | None = None
    coverage: float | None = None
    diversity: float | None = None


@dataclass(frozen=True)
class PerClass:
    """Scores of every class of the data; `neighbours` are those of density and coverage."""

    neighbours: int
    classes: tuple[ClassScores, ...]


@dataclass(frozen=True)
class ModelResult:
    """What was measured of one model; mappings of costs are keyed by batch size.

    Attributes:
        parameters: shared ones once.
        macs: of one call on one sample.
        weights_bytes: of the weights as saved.
        dtype: of the timed calls.
        peak_activation_bytes: most bytes alive at once during a call, beyond weights and inputs.
        latency, compiled_latency: of one call.
        estimates: every metric with an uncertainty by its key; what was not measured, or is not finite, is absent.
        denoising_loss: by timestep; reconstruction error of a decoder.
        fidelity: what `fd` among the estimates rests on.
        per_class: quality of every class.
        layers: cost of every layer.
        removed_blocks: since the reference, by its names.
        notes: what a reader should know.
    """

    parameters: int
    macs: int
    weights_bytes: int
    dtype: str = "float32"
    peak_activation_bytes: Mapping[str, int] = field(default_factory=dict)
    latency: Mapping[str, Latency] = field(default_factory=dict)
    compiled_latency: Mapping[str, Latency] = field(default_factory=dict)
    estimates: Mapping[str, Estimate] = field(default_factory=dict)
    denoising_loss: Losses | None = None
    fidelity: Fidelity | None = None
    per_class: PerClass | None = None
    layers: tuple[Layer, ...] = ()
    removed_blocks: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __getitem__(self, metric: str) -> Estimate:
        """The estimate of a metric.

        Raises:
            KeyError: it was not measured; names those that were.
        """
        if metric not in self.estimates:
            raise KeyError(f"{metric} was not measured; there are {', '.join(self.estimates) or 'no metrics'}")
        return self.estimates[metric]

    def value(self, metric: str) -> float | None:
        """The value of a metric; None where it was not measured."""
        return self.estimates[metric].value if metric in self.estimates else None

    @property
    def throughput(self) -> dict[str, float]:
        """Samples per second of one call, by batch size."""
        return {batch: found.throughput(int(batch)) for batch, found in self.latency.items()}

    @property
    def compiled_throughput(self) -> dict[str, float]:
        return {batch: found.throughput(int(batch)) for batch, found in self.compiled_latency.items()}


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
            raise ValueError(f"the reference {self.reference!r} is none of the models")
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
