"""Trials: compressions of one model that differ in recipe, criterion, objective, target or seed."""

from __future__ import annotations

import re
import time
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any, get_args

from ..base.console import quiet
from ..base.errors import SecateurError, first_line, require
from ..base.files import read_json, write_text
from ..base.rules import Count, above, at_least, check_fields
from ..criteria import criterion_named
from ..data import ImageDataset
from ..evaluation import EvaluationConfig
from ..recipes import RECIPES, Recipe, ScheduleName, for_target, recipe_named, resolve, without_none
from ..recovery import RecoveryConfig, WarmupConfig
from ..reporting import write_report
from ..results import TrialResult
from ..results.trials import Status
from ..schedules import Target
from .checks import check_compression
from .compression import compress_stages, run_settings, with_labels_of
from .data import encode_data, inputs_of, name_of, open_data
from .folder import plain, run_folder
from .memory import Passes, peak_bytes
from .plan import plan_cut
from .stages import warmup_stage
from .subject import Subject
from .teaching import as_recordable
from .tidy import tidy
from .timing import Work, predict_seconds, price_of_compensation, work_of

# Left out of `all`: a demonstration with its own budget, a recipe for VAEs, and variants of others.
NOT_IN_ALL = (
    *("quickstart", "decoder", "2ndmatch-balanced", "gradient-flow-preserve", "entpruner-deviation"),
    *(name for name in RECIPES if name.endswith("-compensated")),
)
CACHE = "cache"  # samples of measured models, kept while a sweep or a search runs
ERROR = "error.txt"
RANKED = ("criterion", "scoring")  # the settings, beside model and data, that a ranking depends on


@dataclass(frozen=True)
class TrialConfig:
    """Settings of all trials, which replace their recipes' own; None keeps the recipe's.

    Attributes:
        batch_size: images per recovery step.
        learning_rate: learning rate of recovery.
        num_timesteps: calibration timesteps of the criteria that score widths.
        num_images: calibration images.
    """

    batch_size: Count | None = None
    learning_rate: Annotated[float, above(0)] | None = None
    num_timesteps: Annotated[int, at_least(0)] | None = None
    num_images: Count | None = None

    def __post_init__(self) -> None:
        check_fields("shared", self)


@dataclass(frozen=True)
class Trial:
    """One compression: the choices, and the resulting recipe."""

    recipe: str
    goal: Target
    seed: int
    settings: Recipe
    criterion: str | None = None
    objective: str | None = None

    @property
    def name(self) -> str:
        """A folder name that tells the trial apart from the others."""
        parts = (self.recipe, self.criterion, self.objective, self.goal, f"seed={self.seed}")
        words = (str(part).replace("%", "pct") for part in parts if part is not None)
        return "_".join(re.sub(r"[^\w.-]+", "-", word).strip("-") for word in words)

    @property
    def waiting(self) -> TrialResult:
        """Its entry in `trials.json` before it was run."""
        return TrialResult(
            name=self.name,
            status="waiting",
            recipe=self.recipe,
            criterion=self.settings.criterion,
            schedule=self.settings.schedule,
            objective=self.settings.recovery.objective,
            target=str(self.goal),
            steps=self.settings.recovery.steps,
            seed=self.seed,
        )


@dataclass(frozen=True)
class Bench:
    """The dense model and the data that all trials work on.

    Attributes:
        data: its name in the runs of the trials.
        warmup: how new labels are trained, if the data's classes replace the model's.
        inputs: fingerprints of the model and the data.
    """

    subject: Subject
    data: str | None
    dataset: ImageDataset
    warmup: WarmupConfig | None = None
    inputs: Mapping[str, str] = field(default_factory=dict)


def open_bench(subject: Subject, data: Any, warmup: WarmupConfig | None = None) -> Bench:
    """Open the data once for all trials; with `warmup`, give the model untrained labels of the data's classes.

    Raises:
        SecateurError: as `open_data` and `relabel`; or the data has no classes.
    """
    dataset = open_data(data, subject, warmup is not None)
    inputs = inputs_of(dataset, model=subject)
    subject = with_labels_of(dataset, subject, warmup is not None)
    return Bench(subject, name_of(data, dataset), dataset, warmup, inputs)


def prepare(bench: Bench, run: Path, shared: TrialConfig) -> Bench:
    """The bench after encoding its data and training its new labels, once for all trials, in the folder `run`."""
    dataset = encode_data(bench.dataset, bench.subject)
    if bench.warmup is None:
        return bench
    recovery = _warmup_recovery(shared)
    return replace(bench, subject=warmup_stage(run, bench.subject, dataset, bench.warmup, recovery))


def warm_up_seconds(bench: Bench, shared: TrialConfig, second: float) -> float:
    """Predicted seconds of the warm-up; `second` is that of one image (`timing.seconds_per_pair`)."""
    if bench.warmup is None:
        return 0.0
    work = Work(recovery=_warmup_recovery(shared), warmup=bench.warmup)
    return predict_seconds(bench.subject, work, second, None)["warm up"]


def _warmup_recovery(shared: TrialConfig) -> RecoveryConfig:
    return RecoveryConfig(**without_none({"batch_size": shared.batch_size}))


def recipe_names(recipes: Sequence[str]) -> list[str]:
    """The recipes asked for; "all" means every one that fits any denoiser.

    Raises:
        SecateurError: there is no recipe of a name, or no name was given.
    """
    require(len(recipes) > 0, f"no recipe was named; give all, or some of {', '.join(RECIPES)}")
    names = [name for name in RECIPES if name not in NOT_IN_ALL] if "all" in recipes else list(dict.fromkeys(recipes))
    for name in names:
        recipe_named(name)
    return names


def make_trial(
    recipe: str,
    goal: Target,
    seed: int,
    shared: TrialConfig,
    *,
    criterion: str | None = None,
    objective: str | None = None,
    steps: int | None = None,
    evaluation: EvaluationConfig | None = None,
) -> Trial:
    """The trial of `recipe` with some of its parts replaced.

    A criterion that ranks blocks only removes blocks. `seed` is for scoring and recovery; the samples of all trials use
    the evaluation's own seed, so that they can be compared.
    """
    named = resolve(recipe, criterion=criterion, objective=objective, steps=steps, evaluation=evaluation)
    chosen = for_target(named, goal)
    scoring = {"num_images": shared.num_images, "seed": seed}
    ranks_blocks = criterion_named(chosen.criterion).ranks == "blocks"
    if not ranks_blocks:
        scoring["num_timesteps"] = shared.num_timesteps
    recovery = {"batch_size": shared.batch_size, "learning_rate": shared.learning_rate, "seed": seed}
    settings = replace(
        chosen,
        scoring=replace(chosen.scoring, **without_none(scoring)),
        cut=replace(chosen.cut, granularity="depth") if ranks_blocks else chosen.cut,
        recovery=replace(chosen.recovery, **without_none(recovery)),
    )
    return Trial(recipe, goal, seed, settings, criterion, objective)


def all_trials(
    recipes: Sequence[str],
    criteria: Sequence[str],
    objectives: Sequence[str],
    goals: Sequence[Target],
    seeds: Sequence[int],
    shared: TrialConfig,
    steps: int | None,
    evaluation: EvaluationConfig,
) -> list[Trial]:
    """Every combination; of several with equal settings, only the first."""
    trials: dict[str, Trial] = {}
    for goal, recipe, criterion, objective, seed in product(
        goals, recipes, criteria or (None,), objectives or (None,), seeds
    ):
        trial = make_trial(
            recipe, goal, seed, shared, criterion=criterion, objective=objective, steps=steps, evaluation=evaluation
        )
        trials.setdefault(repr((trial.goal, _effective(trial.settings))), trial)
    return list(trials.values())


def _effective(settings: Recipe) -> dict[str, Any]:
    """The settings without the name, and without the options of unused schedules."""
    return (
        asdict(settings) | {"name": None} | {name: None for name in get_args(ScheduleName) if name != settings.schedule}
    )


def settled(bench: Bench, trial: Trial) -> tuple[Subject, Recipe]:
    """The dense model with the parts that a trial may cut, and the trial's settings, without a book that is too
    large."""
    subject = bench.subject.selected(trial.settings.cut)
    return subject, as_recordable(trial.settings, subject, bench.dataset, trial.name)


def plan_trial(bench: Bench, trial: Trial, second: float) -> dict[str, float]:
    """Predicted seconds of each stage; `second` is that of one image (`timing.seconds_per_pair`).

    Raises:
        SecateurError: the trial cannot run on this model and data.
    """
    subject, settings = settled(bench, trial)
    plan = check_compression(subject, bench.dataset, trial.goal, settings)
    work = work_of(settings, plan)
    return predict_seconds(bench.subject, work, second, price_of_compensation(bench.subject, work))


def most_bytes(bench: Bench, trials: Iterable[Trial]) -> float:
    """The largest peak bytes of any stage of any trial, as counted by `peak_bytes`."""
    passes, peaks = Passes(bench.subject), [0.0]
    for trial in trials:
        with quiet(True):  # it was said when the trial was planned
            subject, settings = settled(bench, trial)
        plan = plan_cut(subject, trial.goal, settings.cut)
        peaks += peak_bytes(subject, work_of(settings, plan), passes).values()
    return max(peaks)


def run_trial(bench: Bench, trial: Trial, run: Path, others: Iterable[Path], cache: Path, report: bool = True) -> None:
    """Run or resume a compression in the folder `run`.

    Rankings in `others` and samples in `cache` are reused.

    Raises:
        SecateurError: as `compress`.
    """
    subject, settings = settled(bench, trial)
    cut = check_compression(subject, bench.dataset, trial.goal, settings)
    described = run_settings(bench.subject, trial.goal, bench.data, settings, bench.warmup)
    with run_folder(run, described, bench.inputs):
        _take_ranking(run, others, described)
        dataset = encode_data(bench.dataset, bench.subject)
        compress_stages(run, subject, dataset, trial.goal, settings, cut, cache)
        if report:
            write_report(run)
            tidy(run, settings.recovery, settings.schedule == "one-shot")


def _take_ranking(run: Path, others: Iterable[Path], described: dict[str, Any]) -> None:
    """Copy the ranking from the first of `others` with the same settings, unless `run` has one."""
    same = (other for other in others if _same_ranking(other, described))
    if not (run / "ranking.json").is_file() and (other := next(same, None)) is not None:
        write_text(run / "ranking.json", (other / "ranking.json").read_text(encoding="utf-8"))


def _same_ranking(other: Path, described: dict[str, Any]) -> bool:
    """Whether the run in `other` holds a ranking made with the same settings."""
    if not ((other / "ranking.json").is_file() and (other / "config.json").is_file()):
        return False
    config = read_json(other / "config.json")
    return all(config.get(key) == plain(described[key]) for key in RANKED)


def attempt(
    bench: Bench, trial: Trial, run: Path, others: Iterable[Path], cache: Path, report: bool = True
) -> TrialResult:
    """Run a trial and return its status, reason and seconds; never raises.

    The traceback of an internal error is written to `error.txt`.
    """
    begun = time.perf_counter()
    status: Status = "done"
    reason = ""
    try:
        run_trial(bench, trial, run, others, cache, report)
        (run / ERROR).unlink(missing_ok=True)  # from an earlier attempt
    except SecateurError as error:
        status, reason = "failed", first_line(error)
    except Exception as error:  # one trial must not stop the others
        status, reason = "failed", f"{type(error).__name__}: {first_line(error)}"
        if run.is_dir():
            write_text(run / ERROR, traceback.format_exc())
    return replace(trial.waiting, status=status, reason=reason, seconds=round(time.perf_counter() - begun, 2))


def is_done(run: Path) -> bool:
    """Whether a trial with a report is complete."""
    return (run / "evaluation" / "evaluation.json").is_file() and (run / "report.html").is_file()
