"""The folder of a run has one owner, one set of settings and one set of inputs."""

import errno
import fcntl
import json
import os
import signal
import socket

import pytest

import secateur
from disks import DEAD, left_behind
from secateur.base.console import shown
from secateur.base.errors import SecateurError
from secateur.base.lock import LOCK
from secateur.base.owners import MACHINE
from secateur.runs.folder import refuse_run, run_folder

SETTINGS = {"command": "prune", "model": "a", "data": "b", "seed": 0}
INPUTS = {"model": "1", "data": "2"}


def taken(folder, settings=SETTINGS, inputs=INPUTS):
    with run_folder(folder, settings, inputs):
        return sorted(path.name for path in folder.iterdir())


def test_a_folder_is_locked_inside_the_block_and_free_after_it(tmp_path):
    assert taken(tmp_path / "run") == [LOCK, "config.json"]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]
    taken(tmp_path / "run")


def test_a_second_owner_is_refused_and_told_who_the_first_is(tmp_path):
    with run_folder(tmp_path / "run", SETTINGS, INPUTS):
        said = rf"run is in use by process {os.getpid()} on {socket.gethostname()}, since .*choose another folder$"
        with pytest.raises(SecateurError, match=said):
            taken(tmp_path / "run")
    taken(tmp_path / "run")


def test_an_owner_that_was_killed_is_no_owner(tmp_path):
    child = os.fork()
    if child == 0:
        with run_folder(tmp_path / "run", SETTINGS, INPUTS):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert (tmp_path / "run" / LOCK).is_file()
    taken(tmp_path / "run")


def test_of_many_that_start_at_once_one_gets_the_folder(tmp_path):
    children = []
    for _ in range(8):
        child = os.fork()
        if child == 0:
            try:
                with run_folder(tmp_path / "run", SETTINGS, INPUTS):
                    signal.pause()
            except BaseException:
                os._exit(1)
        children.append(child)
    refused = {os.waitpid(-1, 0)[0] for _ in range(7)}
    [owner] = set(children) - refused
    os.kill(owner, signal.SIGKILL)
    os.waitpid(owner, 0)
    taken(tmp_path / "run")


@pytest.fixture
def no_locks(monkeypatch):
    """A file system without locks."""

    def flock(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)


def signed(folder, pid, machine=MACHINE):
    folder.mkdir()
    owner = {"pid": pid, "host": "elsewhere", "machine": machine, "since": "yesterday"}
    (folder / LOCK).write_text(json.dumps(owner))


def test_without_locks_the_name_of_the_owner_decides(no_locks, tmp_path):
    with run_folder(tmp_path / "run", SETTINGS, INPUTS), pytest.raises(SecateurError, match="in use by process"):
        taken(tmp_path / "run")
    signed(tmp_path / "dead", DEAD)
    taken(tmp_path / "dead")
    signed(tmp_path / "far", DEAD, machine="00000000")
    with pytest.raises(SecateurError, match=r"on elsewhere, since yesterday.*has no locks.*remove .*\.lock"):
        taken(tmp_path / "far")


def test_a_lock_of_another_machine_that_the_kernel_does_not_hold_is_taken_and_said(tmp_path, capsys):
    signed(tmp_path / "run", DEAD, machine="00000000")
    with shown(True):
        taken(tmp_path / "run")
    assert "in use by process" in capsys.readouterr().err


def test_a_run_that_was_killed_before_it_wrote_anything_is_begun(tmp_path):
    signed(tmp_path / "run", DEAD)
    (tmp_path / "run" / left_behind("config.json", machine="00000000")).write_text("{")
    assert taken(tmp_path / "run") == [LOCK, "config.json"]


def test_a_folder_that_holds_something_else_is_not_changed(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"")
    for place in ("photos", "photos/a.png"):
        with pytest.raises(SecateurError, match="not a run of secateur"):
            taken(tmp_path / place)
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["a.png"]


@pytest.mark.parametrize("name", ["model", "data"])
def test_inputs_are_known_by_their_contents(name, tmp_path):
    taken(tmp_path / "run")
    taken(tmp_path / "run", {**SETTINGS, name: "moved"})
    taken(tmp_path / "run")
    with pytest.raises(SecateurError, match=f"another {name}: its contents have changed since"):
        taken(tmp_path / "run", SETTINGS, {**INPUTS, name: "9"})
    with pytest.raises(SecateurError, match=f"begun with another {name};"):
        taken(tmp_path / "run", {**SETTINGS, name: "elsewhere"}, {**INPUTS, name: "9"})
    with pytest.raises(SecateurError, match="another seed;"):
        taken(tmp_path / "run", {**SETTINGS, "seed": 1})


@pytest.mark.parametrize("written", ["[]", "3", "{", '"a"', '{"inputs": 3}'])
def test_a_damaged_config_is_one_line(written, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(written)
    with pytest.raises(SecateurError, match="run") as raised:
        taken(tmp_path / "run")
    assert "\n" not in str(raised.value)


def test_nothing_else_is_written_into_a_run(tmp_path):
    taken(tmp_path / "run")
    with pytest.raises(SecateurError, match="run is the folder of a run"):
        refuse_run(tmp_path / "run")
    refuse_run(tmp_path / "new")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    refuse_run(tmp_path / "model")


@pytest.mark.parametrize(
    "write",
    [
        lambda out: secateur.report([out.parent / "other"], out=out),
        lambda out: secateur.convert("DiT-XL-2.pt", out),
        lambda out: secateur.export("nowhere", format="onnx", out=out),
        lambda out: secateur.slice_lora("nowhere.safetensors", model="nowhere", out=out),
    ],
    ids=["report", "convert", "export", "slice-lora"],
)
def test_no_command_with_an_out_overwrites_a_run(write, tmp_path):
    taken(tmp_path / "other")
    taken(tmp_path / "run")
    before = (tmp_path / "run" / "config.json").read_bytes()
    with pytest.raises(SecateurError, match="run is the folder of a run"):
        write(tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]
    assert (tmp_path / "run" / "config.json").read_bytes() == before


def test_scores_of_other_widths_in_a_run_are_refused_with_their_file(tmp_path):
    arguments = {"target": "blocks=5", "criterion": "uniform", "out": tmp_path / "run"}
    secateur.prune("digits-sit", **arguments)
    path = tmp_path / "run" / "ranking.json"
    ranking = json.loads(path.read_text())
    ranking["blocks"].pop("transformer_blocks.3")
    path.write_text(json.dumps(ranking))
    with pytest.raises(SecateurError, match=r"run/ranking\.json does not fit this model; use another folder$"):
        secateur.prune("digits-sit", **arguments)
