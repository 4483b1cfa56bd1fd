"""Options on the command line: one spelling, a short help, and files of options."""

import io
import subprocess
import sys

import pytest

import secateur
from secateur.base.console import shown
from secateur.base.errors import SecateurError
from secateur.cli import main
from secateur.commands import COMMANDS
from secateur.commands.options import Weights
from secateur.commands.options_file import with_file
from secateur.commands.renamed import RENAMED, with_present_names
from secateur.recipes import RECIPES, resolve


def helped(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_help_is_short_and_the_whole_of_it_is_there_when_asked(capsys):
    short, whole = helped(capsys, "compress", "--help"), helped(capsys, "compress", "--help-all")
    assert len(short.splitlines()) < 130 < 300 < len(whole.splitlines())
    for option in ("--steps", "--objective", "--metrics", "--target", "--config", "--help-all", "--recovery.*"):
        assert option in short
    assert "--recovery.optimizer" not in short
    assert "--recovery.optimizer" in whole
    for text in (short, whole):
        for second in ("--recovery.steps", "--recovery.objective", "--evaluation.metrics"):
            assert second not in text


def test_the_names_of_options_in_the_last_version_are_taken_and_the_new_ones_said(capsys):
    given = ["--evaluation.metrics", "loss", "--recovery.steps=3", "--evaluation.statistics", "a.npz", "--seed", "1"]
    present = ["--metrics", "loss", "--steps=3", "--evaluation.frechet.statistics", "a.npz", "--seed", "1"]
    with shown(True):
        assert with_present_names(given) == present
    assert "--evaluation.metrics is called --metrics now; the old name goes in version 0.3" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(
            [
                "compress",
                "digits-sit",
                "--evaluation.metrics",
                "lose",
                "--data",
                "digits",
                "--target",
                "macs=60%",
                "--out",
                "x",
            ]
        )
    assert "lose" in capsys.readouterr().err


def test_every_old_name_has_a_present_one():
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "stdout", io.StringIO())
        with pytest.raises(SystemExit):
            main(["compress", "--help-all"])
        offered = sys.stdout.getvalue()
    assert all(name in offered for name in RENAMED.values() if not name.endswith("no-compile"))


def test_the_help_shows_the_defaults_of_the_recipe(capsys):
    text = helped(capsys, "compress", "--recipe", "entpruner", "--help")
    shown = " ".join(text.replace("│", " ").split())
    assert f"(default: {resolve('entpruner').criterion})" in shown
    assert "(default: adaptive)" in shown
    assert "(default: None)" not in shown


@pytest.fixture
def chosen(monkeypatch, tmp_path):
    """The recipe that `compress` uses with these options."""

    def ask(*options):
        asked = {}
        monkeypatch.setattr(secateur, "compress", lambda subject, **given: asked.update(given))
        main(["compress", "digits-unet", "--target", "macs=50%", "--data", "digits", "--out", str(tmp_path), *options])
        return asked["recipe"]

    return ask


def test_every_recipe_is_listed_in_whole_sentences(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    main(["recipes"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line and not line.startswith(" ")][:-1] == list(RECIPES)
    assert max(len(line) for line in lines[:-1]) < 80
    assert "the best of our progressive runs" in " ".join(" ".join(lines).split())


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_shown_as_a_file_is_the_recipe(chosen, tmp_path, capsys, name):
    main(["recipes", "show", name])
    file = tmp_path / "run.yaml"
    file.write_text(capsys.readouterr().out)
    assert chosen("--config", str(file)) == resolve(name)


def test_what_the_command_line_says_counts_more_than_the_file(chosen, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("recipe: progressive\nsteps: 300\nprogressive.coarse: false\nrecovery.weights: {denoising: 2}\n")
    asked = chosen("--config", str(file), "--steps", "500")
    assert (asked.name, asked.recovery.steps, asked.progressive.coarse) == ("progressive", 500, False)
    assert asked.recovery.weights == {"denoising": 2.0}
    assert chosen("--progressive.coarse", f"--config={file}").progressive.coarse
    assert chosen("--recovery.weights", "jacobian", "3", "--config", str(file)).recovery.weights == {"jacobian": 3.0}
    file.write_text("no-book: true\nprogressive.coarse: false\n")
    assert chosen("--book", "--config", str(file)).records
    assert chosen("--progressive.no-coarse", "--config", str(file)).progressive.coarse is False
    file.write_text("recovery.steps: 300\n")  # as version 0.1 called it
    assert chosen("--config", str(file)).recovery.steps == 300
    assert chosen("--steps", "500", "--config", str(file)).recovery.steps == 500
    file.write_text("recovery.batch-size: 8\n")
    assert chosen("--recovery.batch_size", "16", "--config", str(file)).recovery.batch_size == 16


@pytest.mark.parametrize(
    ("words", "model"),
    [
        (["--seed", "1"], "digits-unet"),
        (["digits-sit", "--seed", "1"], "digits-sit"),
        (["--seed", "1", "digits-sit"], "digits-sit"),
        (["--seed", "1", "digits-sit", "--size", "8"], "digits-sit"),
    ],
)
def test_a_model_on_the_command_line_replaces_that_of_the_file(tmp_path, monkeypatch, words, model):
    file, checked = tmp_path / "run.yaml", []
    file.write_text("model: digits-unet\nrandom-cuts: 2\n")

    def check_structure(on: Weights, *, size: int | None = None, random_cuts: int = 3, seed: int = 0) -> None:
        """Nothing.

        Args:
            on: the model.
        """
        checked.append((on.model, random_cuts))

    monkeypatch.setattr("secateur.commands.check_structure.check_structure", check_structure)
    main(["check-structure", *words, "--config", str(file)])
    main(["check-structure", "--config", str(file), *words])
    assert checked == [(model, 2)] * 2


def test_a_file_with_a_model_for_a_command_that_takes_none_is_refused(tmp_path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text("model: digits-unet\n")
    with pytest.raises(SystemExit):
        main(["report", "run", "--config", str(file)])
    assert "names a model, and secateur report takes none" in capsys.readouterr().err


def test_options_that_a_recipe_brings_go_when_their_objective_does(chosen):
    assert chosen().recovery.weights == {"denoising": 0.0}
    plain = chosen("--objective", "denoising").recovery
    assert (plain.objective, plain.weights) == ("denoising", {})


@pytest.mark.parametrize("option", ["--progressive.stages", "--adaptive.stages"])
def test_options_of_another_schedule_are_refused(option, capsys):
    with pytest.raises(SystemExit):
        main(["compress", "digits-sit", "--target", "50%", option, "3", "--dry-run"])
    name = option.strip("-").partition(".")[0]
    assert f"and it is one-shot; add --schedule {name}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("others", "said"),
    [
        (["--no-book"], "add --book"),
        (["--recipe", "diff-pruning"], "add --book"),
        (["--objective", "denoising"], "objective denoising asks no teacher"),
    ],
)
def test_options_of_a_book_that_is_not_recorded_are_refused(others, said, capsys):
    with pytest.raises(SystemExit):
        main(["compress", "digits-sit", "--target", "50%", *others, "--book.num-tuples", "64", "--dry-run"])
    assert f"options of the book are given, and there is none; {said}" in capsys.readouterr().err


def test_a_misspelt_objective_gets_the_nearest(tmp_path, capsys):
    words = ["finetune", "digits-unet", "--data", "digits", "--objective", "destillation", "--out", str(tmp_path / "x")]
    with pytest.raises(SystemExit):
        main(words)
    assert "no objective called 'destillation'; did you mean distillation?" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("steps", "holds no options"),
        ("seed: 1\na: [1\nsteps: 3\n", "run.yaml, line 2, is no YAML: expected"),
        ("recovery.stepps: 3", "stepps"),
        ("steps: many", "some of the options are those of"),
        ("steps: 0", "recovery steps is 0; give at least 1 (some of the options are those of"),
        (
            "recovery: {batch-size: 3}",
            "has a group recovery; give each option of it a line of its own, such as recover",
        ),
    ],
)
def test_a_file_that_holds_something_else_is_refused(tmp_path, capsys, text, said):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(SystemExit) as ended:
        main(["compress", "digits-unet", "--config", str(file), "--target", "1", "--data", "digits", "--out", "x"])
    assert ended.value.code != 0
    assert said in capsys.readouterr().err


def test_a_file_that_is_not_there_or_not_named_is_refused(tmp_path):
    with pytest.raises(SecateurError, match="cannot be read"):
        with_file(["--config", str(tmp_path / "none.yaml")])
    with pytest.raises(SecateurError, match="names no file"):
        with_file(["--config"])


def test_the_shell_completes_commands_and_options(capsys, tmp_path):
    main(["completion", "bash"])
    script = tmp_path / "completion"
    script.write_text(capsys.readouterr().out)
    for typed, expected in (
        ("secateur comp", {"compress", "compensate", "completion"}),
        ("secateur compress --steps", {"--steps"}),
        ("secateur compress --compen", {"--compensation"}),
        ("secateur sample --pro", {"--prompt", "--process"}),
        ("secateur slice-lora --mo", {"--model"}),
    ):
        words = typed.split()
        line = f"source {script}; COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}; _secateur; echo ${{COMPREPLY[@]}}"
        found = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True).stdout.split()
        assert expected <= set(found), typed
        assert all(word.startswith(words[-1]) for word in found)
    (tmp_path / "my models").mkdir()
    line = f"cd {tmp_path}; source {script}; COMP_WORDS=(secateur inspect my); COMP_CWORD=2; _secateur"
    ends = "echo ${#COMPREPLY[@]} ${COMPREPLY[0]}"
    found = subprocess.run(["bash", "-c", f"{line}; {ends}"], capture_output=True, text=True, check=True)
    assert found.stdout == "1 my models\n"
    assert found.stderr == ""


@pytest.mark.parametrize(("command", "goes_on"), [(["inspect", "x"], False), (["rank", "x", "--out", "y"], True)])
def test_a_stopped_command_speaks_of_resuming_only_if_it_can(monkeypatch, capsys, command, goes_on):
    def stopped(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("secateur.cli._run", stopped)
    for words, resumes in ((command, goes_on), ([*command, "--dry-run"], False)):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 130
        assert ("to resume" in capsys.readouterr().err) is resumes


def test_every_command_but_two_is_a_function():
    assert [name for name in COMMANDS if not callable(getattr(secateur, name.replace("-", "_"), None))] == [
        "recipes",
        "completion",
    ]
