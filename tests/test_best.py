"""secateur best: the search spends its budget, judges by equal draws, resumes, and finishes the winner."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import secateur
from models import unet
from secateur.cli import main
from secateur.results import Trials, read_result
from secateur.runs import stages, trials
from secateur.runs.search import search_of
from training_runs import TWO

QUICK = [
    *("--shared.batch-size", "8", "--shared.num-timesteps", "4", "--shared.num-images", "8", "--evaluation.num-images"),
    *("8", "--evaluation.num-inference-steps", "2", "--evaluation.latency.rounds", "2", "--target", "macs=70%"),
]


LOSS = ("--metrics", "loss")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "unet"
    secateur.save_pretrained(unet(), folder, {"_class_name": "DDPMScheduler", "beta_schedule": "linear"})
    return folder


def best(model: Path, out: Path, *more: str) -> None:
    main(["best", str(model), "--data", "digits", "--out", str(out), *QUICK, *more])


def found(out: Path) -> dict[str, Any]:
    return json.loads((out / "trials.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipes", "budget", "steps"),
    [
        (["magnitude", "random"], 24, [[6, 6]]),
        pytest.param(["magnitude", "random", "taylor"], 60, [[5, 5, 5], [7, 7]], marks=pytest.mark.torture),
    ],
)
def test_search_spends_the_budget_and_resumes(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    recipes: list[str], budget: int, steps: list[list[int]],
) -> None:  # fmt: skip
    out = tmp_path / "out"
    arguments = ("--recipes", *recipes, "progressive", "--budget-steps", str(budget), *LOSS)
    whole, runs = stages.recover, []

    def stops(*given: Any) -> Any:
        runs.append(given)
        if len(runs) == 2:
            raise KeyboardInterrupt
        return whole(*given)

    monkeypatch.setattr(stages, "recover", stops)
    with pytest.raises(SystemExit) as stopped:
        best(model, out, *arguments)
    assert stopped.value.code == 130
    assert [trial["status"] for trial in found(out)["trials"]] == ["skipped", "done"]
    best(model, out, *arguments)
    trained = sum(map(len, steps)) + 2  # the winner, and the one that was stopped again
    assert len(runs) == trained
    search, entries = found(out)["search"], found(out)["trials"]
    skipped, *short, winner = entries
    assert (skipped["recipe"], "progressive pruning takes 14 steps" in skipped["reason"]) == ("progressive", True)
    assert [[trial["steps"] for trial in short if trial["rung"] == rung] for rung in range(len(steps))] == steps
    assert sum(trial["steps"] for trial in (*short, winner)) == budget
    assert search["winner"] == winner["recipe"]
    verdicts = [trial["verdict"].split(" ")[0] for trial in short]
    assert (verdicts.count("won"), verdicts.count("dropped")) == (1, len(recipes) - 1)
    assert not list(out.glob("trials/*/recovery/checkpoints"))
    text = (out / "report.html").read_text(encoding="utf-8")
    assert f"{search['winner']} won" in text
    assert 'href="./winner/report.html"' in text
    assert (out / "plots" / "search.png").is_file()
    assert (out / "tables" / "search.csv").is_file()
    assert secateur.from_pretrained(out / "winner" / "model") is not None
    assert f"{search['winner']} won" in capsys.readouterr().out
    best(model, out, *arguments)
    assert len(runs) == trained
    whole = found(out)
    (out / "trials.json").write_text(json.dumps({**whole, "trials": entries[:-1]}))  # killed before it noted the winner
    best(model, out, *arguments)
    assert len(runs) == trained
    noted = found(out)["trials"][-1]
    assert {**noted, "seconds": 0} == {**winner, "seconds": 0}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"search": None}, "has no search"),
        ({"search": {"rounds": [{"candidates": 0, "steps": 1}]}}, r"rounds\[0\].candidates"),
        ({"search": {"rounds": 2 * [{"candidates": 2, "steps": 2}]}}, "other rounds than its budget gives"),
        ({"search": {"predicted_trial_seconds": {"a": 1.0}}}, "recipes without a predicted time"),
        ({"search": {"recipes": []}}, "recipes without a predicted time"),
        ({"trials": [{"name": "x", "status": "done", "recipe": "c", "score": {"value": 1.0}}]}, "scores of no recipe"),
        (
            {"trials": [{"name": "x", "status": "done", "recipe": "a", "score": {"value": 1.0, "parts": [1.0]}}]},
            "batch",
        ),
    ],
)
def test_a_damaged_list_of_trials_is_one_line(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    search = {"recipes": ["a", "b"], "score": "loss", "judged_by": "", "ties": "", "budget_steps": 9}
    search |= {"rounds": [{"candidates": 2, "steps": 2}], "predicted_trial_seconds": {"a": 1.0, "b": 2.0}}
    whole = {"trials": [], "search": search}
    path = tmp_path / "trials.json"
    path.write_text(json.dumps(whole))
    assert search_of(read_result(Trials, path)).recipes == ("a", "b")
    inner = change.get("search")
    path.write_text(json.dumps(whole | change | ({"search": search | inner} if inner else {})))
    with pytest.raises(secateur.SecateurError, match=rf"trials.json is .*{said}"):
        search_of(read_result(Trials, path))


def test_a_search_stopped_in_its_first_trial_keeps_its_steps(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stops(*given: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(stages, "recover", stops)
    plans = []
    for seconds in (0.001, 0.0015):  # another machine load measures other times
        monkeypatch.setattr("secateur.runs.search.seconds_per_pair", lambda _: seconds)  # noqa: B023
        with pytest.raises(SystemExit) as stopped:
            best(model, tmp_path / "out", "--recipes", "magnitude", "random", "--budget-minutes", "0.05", *LOSS)
        assert stopped.value.code == 130
        plans.append(found(tmp_path / "out"))
    assert plans[0] == plans[1]
    assert plans[0]["trials"] == []
    assert len(list((tmp_path / "out" / "trials").iterdir())) == 1
    main(["report", str(tmp_path / "out")])
    assert "0 runs" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_only_recipe_gets_the_whole_budget(model: Path, tmp_path: Path) -> None:
    best(model, tmp_path / "one", *LOSS, "--recipes", "magnitude", "--budget-steps", "3")
    assert found(tmp_path / "one")["search"]["winner_steps"] == 3


@pytest.mark.slow
def test_trials_that_fail_are_dropped(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trials.compress_stages

    def fails(run: Path, *arguments: Any) -> None:
        if "random" in run.name:
            raise secateur.SecateurError("no luck")
        whole(run, *arguments)

    monkeypatch.setattr(trials, "compress_stages", fails)
    best(model, tmp_path / "two", *LOSS, "--recipes", "magnitude", "random", "--budget-steps", "20")
    entries = found(tmp_path / "two")["trials"]
    assert [(trial["status"], trial["reason"]) for trial in entries] == [
        ("done", ""),
        ("failed", "no luck"),
        ("done", ""),
    ]
    assert entries[2]["steps"] == 15  # what failed cost nothing


@pytest.mark.torture
def test_minutes_become_steps(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.runs.search.seconds_per_pair", lambda _: 0.001)
    arguments = ("--recipes", "magnitude", "random", "--score", "frechet")
    best(model, tmp_path / "out", *arguments, "--budget-minutes", "0.05")
    search = found(tmp_path / "out")["search"]
    assert search["budget_seconds"] == 3.0
    assert search["rounds"] == [{"candidates": 2, "steps": search["budget_steps"] // 4}]
    assert search["winner_steps"] >= search["rounds"][0]["steps"]
    assert "Fréchet" in search["judged_by"]
    del search["winner_steps"]  # as a search that was stopped before its winner
    short = [trial for trial in found(tmp_path / "out")["trials"] if trial["name"] != "winner"]
    (tmp_path / "out" / "trials.json").write_text(json.dumps({"format": 1, "trials": short, "search": search}))
    shutil.rmtree(tmp_path / "out" / "winner")
    best(model, tmp_path / "out", *arguments, "--budget-minutes", "0.05")
    assert (tmp_path / "out" / "winner" / "model").is_dir()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ((), "--budget-steps, or in minutes"),
        (("--budget-steps", "9", "--budget-minutes", "1"), "--budget-steps, or in minutes"),
        (("--budget-steps", "0"), "budget_steps is 0; give at least 1"),
        (("--budget-steps", "12", "--recipes", "random", "magnitude"), "give a budget of 20 or more"),
        (("--budget-minutes", "0.0001"), "is too small"),
        (("--budget-steps", "99", "--recipes", "progressive", "--target", "macs=1%"), "no recipe can run"),
    ],
)
def test_bad_input_is_found_before_long_work(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SystemExit):
        best(model, tmp_path / "out", *more)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_a_frechet_distance_without_a_feature_network_judges_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...]
) -> None:
    schedule = {"_class_name": "DDPMScheduler", "beta_schedule": "linear"}
    secateur.save_pretrained(unet(in_channels=3, out_channels=3), tmp_path / "colour", schedule)
    with pytest.raises(SystemExit):
        best(tmp_path / "colour", tmp_path / "out", "--budget-steps", "200", "--score", "frechet", *more)
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert "no frechet: " in lines[0]
    assert lines[0].endswith("; or use --score loss")
    assert not (tmp_path / "out").exists()


def test_dry_run_prints_the_rounds(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best(model, tmp_path / "out", "--recipes", "random", "magnitude", "taylor", "--budget-steps", "100", "--dry-run")
    printed = capsys.readouterr().out
    assert "round 1    3 recipes, 8 steps each" in printed
    assert "round 2    2 recipes, 12 steps each" in printed
    assert "winner     52 steps" in printed
    assert "memory     about " in printed
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_minutes_and_the_steps_that_they_pay_for_are_predicted_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.runs.search.seconds_per_pair", lambda _: 0.001)
    options: dict[str, Any] = {"target": "macs=70%", "data": "digits", "process": "ddpm", "device": "cpu"}
    options |= {"recipes": ("default", "magnitude"), "score": "loss"}
    in_minutes = search_of(secateur.plan_best(unet(), budget_minutes=20, **options).trials)
    in_steps = search_of(secateur.plan_best(unet(), budget_steps=in_minutes.budget_steps, **options).trials)
    assert in_minutes.predicted_seconds == pytest.approx(20 * 60, rel=0.01)
    assert in_steps.predicted_seconds == pytest.approx(20 * 60, rel=0.05)


@pytest.mark.slow
def test_statistics_are_for_the_winner_where_another_metric_judges(model: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "statistics.npz", mu=np.zeros(64), sigma=np.eye(64))
    files = (
        "--evaluation.frechet.statistics",
        str(tmp_path / "statistics.npz"),
        "--evaluation.frechet.save-statistics",
        str(tmp_path),
    )
    arguments = ("--recipes", "magnitude", "random", "--budget-steps", "60", "--dry-run", *files)
    for score in ("loss", "frechet"):
        best(model, tmp_path / "out", "--score", score, *arguments)


@pytest.mark.torture
def test_two_processes_search_as_one(model: Path, tmp_path: Path) -> None:
    """The same trials, each of the same scores; a search that was stopped goes on in another number of processes."""
    arguments = ["--recipes", "magnitude", "random", "taylor", "--budget-steps", "60", *LOSS]
    best(model, tmp_path / "one", *arguments)
    command = ["best", str(model), "--data", "digits", "--out", str(tmp_path / "two"), *QUICK, *arguments]
    launched = [sys.executable, *TWO, "-m", "secateur", *command]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(launched, env=environment, capture_output=True, text=True, timeout=500)
    assert run.returncode == 0, run.stderr[-2000:]
    one, two = found(tmp_path / "one"), found(tmp_path / "two")
    assert two["search"]["winner"] == one["search"]["winner"]
    scores = [{each["name"]: each["score"] for each in those["trials"]} for those in (one, two)]
    assert scores[1].keys() == scores[0].keys()
    for name, score in scores[0].items():
        assert (score is None and scores[1][name] is None) or scores[1][name]["value"] == pytest.approx(
            score["value"], rel=1e-5
        )
    assert (tmp_path / "two" / "winner" / "model").is_dir()
