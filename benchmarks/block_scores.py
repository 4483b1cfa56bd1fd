"""Do block scores and zero-cost proxies foretell quality? Their rank correlation with FD after recovery.

    python benchmarks/block_scores.py --model digits-sit
    python benchmarks/block_scores.py --table

Random halves of the blocks are removed, the same for every score, and each smaller network is trained for as many
steps. A score of blocks foretells by its sum over the removed blocks, `replacement` by the distance without all of
them; the proxies judge each smaller network before it is trained. A correlation of 1 means that the order is foretold.
Its dependence on timesteps is the mean correlation between the block scores of one bin of timesteps and those of all
others. The first block matters most by far, so the correlation among the networks that keep it is shown too.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.stats import spearmanr

import secateur
from bench import RECOVERY, Bench, command_line, evaluation_of, report, results_of
from drawing import FAINT, SPARE_COLOURS, WARM, name_rows, styled
from secateur import CedOptions, Cut, ReplacementOptions, ScoringConfig

SCORING = ScoringConfig(num_images=64)
SCORES = {
    "cosine": ("cosine", SCORING),
    "loss change": ("loss-change", SCORING),
    "ced": ("ced", SCORING),
    "ced, pooled": ("ced", ScoringConfig(num_images=64, options=CedOptions(pooling="pooled"))),
    "ent-prog (signed)": ("ent-prog", SCORING),
    "deviation": ("deviation", SCORING),
    "magnitude": ("magnitude", SCORING),
    "uniform stride": ("uniform", SCORING),
}
REPLACEMENT = ScoringConfig(num_images=16)
SEARCHES = (3, 4, 6, 12)  # candidates; 12 are all blocks
# What each proxy foretells, so that more is worse, from the proxies of all networks.
PROXIES: dict[str, Callable[[Sequence[Mapping[str, float]]], list[float]]] = {
    "NTK condition number": lambda found: [one["log_condition"] for one in found],
    "ZiCo": lambda found: [-one["zico"] for one in found],
    "both, weighed equally": lambda found: _standardized(found, "log_condition") - _standardized(found, "zico"),
    "loss before recovery": lambda found: [one["loss"] for one in found],
}
# The part of the block report that holds the score by bins of timesteps.
BY_TIMESTEP = {"ced": "signed", "deviation": "output_errors"}
RESAMPLES = 2000
Correlation = tuple[float, float, float]  # with the ends of its 95 % interval


def score(bench: Bench, name: str) -> dict[str, Any]:
    """The scores of every block, by one criterion, with what they cost."""
    criterion, scoring = SCORES[name]
    ranking = bench.rank(criterion, scoring=scoring)
    found: dict[str, Any] = {"blocks": dict(ranking.blocks), "seconds": ranking.seconds}
    if name in BY_TIMESTEP and ranking.block_report is not None:
        effects = ranking.block_report.blocks.values()
        found["by timestep"] = [list(getattr(effect, BY_TIMESTEP[name])) for effect in effects]
    return found


def replace_all(bench: Bench, halves: Sequence[Sequence[str]]) -> dict[str, Any]:
    """The distance of the model without each half, with affine maps in their place, and the seconds of a ranking."""
    about: dict[str, Any] = {"data": bench.data, "scoring": REPLACEMENT}
    distances = {" ".join(removed): secateur.replacement_distance(bench.loaded, removed, **about) for removed in halves}
    return {"distances": distances, "seconds": bench.rank("replacement", scoring=REPLACEMENT).seconds}


def search(bench: Bench) -> dict[str, Any]:
    """The order in which `replacement` removes blocks, by the number of candidates at every step of its search."""
    found = {}
    for candidates in SEARCHES:
        options = ReplacementOptions(candidates=candidates)
        blocks = bench.rank("replacement", scoring=replace(REPLACEMENT, options=options)).blocks
        found[str(candidates)] = [name.rpartition(".")[2] for name in sorted(blocks, key=lambda name: blocks[name])]
    return found


def remove(bench: Bench, removed: Sequence[str], seed: int, steps: int) -> dict[str, Any]:
    """Judge the network without `removed` by the proxies, train it, and measure it."""
    model = secateur.apply_cut(copy.deepcopy(bench.dense), Cut({}, tuple(removed)))
    judgement = secateur.zero_cost_proxies(model, data=bench.data, process=bench.process)
    config = secateur.RecoveryConfig(**{**vars(RECOVERY), "steps": steps, "seed": seed})
    return {
        "removed": list(removed),
        "proxies": dict(vars(judgement)),
        **bench.measure(bench.recovered(model, config), with_ftle=False),
    }


def halves(blocks: Sequence[str], count: int) -> list[list[str]]:
    """`count` different random halves of the blocks, in order."""
    generator = np.random.default_rng(0)
    every = list(combinations(blocks, len(blocks) // 2))
    return [list(every[i]) for i in generator.choice(len(every), size=count, replace=False)]


# ------------------------------------------------------------------------------------------- tables and plot


def foretold(records: Mapping[str, Any], networks: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """What every score and proxy says of the networks, more being worse."""
    scores = {name: records[f"score/{name}"]["blocks"] for name in SCORES}
    sums = {
        name: [sum(blocks[block] for block in one["removed"]) for one in networks] for name, blocks in scores.items()
    }
    judged = [one["proxies"] for one in networks]
    distances = records["score/replacement"]["distances"]
    sums["replacement"] = [distances[" ".join(one["removed"])] for one in networks]
    return sums | {name: list(says(judged)) for name, says in PROXIES.items()}


def correlation(says: Sequence[float], found: Sequence[float]) -> Correlation:
    """Spearman's rank correlation and its 95 % interval over bootstrap resamples of the networks."""
    generator, pairs = np.random.default_rng(0), np.array([says, found])
    resampled = [
        spearmanr(*pairs[:, generator.integers(len(says), size=len(says))]).statistic for _ in range(RESAMPLES)
    ]
    low, high = np.nanquantile(resampled, (0.025, 0.975))
    return float(spearmanr(*pairs).statistic), float(low), float(high)


def correlations(records: Mapping[str, Any], networks: Sequence[Mapping[str, Any]], key: str) -> dict[str, Correlation]:
    """The correlation of every score and proxy with one of the measures, over `networks`."""
    outcome = [one[key] for one in networks]
    return {name: correlation(says, outcome) for name, says in foretold(records, networks).items()}


def agreement(by_timestep: Sequence[Sequence[float]]) -> float:
    """The mean rank correlation between a bin's block scores and their mean over the other bins."""
    bins_TL = np.abs(np.array(by_timestep)).T
    others = [np.delete(bins_TL, t, axis=0).mean(0) for t in range(len(bins_TL))]
    return statistics.mean(float(spearmanr(one, rest).statistic) for one, rest in zip(bins_TL, others, strict=True))


def table(records: dict[str, Any]) -> str:
    """Markdown: one row per score and proxy."""
    networks = _networks(records)
    intact = [one for one in networks if not any(name.endswith(".0") for name in one["removed"])]
    fds = [one["fd"] for one in networks]
    columns = {
        "with FD after recovery": correlations(records, networks, "fd"),
        "with the loss after recovery": correlations(records, networks, "loss"),
        f"with FD, of the {len(intact)} that keep the first block": correlations(records, intact, "fd"),
    }
    lines = [
        f"{len(networks)} networks without half of the blocks; FD {min(fds):.2f} to {max(fds):.2f} "
        f"(at most {max(one['fd'] for one in intact):.2f} with the first block), dense {records['dense']['fd']:.2f}",
        "",
        f"| score | {' | '.join(columns)} | between timesteps | seconds |",
        f"|---|{'--:|' * (len(columns) + 2)}",
    ]
    for name in (*SCORES, "replacement", *PROXIES):
        scored = records.get(f"score/{name}", {})
        stable = f"{agreement(scored['by timestep']):.2f}" if "by timestep" in scored else ""
        seconds = f"{scored['seconds']:.1f}" if scored else ""
        found = " | ".join(_shown(column[name]) for column in columns.values())
        lines.append(f"| {name} | {found} | {stable} | {seconds} |")
    if "searches" in records:
        lines += ["", "Blocks in the order in which `replacement` removes them, by candidates at every step:", ""]
        lines += [f"- {candidates}: {', '.join(order)}" for candidates, order in records["searches"].items()]
    return "\n".join(lines) + "\n"


@styled
def plot(found: dict[str, dict[str, Any]]) -> Figure:
    """The correlations with their intervals, one panel per model."""
    figure = Figure(figsize=(8.2, 3.4), facecolor="white", layout="constrained")
    panels = figure.subplots(1, len(found), squeeze=False, sharey=True)[0]
    for axes, (name, records) in zip(panels, found.items(), strict=True):
        found_in = correlations(records, _networks(records), "fd")
        for place, (label, (value, low, high)) in enumerate(found_in.items()):
            colour = SPARE_COLOURS[2] if label in PROXIES else WARM
            axes.plot([low, high], [place, place], color=colour, lw=1.5, alpha=0.6)
            axes.plot(value, place, "o", ms=5, color=colour)
        axes.axvline(0, color=FAINT, lw=1, ls="--")
        axes.set_xlim(-1, 1)
        axes.set_xticks((-0.5, 0, 0.5))
        axes.set_title(name)
        axes.set_xlabel("rank correlation with FD after recovery")
    name_rows(panels[0], [*SCORES, "replacement", *PROXIES])
    return figure


def _networks(records: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [one for key, one in records.items() if key.startswith("network/")]


def _standardized(found: Sequence[Mapping[str, float]], key: str) -> Any:
    values = np.array([one[key] for one in found])
    return (values - values.mean()) / values.std()


def _shown(found: Correlation) -> str:
    value, low, high = found
    return f"{value:.2f} ({low:.2f} to {high:.2f})"


def main() -> None:
    parser = command_line(__doc__, steps=150)
    parser.add_argument("--networks", type=int, default=24, help="random halves of the blocks")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.table:
        report("block-scores", table, plot)
        return
    bench = Bench(arguments.model, evaluation_of(arguments))
    results = results_of("block-scores", bench)
    for name in SCORES:
        results.once(f"score/{name}", partial(score, bench, name))
    chosen = halves(list(secateur.describe(bench.dense).blocks), arguments.networks)
    results.once("score/replacement", partial(replace_all, bench, chosen))
    results.once("searches", partial(search, bench))
    for removed in chosen:
        key = "network/" + " ".join(name.rpartition(".")[2] for name in removed)
        results.once(key, partial(remove, bench, removed, arguments.seeds[0], arguments.steps))


if __name__ == "__main__":
    main()
