"""The report of a progressive run, stage by stage, and the curves of its training."""

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from secateur.reporting import (
    plot_stages,
    plot_training,
    write_report,
)
from secateur.results import (
    Decisions,
    Evaluation,
    SoftStage,
    from_json,
)
from synthetic_runs import (
    Page,
    change_evaluation,
    make_run,
)


def stages_of(scored: bool = True, stages: int = 4, decay: int = 3) -> list[dict[str, Any]]:
    """Records of a progressive run over 20 units that selects two a stage, five steps apart."""
    records = []
    for stage in range(1, stages + decay + 1):
        selected = 2 * min(stage, stages)
        levels = [0] * (decay + 1)
        for born in range(1, min(stage, stages) + 1):
            levels[max(decay - (stage - born), 0)] += 2
        levels[decay] += 20 - selected
        facts = {"energy": -2.0 * 10**stage, "gradient_norm": 1.0 * stage, "loss": 0.1 * stage}
        record = {"step": 5 * (stage - 1), "stage": stage, "selected": selected, "macs": 24_000_000 - 10**6 * selected}
        records.append(record | {"masks": levels} | (facts if scored and stage <= stages else {}) | {"seconds": 0.5})
    records[-1]["removed"] = True
    return records


def soft_stages(scored: bool = True, stages: int = 4, decay: int = 3) -> Decisions:
    records = stages_of(scored, stages, decay)
    return Decisions(tuple(from_json(SoftStage, record, "test") for record in records))


def without_pruned(found: Evaluation) -> Evaluation:
    models = {name: model for name, model in found.models.items() if name != "pruned"}
    pairs = tuple(pair for pair in found.comparisons if "pruned" not in (pair.a, pair.b))
    return replace(found, models=models, comparisons=pairs)


def write_stages(run: Path, stages: list[dict[str, Any]]) -> None:
    run.joinpath("recovery").mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(stage) + "\n" for stage in stages)
    (run / "recovery" / "stages.jsonl").write_text(lines + '{"step": 35, "stage": 8, "mas')


def titles(figure: Figure) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes]


def log_of(steps: int, **terms: float) -> list[dict[str, float]]:
    facts = {"lr": 1e-3, "grad_norm": 1.0, "seconds": 1.0, "peak_gib": 0.5}
    return [{"step": step, "loss": sum(terms.values()), **terms, **facts} for step in range(1, steps + 1)]


@pytest.mark.slow
def test_report_of_a_progressive_run(tmp_path: Path) -> None:
    run = make_run(tmp_path, extra=1)
    write_stages(run, stages_of())
    change_evaluation(run, without_pruned)
    markup = write_report(run).read_text(encoding="utf-8")
    text = Page(markup).text
    assert "Pruned progressively over 7 stages in the first 30 of 39 steps; deciding what to remove took 3.5 s." in text
    assert "3.14 dense → 5.17 recovered" in text
    assert "Progressive pruning: a unit that a stage selects" in text
    assert "what was removed, and when, was decided stage by stage" in text
    assert markup.count('aria-label="Shares of units at each mask value, and the MACs that remain, by step"') == 1
    assert markup.count("Calibration and training loss, energy and gradient norm by step") == 1
    assert (run / "plots" / "stages.png").is_file()
    assert (run / "tables" / "stages.csv").read_text().startswith("stage,step,selected,MACs,energy,gradient norm")
    stages = json.loads((run / "report.json").read_text())["decisions"]["soft"]
    assert (len(stages), stages[-1]["step"], stages[-1]["removed"]) == (7, 30, True)


def test_report_of_a_run_before_its_units_are_removed(tmp_path: Path) -> None:
    write_stages(tmp_path, stages_of(scored=False)[:3])
    text = Page(write_report(tmp_path).read_text(encoding="utf-8")).text
    assert "Pruning progressively: 3 stages in 10 steps so far" in text
    assert "dashed" not in text


def test_stages_of_another_schedule_are_ignored(tmp_path: Path) -> None:
    run = make_run(tmp_path, extra=1)
    write_stages(run, [{"step": 0, "stage": 1, "candidates": 3, "choice": "mid_block", "loss": 0.1, "seconds": 1.0}])
    text = Page(write_report(run).read_text(encoding="utf-8")).text
    assert "Progressive pruning" not in text
    assert not (run / "plots" / "stages.png").exists()


@pytest.mark.parametrize(
    ("scored", "trained", "expected"),
    [
        (
            True,
            40,
            ["Units by mask", "MACs without the selected units", "Loss on the data", "Energy", "Gradient norm"],
        ),
        (
            False,
            40,
            ["Units by mask", "MACs without the selected units", "Loss on the data", "Gradient norm (training)"],
        ),
        (False, 0, ["Units by mask", "MACs without the selected units"]),
    ],
)
def test_panels_of_stages_without_data_are_absent(scored: bool, trained: int, expected: list[str]) -> None:
    figure = plot_stages(soft_stages(scored), log_of(trained, denoising=0.2))
    assert [title.removesuffix(" (calibration)") for title in titles(figure)] == expected
    assert all(axes.get_xlim() == figure.axes[0].get_xlim() for axes in figure.axes)
    assert "dashed" in figure.axes[-1].get_xlabel()


def test_a_loss_against_a_teacher_is_not_drawn_beside_the_calibration_loss() -> None:
    figure = plot_stages(soft_stages(True), log_of(40, distillation=0.2))
    (axes,) = [axes for axes in figure.axes if axes.get_title(loc="left") == "Loss on the data"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["calibration"]
    assert "Training loss" in titles(plot_stages(soft_stages(False), log_of(40, distillation=0.2)))


@pytest.mark.parametrize("decay", [1, 20])
def test_masks_fill_the_panel_at_every_stage(decay: int) -> None:
    stages = soft_stages(decay=decay)
    assert {sum(stage.masks) for stage in stages.soft} == {20}
    masks = plot_stages(stages, [], ("masks",)).axes[0]
    assert len(masks.collections) == decay + 2  # an area for each value, and the line of the removal
    legend = masks.get_legend()
    assert legend is not None
    labels = [label.get_text() for label in legend.get_texts()]
    assert len(labels) <= 6
    assert (labels[0], labels[-1]) == ("1", "0")


def test_units_are_removed_when_a_stage_says_so() -> None:
    stages = soft_stages().soft
    assert Decisions(stages).removal_step == 30
    assert [Decisions(stages[:count]).removal_step for count in range(7)] == [None] * 7
    faded = replace(stages[-1], removed=False)  # all that was selected so far is at 0, and more will be selected
    assert Decisions((faded,)).removal_step is None


def test_stages_that_remove_nothing_are_drawn() -> None:
    stages = Decisions((SoftStage(0, 1, 0, 10**6, (0, 0, 0), 0.1, removed=True),))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_stages(stages, log_of(3, denoising=0.2))
    assert stages.removal_step == 0


def test_stage_table_has_the_columns_with_values() -> None:
    full, bare = (soft_stages(scored).tables()["stages"] for scored in (True, False))
    assert full.columns == (
        "stage", "step", "selected", "MACs", "energy", "gradient norm", "calibration loss", "seconds",
    )  # fmt: skip
    assert bare.columns == ("stage", "step", "selected", "MACs", "seconds")
    assert full.rows[-1] == (7, 30, 8, 16_000_000, None, None, None, 0.5)


def test_terms_of_a_loss_that_come_now_and_then() -> None:
    records = log_of(20, denoising=0.3, distillation=0.1)
    records[0]["distillation"] = 0.0  # student and teacher are equal before the first step
    for record in records[::4]:
        record["jacobian"] = 1e-5
    for record in records[4::5]:
        record |= {"grad_norm_denoising": 1.0, "grad_norm_distillation": 0.5, "grad_norm_jacobian": 1e-4}
    for record in records:
        record["jacobian_weight"] = 8.0
    figure = plot_training(records, removed_at=10)
    assert titles(figure) == [
        "Recovery loss, terms unweighted", "Gradient norm of each weighted term", "Learning rate",
        "Gradient norm", "Weight of the Jacobian term",
    ]  # fmt: skip
    loss, norms = figure.axes[:2]
    assert (loss.get_yscale(), norms.get_yscale()) == ("log", "log")
    legend = loss.get_legend()
    assert legend is not None
    assert [label.get_text() for label in legend.get_texts()] == ["loss", "denoising", "distillation", "jacobian"]
    assert loss.get_ylim()[0] < 1e-5 < 0.4 < loss.get_ylim()[1]
    assert [len(line.get_xdata()) for line in norms.lines] == [4, 4, 4]  # type: ignore[arg-type]
    assert {line.get_color() for line in norms.lines} < {line.get_color() for line in loss.lines}


def test_a_single_term_is_the_loss_again() -> None:
    records = log_of(3, denoising=0.3)
    records[1]["grad_norm_denoising"] = 1.0
    assert titles(plot_training(records)) == ["Recovery loss (raw and smoothed)", "Learning rate", "Gradient norm"]
