"""Rows of tensors: written once, each chunk whole, shared by processes, read by row."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from secateur.base import rows as rows_module
from secateur.base.errors import DataError
from secateur.base.rows import FileRows, chunk_size_of, remove_rows, rows_at


@pytest.fixture(params=["memory", "files"])
def rows(request, tmp_path):
    """Ten rows, four to a chunk."""
    return rows_at(tmp_path / "rows" if request.param == "files" else None, 10, 4)


def numbered(indices):
    """`index` of every row, `first` of the first five."""
    chunk = {"index": torch.tensor(list(indices))}
    return chunk | {"first": torch.tensor(list(indices))[: max(0, 5 - indices.start)]}


def test_rows_are_measured_once_and_read_in_order(rows):
    seen = []
    for _ in range(2):
        rows.fill(lambda indices: seen.append(indices) or numbered(indices), "rows")
    assert seen == [range(0, 4), range(4, 8), range(8, 10)]
    found = rows.columns(("index", "first", "nothing"))
    assert {name: tensor.tolist() for name, tensor in found.items()} == {"index": [*range(10)], "first": [*range(5)]}
    assert not rows.missing()


def test_rows_are_read_by_number_and_measured_a_few_at_once(rows):
    seen = []
    rows.fill(lambda indices: seen.append(indices) or {"index": torch.tensor(list(indices))}, "rows", at_once=3)
    assert seen == [range(0, 3), range(3, 4), range(4, 7), range(7, 8), range(8, 10)]
    assert rows.read([9, 0, 4, 4])["index"].tolist() == [9, 0, 4, 4]


def test_a_killed_measurement_resumes_with_the_unfinished_chunk(rows):
    def until_killed(indices):
        if indices.start == 6:
            raise KeyboardInterrupt
        return numbered(indices)

    with pytest.raises(KeyboardInterrupt):
        rows.fill(until_killed, "rows", at_once=2)
    assert rows.missing() == [range(4, 8), range(8, 10)]


def test_a_damaged_file_is_one_line_and_made_again_when_it_is_removed(tmp_path):
    rows = FileRows(10, 4, tmp_path)

    def whole(indices):
        return {"index": torch.tensor(list(indices))}

    rows.fill(whole, "rows")
    assert rows.read([5])["index"].tolist() == [5]
    path = rows.path(range(4, 8))
    path.unlink()
    path.write_bytes(b"cut off")
    with pytest.raises(DataError, match=r"00000004-00000008.safetensors cannot be read: .*remove it"):
        rows.read([5])
    path.unlink()
    rows.fill(whole, "rows")
    assert rows.read([5])["index"].tolist() == [5]


@pytest.mark.parametrize("change", ["a byte", "a name"])
def test_what_is_not_what_was_written_is_not_taken_for_it(tmp_path, change):
    rows = FileRows(4, 4, tmp_path)
    rows.fill(lambda indices: {"index": torch.tensor(list(indices))}, "rows")
    path = rows.path(range(4))
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"x" if change == "a byte" else content.replace(b'"index"', b'"indez"'))
    with pytest.raises(DataError, match=r"cannot be read: it is not what was written; remove it"):
        rows.read([2])


def test_a_file_without_a_checksum_is_refused(tmp_path):
    rows = FileRows(4, 4, tmp_path)
    save_file({"index": torch.arange(4)}, rows.path(range(4)))
    with pytest.raises(DataError, match="it is not what was written"):
        rows.read([2])


def test_processes_measure_each_its_part(tmp_path, monkeypatch):
    rows = FileRows(10, 2, tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "3")
    seen = {"0": [], "1": [], "2": []}
    for rank, mine in seen.items():
        monkeypatch.setenv("RANK", rank)
        rows.fill(lambda indices, mine=mine: mine.extend(indices) or {"x": torch.zeros(len(indices))}, "rows")
    assert seen == {"0": [0, 1, 6, 7], "1": [2, 3, 8, 9], "2": [4, 5]}


def test_files_are_mapped_not_read(tmp_path):
    rows = FileRows(4, 4, tmp_path)
    rows.fill(lambda indices: {"x": torch.zeros(4, 2**20)}, "rows")
    with rows.path(range(4)).open("r+b") as file:  # the mapping sees what another process writes
        first = rows.chunk(range(4))["x"]
        file.seek(-4, 2)
        file.write(b"\x00\x00\x80\x3f")
    assert first[-1, -1] == 1.0


def test_chunks_have_a_moderate_size(monkeypatch):
    assert chunk_size_of(1) == rows_module.CHUNK_ROWS
    assert chunk_size_of(rows_module.CHUNK_BYTES // 10) == 10
    assert chunk_size_of(10 * rows_module.CHUNK_BYTES) == 1


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux lists the files that a process maps")
def test_removed_rows_take_no_room_on_the_disk(tmp_path):
    rows, mapped = rows_at(tmp_path / "rows", 10, 4), Path("/proc/self/maps")
    rows.fill(numbered, "rows")
    rows.read([0, 4])
    assert str(tmp_path) in mapped.read_text()
    remove_rows(tmp_path / "rows")
    assert str(tmp_path) not in mapped.read_text()
    assert not (tmp_path / "rows").exists()
