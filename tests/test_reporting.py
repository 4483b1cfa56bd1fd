"""The report of a synthetic run: every number is there, hostile text stays text, missing parts are tolerated."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import matplotlib
import pytest
import torch
from PIL import Image

from secateur.base.errors import SecateurError
from secateur.reporting import (
    comparison_grid,
    image_grid,
    write_comparison,
    write_cut,
    write_ranking,
    write_report,
)
from secateur.reporting.classes import ClassScore, class_scores, collapsed_classes, worst_first
from secateur.reporting.pages import link_to
from secateur.reporting.plots import plot_classes, plot_cut
from secateur.reporting.plots.curves import smooth
from secateur.reporting.plots.ranking import score_strip
from secateur.reporting.run import read_run
from secateur.reporting.tables import ranking_tables
from secateur.results import (
    ClassScores,
    Comparison,
    CutResult,
    DimCut,
    Evaluation,
    Latency,
    ModelResult,
    Ranking,
    Size,
    to_json,
    write_result,
)
from secateur.results.cut import cut_table
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


def test_removed_blocks_are_in_the_picture_of_a_cut(tmp_path: Path) -> None:
    cut = read_run(make_run(tmp_path)).cut
    assert cut is not None
    (axes,) = plot_cut(cut).axes
    assert cut.removed_blocks == ("mid_block",)
    assert axes.get_yticklabels()[-1].get_text() == "mid_block"
    assert axes.texts[-1].get_text() == "removed"


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
