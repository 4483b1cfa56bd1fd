"""Files under a temporary name: what killed processes and full disks leave, and what they cost."""

import os

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from disks import files_up_to
from secateur.base.errors import SecateurError
from secateur.base.files import atomic_file, atomic_folder, remove_left_behind, write_text


def test_a_folder_that_a_killed_process_of_the_same_number_left_is_written_anew(tmp_path):
    left = tmp_path / f".model.{os.getpid()}.tmp"
    left.mkdir()
    (left / "half.safetensors").write_bytes(b"0")
    with atomic_folder(tmp_path / "model") as temporary:
        write_text(temporary / "config.json", "{}")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["config.json"]


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path):
    (tmp_path / "a" / ".model.12345.tmp" / "sub").mkdir(parents=True)
    (tmp_path / "a" / ".model.12345.tmp" / "sub" / "weights").write_bytes(b"0")
    (tmp_path / ".config.json.7.tmp").write_text("{")
    (tmp_path / ".mine.tmp").write_text("kept")
    remove_left_behind(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".mine.tmp", "a"]


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
