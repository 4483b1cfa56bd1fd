"""The report of a synthetic run: every number is there, hostile text stays text, missing parts are tolerated."""

import json
import math
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from secateur.base.errors import SecateurError
from secateur.reporting import (
    comparison_grid,
    image_grid,
    model_card,
    plot_stages,
    plot_training,
    write_comparison,
    write_cut,
    write_ranking,
    write_report,
)
from secateur.reporting.classes import ClassScore, class_scores, collapsed_classes, worst_first
from secateur.reporting.layers import layer_pairs, parts
from secateur.reporting.pages import link_to
from secateur.reporting.plots import plot_classes, plot_cut
from secateur.reporting.plots.curves import smooth
from secateur.reporting.plots.ranking import score_strip
from secateur.reporting.run import Run, read_run
from secateur.reporting.style import LONGEST_NAME, shorten
from secateur.reporting.summary import verdict_of
from secateur.reporting.tables import ranking_tables
from secateur.reporting.titles import title_of
from secateur.results import (
    ClassScores,
    Comparison,
    CutResult,
    Decisions,
    DimCut,
    Evaluation,
    Latency,
    Layer,
    ModelResult,
    Ranking,
    Size,
    SoftStage,
    from_json,
    to_json,
    write_result,
)
from secateur.results.cut import cut_table
from secateur.results.run_settings import RunSettings
from synthetic_runs import (
    HOSTILE,
    METRICS,
    Page,
    change_evaluation,
    change_model,
    estimate,
    evaluation,
    make_run,
    photograph_run,
    write,
    write_cut_json,
    write_ranking_json,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_run(tmp_path_factory.mktemp("runs") / "run")
    assert write_report(folder) == folder / "report.html"
    return folder


@pytest.fixture(scope="module")
def markup(run: Path) -> str:
    return (run / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_summary_says_what_was_asked_reached_and_lost(markup: str) -> None:
    text = Page(markup).text
    assert "Asked for macs=50%; reached 49.7% (11.9M of 24.0M MACs)." in text
    assert "47% of the parameters (3.10M of 6.60M); 1 block removed" in text
    assert "Half the compute, 2.0× faster, FD[digits-features] measurably worse than dense (5.17 against 3.14)." in text
    assert "2.00× faster at batch 32 (30.0 → 15.0 ms)" in text
    assert "FD[digits-features] of 1,000 samples" in text
    assert "3.14 dense → 41.2 pruned → 5.17 recovered" in text
    assert "0.31 pruned → 0.74 recovered" in text
    assert "secateur compress digits-unet" in text
    assert "2.6.0" in text


def test_page_is_self_contained_and_hostile_text_stays_text(markup: str) -> None:
    page = Page(markup)
    assert "http" not in re.sub(r"base64,[A-Za-z0-9+/=\s]+", "", markup)
    assert all(link.startswith(("data:", "#")) for link in page.links)
    assert "script" not in page.tags
    assert HOSTILE in page.text
    assert page.tags.count("img") == 50 + 3 * 12  # ten of each row and of the difference, and all by class
    assert page.tags.count("svg") == 11
    ids = re.findall(r'\bid="([^"]+)"', markup)
    assert len(ids) == len(set(ids))


def test_report_json_holds_the_numbers(run: Path) -> None:
    def reject(constant: str) -> None:
        raise AssertionError(constant)

    numbers = json.loads((run / "report.json").read_text(), parse_constant=reject)
    assert list(numbers["evaluation"]["models"]) == ["dense", "pruned", "recovered"]
    assert numbers["cut"]["reached"] == 11.93e6
    assert numbers["evaluation"]["models"]["recovered"]["estimates"]["fd"]["value"] == 5.17
    assert numbers["not_measured"] == []


def test_plots_and_tables_are_written(run: Path) -> None:
    names = {path.stem for path in (run / "plots").glob("*.png")}
    assert {path.stem for path in (run / "plots").glob("*.pdf")} == names - {"samples"}
    assert names == {"ranking", "cut", "training", "denoising", "speed", "classes", "layers", "samples"}
    for path in (run / "plots").glob("*.png"):
        with Image.open(path) as image:
            image.load()
            assert min(image.size) > 100
    assert {path.name for path in (run / "tables").iterdir()} == {
        f"{name}.{kind}"
        for name in ("ranking", "blocks", "sizes", "cut", "evaluation", "comparisons", "classes", "layers")
        for kind in ("md", "csv")
    }


@pytest.mark.slow
@pytest.mark.parametrize("part", ["ranking.json", "cut.json", "recovery/log.jsonl", "evaluation/evaluation.json"])
def test_one_part_is_enough(tmp_path: Path, part: str) -> None:
    whole, run = make_run(tmp_path / "whole", extra=1), tmp_path / "run"
    (run / part).parent.mkdir(parents=True)
    (whole / part).rename(run / part)
    text = Page(write_report(run).read_text(encoding="utf-8")).text
    assert ("Not measured" in text) == (part != "evaluation/evaluation.json")


@pytest.mark.slow
def test_no_claim_of_speed_when_quartiles_overlap(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", extra=1)
    latency = {"1": Latency(3.9, 3.5, 4.1), "32": Latency(60, 59, 61)}
    change_evaluation(
        run,
        lambda found: replace(
            change_model(replace(found, comparisons=()), "recovered", latency=latency, estimates={}, fidelity=None)
        ),
    )
    text = Page(write_report(run).read_text(encoding="utf-8")).text
    assert "no measurable difference at batch 1" in text
    assert "2.00× slower at batch 32" in text
    assert "Not measured: Fréchet distance" in text


@pytest.mark.slow
def test_stages_write_their_own_plots(tmp_path: Path) -> None:
    write_ranking_json(tmp_path, 60)
    write_ranking(tmp_path)
    assert not (tmp_path / "plots" / "cut.png").exists()
    write_cut_json(tmp_path, 60)
    write_cut(tmp_path)
    assert (tmp_path / "plots" / "cut.png").is_file()
    assert not (tmp_path / "report.html").exists()


def test_folders_without_a_run_are_named(tmp_path: Path) -> None:
    with pytest.raises(SecateurError, match="holds no run"):
        write_report(tmp_path)
    (tmp_path / "ranking.json").write_text("{")
    with pytest.raises(SecateurError, match="not readable JSON"):
        write_report(tmp_path)


def test_tables(run: Path) -> None:
    ranking = Ranking("magnitude", {"a|b": (3.0, 1.0)}, {"x": 0.5})
    size = Size(10.0, 0.0, 10)
    dims = {"a|b": DimCut(2, 1, 4)}
    cut = CutResult("macs=50%", "macs", 5.0, 5.0, 10.0, size, size, dims=dims, removed_blocks=("x",))
    tables = ranking_tables(ranking, cut)
    assert tables["ranking"].rows == (("a|b", 2, 1.0, 2.0, 3.0, 1),)
    assert tables["blocks"].rows == (("x", 0.5, "yes"),)
    assert "removed" not in ranking.tables()["ranking"].columns
    assert cut_table(cut).to_csv() == "dim,before,after,channels per unit,kept %\na|b,2,1,4,50.0\n"
    assert cut_table(cut).to_markdown().splitlines()[2] == "| a\\|b | 2 | 1 | 4 | 50 |"
    assert "FD[digits-features] to real images,3.14,41.2,5.17" in (run / "tables" / "evaluation.csv").read_text()


def test_grids_enlarge_tiny_images_pixel_by_pixel() -> None:
    images = torch.full((3, 1, 8, 8), -1.0)
    images[0, 0, 0, 0] = 1
    grid = image_grid(images, 2)
    assert grid.size == (2 * 64 + 4, 2 * 64 + 4)
    assert grid.getpixel((7, 7)) == (255, 255, 255)
    assert grid.getpixel((8, 8)) == (0, 0, 0)
    assert comparison_grid({"dense": images, "pruned": images}).height == 2 * 64 + 4
    assert image_grid(torch.zeros(1, 4, 100, 50), 1).size == (100, 200)


def test_strips_and_smoothing() -> None:
    strip = score_strip([1.0, 4.0, 2.0, math.nan])
    assert strip[0] == 1
    assert strip[-1] == 0
    assert sorted(strip, reverse=True) == list(strip)
    assert smooth([3.0] * 50) == pytest.approx([3.0] * 50)
    assert smooth([1.0, 2.0, 3.0]) == pytest.approx([1.0, 2.0, 3.0])


def test_plotting_leaves_the_settings_of_matplotlib(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    write_report(make_run(tmp_path / "run", extra=1))
    assert dict(matplotlib.rcParams) == before


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


def test_removed_blocks_are_in_the_picture_of_a_cut(tmp_path: Path) -> None:
    cut = read_run(make_run(tmp_path)).cut
    assert cut is not None
    (axes,) = plot_cut(cut).axes
    assert cut.removed_blocks == ("mid_block",)
    assert axes.get_yticklabels()[-1].get_text() == "mid_block"
    assert axes.texts[-1].get_text() == "removed"


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


@pytest.mark.parametrize("models", [("dense", "pruned"), ("model",)])
def test_report_of_lyapunov_exponents_only(tmp_path: Path, models: tuple[str, ...]) -> None:
    entry = ModelResult(10, 100, 40, estimates={"ftle": estimate(0.125, 0.01)})
    found = Evaluation(models[0], dict.fromkeys(models, entry), {"ftle": METRICS["ftle"]})
    write_result(tmp_path / "evaluation" / "evaluation.json", found)
    markup = write_report(tmp_path).read_text(encoding="utf-8")
    text = Page(markup).text
    assert "Finite-time Lyapunov exponent, how fast the sampler separates neighbouring noises: 0.125" in text
    assert "lower bound" in text
    assert "Latencies are" not in text
    assert "SSIM and PSNR" not in text
    assert "SSIM to model" not in text
    assert re.findall(r"<h2>(.*?)</h2>", markup) == ["Quality and cost", "Limits of these numbers", "The run"]
    assert "| 0.125 ± 0.010 |" in (tmp_path / "tables" / "evaluation.md").read_text()


def test_verdicts_stand_beside_the_numbers_in_words(run: Path, markup: str) -> None:
    text = Page(markup).text
    judged = "3.14 dense → 41.2 pruned → 5.17 recovered; recovered: worse than dense, better than pruned."
    assert judged in text
    assert '<span class="verdict unclear">no measurable difference from dense</span>' in markup
    rows = (run / "tables" / "evaluation.md").read_text().splitlines()
    [distance] = [row for row in rows if row.startswith("| FD[digits-features] to")]
    assert distance.endswith(
        "| 3.14 ± 0.20 | 41.2 ± 0.2 (worse than dense) | 5.17 ± 0.20 (worse than dense, better than pruned) |"
    )
    assert "FD[digits-features],recovered,dense,1.0,0.8,1.2,worse" in (run / "tables" / "comparisons.csv").read_text()
    assert '"throughput, batch 1 (samples/s)",250.0,500.0,500.0' in (run / "tables" / "evaluation.csv").read_text()


def test_speed_is_claimed_by_its_interval_where_there_is_one(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", extra=1)
    unclear = Comparison("latency_32", "dense", "recovered", 0.0, 1.0, -1.0, 1.0, "unclear")
    change_evaluation(run, lambda found: replace(found, comparisons=(unclear,)))
    text = Page(write_report(run).read_text(encoding="utf-8")).text
    assert "no measurable difference at batch 32 (30.0 → 15.0 ms)" in text


def test_a_collapsed_class_is_named_and_framed(run: Path, markup: str) -> None:
    assert f"1 of 3 classes lost a quarter or more of dense's coverage or diversity; most of all {HOSTILE}" in Page(
        markup
    ).text  # fmt: skip
    scores = class_scores(read_run(run).evaluation)
    assert [(found.name, score) for found, score in collapsed_classes(scores)] == [(HOSTILE, "coverage")]
    coverage = plot_classes(scores, ("coverage",)).axes[0]
    framed = [(round(frame.get_x()), round(frame.get_y())) for frame in coverage.patches]  # type: ignore[attr-defined]
    assert framed == [(1, 0), (1, 1), (2, 1)]  # both classes of the pruned model, one of the recovered
    assert len(coverage.texts) == 6  # the class that was not measured has no number
    many = [ClassScore(str(place), {"a": scored(1.0), "b": scored(place / 100)}, "b") for place in range(60, 0, -1)]
    assert [found.name for found in worst_first(many, most=3)] == ["1", "2", "3"]


@pytest.mark.parametrize("diverged", ["dense", "recovered"])
def test_nothing_is_said_of_the_classes_of_a_model_that_diverged(tmp_path: Path, diverged: str) -> None:
    run = make_run(tmp_path / "run")

    def without_classes(found: Evaluation) -> Evaluation:
        left = {
            name: replace(each, per_class=None) if name == diverged else each for name, each in found.models.items()
        }
        return replace(found, models=left)

    assert "classes lost a quarter" in Page(write_report(run).read_text(encoding="utf-8")).text
    change_evaluation(run, without_classes)
    assert "classes lost a quarter" not in Page(write_report(run).read_text(encoding="utf-8")).text


def scored(coverage: float) -> ClassScores:
    return ClassScores(0, "", 1, 1, coverage=coverage)


def layers_named(**parameters: int) -> list[Layer]:
    return [Layer(name.replace("_", "."), "Linear", (), value, 2 * value) for name, value in parameters.items()]


def test_renumbered_layers_of_a_list_are_matched_to_their_originals() -> None:
    dense = layers_named(first=5, b_0_w=1, b_1_w=2, b_2_w=3)
    pairs = layer_pairs(dense, layers_named(first=5, b_0_w=1, b_1_w=3), ["b.1"])
    assert [(before.name, before.parameters, after.parameters) for before, after in pairs] == [
        ("first", 5, 5), ("b.0.w", 1, 1), ("b.1.w", 2, 0), ("b.2.w", 3, 3)
    ]  # fmt: skip
    unknown = layer_pairs(dense, layers_named(first=5, b_0_w=1, b_1_w=3), [])
    assert [(before.name, before.parameters, after.parameters) for before, after in unknown] == [
        ("first", 5, 5), ("b", 6, 4)
    ]  # fmt: skip
    skipped = layer_pairs(dense, layers_named(first=5, b_0_w=1, b_2_w=3), ["b.1"])
    assert [after.parameters for _, after in skipped] == [5, 1, 0, 3]  # a block that became a skip keeps its number


def test_parts_are_as_fine_as_fits_and_lose_nothing() -> None:
    dense = layers_named(first=5, b_0_w=1, b_0_v=1, b_1_w=2, b_1_v=2)
    pairs = layer_pairs(dense, layers_named(first=5, b_0_w=1, b_0_v=1, b_1_w=1, b_1_v=2), [])
    assert [before.name for before, _ in parts(pairs, 4)] == ["first", "b.0", "b.1"]
    assert [(before.macs, after.macs) for before, after in parts(pairs, 2)] == [(10, 10), (12, 10)]
    assert parts(pairs, 5) == pairs


def test_an_evaluation_of_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "evaluation" / "evaluation.json"
    write(path, to_json(evaluation()) | {"format": 2})
    with pytest.raises(SecateurError, match=r"evaluation.json is damaged: format: invalid enum value 2"):
        write_report(tmp_path)
    write(path, {"format": 1, "reference": "dense", "models": {}})
    with pytest.raises(SecateurError, match="the reference 'dense' is not among the models"):
        write_report(tmp_path)


def test_a_page_that_cannot_be_written_says_where(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SecateurError, match=r"cannot write .*file/out/plots"):
        write_comparison(tmp_path / "file" / "out", [run])


@pytest.mark.parametrize(
    ("config", "title"),
    [
        ({"command": "compress"}, "unet, compressed to 50% of the MACs"),
        ({"command": "prune"}, "unet, pruned to 50% of the MACs"),
        ({"command": "finetune", "model": "tuned/pruned", "recovery": {"objective": "distillation"}},
         "tuned/pruned, fine-tuned by distillation"),
        ({"command": "evaluate", "model": "RUN/model"}, "RUN/model, evaluated"),
        ({"command": "evaluate", "model": "/x/RUN/model/", "reference": "google/ddpm"}, "RUN/model beside ddpm"),
        ({}, "unet, pruned to 50% of the MACs"),
    ],
)  # fmt: skip
def test_titles_say_what_was_done_to_what(config: dict[str, Any], title: str) -> None:
    size = Size(10.0, 0.0, 10)
    cut = CutResult("macs=50%", "macs", 5.0, 5.0, 10.0, size, size)
    assert title_of(Run(Path("runs/one"), RunSettings({"model": "org/unet", **config}), cut=cut)) == title


def test_a_title_names_the_quality_to_keep_until_something_is_cut() -> None:
    config = RunSettings({"model": "org/unet", "command": "compress", "target": "loss=5%"})
    assert title_of(Run(Path("runs/one"), config)) == "unet, compressed to a loss at most 5% higher"


def test_the_verdict_of_runs_that_lack_something(tmp_path: Path) -> None:
    size, half = Size(10.0, 0.0, 10), Size(5.0, 0.0, 5)
    cut = CutResult("blocks=4", "blocks", 4.0, 4.0, 6.0, size, half)
    assert verdict_of(Run(tmp_path, cut=cut)) == "Half the compute; speed and quality were not measured."
    assert verdict_of(Run(tmp_path, ranking=Ranking("taylor"))) == "Ranked; nothing was cut."
    found = evaluation()
    alone = replace(found, models={"dense": found.dense}, comparisons=())
    said = "6.60M parameters, 24.0M MACs, FD[digits-features] 3.14; there was nothing to compare it with."
    assert verdict_of(Run(tmp_path, evaluation=alone)) == said
    dense = replace(found.dense, latency={"1": Latency(2.0, 2.0, 2.0)})
    final = replace(found.final, latency={"1": Latency(1.96, 1.96, 1.96)})
    close = replace(found, models={**found.models, "dense": dense, found.final_name: final}, comparisons=())
    assert "1.02× faster" in verdict_of(Run(tmp_path, evaluation=close))
    same = replace(found, comparisons=tuple(replace(pair, verdict="unclear") for pair in found.comparisons))
    assert verdict_of(Run(tmp_path, evaluation=same)).endswith("FD[digits-features] not distinguishable from dense.")


@pytest.mark.slow
def test_photographs_have_prompts_a_difference_and_four_models(tmp_path: Path) -> None:
    markup = write_report(photograph_run(tmp_path / "run", count=2, size=96)).read_text(encoding="utf-8")
    page = Page(markup)
    assert "a red dahlia" in page.text
    assert re.search(r"recovered − dense, ×\d", page.text)
    assert "6 layers were refitted to the dense model in 4.2 s" in page.text
    assert "8.31 compensated" in page.text
    assert "Recovered for 39 steps." in page.text
    assert "DiffusionPipeline.from_pretrained" in page.text
    assert "import secateur" not in page.text, "nothing was cut from this pipeline"
    assert "no longer fit" not in page.text
    assert "apache-2.0, that of the base model" in page.text
    assert markup.count('class="tile"') == 6 * 2  # four models, the difference, real images
    assert "image-rendering" in markup
    assert not (tmp_path / "run" / "pipeline" / "samples.png").exists()  # no manifest, no card
    manifest = {"base": {"id": "org/unet", "class": "UNet2DModel"}, "steps": [{"kind": "cut", "target": "macs=50%"}]}
    write(tmp_path / "run" / "pipeline" / "unet" / "pruning.json", manifest)
    write_report(tmp_path / "run")
    card = (tmp_path / "run" / "pipeline" / "README.md").read_text(encoding="utf-8")
    assert card.startswith('---\nlibrary_name: "diffusers"\nlicense: "apache-2.0"\nbase_model: "org/unet"\n')
    assert "](samples.png)" in card
    assert "# unet, pruned\n" in card
    assert "from_pretrained('run/pipeline')" in card
    assert (tmp_path / "run" / "pipeline" / "samples.png").is_file()
    assert 'class="tiles pixelated"' not in markup


def test_links_of_a_page_are_paths_below_it() -> None:
    assert link_to("javascript:alert(1)/report.html") == "./javascript%3Aalert%281%29/report.html"


def test_a_model_card_says_where_from_how_and_how_good() -> None:
    dims = {"conv_in": {"size": 8, "kept": [0, 1, 2]}}
    steps = [
        {"kind": "cut", "dims": dims, "removed_blocks": ["mid"], "target": "macs=50%", "criterion": "taylor"},
        {"kind": "compensation"},
        {"kind": "recovery", "steps": 1500, "objective": "distillation"},
    ]
    manifest = {"base": {"id": "org/unet", "class": "UNet2DModel", "config": {}}, "steps": steps}
    card = model_card(
        manifest, "me/small-unet", licence="mit", evaluation=evaluation(), command="secateur compress org/unet",
        picture="samples.png",
    )  # fmt: skip
    front = card.split("---\n")[1]
    assert 'license: "mit"' in front
    assert 'base_model: "org/unet"' in front
    assert "# small-unet" in card
    assert "1. Pruned to 50% of the MACs, ranked by taylor: 5 units of 1 width and 1 block removed." in card
    assert "3. Fine-tuned for 1,500 steps by distillation." in card
    assert "secateur.from_pretrained('me/small-unet')" in card
    assert "5.17 ± 0.20 (worse than dense, better than pruned)" in card
    assert "![Samples of each model from the same noise](samples.png)" in card
    assert "base_model" not in model_card({**manifest, "base": {**manifest["base"], "id": "/home/me/unet"}}, "out")


def test_short_names_of_layers_still_tell_them_apart() -> None:
    names = [
        f"{side}_blocks.{block}.{name}"
        for side in ("down", "up")
        for block in range(4)
        for layer in range(3)
        for name in (
            *(f"resnets.{layer}.{conv}" for conv in ("conv1", "conv2", "conv_shortcut", "time_emb_proj")),
            *(
                f"attentions.{layer}.transformer_blocks.0.{attention}.{part}"
                for attention in ("attn1", "attn2")
                for part in ("to_q", "to_k", "to_v", "to_out.0")
            ),
        )
    ]
    short = [shorten(name) for name in names]
    assert len(set(short)) == len(names)
    assert max(map(len, short)) <= LONGEST_NAME
    assert shorten("down_blocks.0.resnets.1.conv1") == "down_….0.resne….1.conv1"
    assert shorten("x" * 30) == f"{'x' * 23}…"


def test_copies_in_other_precisions_are_not_the_final_result() -> None:
    found = evaluation()
    copies = {**found.models, "bfloat16": found.models["recovered"], "int8": found.models["pruned"]}
    assert replace(found, models=copies).final_name == "recovered"
    alone = {name: copies[name] for name in ("dense", "bfloat16")}
    assert replace(found, models=alone, comparisons=()).final_name == "bfloat16"
    assert replace(found, models={"dense": copies["dense"]}, comparisons=()).final_name == "dense"
