"""secateur sweep: trials that run, are skipped or fail, and what they share."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import secateur
from disks import files_up_to
from models import dit, unet
from secateur.base.errors import SecateurError
from secateur.cli import main
from secateur.data import load_data
from secateur.evaluation import EvaluationConfig
from secateur.recipes import RECIPES, Recipe
from secateur.results import TrialResult
from secateur.results.trials import trial_table
from secateur.runs import stages, teaching, trials
from secateur.runs.subject import open_subject
from secateur.runs.sweep import planned_trials
from secateur.runs.trials import NOT_IN_ALL, TrialConfig, all_trials, recipe_names
from secateur.schedules import parse_target
from training_runs import TWO

QUICK = [
    *("--shared.batch-size", "8", "--shared.num-timesteps", "4", "--shared.num-images", "8", "--evaluation.num-images"),
    *("8", "--evaluation.num-inference-steps", "2", "--evaluation.latency.rounds", "2"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "unet"
    secateur.save_pretrained(unet(), folder, {"_class_name": "DDPMScheduler", "beta_schedule": "linear"})
    return folder


def sweep(model: Path, out: Path, *more: str, steps: str = "3") -> None:
    main(["sweep", str(model), "--data", "digits", "--out", str(out), "--steps", steps, *QUICK, *more])


def standing(out: Path) -> dict[str, dict[str, Any]]:
    return {trial["name"]: trial for trial in json.loads((out / "trials.json").read_text())["trials"]}


def test_a_ranking_is_taken_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "run").mkdir()
    described = {"criterion": "magnitude", "scoring": {"seed": 0}}
    (tmp_path / "other" / "config.json").write_text(json.dumps(described))
    (tmp_path / "other" / "ranking.json").write_text(json.dumps({"dims": {"a": [1.0] * 1000}}))
    with pytest.raises(SecateurError, match=r"cannot write .*ranking\.json"), files_up_to(1000):
        trials._take_ranking(tmp_path / "run", [tmp_path / "other"], described)
    assert not list((tmp_path / "run").iterdir())
    trials._take_ranking(tmp_path / "run", [tmp_path / "other"], described)
    assert (tmp_path / "run" / "ranking.json").read_bytes() == (tmp_path / "other" / "ranking.json").read_bytes()


def test_statistics_that_trials_would_overwrite_are_refused() -> None:
    evaluation = EvaluationConfig(frechet=secateur.FrechetOptions(save_statistics="statistics"))
    with pytest.raises(SecateurError, match="every trial would write its statistics over those of the others"):
        secateur.plan_sweep(unet(), data="digits", process="ddpm", targets=("macs=50%",), evaluation=evaluation)


@pytest.mark.slow
def test_sweep_runs_skips_resumes_and_grows(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sweep"
    calls: dict[str, int] = {"score": 0, "recover": 0}

    def counted(module: Any, name: str) -> None:
        whole = getattr(module, name)

        def called(*arguments: Any, **options: Any) -> Any:
            calls[name] += 1
            return whole(*arguments, **options)

        monkeypatch.setattr(module, name, called)

    counted(stages, "score")
    counted(stages, "recover")
    chosen = ("--recipes", "magnitude", "progressive", "--targets", "macs=60%", "macs=55%", "--criteria", "magnitude")
    sweep(model, out, *chosen, "ced")
    found = standing(out)
    assert [trial["status"] for trial in found.values()] == [
        "done", "skipped", "skipped", "skipped", "done", "skipped", "skipped", "skipped",
    ]  # fmt: skip
    assert "progressive pruning takes" in found["progressive_magnitude_macs-60pct_seed-0"]["reason"]
    assert "out of reach" in found["magnitude_ced_macs-60pct_seed-0"]["reason"]
    # One ranking for both targets, and the dense model's samples once.
    assert calls == {"score": 1, "recover": 2}
    assert len(list((out / "trials").iterdir())) == 2
    printed, progress = capsys.readouterr()
    assert (progress.count("sampling dense"), progress.count("sampling recovered")) == (1, 2)
    assert not (out / "cache").exists()
    assert "| magnitude · magnitude | macs=60% | 1 |" in printed

    sweep(model, out, *chosen, "ced", "--targets", "macs=60%", "--seeds", "0", "1")
    assert calls == {"score": 2, "recover": 3}
    assert [name for name, trial in standing(out).items() if trial["status"] == "done"] == [
        "magnitude_magnitude_macs-60pct_seed-0", "magnitude_magnitude_macs-55pct_seed-0",
        "magnitude_magnitude_macs-60pct_seed-1",
    ]  # fmt: skip
    assert all(trial["seconds"] > 0 for trial in standing(out).values() if trial["status"] == "done")
    page = (out / "report.html").read_text(encoding="utf-8")
    assert 'href="./trials/magnitude_magnitude_macs-60pct_seed-1/report.html"' in page
    assert "over 2 seeds" in page
    with pytest.raises(SystemExit):
        sweep(model, out, *chosen, steps="4")
    assert "begun with another steps" in capsys.readouterr().err


@pytest.mark.slow
def test_a_trial_that_fails_does_not_stop_the_others(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sweep"
    whole = trials.compress_stages

    def fails(run: Path, *arguments: Any) -> None:
        if "random" in run.name:
            raise ZeroDivisionError("of nothing\nby nothing")
        whole(run, *arguments)

    chosen = ("--recipes", "random", "magnitude", "--targets", "macs=70%", "--metrics", "loss")
    with monkeypatch.context() as patch:
        patch.setattr(trials, "compress_stages", fails)
        with pytest.raises(SystemExit) as stopped:
            sweep(model, out, *chosen)
    assert stopped.value.code == 1
    said = "1 of 2 trials failed, random_macs-70pct_seed-0 first: ZeroDivisionError: of nothing"
    assert said in capsys.readouterr().err
    assert [trial["status"] for trial in standing(out).values()] == ["failed", "done"]
    assert "by nothing" in (out / "trials" / "random_macs-70pct_seed-0" / "error.txt").read_text()
    assert "ZeroDivisionError: of nothing" in (out / "report.html").read_text(encoding="utf-8")
    sweep(model, out, *chosen)
    assert [trial["status"] for trial in standing(out).values()] == ["done", "done"]
    assert not (out / "trials" / "random_macs-70pct_seed-0" / "error.txt").exists()


@pytest.mark.slow
def test_dry_run_lists_the_trials_and_writes_nothing(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep(model, tmp_path / "out", "--targets", "macs=70%", "--dry-run")
    printed = capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert all(name in printed for name in RECIPES if name not in NOT_IN_ALL)
    assert "progressive_macs-70pct_seed-0" in printed
    assert "skipped: progressive pruning takes" in printed
    assert "trials would run, about" in printed
    assert "memory: about " in printed


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--targets", "macs=70%", "--recipes", "no-such"), "there is no recipe called 'no-such'"),
        (("--targets", "half"), "cannot read the target 'half'"),
        (("--targets", "macs=70%", "--recipes", "progressive"), "no trial can run: progressive pruning takes"),
        (
            ("--targets", "macs=70%", "--recipes", "taylor", "--objectives", "distillation", "destillation"),
            "there is no objective called 'destillation'; did you mean distillation?",
        ),
    ],
)
def test_bad_input_is_found_before_long_work(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        sweep(model, tmp_path / "out", *more)
    assert stopped.value.code == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_combinations_that_come_to_the_same_are_one_trial() -> None:
    arguments = ([parse_target("macs=50%")], [0, 1], TrialConfig(batch_size=4, num_timesteps=7), 10, EvaluationConfig())
    made = all_trials(["diff-pruning", "taylor"], ["taylor"], [], *arguments)
    assert [trial.name for trial in made] == [
        "diff-pruning_taylor_macs-50pct_seed-0",
        "diff-pruning_taylor_macs-50pct_seed-1",
    ]
    assert {trial.settings.recovery.batch_size for trial in made} == {4}
    assert {trial.settings.scoring.num_timesteps for trial in made} == {7}
    assert [(trial.settings.scoring.seed, trial.settings.recovery.seed) for trial in made] == [(0, 0), (1, 1)]
    assert {trial.settings.evaluation.seed for trial in made} == {0}
    [blocks] = all_trials(["diff-pruning"], ["ced"], [], arguments[0], [0], *arguments[2:])
    assert (blocks.settings.cut.granularity, blocks.settings.scoring.num_timesteps) == ("depth", 8)


def test_a_ranking_and_a_book_that_trials_share_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.runs.sweep.seconds_per_pair", lambda _: 1.0)
    stages = {"rank": 1.0, "record": 10.0, "recover": 100.0}
    monkeypatch.setattr("secateur.runs.sweep.plan_trial", lambda *_: stages)
    bench = trials.open_bench(open_subject(unet(), "ddpm"), load_data("digits"))
    settings = (TrialConfig(), EvaluationConfig())
    plan = planned_trials(bench, ["macs=50%", "macs=60%"], ["default"], [], [], [0], None, *settings)
    assert list(plan.seconds.values()) == [111.0, 100.0]


def test_what_is_zero_is_shown() -> None:
    table = trial_table((TrialResult("one", "done", seed=0, seconds=0.0),))
    assert dict(zip(table.columns, table.rows[0], strict=True)) == {
        "trial": "one", "status": "done", "seed": 0, "seconds": 0.0,
    }  # fmt: skip


def test_a_single_target_is_no_list() -> None:
    with pytest.raises(SecateurError, match=r'^targets is .macs=50%.; give a list, such as \["macs=50%"\]$'):
        secateur.sweep("nowhere", data="digits", targets="macs=50%")


def test_all_is_every_recipe_but_the_quickstart() -> None:
    assert recipe_names(["all"]) == [name for name in RECIPES if name not in NOT_IN_ALL]
    assert recipe_names(["taylor", "quickstart", "taylor"]) == ["taylor", "quickstart"]
    with pytest.raises(SecateurError, match="no recipe was named"):
        recipe_names([])


@pytest.mark.slow
def test_blocks_of_a_transformer_are_swept(tmp_path: Path) -> None:
    secateur.save_pretrained(dit(), tmp_path / "dit", {"_class_name": "FlowMatchEulerDiscreteScheduler"})
    out = secateur.sweep(
        str(tmp_path / "dit"), data="digits", out=tmp_path / "out", targets=("blocks=1",), recipes=("taylor",),
        criteria=("uniform",), steps=2, shared=TrialConfig(batch_size=4, num_images=4),
        evaluation=EvaluationConfig(metrics=("loss",)),
    )  # fmt: skip
    [trial] = standing(out).values()
    assert (trial["status"], trial["criterion"], trial["target"]) == ("done", "uniform", "blocks=1")


@pytest.mark.torture
def test_two_processes_take_a_trial_each_and_then_the_next(model: Path, tmp_path: Path) -> None:
    """Each on a device of its own; the main one writes what all have done."""
    out = tmp_path / "sweep"
    arguments = ["sweep", str(model), "--data", "digits", "--out", str(out), "--steps", "3", *QUICK]
    arguments += ["--recipes", "magnitude", "random", "--targets", "macs=70%", "--seeds", "0", "1"]
    run = subprocess.run(
        [sys.executable, *TWO, "-m", "secateur", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert [trial["status"] for trial in standing(out).values()] == ["done"] * 4
    taken = re.findall(r"^trial (\d) of 4: ", run.stdout, re.MULTILINE)
    assert 0 < len(taken) < 4  # the other process prints nothing
    assert len(list(out.glob("trials/*/report.html"))) == 4
    assert (out / "report.html").is_file()
    assert "report  " in run.stdout


@pytest.mark.parametrize("over", [False, True])
def test_trials_go_without_a_book_that_is_too_large(
    over: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As a compression does; it is said when the trial is planned, and when it runs."""
    bench = trials.open_bench(open_subject(unet(), "ddpm", device="cpu"), "digits")
    (trial,) = all_trials(["default"], [], [], [parse_target("macs=60%")], [0], TrialConfig(), 3, EvaluationConfig())
    ran: list[Recipe] = []
    monkeypatch.setattr(trials, "compress_stages", lambda *given: ran.append(given[4]))
    if over:
        monkeypatch.setattr(teaching, "LARGEST_BOOK", 1)
    assert ("record" in trials.plan_trial(bench, trial, 1e-3)) is not over
    trials.run_trial(bench, trial, tmp_path / "run", [], tmp_path, report=False)
    assert ran[0].records is not over
    assert json.loads((tmp_path / "run" / "config.json").read_text())["records"] is not over
    assert caplog.text.count(f"{trial.name}: a book of the teacher's answers would take") == 2 * over
