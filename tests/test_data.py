import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from secateur.base.errors import DataError
from secateur.data import calibration_batch, load_data


def png(path: Path, array: np.ndarray, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def test_fashion_holds_a_thousand_images_of_each_class() -> None:
    dataset = load_data("fashion")
    batch = dataset.batch(range(0, 10_000, 500))
    assert dataset.shape == (1, 16, 16)
    assert dataset.class_names[batch.class_labels[0]] == "T-shirt"
    assert batch.class_labels.tolist() == sorted([*range(10), *range(10)])
    assert dataset.labels.bincount().tolist() == [1000] * 10
    assert batch.sample.amin() == -1
    assert 0.9 < batch.sample.amax() <= 1


def test_digits_are_the_scaled_images_of_scikit_learn() -> None:
    dataset = load_data("digits")
    raw = load_digits()
    batch = dataset.batch([3, 0, 1796])
    assert (len(dataset), dataset.shape, dataset.class_names) == (1797, (1, 8, 8), tuple("0123456789"))
    expected = torch.from_numpy(raw.images[[3, 0, 1796]] / 8 - 1).float().unsqueeze(1)
    torch.testing.assert_close(batch.sample, expected)
    assert batch.class_labels is not None
    assert batch.class_labels.tolist() == raw.target[[3, 0, 1796]].tolist()


def test_calibration_is_deterministic_without_replacement_and_capped() -> None:
    dataset = load_data("digits")
    first, again, other = (calibration_batch(dataset, 64, seed).sample for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    everything = calibration_batch(dataset, 5000, 0).class_labels
    assert everything is not None
    assert torch.equal(everything.bincount(), torch.from_numpy(load_digits().target).bincount())


@pytest.mark.parametrize(
    ("given", "shape"), [((5, 6, 4), (1, 6, 4)), ((5, 6, 4, 1), (1, 6, 4)), ((5, 6, 4, 3), (3, 6, 4))]
)
def test_npz_layouts(tmp_path: Path, given: tuple[int, ...], shape: tuple[int, ...]) -> None:
    images = np.random.default_rng(0).integers(0, 256, given, dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(5) % 2, names=["cat", "dog"])
    dataset = load_data(tmp_path / "a.npz")
    batch = dataset.batch([4, 1])
    assert (dataset.name, dataset.shape, dataset.class_names) == ("a", shape, ("cat", "dog"))
    pixels = torch.from_numpy(images.reshape(5, 6, 4, -1)[[4, 1]]).permute(0, 3, 1, 2)
    torch.testing.assert_close(batch.sample, pixels / 127.5 - 1)
    assert batch.class_labels is not None
    assert batch.class_labels.tolist() == [0, 1]


def test_float_npz_without_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.full((2, 4, 4), 0.25))
    batch = load_data(str(tmp_path / "a.npz")).batch([1])
    assert batch.sample.unique().tolist() == [-0.5]
    assert batch.class_labels is None


def test_grey_becomes_rgb_and_rgb_becomes_luma(tmp_path: Path) -> None:
    assert load_data("digits", (3, 8, 8)).batch([0]).sample.unique(dim=1).shape == (1, 1, 8, 8)
    colour = np.random.default_rng(0).integers(0, 256, (1, 5, 5, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=colour)
    grey = load_data(tmp_path / "a.npz", (1, 5, 5)).batch([0]).sample[0, 0]
    by_pillow = torch.from_numpy(np.array(Image.fromarray(colour[0]).convert("L"))) / 127.5 - 1
    torch.testing.assert_close(grey, by_pillow, atol=1 / 127.5, rtol=0)


def test_resize_is_antialiased_and_crops_the_centre(tmp_path: Path) -> None:
    checks = np.zeros((1, 32, 64), np.uint8)
    checks[:, ::2] = 255  # lines one pixel wide: without antialiasing they alias to black or white
    checks[:, :, :16] = checks[:, :, 48:] = 0  # cropped away
    np.savez(tmp_path / "a.npz", images=checks)
    png(tmp_path / "folder" / "a.png", checks[0])
    for source in ("a.npz", "folder"):
        sample = load_data(tmp_path / source, (1, 8, 8)).batch([0]).sample
        assert sample.shape == (1, 1, 8, 8)
        assert sample[:, :, 1:-1].abs().max() < 0.1


HOSTILE = {
    "not a zip": (lambda path: path.write_bytes(b"hello"), "not a readable"),
    "empty": (lambda path: path.write_bytes(b""), "not a readable"),
    "pickle": (lambda path: np.savez(path, images=np.array([os.system], object)), "allow_pickle"),
    "no images": (lambda path: np.savez(path, data=np.zeros(3)), "no array `images`"),
    "flat": (lambda path: np.savez(path, images=np.zeros(3, np.uint8)), r"shape \(3,\)"),
    "no rows": (lambda path: np.savez(path, images=np.zeros((0, 8, 8), np.uint8)), "empty"),
    "text": (lambda path: np.savez(path, images=np.full((2, 2, 2), "x")), "<U1"),
    "nan": (lambda path: np.savez(path, images=np.full((2, 2, 2), np.nan)), r"\[0, 1\]"),
    "range": (lambda path: np.savez(path, images=np.full((2, 2, 2), 255.0)), r"\[0, 1\]"),
    "labels short": (lambda path: np.savez(path, images=np.zeros((2, 2, 2)), labels=[1]), "labels"),
    "labels negative": (lambda path: np.savez(path, images=np.zeros((2, 2, 2)), labels=[1, -1]), "from -1"),
    "labels huge": (lambda path: np.savez(path, images=np.zeros((2, 2, 2)), labels=[0, 2**60]), "class indices"),
    "labels float": (lambda path: np.savez(path, images=np.zeros((2, 2, 2)), labels=[0.0, 1.0]), "integer"),
    "names": (lambda path: np.savez(path, images=np.zeros((2, 2, 2)), labels=[0, 1], names=["a"]), "names"),
}  # fmt: skip


def test_a_fingerprint_changes_with_the_size_that_images_are_read_in(tmp_path: Path) -> None:
    png(tmp_path / "data" / "a.png", np.zeros((8, 8), np.uint8))
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 8, 8), np.uint8))
    for place in (tmp_path / "data", tmp_path / "a.npz"):
        as_they_are, same, small = (load_data(place, shape).fingerprint for shape in (None, (1, 8, 8), (1, 4, 4)))
        assert as_they_are == same != small


@pytest.mark.parametrize("case", HOSTILE)
def test_bad_npz_is_one_line_that_names_the_file(tmp_path: Path, case: str) -> None:
    write, reason = HOSTILE[case]
    write(tmp_path / "bad.npz")
    with pytest.raises(DataError, match=reason) as caught:
        load_data(tmp_path / "bad.npz")
    assert "bad.npz" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_truncated_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "bad.npz", images=np.zeros((9, 8, 8), np.uint8))
    whole = (tmp_path / "bad.npz").read_bytes()
    for length in range(0, len(whole), 97):
        (tmp_path / "bad.npz").write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"bad\.npz"):
            load_data(tmp_path / "bad.npz")


def test_wrong_channels_and_wrong_sources(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((1, 4, 4, 4), np.uint8))
    with pytest.raises(DataError, match="4-channel images, the model takes 3"):
        load_data(tmp_path / "a.npz", (3, 4, 4))
    with pytest.raises(DataError, match="1-channel images, the model takes 4"):
        load_data("digits", (4, 8, 8))
    with pytest.raises(DataError, match="did you mean `fashion`"):
        load_data("Fashion")
    with pytest.raises(DataError, match="did you mean `digits`"):
        load_data("digit")
    with pytest.raises(DataError, match="does not exist; give an image folder"):
        load_data(tmp_path / "nowhere")
    with pytest.raises(DataError, match="holds no images"):
        load_data(tmp_path)
    (tmp_path / "notes.csv").write_text("a")
    with pytest.raises(DataError, match=r"notes\.csv is not data"):
        load_data(tmp_path / "notes.csv")


def test_folder_order_classes_and_links(tmp_path: Path) -> None:
    for index, name in enumerate(("zebra/b.png", "zebra/a.PNG", "ant/deep/c.png", ".hidden/x.png", "ant/._d.png")):
        png(tmp_path / "data" / name, np.full((4, 4), index * 10, np.uint8))
    (tmp_path / "data" / "ant" / "notes.txt").write_text("not an image")
    (tmp_path / "data" / "ant" / "loop").symlink_to(tmp_path / "data")
    dataset = load_data(tmp_path / "data")
    batch = dataset.batch([2, 0, 1])
    assert (len(dataset), dataset.shape, dataset.class_names) == (3, (1, 4, 4), ("ant", "zebra"))
    assert batch.class_labels is not None
    assert batch.class_labels.tolist() == [1, 0, 1]
    assert ((batch.sample[:, 0, 0, 0] + 1) * 127.5).round().tolist() == [0, 20, 10]
    png(tmp_path / "data" / "stray.png", np.zeros((4, 4), np.uint8))
    assert load_data(tmp_path / "data").class_names == ()


@pytest.mark.parametrize(
    ("folders", "names", "labels"),
    [
        (list(map(str, range(12))), list(map(str, range(12))), list(range(12))),
        (["0", "2", "04"], list("01234"), [0, 2, 4]),
        (["3", "x10", "x9"], ["3", "x10", "x9"], [0, 1, 2]),
        (["20240101", "7"], ["20240101", "7"], [0, 1]),
    ],
)
def test_whole_numbers_are_labels_and_other_names_are_counted(
    tmp_path: Path, folders: list[str], names: list[str], labels: list[int]
) -> None:
    for name in folders:
        png(tmp_path / "data" / name / "a.png", np.zeros((4, 4), np.uint8))
    dataset = load_data(tmp_path / "data")
    assert dataset.class_names == tuple(names)
    assert dataset.labels is not None
    found = dict(zip(sorted(folders), dataset.labels.tolist(), strict=True))
    assert [found[name] for name in folders] == labels


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_grey_images_of_16_bits_keep_them(tmp_path: Path, ending: str) -> None:
    levels = np.arange(64, dtype=np.uint16).reshape(8, 8) * 3 + 30_000
    png(tmp_path / f"0.{ending}", levels)
    (grey,) = load_data(tmp_path, (1, 8, 8)).batch([0]).sample
    assert torch.equal(((grey[0].double() + 1) * 32767.5).round(), torch.from_numpy(levels.astype(np.float64)))
    (colours,) = load_data(tmp_path, (3, 8, 8)).batch([0]).sample
    assert torch.equal(colours, grey.expand(3, -1, -1))
    (smaller,) = load_data(tmp_path, (1, 4, 4)).batch([0]).sample
    assert smaller.mean() == pytest.approx(grey.mean().item(), abs=1e-4)
    np.savez(tmp_path / "images.npz", images=levels[None])
    assert torch.allclose(load_data(tmp_path / "images.npz").batch([0]).sample[0], grey, atol=1e-6)


def test_folder_modes(tmp_path: Path) -> None:
    grey = np.full((4, 4), 128, np.uint8)
    alpha = np.zeros((4, 4), np.uint8)
    png(tmp_path / "0.png", np.full((4, 4), 128 * 257, np.uint16))
    Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)]).save(tmp_path / "1.png")
    Image.fromarray(grey).convert("P").save(tmp_path / "2.png")
    Image.merge("RGBA", [Image.fromarray(grey)] * 3 + [Image.fromarray(alpha)]).save(tmp_path / "3.webp", lossless=True)
    Image.new("CMYK", (4, 4), (0, 255, 255, 0)).save(tmp_path / "4.tif")
    Image.fromarray(grey).save(tmp_path / "5.bmp")
    samples = (load_data(tmp_path, (3, 4, 4)).batch(range(6)).sample + 1) * 127.5
    assert samples[:, :, 0, 0].round().tolist() == [
        [128.0] * 3,
        [255.0] * 3,
        [128.0] * 3,
        [255.0] * 3,
        [255.0, 0, 0],
        [128.0] * 3,
    ]


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    image = np.zeros((4, 4), np.uint8)
    image[0] = 255
    png(tmp_path / "a.png", image, exif=exif)
    assert load_data(tmp_path).batch([0]).sample[0, 0, :, 0].tolist() == [-1, -1, -1, 1]


def test_unreadable_and_truncated_images_are_named(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = png(tmp_path / "good.png", noise).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[:2000])
    dataset = load_data(tmp_path, (3, 8, 8))
    assert dataset.batch([1]).sample.shape == (1, 3, 8, 8)
    with pytest.raises(DataError, match=r"cut\.png cannot be decoded"):
        dataset.batch([1, 0])
    for index in range(5):
        (tmp_path / f"bad{index}.jpg").write_text("no image")
    with pytest.raises(DataError, match=r"5 of 7 images cannot be read: .*bad0.*bad2\.jpg \(no image\), \.\.\.;"):
        load_data(tmp_path)
