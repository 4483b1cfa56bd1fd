"""Recipes at equal time and at equal steps: the share of the gap between plain fine-tuning and dense that they close.

    python benchmarks/recipes.py --model digits-unet --methods plain distilled "refitted, features"
    python benchmarks/recipes.py --model digits-sit --targets blocks=6 --budgets "4 x time"
    python benchmarks/recipes.py --model fashion-unet --targets macs=50% --pictures
    python benchmarks/recipes.py --table

Widths are cut by Diff-Pruning, blocks by their deviation, unless a method names another criterion. Time is counted
in steps of distillation with a live teacher: every method gets the time that `--steps` of these take, including its
refit, the teacher's book, and what its own criterion takes beyond the usual one. The methods' times are measured in
short turns, in CPU seconds of one thread, since the machine may be shared; those of recipes that cut while they train
in whole runs. Results that exist are not measured again; the models of the first seed are kept in runs/,
for the pictures.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from functools import cache, cached_property, partial
from itertools import count, product
from pathlib import Path
from typing import Any

import torch
from torch import nn

import secateur
from bench import (
    CUT,
    FIGURES,
    ROOT,
    SCORING,
    Bench,
    command_line,
    cpu_timed,
    evaluation_of,
    results_of,
    seconds_of,
    timed,
)
from dense_samples import grid
from recipe_methods import FEW_PASSES, METHODS, ONE_SHOT, STAGED, TUPLES_OF_BLOCKS, Method, Staged
from recipe_tables import BUDGETS, write_tables
from secateur import CompensationConfig, CutConfig, RecoveryConfig, ScoringConfig

PICTURED = ("recipe diff-pruning", "recipe default")
REFERENCE = "distilled"  # whose steps are the unit of time
ROUNDS, PILOTS = 4, (5, 15)  # turns, and steps of the two runs of a turn, whose difference is the price of steps
STAGED_PILOTS = (60, 180)  # steps of the two whole runs
BOOKS = (10, 50)  # batches of two books, whose difference is the price of one; held-out tuples cost once
COLUMNS, SAMPLER_STEPS = 10, 50  # of the pictures
KEPT = ROOT.parent / "runs" / "recipes"  # models of the first seed


class Cut:
    """A cut of a model of the benchmarks; `criterion` and `cut` are for widths, the usual criterion if none is given,
    and `blocks` is the criterion of blocks."""

    def __init__(
        self,
        bench: Bench,
        target: str,
        criterion: str | None = None,
        blocks: str = "deviation",
        cut: CutConfig = CUT,
        scoring: ScoringConfig | None = None,
        compensation: CompensationConfig | None = None,
    ) -> None:
        self.bench, self.target, self.compensation = bench, target, compensation
        in_depth = target.startswith("blocks")
        self.criterion = blocks if in_depth else criterion or "diff-pruning"
        of_blocks = TUPLES_OF_BLOCKS.get(blocks, FEW_PASSES)  # every block is left out in passes of its own
        self.scoring = of_blocks if in_depth else scoring or SCORING
        self.config = CutConfig(granularity="depth") if in_depth else cut
        self.about: dict[str, Any] = {"data": bench.data, "process": bench.process}

    @property
    def ranked(self) -> tuple[secateur.Ranking, float]:
        """The ranking, and its CPU seconds."""
        return ranked(self.bench, self.criterion, self.scoring)

    @cached_property
    def pruned(self) -> nn.Module:
        return self.bench.pruned(self.ranked[0], self.target, self.config)

    @cached_property
    def refitted(self) -> nn.Module:
        return self.refit()

    def refit(self) -> nn.Module:
        return secateur.compensate(self.pruned, self.bench.dense, compensation=self.compensation, **self.about)

    def book(self, recovery: RecoveryConfig, tuples: int) -> secateur.Book:
        config = secateur.BookConfig(num_tuples=tuples, seed=recovery.seed)
        return secateur.record(self.bench.dense, recovery=recovery, book=config, **self.about)

    def recovered(self, method: Method, steps: int, seed: int, book: secateur.Book | None = None) -> nn.Module:
        """A model trained on the answers of `book`, or of the dense model."""
        warmup = min(method.recovery.warmup_steps, steps - 1)
        recovery = replace(method.recovery, steps=steps, seed=seed, warmup_steps=warmup)
        start = self.refitted if method.refits else self.pruned
        if method.records and book is None:
            book = self.book(recovery, method.tuples(steps))
        teacher = self.bench.dense if book is None else book
        return secateur.finetune(start, teacher=teacher, recovery=recovery, **self.about)


def cut_by(method: Method, bench: Bench, target: str) -> Cut:
    """The cut that `method` makes; the same object for methods that cut alike."""
    return _cut(bench, target, method.criterion, method.blocks, method.cut, method.scoring, method.compensation)


_cut = cache(Cut)


@cache
def ranked(bench: Bench, criterion: str, scoring: ScoringConfig | None) -> tuple[secateur.Ranking, float]:
    return cpu_timed(partial(bench.rank, criterion, scoring=scoring))


def prices(methods: Mapping[str, Cut], usual: Cut) -> dict[str, dict[str, float]]:
    """In steps of the reference: the time of each method before its first step, of a step, and of a recorded batch."""
    took: dict[tuple[str, int], list[float]] = defaultdict(list)
    refits: dict[Cut, list[float]] = defaultdict(list)
    books: dict[tuple[str, int], list[float]] = defaultdict(list)
    recoveries = [ONE_SHOT[name].recovery for name in methods if ONE_SHOT[name].records]
    recorded = {recovery.objective: recovery for recovery in recoveries}
    read = {name: usual.book(recovery, PILOTS[1] * recovery.batch_size) for name, recovery in recorded.items()}
    for cut in {usual, *methods.values()}:
        assert cut.refitted is not None  # not in anybody's time
    for _ in range(ROUNDS):
        for (name, recovery), batches in product(recorded.items(), BOOKS):
            books[name, batches].append(cpu_timed(partial(usual.book, recovery, batches * recovery.batch_size))[1])
        for cut in {usual, *methods.values()}:
            refits[cut].append(cpu_timed(cut.refit)[1])
        for (name, cut), pilot in product({REFERENCE: usual, **methods}.items(), PILOTS):
            book = read[ONE_SHOT[name].recovery.objective] if ONE_SHOT[name].records else None
            took[name, pilot].append(cpu_timed(partial(cut.recovered, ONE_SHOT[name], pilot, 0, book))[1])
    short, long = PILOTS
    step = {name: statistics.median(took[name, long]) - statistics.median(took[name, short]) for name, _ in took}
    unit = step[REFERENCE] / (long - short)
    found = {}
    for name, cut in methods.items():
        method, held_out, of_batch = ONE_SHOT[name], 0.0, 0.0
        if method.records:
            few, many = (statistics.median(books[method.recovery.objective, batches]) for batches in BOOKS)
            of_batch = (many - few) / (BOOKS[1] - BOOKS[0])
            held_out = few - BOOKS[0] * of_batch
        refit = statistics.median(refits[cut]) if method.refits else 0.0
        found[name] = {
            "once": (refit + held_out + cut.ranked[1] - usual.ranked[1]) / unit,
            "step": step[name] / step[REFERENCE],
            "recorded": of_batch / unit,
            "seconds": unit,
        }
    return found


def staged_prices(methods: Mapping[str, Staged], usual: Cut) -> dict[str, dict[str, float]]:
    """As `prices`, from whole runs of two lengths: all that a longer run takes more is the time of steps."""
    reference: dict[int, list[float]] = defaultdict(list)
    took: dict[tuple[str, int], float] = {}
    usual.recovered(ONE_SHOT[REFERENCE], PILOTS[0], 0)  # the first takes longer
    for pilot in STAGED_PILOTS:  # the runs are long, so the reference has its turns around each
        for name, method in methods.items():
            for _, steps in product(range(ROUNDS), PILOTS):
                pilots = partial(usual.recovered, ONE_SHOT[REFERENCE], steps, 0)
                reference[steps].append(cpu_timed(pilots)[1])
            run = partial(staged_run, usual.bench, usual.target, method, pilot, 0)
            (made, busy), seconds = timed(partial(cpu_timed, run))
            took[name, pilot] = seconds_of(made) * busy / seconds  # of the clock's, what it had of a CPU
    short, long = (statistics.median(reference[steps]) for steps in PILOTS)
    unit = (long - short) / (PILOTS[1] - PILOTS[0])
    few, many = STAGED_PILOTS
    found = {}
    for name in methods:
        step = (took[name, many] - took[name, few]) / (many - few)
        once = took[name, few] - few * step - usual.ranked[1]
        found[name] = {"once": once / unit, "step": step / unit, "recorded": 0.0, "seconds": unit}
    return found


def staged_run(bench: Bench, target: str, method: Staged, steps: int, seed: int) -> secateur.Run:
    return secateur.compress(bench.loaded, target=target, data=bench.data, recipe=method.at(steps, seed))


def affordable(price: Mapping[str, float], method: Method | Staged, given: float) -> int:
    """The number of steps that `given` pays for; 0 if it does not pay for the fewest that the method takes. A long
    recovery reads its tuples more than once."""

    def cost(steps: int) -> float:
        recorded = method.tuples(steps) / method.recovery.batch_size if isinstance(method, Method) else 0.0
        return price["once"] + steps * price["step"] + recorded * price["recorded"]

    least = method.least_steps
    return next(steps for steps in count(least) if cost(steps + 1) > given) if cost(least) <= given else 0


def train(bench: Bench, target: str, name: str, steps: int, seed: int, keep: Path | None) -> dict[str, float]:
    method = METHODS[name]
    if isinstance(method, Staged):
        run = staged_run(bench, target, method, steps, seed)
        model, seconds = run.model, seconds_of(run)
    else:
        model, seconds = cpu_timed(partial(cut_by(method, bench, target).recovered, method, steps, seed))
    if keep:
        secateur.save_pretrained(model, keep)
    return {"steps": steps, "seconds": round(seconds, 1), **bench.measure(model, with_ftle=False)}


def run(bench: Bench, targets: list[str], seeds: list[int], steps: int, methods: list[str], budgets: list[str]) -> None:
    results = results_of("recipes", bench)
    suited = [(target, method) for target, method in product(targets, methods) if METHODS[method].suits(target)]
    for target in targets:
        usual = cut_by(ONE_SHOT[REFERENCE], bench, target)
        missing = [
            name for place, name in suited if place == target and f"{target}/price/{name}" not in results.records
        ]
        one_shot = {name: cut_by(ONE_SHOT[name], bench, target) for name in missing if name in ONE_SHOT}
        staged = {name: STAGED[name] for name in missing if name in STAGED}
        found = (prices(one_shot, usual) if one_shot else {}) | (staged_prices(staged, usual) if staged else {})
        for method in missing:
            results.once(f"{target}/price/{method}", partial(found.__getitem__, method))
        results.once(f"{target}/cut", partial(bench.measure, usual.pruned, with_ftle=False))
        results.once(f"{target}/refitted", partial(bench.measure, usual.refitted, with_ftle=False))
    for seed, (target, method), budget in product(seeds, suited, budgets):
        trained = steps
        if budget != "steps":
            price = results.records[f"{target}/price/{method}"]
            trained = affordable(price, METHODS[method], BUDGETS[budget] * steps)
        if trained == 0:
            print(f"{target}/{budget}/{method}: more than all the time passes before its first step", flush=True)
            continue
        keep = kept(bench, target, method) if seed == seeds[0] and budget == "time" else None
        train_it = partial(train, bench, target, method, trained, seed, keep)
        results.once(f"{target}/{budget}/{method}/{seed}", train_it)


def kept(bench: Bench, target: str, method: str) -> Path:
    """Where the model of the first seed at equal time is kept."""
    return KEPT / bench.name / target / method


def draw(bench: Bench, target: str) -> None:
    """A picture of samples from the same noise: dense, cut and refitted by the recipe `default`, and recovered by two
    recipes at equal time."""
    cut = cut_by(ONE_SHOT["recipe default"], bench, target)
    models = {"dense": bench.dense, "cut": cut.pruned, "refitted": cut.refitted}
    models |= {name.removeprefix("recipe "): kept(bench, target, name) for name in PICTURED}
    options: dict[str, Any] = {"process": bench.process, "num_images": COLUMNS, "num_inference_steps": SAMPLER_STEPS}
    rows = {name: secateur.sample(model, **options) for name, model in models.items()}
    grid(rows).save(FIGURES / f"recipes-{bench.name}-{target.replace('=', '').rstrip('%')}.png")


def main() -> None:
    parser = command_line(__doc__, steps=250)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--budgets", nargs="+", choices=BUDGETS, default=["time"])
    parser.add_argument("--pictures", action="store_true", help="only draw samples of models that were measured")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.table:
        write_tables()
        return
    bench = Bench(arguments.model, evaluation_of(arguments))
    if arguments.pictures:
        for target in arguments.targets:
            draw(bench, target)
    else:
        run(bench, arguments.targets, arguments.seeds, arguments.steps, arguments.methods, arguments.budgets)


if __name__ == "__main__":
    main()
