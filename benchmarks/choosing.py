"""Draw docs/images/choosing.png from the results of the other scripts: `python benchmarks/choosing.py`.

Every panel answers one question. It shows each method's mean Fréchet distance divided by that of a reference method on
the same model, target and steps, so that all models share one axis. Left of the line is better than the reference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from bench import FIGURES, RESULTS, read_json

IMAGE = FIGURES / "choosing.png"
COLOURS = {
    "digits-unet": "#c4691c",
    "digits-sit": "#14877a",
    "digits-dit": "#5b6fb5",
    "fashion-unet": "#a34e78",
    "fashion-sit": "#8a7a1f",
}
MARKERS = {"macs=50%": "o", "macs=30%": "s", "blocks=8": "o", "blocks=6": "D"}
MARKED = {"o": "half of the MACs, or 8 of 12 blocks", "s": "30 % of the MACs", "D": "6 of 12 blocks"}


@dataclass(frozen=True)
class Panel:
    """The methods of one question, by their keys in the results, with their labels; the first is the reference."""

    title: str
    results: str
    models: tuple[str, ...]
    targets: tuple[str, ...]
    methods: Mapping[str, str]

    def ratios(self) -> Iterator[tuple[str, str, str, float]]:
        """Label, model, target, and the distance over the reference's."""
        reference = next(iter(self.methods))
        for model in self.models:
            records = read_json(RESULTS / f"{self.results}-{model}.json")
            for target in self.targets:
                base = distance(records, f"{target}/{reference}")
                for method, label in self.methods.items():
                    found = distance(records, f"{target}/{method}")
                    if base is not None and found is not None:
                        yield label, model, target, found / base


def distance(records: Mapping[str, Any], prefix: str) -> float | None:
    """The mean over seeds; None if it was not measured."""
    found = [record["fd"] for key, record in records.items() if key.startswith(f"{prefix}/") or key == prefix]
    return fmean(found) if found else None


WIDTHS = ("macs=50%", "macs=30%")
PANELS = (
    Panel(
        "1. Refit before training?",
        "compensation",
        tuple(COLOURS),
        (*WIDTHS, "blocks=6"),
        {"cut": "as cut", "": "refitted, no training"},
    ),
    Panel(
        "2. Which channels and heads leave? (200 steps)",
        "gradient-flow",
        ("digits-unet", "digits-sit", "fashion-unet", "fashion-sit"),
        WIDTHS,
        {
            "one shot, taylor": "one shot, taylor",
            "one shot, diff-pruning": "one shot, diff-pruning",
            "one shot, magnitude": "one shot, magnitude",
            "progressive, taylor, short stages": "progressive, taylor",
            "one shot, gradient flow, preserve": "gradient flow, preserve",
            "progressive, gradient flow (literal)": "gradient flow, literal",
        },
    ),
    Panel(
        "3. Which blocks leave? (200 steps)",
        "blocks",
        ("digits-sit", "digits-dit", "fashion-sit"),
        ("blocks=8", "blocks=6"),
        {
            "one shot, uniform": "uniform stride",
            "one shot, deviation": "deviation",
            "adaptive, deviation": "deviation, adaptive",
            "one shot, cosine": "cosine",
            "one shot, loss change": "loss-change",
            "one shot, ced": "ced",
        },
    ),
    Panel(
        "4. What does recovery minimize? (250 steps)",
        "recovery",
        ("digits-unet", "digits-sit"),
        WIDTHS,
        {
            "steps/denoising": "denoising",
            "steps/+ distillation": "distillation",
            "steps/+ first-order": "first-order",
            "steps/+ 2ndMatch, balanced, 1 in 5": "2ndMatch, balanced",
            "steps/+ 2ndMatch, as published": "2ndMatch, as published",
        },
    ),
    Panel(
        "5. Which recipe? (equal time)",
        "recipes",
        tuple(COLOURS),
        WIDTHS,
        {
            "time/plain": "plain fine-tuning",
            "time/recipe diff-pruning": "diff-pruning",
            "time/refitted, distilled": "refit, live teacher",
            "time/refitted, features": "refit, features",
            "time/recipe default": "default",
        },
    ),
)


def main() -> None:
    rows = [len(panel.methods) for panel in PANELS]
    figure = Figure(figsize=(7, 0.27 * sum(rows) + 3.4))
    axes = figure.subplots(len(PANELS), 1, gridspec_kw={"height_ratios": rows, "hspace": 0.6})
    for panel, axis in zip(PANELS, axes, strict=True):
        labels = list(panel.methods.values())
        for label, model, target, ratio in panel.ratios():
            place = len(labels) - 1 - labels.index(label)
            axis.plot(ratio, place, MARKERS[target], color=COLOURS[model], markersize=5.5, alpha=0.85, mew=0)
        axis.axvline(1, color="#74818f", linewidth=0.8, zorder=0)
        axis.set(xscale="log", ylim=(-0.6, len(labels) - 0.4), yticks=range(len(labels)))
        axis.set_yticklabels(labels[::-1], fontsize=9)
        axis.set_title(panel.title, loc="left", fontsize=10, weight="bold")
        ticks = [
            tick
            for tick in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.7, 1, 1.5, 2)
            if axis.get_xlim()[0] <= tick <= axis.get_xlim()[1]
        ]
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=9)
        axis.minorticks_off()
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel("Fréchet distance, divided by the first row's (lower is better)", fontsize=9)
    for model, colour in COLOURS.items():
        axes[0].plot([], [], "o", color=colour, label=model, mew=0)
    for marker, words in MARKED.items():
        axes[0].plot([], [], marker, color="#74818f", label=words, mew=0)
    figure.legend(loc="lower center", ncol=3, frameon=False, fontsize=8.5)
    figure.subplots_adjust(left=0.27, right=0.97, top=0.96, bottom=0.145)
    figure.savefig(IMAGE, dpi=160)


if __name__ == "__main__":
    main()
