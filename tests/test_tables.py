"""Tables with a column of images: `save_to_disk`, parquet, arrow, and how columns and splits are chosen."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("datasets")

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import image_folder, images_of
from secateur.base.errors import DataError
from secateur.cli import main
from secateur.data import TableDataset, load_data
from secateur.data.table_sources import TableSource, parse_source

PICTURE, CLASS, TEXT = datasets.Image(), datasets.ClassLabel(names=["cat", "dog"]), datasets.Value("string")
FEATURES = {"image": PICTURE, "label": CLASS, "text": TEXT}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub-cache")
    datasets.disable_progress_bars()


def table(folder: Path, features: dict[str, Any] = FEATURES, **columns: list[Any]) -> Any:
    """The six pictures of `image_folder`, cats and dogs in turns, as a `datasets.Dataset`."""
    paths = sorted(image_folder(folder).glob("*.png"))
    found = {"image": [{"bytes": path.read_bytes(), "path": None} for path in paths], "label": [0, 1] * 3}
    found["text"] = ["a cat", "a dog"] * 3
    found = {name: values for name, values in (found | columns).items() if name in features}
    return datasets.Dataset.from_dict(found, features=datasets.Features(features))


def saved(rows: Any, place: Path) -> str:
    rows.save_to_disk(place)
    return str(place)


def parquet(rows: Any, place: Path) -> str:
    place.parent.mkdir(parents=True, exist_ok=True)
    rows.to_parquet(place)
    return str(place)


SAVED = {
    "a data set": lambda rows, place: saved(rows, place),
    "splits": lambda rows, place: saved(datasets.DatasetDict(train=rows, test=rows.select([0])), place),
    "only one split": lambda rows, place: saved(datasets.DatasetDict(all=rows), place),
    "parquet": lambda rows, place: parquet(rows, place.with_suffix(".parquet")),
    "arrow": lambda rows, place: saved(rows, place) + "/data-00000-of-00001.arrow",
    "clone": lambda rows, place: parquet(rows, place / "data" / "train-00000-of-00001.parquet").rpartition("/data")[0],
    "prefix": lambda rows, place: "datasets:" + saved(rows, place),
    "odd name": lambda rows, place: saved(rows, place.with_name("a:b,image=c")),
    "shuffled": lambda rows, place: saved(rows.select([5, 4, 3, 2, 1, 0]).select([5, 4, 3, 2, 1, 0]), place),
}  # fmt: skip


@pytest.mark.parametrize("layout", SAVED)
def test_every_layout_holds_the_images_classes_and_captions_of_the_folder(tmp_path: Path, layout: str) -> None:
    source = SAVED[layout](table(tmp_path / "images"), tmp_path / "table")
    dataset = load_data(source)
    assert isinstance(dataset, TableDataset)
    assert (len(dataset), dataset.shape, dataset.class_names) == (6, (3, 16, 16), ("cat", "dog"))
    assert dataset.captions == ("a cat", "a dog") * 3
    batch = dataset.batch([4, 1, 5])
    assert torch.equal(batch.sample, images_of(tmp_path / "images")[[4, 1, 5]].float())
    assert batch.class_labels is not None
    assert batch.class_labels.tolist() == [0, 1, 1]
    smaller = load_data(source, (1, 8, 12)).batch(range(6)).sample
    assert torch.equal(smaller, load_data(tmp_path / "images", (1, 8, 12)).batch(range(6)).sample)


def test_splits_are_named_and_sliced(tmp_path: Path) -> None:
    rows = table(tmp_path / "images")
    splits = saved(datasets.DatasetDict(train=rows, test=rows.select([1])), tmp_path / "splits")
    assert load_data(f"datasets:{splits}:test").captions == ("a dog",)
    for split, part in (("train", rows), ("test", rows.select([1]))):
        parquet(part, tmp_path / "clone" / "data" / f"{split}-00000-of-00001.parquet")
    assert load_data(f"datasets:{tmp_path}/clone:test").captions == ("a dog",)
    sliced, whole = load_data(f"datasets:{tmp_path}/clone:train[4:]"), load_data(tmp_path / "clone")
    assert torch.equal(sliced.batch([1]).sample, whole.batch([5]).sample)
    assert sliced.fingerprint != whole.fingerprint != load_data(tmp_path / "clone", (3, 4, 4)).fingerprint
    for place in (splits, f"{tmp_path}/clone"):
        with pytest.raises(DataError, match="valid"):
            load_data(f"datasets:{place}:valid")
    alone = parquet(rows, tmp_path / "alone.parquet")
    assert len(load_data(f"datasets:{alone}:train[:2]")) == 2
    with pytest.raises(DataError, match="test"):
        load_data(f"datasets:{alone}:test")
    with pytest.raises(DataError, match=r"is one table without splits; leave :test out$"):
        load_data(f"datasets:{saved(rows, tmp_path / 'single')}:test")
    two = saved(datasets.DatasetDict(a=rows, b=rows), tmp_path / "two")
    with pytest.raises(DataError, match=r"has no split train, only a, b; write for example datasets:/.*/two:a$"):
        load_data(two)


def test_columns_are_found_by_their_features_or_chosen(tmp_path: Path) -> None:
    features = {"image": PICTURE, "mask": PICTURE, "label": CLASS, "coarse": datasets.ClassLabel(names=["pet"])}
    features |= {"text": TEXT, "Caption": TEXT, "note": TEXT, "breed": datasets.Value("int64")}
    rows = table(tmp_path / "images", features, mask=[None] * 6, coarse=[0] * 6, Caption=["?"] * 6, note=["!"] * 6,
                 breed=[7, 9, 7, 9, 7, 7])  # fmt: skip
    place = saved(rows, tmp_path / "table")
    with pytest.raises(DataError, match=r"several image columns, image, mask; choose one as datasets:.*,image=image$"):
        load_data(place)
    with pytest.raises(DataError, match=r"several label columns, label, coarse; .*,image=image,label=label$"):
        load_data(f"datasets:{place},image=image")
    with pytest.raises(DataError, match=r"several caption columns, text, Caption"):
        load_data(f"datasets:{place},image=image,label=label")
    dataset = load_data(f"datasets:{place},image=image,label=coarse,caption=note")
    assert (dataset.class_names, set(dataset.captions)) == (("pet",), {"!"})
    coarse = dataset.fingerprint
    dataset = load_data(f"datasets:{place},image=image,label=breed,caption=text")
    assert dataset.fingerprint != coarse  # what was kept or recorded for other labels is not used
    assert dataset.class_names == tuple("0123456789")
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [7, 9, 7, 9, 7, 7]
    with pytest.raises(DataError, match=r"no column picture; it has image \(Image\), label .* breed \(int64\)"):
        load_data(f"datasets:{place},image=picture")
    with pytest.raises(DataError, match=r"6 of 6 images cannot be read: row 0 \(no image\), row 1 \(no image\), row 2"):
        load_data(f"datasets:{place},image=mask,label=label,caption=text")
    with pytest.raises(DataError, match="6 of 6 images cannot be read"):
        load_data(f"datasets:{place},image=note,label=label,caption=text")


def test_bytes_of_other_writers_are_named(tmp_path: Path) -> None:
    rows = table(tmp_path / "images")
    content = [path.read_bytes() for path in sorted((tmp_path / "images").glob("*.png"))]
    place = saved(datasets.Dataset.from_dict({"png": content, "n": list(range(6))}), tmp_path / "table")
    with pytest.raises(DataError, match=r"no column of images among png \(binary\), n \(int64\); .*,image=COLUMN$"):
        load_data(place)
    found = load_data(f"datasets:{place},image=png")
    assert (found.class_names, found.captions) == ((), ())
    assert torch.equal(found.batch([3]).sample, load_data(saved(rows, tmp_path / "rows")).batch([3]).sample)


def test_images_that_are_files_beside_the_table(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "images", captions=True)
    dataset, same = load_data(f"datasets:{folder}"), load_data(folder)  # by the imagefolder of `datasets`
    assert (dataset.captions, dataset.class_names) == (same.captions, same.class_names)
    assert torch.equal(dataset.batch([2, 0]).sample, same.batch([2, 0]).sample)
    os.remove(folder / "4.png")
    with pytest.raises(DataError, match=r"row 4 of images cannot be decoded: .* No such file"):
        dataset.batch([3, 4])


def test_bad_rows(tmp_path: Path) -> None:
    good = [path.read_bytes() for path in sorted(image_folder(tmp_path / "images", size=64).glob("*.png"))]
    content = [{"bytes": data, "path": None} for data in good]
    cut = [*content[:5], {"bytes": good[5][:2000], "path": None}]
    dataset = load_data(saved(table(tmp_path / "images", image=cut), tmp_path / "cut"))
    assert dataset.batch([4]).sample.shape == (1, 3, 64, 64)
    with pytest.raises(DataError, match="row 5 of cut cannot be decoded"):
        dataset.batch([1, 5])
    wrong = {
        "none": ({"image": [None, *content[1:]]}, r"1 of 6 images cannot be read: row 0 \(no image\);"),
        "noise": ({"image": [*content[:5], {"bytes": b"noise", "path": None}]}, "row 5"),
        "label": ({"label": [0, 1, -1, None, 1, 0]}, "no label in the column label of 2 of 6 rows, the first 2;"),
        "caption": ({"text": ["a", None, "b", "c", "d", "e"]}, "no caption in the column text of 1 of 6 rows"),
    }
    for name, (columns, message) in wrong.items():
        with pytest.raises(DataError, match=message):
            load_data(saved(table(tmp_path / "images", **columns), tmp_path / name))
    written = pq.read_table(parquet(table(tmp_path / "images"), tmp_path / "beyond.parquet"))
    pq.write_table(written.set_column(1, "label", pa.array([0, 1, 2] * 2)), tmp_path / "beyond.parquet")
    with pytest.raises(DataError, match="no label in the column label of 2 of 6 rows, the first 2;"):
        load_data(tmp_path / "beyond.parquet")
    pq.write_table(
        written.set_column(1, "label", pa.array([0, 1, -1] * 2)).replace_schema_metadata(), tmp_path / "numbers.parquet"
    )
    with pytest.raises(DataError, match="no label in the column label of 2 of 6 rows, the first 2;"):
        load_data(f"datasets:{tmp_path / 'numbers.parquet'},image=image,label=label")
    pq.write_table(
        written.set_column(1, "label", pa.array([0.0, 1.0] * 3)).replace_schema_metadata(), tmp_path / "floats.parquet"
    )
    with pytest.raises(DataError, match=r"no label in the column label, of (float64|double); give texts or integers"):
        load_data(f"datasets:{tmp_path / 'floats.parquet'},image=image,label=label")
    unlabelled = load_data(saved(table(tmp_path / "images", label=[-1] * 6), tmp_path / "unlabelled"))
    assert (unlabelled.labels, unlabelled.class_names) == (None, ())
    with pytest.raises(DataError, match=r"empty\.parquet cannot be read by datasets"):
        load_data(parquet(table(tmp_path / "images").select([]), tmp_path / "empty.parquet"))


def test_damaged_files_are_one_line(tmp_path: Path) -> None:
    place = tmp_path / "table"
    saved(table(tmp_path / "images"), place)
    whole = (place / "data-00000-of-00001.arrow").read_bytes()
    for length in (0, 5, len(whole) // 2):
        (place / "data-00000-of-00001.arrow").write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"table cannot be read by datasets: [^\n]+$"):
            load_data(place)
    (tmp_path / "bad.parquet").write_text("hello")
    with pytest.raises(DataError, match=r"bad\.parquet cannot be read by datasets: [^\n]+$"):
        load_data(tmp_path / "bad.parquet")
    (place / "state.json").write_text("{}")
    with pytest.raises(DataError, match="table cannot be read by datasets"):
        load_data(place)


def test_a_folder_of_both_asks_which(tmp_path: Path) -> None:
    rows = table(tmp_path / "images")
    clone = tmp_path / "clone"
    parquet(rows, clone / "data" / "train-00000-of-00001.parquet")
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(clone / "preview.png")
    with pytest.raises(
        DataError, match=rf"1 image files and 1 of parquet or arrow; for the tables .* datasets:{clone}"
    ):
        load_data(clone)
    assert len(load_data(f"datasets:{clone}:train")) == 6
    parquet(rows, tmp_path / "images" / "metadata.parquet")  # another layout of captions, which is not read
    assert len(load_data(tmp_path / "images")) == 6


def test_spelling() -> None:
    source = TableSource("a/b", "train[:5]", {"image": "photo", "config": "small"})
    assert parse_source("datasets:a/b:train[:5],image=photo,config=small") == source
    assert parse_source(source.spelled()) == source
    for wrong in ("datasets:", "datasets:a/b,image", "datasets:a/b,picture=c", "datasets:a/b,image="):
        with pytest.raises(DataError, match=r"cannot be understood; write datasets:NAME\[:SPLIT\]"):
            load_data(wrong)
    with pytest.raises(DataError, match="is no hub id such as"):
        load_data("datasets:/no/where/at/all")
    with pytest.raises(DataError, match=r"does not exist \(a data set of the hub is datasets:huggan/flowers\)"):
        load_data("huggan/flowers")


def test_one_table_has_no_configs(tmp_path: Path) -> None:
    rows = table(tmp_path / "images")
    for place in (saved(rows, tmp_path / "table"), parquet(rows, tmp_path / "table.parquet")):
        with pytest.raises(DataError, match="is a table without configs; leave ,config=small out"):
            load_data(f"datasets:{place},config=small")


@pytest.mark.parametrize("offline", [True, False])
def test_without_a_network_it_is_one_line_at_once(capsys, monkeypatch, tmp_path: Path, offline: bool) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", offline)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    arguments = ["rank", "digits-unet", "--data", "datasets:huggan/flowers", "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("secateur: huggan/flowers ")
    assert not (tmp_path / "out").exists()


def test_a_table_trains_as_the_folder_does(tmp_path: Path) -> None:
    place = saved(table(tmp_path / "images"), tmp_path / "table")
    main(["rank", "digits-unet", "--data", place, "--out", str(tmp_path / "a"), "--criterion", "taylor",
          "--scoring.num-timesteps", "2", "--device", "cpu"])  # fmt: skip
    main(["rank", "digits-unet", "--data", str(tmp_path / "images"), "--out", str(tmp_path / "b"), "--criterion",
          "taylor", "--scoring.num-timesteps", "2", "--device", "cpu"])  # fmt: skip
    one, two = (json.loads((tmp_path / name / "ranking.json").read_text()) for name in "ab")
    assert one["dims"] == two["dims"]


def test_a_stream_reads_the_first_rows_alone(tmp_path: Path) -> None:
    rows = table(tmp_path / "images")
    file = parquet(rows, tmp_path / "rows.parquet")
    whole, some = load_data(file), load_data(f"datasets:{file},stream=3")
    assert (len(some), some.shape, some.class_names) == (3, whole.shape, whole.class_names)
    for one, other in zip(whole.batch([2, 0]).conditions.values(), some.batch([2, 0]).conditions.values(), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(whole.batch([2, 0]).sample, some.batch([2, 0]).sample)
    with pytest.raises(DataError, match="cannot be streamed as some rows; give a number"):
        load_data(f"datasets:{file},stream=some")


def test_the_library_is_optional(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = saved(table(tmp_path / "images"), tmp_path / "table")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"table needs the library datasets: pip install 'secateur\[datasets\]'$"):
        load_data(place)


@pytest.mark.slow
def test_the_library_is_imported_only_for_tables() -> None:
    code = "import sys, secateur.cli; assert 'datasets' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
