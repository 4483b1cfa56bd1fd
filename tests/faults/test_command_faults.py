"""The surroundings of a command: terminal, environment, tracebacks, and odd requests."""

import io
import json
import pwd
import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from test_kills import prepared

import secateur
from models import unet
from secateur.base.cache import cache_folder
from secateur.base.errors import ModelError, SecateurError
from secateur.cli import main
from secateur.io.checkpoint import save_pretrained
from secateur.io.index import check_pipeline, check_transformers


def ended(*arguments):
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    return caught.value.code


@pytest.mark.parametrize("error", [ZeroDivisionError("division by zero"), KeyError("x"), ValueError("one\ntwo")])
def test_an_error_that_nobody_expected_is_one_line_with_the_place_of_its_traceback(error, monkeypatch, capsys):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr(secateur, "report", fails)
    assert ended("report", "run") == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"secateur: internal error: {type(error).__name__}: ")
    written = Path(line.rpartition("its traceback is in ")[2])
    assert "in fails" in written.read_text()
    written.unlink()


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "cp1252"])
def test_what_a_terminal_cannot_show_is_replaced(encoding, monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding, errors="strict", write_through=True)
    monkeypatch.setattr(sys, "stdout", terminal)
    main(["--version"])
    print("a → b, \udce9")
    assert terminal.buffer.getvalue().decode(encoding).splitlines()[1].startswith("a ? b")


@pytest.mark.parametrize("columns", ["1", "0", "12"])
def test_the_help_ends_on_a_narrow_terminal(columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", columns)
    assert ended("convert", "--help") == 0
    assert "--num-heads" in capsys.readouterr().out


def test_a_home_folder_is_asked_for_only_where_nothing_else_is_said(monkeypatch, tmp_path):
    def nobody(*_):
        raise KeyError("no such user")

    for name in ("HOME", "SECATEUR_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    with pytest.raises(SecateurError, match="SECATEUR_CACHE"):
        cache_folder()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "secateur"
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"


@pytest.mark.parametrize("out", ["images", "images.png", None])
def test_more_images_than_there_is_room_for_are_refused_at_once(out, tmp_path):
    place = None if out is None else tmp_path / out
    with pytest.raises(SecateurError, match=r"3,?000,?000,?000"):
        secateur.sample(unet(), process="ddpm", num_images=3_000_000_000, out=place)
    assert not list(tmp_path.iterdir())


def test_a_version_of_diffusers_that_runs_the_code_of_folders_is_not_allowed():
    project = Path(__file__).parents[2].joinpath("pyproject.toml").read_text()
    (wanted,) = re.findall(r'"(diffusers\b[^"\[]*)"', project.partition("dependencies = [")[2].partition("\n]")[0])
    assert not Requirement(wanted).specifier.contains("0.37.1")
    assert Requirement(wanted).specifier.contains("0.38.0")


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "preprocessor_config.json"])
def test_code_of_a_folder_for_transformers_is_refused_and_nobody_is_asked(name, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody was asked"))
    (tmp_path / name).write_text(json.dumps({"auto_map": {"AutoModel": "stranger.Model"}}))
    with pytest.raises(ModelError, match="auto_map"):
        check_transformers(tmp_path)
    part = prepared(tmp_path / "all") / "pipeline" / "text_encoder" / name
    part.write_text(json.dumps({"auto_map": {"AutoModel": "stranger.Model"}}))
    with pytest.raises(ModelError, match="text_encoder"):
        check_pipeline(tmp_path / "all" / "pipeline")


def test_a_parameter_that_the_config_does_not_name_is_not_dropped(tmp_path):
    """Nor the fusers of GLIGEN, which diffusers knows only where the attention type says so."""
    from safetensors.torch import load_file, save_file

    folder = save_pretrained(unet(), tmp_path / "model")
    path = folder / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["down_blocks.1.attentions.0.fuser.linear.weight"] = weights["conv_in.weight"].clone()
    save_file(weights, path)
    with pytest.raises(ModelError, match=r"no place for 1 tensor .*fuser\.linear\.weight"):
        secateur.from_pretrained(folder)
