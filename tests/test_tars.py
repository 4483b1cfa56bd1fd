"""WebDataset shards: read in place and in any order; damaged ones are named or left out."""

import io
import json
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from secateur.base.console import shown
from secateur.base.errors import DataError
from secateur.data import load_data
from secateur.data.tars import expanded


def picture(number: int, size: int = 8) -> bytes:
    file = io.BytesIO()
    pixels = torch.randint(0, 255, (size, size, 3), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(file, "PNG")
    return file.getvalue()


def shard(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def shards(folder: Path, count: int = 3, each: int = 4, **more: str) -> Path:
    """`count` shards of images, classes and captions."""
    for place in range(count):
        members = {}
        for number in range(place * each, (place + 1) * each):
            members[f"{number:04d}.png"] = picture(number)
            members[f"{number:04d}.cls"] = str(number % 3).encode()
            for suffix, text in more.items():
                members[f"{number:04d}.{suffix}"] = text.format(number).encode()
        shard(folder / f"train-{place:03d}.tar", members)
    return folder


def test_samples_are_those_of_a_folder_of_the_same_files(tmp_path):
    shards(tmp_path / "tars", txt="number {}")
    for number in range(12):
        place = tmp_path / "files" / str(number % 3) / f"{number:04d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(picture(number))
    tars, files = load_data(tmp_path / "tars"), load_data(tmp_path / "files")
    assert (len(tars), tars.shape, tars.class_names) == (12, (3, 8, 8), ("0", "1", "2"))
    order = [path.stem for path in files.paths]
    for index in (11, 0, 5):
        one, other = tars.batch([index]), files.batch([order.index(f"{index:04d}")])
        assert torch.equal(one.sample, other.sample)
        assert torch.equal(one.conditions["class_labels"], other.conditions["class_labels"])
    assert tars.captions == tuple(f"number {number}" for number in range(12))
    assert load_data(tmp_path / "tars", (1, 4, 4)).batch([3, 1]).sample.shape == (2, 1, 4, 4)


def test_one_file_some_by_braces_and_all_of_a_folder(tmp_path):
    shards(tmp_path)
    assert len(load_data(tmp_path / "train-001.tar")) == 4
    some = load_data(str(tmp_path / "train-{001..002}.tar"))
    assert some.keys == tuple(f"{number:04d}" for number in range(4, 12))
    assert len(load_data(f"webdataset:{tmp_path}")) == 12
    assert some.fingerprint != load_data(tmp_path).fingerprint != load_data(tmp_path, (3, 4, 4)).fingerprint
    assert expanded("a{8..10}/b{0..1}.tar")[:3] == ["a8/b0.tar", "a8/b1.tar", "a9/b0.tar"]
    with pytest.raises(DataError, match=r"train-003\.tar is no tar file"):
        load_data(str(tmp_path / "train-{001..003}.tar"))


def test_captions_of_records(tmp_path):
    shards(tmp_path, json=json.dumps({"caption": "a cat", "url": "x"}).replace("{", "{{").replace("}", "}}"))
    assert set(load_data(tmp_path).captions) == {"a cat"}


@pytest.mark.parametrize("cut", [700, 5000])
def test_a_damaged_shard_is_named_or_left_out(cut, tmp_path, capsys):
    shards(tmp_path)
    broken = tmp_path / "train-001.tar"
    broken.write_bytes(broken.read_bytes()[:-cut] if cut == 5000 else b"no tar" * 700)
    with pytest.raises(DataError, match=r"train-001\.tar is damaged: .*repair or remove it, or .*corrupt=skip"):
        load_data(tmp_path)
    with shown(True):
        found = load_data(f"webdataset:{tmp_path},corrupt=skip")
    assert found.keys == tuple(f"{number:04d}" for number in (0, 1, 2, 3, 8, 9, 10, 11))
    assert "train-001.tar is damaged and left out" in " ".join("".join(capsys.readouterr()).split())


def test_a_damaged_image_is_named_or_left_out(tmp_path):
    shards(tmp_path, count=1)
    shard(
        tmp_path / "train-001.tar",
        {"0004.png": b"no image", "0004.cls": b"0", "0005.png": picture(5), "0005.cls": b"1"},
    )
    with pytest.raises(DataError, match=r"1 of 6 images cannot be read: 0004 of .*train-001\.tar"):
        load_data(tmp_path)
    found = load_data(f"webdataset:{tmp_path},corrupt=skip")
    assert "0004" not in found.keys
    assert len(found) == 5


def test_a_sample_without_its_label_is_named(tmp_path):
    shards(tmp_path, count=1)
    shard(tmp_path / "train-001.tar", {"0004.png": picture(4)})
    with pytest.raises(DataError, match=r"has no \.cls for 1 of 5 samples, 0004 first"):
        load_data(tmp_path)
    shard(tmp_path / "empty" / "x.tar", {"readme.md": b"nothing"})
    with pytest.raises(DataError, match="holds no images"):
        load_data(tmp_path / "empty")
