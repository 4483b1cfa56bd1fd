"""Temporary files: what killed processes and full disks leave behind, permissions, and cost."""

import json
import os
import stat
import threading
import time

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from disks import files_up_to, left_behind
from secateur.base.errors import SecateurError
from secateur.base.files import (
    atomic_file,
    atomic_folder,
    read_json,
    remove_left_behind,
    write_json,
    write_text,
)


def test_files_left_by_a_killed_process_of_the_same_number_are_overwritten(tmp_path):
    left = tmp_path / left_behind("model", os.getpid())
    left.mkdir()
    (left / "half.safetensors").write_bytes(b"0")
    with atomic_folder(tmp_path / "model") as temporary:
        write_text(temporary / "config.json", "{}")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["config.json"]


def test_what_ended_processes_left_is_removed_and_nothing_else(tmp_path):
    (tmp_path / "a" / left_behind("model") / "sub").mkdir(parents=True)
    (tmp_path / "a" / left_behind("model") / "sub" / "weights").write_bytes(b"0")
    (tmp_path / left_behind("config.json")).write_text("{")
    (tmp_path / left_behind("log", machine="00000000")).write_text("{")  # the owner of a folder knows that it ended
    kept = [".mine.tmp", left_behind("b", os.getppid())]
    for name in kept:
        (tmp_path / name).write_text("kept")
    remove_left_behind(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted([*kept, "a"])


def test_the_first_write_in_a_folder_sweeps_what_no_process_writes_any_more(tmp_path):
    old, other = left_behind("x", machine="00000000"), left_behind("y", machine="00000000")
    for name in (left_behind("config.json"), old, other):
        (tmp_path / name).write_text("{")
    os.utime(tmp_path / old, (0, time.time() - 2 * 24 * 60 * 60))
    write_json(tmp_path / "config.json", {})
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["config.json", other])


@pytest.mark.parametrize("atomic", [atomic_file, atomic_folder])
def test_weights_that_the_disk_does_not_take_are_one_line_and_leave_nothing(atomic, tmp_path):
    said = pytest.raises(SecateurError, match=r"cannot write .*weights: .*too large")
    with said as raised, files_up_to(10_000), atomic(tmp_path / "weights") as temporary:
        save_file({"x": torch.zeros(10_000)}, temporary if atomic is atomic_file else temporary / "x.safetensors")
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("atomic", [atomic_file, atomic_folder])
def test_an_error_of_safetensors_leaves_what_was_there(atomic, tmp_path):
    write_text(tmp_path / "weights" / "old" if atomic is atomic_folder else tmp_path / "weights", "old")
    with pytest.raises(SecateurError, match=r"cannot write .*: No space left"), atomic(tmp_path / "weights"):
        raise SafetensorError("No space left on device\n(os error 28)")
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


def test_files_have_the_rights_that_the_umask_leaves_which_is_never_touched(tmp_path, monkeypatch):
    before = os.umask(0o027)
    try:
        monkeypatch.setattr(os, "umask", None)
        write_text(tmp_path / "text", "")
        with atomic_folder(tmp_path / "model") as temporary:
            save_file({"x": torch.zeros(1)}, temporary / "x.safetensors")  # born private
            (temporary / "sub").mkdir()
        monkeypatch.undo()
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert modes == {"text": 0o640, "model": 0o750, "sub": 0o750, "x.safetensors": 0o640}


@pytest.mark.parametrize("there", [False, True])
def test_what_is_renamed_has_reached_the_disk(there, tmp_path, monkeypatch):
    events = []
    flush, replace = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda fd: (events.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))), flush(fd))
    )
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append(f"-> {os.path.basename(b)}"), replace(a, b)))
    if there:
        (tmp_path / "model").mkdir()
    with atomic_folder(tmp_path / "model") as temporary:
        (temporary / "weights").write_bytes(b"0")
    temporary_name, place = temporary.name, tmp_path.name
    if there:
        assert events == ["weights", temporary_name, "-> weights", "model", place]
    else:
        assert events == ["weights", temporary_name, "-> model", place]


def test_threads_that_write_in_one_folder_do_not_disturb_each_other(tmp_path):
    def write(number):
        for _ in range(10):
            write_json(tmp_path / f"{number}.json", number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [read_json(tmp_path / f"{number}.json") for number in range(4)] == [0, 1, 2, 3]


def test_json_keeps_names_that_are_not_utf8(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    write_json(tmp_path / "a.json", {name: "é"})
    assert read_json(tmp_path / "a.json") == {name: "é"}
    assert json.loads((tmp_path / "a.json").read_bytes().decode("utf-8")) == {name: "é"}


def test_json_is_read_from_regular_files_only(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    for name in ("pipe.json", "."):
        with pytest.raises(SecateurError, match="no regular file"):
            read_json(tmp_path / name)


def test_a_folder_that_exists_is_written_from_within_and_may_be_the_present_one(tmp_path, monkeypatch):
    """It may be a mount point, or a link to another disk, to which nothing beside it can be renamed."""
    place = tmp_path / "out"
    place.mkdir()
    (place / "other").write_text("stays")
    monkeypatch.chdir(place)
    for path in (place, "."):
        with atomic_folder(path) as temporary:
            assert temporary.parent == place
            (temporary / "inner").mkdir()
            (temporary / "inner" / "file").write_text(str(path))
        assert (place / "inner" / "file").read_text() == str(path)
        assert {found.name for found in place.iterdir()} == {"inner", "other"}
    with atomic_folder("new/er") as temporary:
        (temporary / "file").write_text("")
    assert (place / "new" / "er" / "file").is_file()
