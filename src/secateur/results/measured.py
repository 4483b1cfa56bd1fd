"""Measurements of one model: costs, estimates with their uncertainty, and how they were measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from .numbers import format_measured

Better = Literal["lower", "higher"]


@dataclass(frozen=True)
class Metric:
    """How to read the values of a metric.

    Attributes:
        label: its name in reports.
        better: which direction is good; None if neither is.
        against: what it is measured against: the data, the reference model, or nothing.
        unit: such as dB or ms.
    """

    label: str
    better: Better | None = None
    against: Literal["data", "reference"] | None = None
    unit: str | None = None


@dataclass(frozen=True)
class Estimate:
    """A measured value, with its standard deviation and the ends of its 95 % interval if known."""

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

    `times_ms` holds every round; two models that were timed together took round k at the same moment.
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
        name: its name in the model.
        kind: class of the module.
        weight: shape of its weight, outputs first; empty without one.
        parameters: number of its own parameters.
        macs: MACs of one call; attention products count for the attention module.
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
    """How a Fréchet distance was measured.

    Attributes:
        metric: FID, or FD[feature network].
        samples: number of samples of the model.
        reference_samples: number of images of the data; None if a file of statistics does not say.
        dims: number of features of an image.
        full_rank: False with fewer images than features, which biases the value strongly.
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
        precision, recall, density, coverage: among the images of the class.
        diversity: 1 means as varied as the data, 0 one image repeated.
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
    """Scores of every class of the data; density and coverage use `neighbours` neighbours."""

    neighbours: int
    classes: tuple[ClassScores, ...]


@dataclass(frozen=True)
class ModelResult:
    """Measurements of one model; mappings of costs are keyed by batch size.

    Attributes:
        parameters: shared ones are counted once.
        macs: MACs of one call on one sample.
        weights_bytes: size of the saved weights.
        dtype: dtype of the timed calls.
        peak_activation_bytes: most bytes alive at once during a call, beyond weights and inputs.
        latency, compiled_latency: time of one call.
        estimates: every metric with an uncertainty by its key; what was not measured, or is not finite, is absent.
        denoising_loss: by timestep; reconstruction error of a decoder.
        fidelity: how `fd` among the estimates was measured.
        per_class: quality of every class.
        layers: cost of every layer.
        removed_blocks: blocks removed since the reference, by its names.
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
