"""How a run records its start: a command line that can be pasted, or the Python call; without secrets."""

import json
import shlex
from pathlib import Path

import pytest
import torch

import secateur
from models import unet
from secateur.base.origin import begun_by, origin, recorded
from secateur.cli import main


def test_a_command_line_can_be_pasted_and_keeps_no_secret() -> None:
    words = ["sample", "a b", "--prompt", "it's a cat", "--token", "secret", "--out", "x"]
    with begun_by(words):
        said = origin()
    assert "secret" not in said
    assert shlex.split(said) == ["secateur", *words[:5], "...", "--out", "x"]
    with begun_by(["sample", "--token=secret"]):
        assert origin() == "secateur sample --token=..."
    assert origin() == ""


def test_the_call_is_recorded_where_it_was_one() -> None:
    @recorded
    def outer(model: object, *, data: object = None, recovery: object = None) -> str:
        return inner(1)

    @recorded
    def inner(number: int) -> str:
        return origin()

    config = secateur.RecoveryConfig(steps=3)
    said = outer("a", data=torch.zeros(2), recovery=config)
    assert said == "secateur.outer('a', data=<Tensor>, recovery=RecoveryConfig(steps=3))"
    assert inner(2) == "secateur.inner(2)"


def test_runs_say_what_began_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["kernel", "-f", "connection.json"])
    secateur.prune(unet(), target="macs=60%", criterion="magnitude", process="ddpm", out=tmp_path / "run")
    command = json.loads((tmp_path / "run" / "config.json").read_text())["command_line"]
    assert command.startswith("secateur.prune(<UNet2DModel>, target='macs=60%', criterion='magnitude'")
    assert "connection.json" not in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    with pytest.raises(SystemExit):
        main(["inspect", "/nowhere"])
    assert origin() == ""
