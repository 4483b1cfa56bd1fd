"""The page that compares runs: groups, the best run, ties, and missing parts."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import secateur
from secateur.base.errors import SecateurError
from secateur.reporting import write_comparison
from secateur.reporting.comparison.entries import read_entries
from secateur.reporting.comparison.groups import distinct_ends, group_entries
from secateur.reporting.comparison.page import TRAINING, _recovery
from secateur.reporting.comparison.summary import cautions, compare, comparison_table, run_table, sentences_of
from secateur.reporting.plots.comparison import front, looks, plot_lines
from secateur.results import Evaluation
from synthetic_runs import HOSTILE, Page, change_evaluation, change_model, estimate, make_run, write, write_lines


def make(folder: Path, frechet: float, seed: int, std: float | None = 0.01, **chosen: Any) -> Path:
    """A run whose final model has this Fréchet distance."""
    run = make_run(folder, extra=1, seed=seed, **chosen)

    def measured(found: Evaluation) -> Evaluation:
        estimates = {**found.final.estimates, "fd": estimate(frechet, std)}
        return replace(change_model(found, "recovered", estimates=estimates), notes=())

    change_evaluation(run, measured)
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    return [
        *[make(folder / f"taylor-{seed}", 5.0 + seed, seed, recipe="taylor") for seed in range(3)],
        *[make(folder / f"random-{seed}", 5.5 + seed, seed, recipe="random") for seed in range(3)],
        make(folder / "magnitude", 30.0, 0, recipe="magnitude"),
    ]


def test_settings_may_be_anything(tmp_path: Path) -> None:
    runs = [make(tmp_path / name, 5.0, 0) for name in ("one", "two")]
    config = json.loads((runs[0] / "config.json").read_text())
    write(runs[0] / "config.json", config | {"data": {"a": [1]}, "model": [None]})
    entries = read_entries(runs)
    (said, *_) = cautions(compare(entries, group_entries(entries)))
    assert "the data ({'a': [1]}, " in said


def test_seeds_are_grouped_and_ties_are_named(runs: list[Path]) -> None:
    entries = read_entries(runs)
    groups = group_entries(entries)
    assert [(group.label, len(group.entries)) for group in groups] == [("taylor", 3), ("random", 3), ("magnitude", 1)]
    distance = groups[0].metric("fd")
    assert distance is not None
    assert (distance.value, distance.spread, distance.count) == (6.0, 1.0, 3)
    found = compare(entries, groups)
    assert found.judged_by == "fd"
    best = sentences_of(found)[-1]
    by_loss = replace(found, judged_by="denoising_loss")
    assert any(each.startswith("Mean denoising loss of the dense model") for each in sentences_of(by_loss))
    assert "the best of 3 by FD[digits-features] is taylor: 6 ± 1 over 3 seeds" in best
    assert best.endswith("tied with it, within the uncertainty: random.")
    table = comparison_table(found)
    assert [row[0] for row in table.rows] == ["dense", "taylor", "random", "magnitude"]
    assert dict(zip(table.columns, table.rows[1], strict=True))["FD[digits-features]"] == "6 ± 1"
    assert dict(zip(table.columns, table.rows[1], strict=True))["latency, batch 32 (% of dense)"] == "50 ± 0"


def test_a_clear_winner_is_called_so_and_an_unmeasured_uncertainty_too(tmp_path: Path) -> None:
    sure = [make(tmp_path / name, value, 0, recipe=name) for name, value in (("taylor", 1.0), ("random", 9.0))]
    entries = read_entries(sure)
    assert sentences_of(compare(entries, group_entries(entries)))[-1].endswith("by more than the uncertainty.")
    bare = [
        make(tmp_path / f"b{name}", value, 0, None, recipe=name) for name, value in (("taylor", 1.0), ("random", 9.0))
    ]
    entries = read_entries(bare)
    assert "how sure that is was not measured" in sentences_of(compare(entries, group_entries(entries)))[-1]


def test_runs_with_equal_settings_are_named_by_their_folders(tmp_path: Path) -> None:
    first = make_run(tmp_path / "a" / "run", extra=1)
    second = make_run(tmp_path / "b" / "run", extra=1, cut={"round_to": 1})
    groups = group_entries(read_entries([first, second]))
    assert [group.label for group in groups] == ["a/run", "b/run"]


def test_page_json_plots_and_tables(runs: list[Path], tmp_path: Path) -> None:
    page = write_comparison(tmp_path / "out", runs)
    markup = page.read_text(encoding="utf-8")
    found = Page(markup)
    assert "script" not in found.tags
    assert all(link.startswith(("data:", "#")) for link in found.links)
    assert HOSTILE in found.text
    assert "7 runs of folder/digits-unet: 7 done." in found.text
    numbers = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [run["estimates"]["fd"]["value"] for run in numbers["runs"]] == [5.0, 6.0, 7.0, 5.5, 6.5, 7.5, 30.0]
    assert numbers["groups"][0]["metrics"]["fd"]["spread"] == 1.0
    plots = {path.stem for path in (tmp_path / "out" / "plots").iterdir()}
    assert plots == {"front", "front_latency", "widths", "training", "denoising", "samples"}
    assert {path.name for path in (tmp_path / "out" / "tables").iterdir()} == {
        f"{name}.{kind}" for name in ("comparison", "runs") for kind in ("md", "csv")
    }


def test_trials_that_are_not_done_have_their_reason(tmp_path: Path) -> None:
    make(tmp_path / "trials" / "good", 5.0, 0, recipe="taylor")
    (tmp_path / "trials" / "torn" / "evaluation").mkdir(parents=True)
    (tmp_path / "trials" / "torn" / "evaluation" / "evaluation.json").write_text("{")
    facts = {"recipe": "taylor", "target": "macs=50%", "seed": 0}
    trials = [
        {"name": "good", **facts, "status": "done"},
        {"name": "bad", **facts, "recipe": "random", "status": "failed", "reason": HOSTILE},
        {"name": "torn", **facts, "recipe": "magnitude", "status": "done"},
    ]
    write(tmp_path / "trials.json", {"trials": trials})
    write(tmp_path / "config.json", {"command": "sweep", "model": "m", "command_line": "secateur sweep m"})
    page = secateur.report((tmp_path,))
    text = Page(page.read_text(encoding="utf-8")).text
    assert "3 runs of m: 1 done, 1 failed, 1 unreadable." in text
    assert HOSTILE in text
    assert "secateur sweep m" in text
    entries = read_entries([tmp_path])
    rows = run_table(compare(entries, group_entries(entries))).rows
    assert [row[0] for row in rows] == ["good", "bad", "torn"]
    assert "not readable JSON" in entries[2].reason


def test_a_run_on_disk_is_reported_where_it_is_asked_for(runs: list[Path], tmp_path: Path) -> None:
    stages: Any = None
    run = secateur.Run(stages, stages, {}, runs[0])
    page = secateur.report(run, out=tmp_path / "page")
    assert page == tmp_path / "page" / "report.html"
    assert page.read_text(encoding="utf-8") == secateur.report(runs[0]).read_text(encoding="utf-8")
    assert (tmp_path / "page" / "tables").is_dir()
    assert (tmp_path / "page" / "plots").is_dir()


def test_runs_without_an_evaluation_can_be_compared(tmp_path: Path) -> None:
    folders = []
    for name in ("a", "b"):
        run = make_run(tmp_path / name, extra=1, recipe=name)
        (run / "evaluation" / "evaluation.json").unlink()
        folders.append(run)
    text = Page(write_comparison(tmp_path / "out", folders).read_text(encoding="utf-8")).text
    assert "2 runs of folder/digits-unet: 2 done." in text
    assert "best" not in text
    entries = read_entries(folders)
    table = comparison_table(compare(entries, group_entries(entries)))
    assert [dict(zip(table.columns, row, strict=True))["runs"] for row in table.rows] == [1, 1]
    assert [dict(zip(table.columns, row, strict=True))["MACs"] for row in table.rows] == [11_930_000] * 2
    assert {path.stem for path in (tmp_path / "out" / "plots").iterdir()} >= {"widths", "training"}


def test_errors_against_a_teacher_and_losses_on_the_data_share_no_axis(tmp_path: Path) -> None:
    terms = {"denoising": ["denoising"], "2ndmatch": ["denoising", "distillation"], "distillation": ["distillation"],
             "rms-distillation": ["distillation"], "mine": ["feature"]}  # fmt: skip
    folders = []
    for objective, names in terms.items():
        folders.append(make_run(tmp_path / objective, extra=1, recipe=objective))
        config = json.loads((folders[-1] / "config.json").read_text())
        write(folders[-1] / "config.json", config | {"recovery": {"objective": objective}})
        records = [{"step": step, "loss": 9.0, **dict.fromkeys(names, 1.0)} for step in (1, 2)]
        write_lines(folders[-1] / "recovery" / "log.jsonl", records)
    entries = read_entries(folders)
    drawn = {name: [entry.name for entry in entries if _recovery(entry, name)[0]] for name in TRAINING}
    assert drawn == {
        "training": ["denoising", "2ndmatch"],
        "training_teacher": ["2ndmatch", "distillation"],
        "training_teacher_rms": ["rms-distillation"],
        "training_own": ["mine"],
    }
    write_comparison(tmp_path / "out", folders)
    assert {path.stem for path in (tmp_path / "out" / "plots").iterdir()} >= set(TRAINING)


def test_names_of_places_are_short_and_differ() -> None:
    assert distinct_ends(["/a/long/way/to/model", "hub/other", "hub/other"]) == ["to/model", "other", "other"]
    assert distinct_ends(["/a/x/sd", "/a/y/sd", "sd", ""]) == ["x/sd", "y/sd", "sd", ""]


def test_long_names_are_whole_in_the_key() -> None:
    names = [f"stable-diffusion-v1-5/{'a' * 40}-{number}" for number in range(2)]
    figure = plot_lines(
        {name: ([1.0, 2.0], [1.0, 2.0]) for name in names},
        dict(zip(names, looks(names, ["", ""]), strict=True)),
        "title", "step", "unit", False,
    )  # fmt: skip
    figure.draw_without_rendering()
    (key,) = figure.legends
    assert ["".join(text.get_text().split("\n")) for text in key.get_texts()] == names
    box, whole = key.get_window_extent(), figure.bbox
    assert whole.x0 <= box.x0
    assert box.x1 <= whole.x1
    assert box.y0 >= 0
    assert box.y1 < figure.axes[0].get_tightbbox().y0


def test_front_holds_what_nothing_beats() -> None:
    points = [(1.0, 9.0), (2.0, 5.0), (2.0, 4.0), (3.0, 4.5), (4.0, 1.0)]
    assert front(points, lower_is_better=True) == [0, 2, 4]
    assert front(points, lower_is_better=False) == [0]
    assert front([], lower_is_better=True) == []


@pytest.mark.parametrize(
    ("runs", "out", "message"),
    [
        ((), None, "no run was given"),
        (("a", "b"), None, "give --out"),
        (("a", "nothing"), "out", "nothing is not a run"),
        (("a", "b"), "a", "one of the runs"),
    ],
)
def test_bad_input_is_one_clear_line(tmp_path: Path, runs: tuple[str, ...], out: str | None, message: str) -> None:
    for name in ("a", "b"):
        make_run(tmp_path / name, extra=1)
    with pytest.raises(SecateurError, match=message):
        secateur.report(tuple(tmp_path / run for run in runs), out=out and tmp_path / out)
    assert not (tmp_path / "out").exists()
