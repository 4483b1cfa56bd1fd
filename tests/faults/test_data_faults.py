"""Images with odd names, kinds, sizes and values are used, reported or refused."""

import json
import os
import signal
import struct
import zipfile
import zlib
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from memory import grown
from PIL import Image

from secateur.base.console import shown
from secateur.base.errors import DataError, SecateurError
from secateur.base.npz import read_arrays
from secateur.cli import main
from secateur.data import images as images_module
from secateur.data import load_data
from secateur.data.images import decode, read_header
from secateur.evaluation.statistics import read_statistics

RNG = np.random.default_rng(0)


def picture(path, size=8, mode="L", **options):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    shape = (size, size) if mode == "L" else (size, size, 3)
    Image.fromarray(RNG.integers(0, 255, shape, dtype=np.uint8)).save(path, **options)


@contextmanager
def at_once(seconds=10):
    """Nothing in the block may wait for longer."""

    def late(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# Names


@pytest.mark.slow
@pytest.mark.parametrize("place", [b"caf\xe9", b"\xff\xfe", "日本".encode("shift-jis")])
def test_names_are_bytes(place, tmp_path, capsys):
    folder = os.fsencode(tmp_path) + b"/" + place
    for kind in (place, b"other"):
        for index in range(2):
            picture(os.fsdecode(folder + b"/" + kind + b"/" + place + b"%d.png" % index))
    out = tmp_path / "out"
    main(["rank", "digits-unet", "--data", os.fsdecode(folder), "--criterion", "random", "--out", str(out)])
    assert json.loads((out / "config.json").read_bytes().decode("utf-8"))["data"] == os.fsdecode(folder)
    main(["rank", "digits-unet", "--data", os.fsdecode(folder), "--criterion", "random", "--out", str(out)])
    main(["evaluate", "digits-unet", "--data", os.fsdecode(folder), "--metrics", "loss", "--out", str(tmp_path / "e")])
    (tmp_path / os.fsdecode(place + b".png")).write_bytes(b"")
    with pytest.raises(SystemExit):
        main(["rank", "digits-unet", "--data", str(tmp_path / os.fsdecode(place + b".png")), "--out", str(out)])
    capsys.readouterr().err.encode("utf-8")


# Left out


@pytest.mark.parametrize("inside", ["0.heic", "sub/0.heic", None])
def test_a_class_without_known_images_is_refused_since_labels_would_shift(inside, tmp_path):
    for kind in ("bee", "cat"):
        picture(tmp_path / kind / "0.png")
    (tmp_path / "ant" / "sub").mkdir(parents=True)
    if inside is not None:
        (tmp_path / "ant" / inside).write_bytes(b"")
    with pytest.raises(DataError, match="ant holds no image of a known suffix"):
        load_data(tmp_path)


def test_numbers_are_labels_by_themselves(tmp_path):
    for kind in ("1", "3"):
        picture(tmp_path / kind / "0.png")
    (tmp_path / "2").mkdir()
    (tmp_path / ".cache").mkdir()
    assert load_data(tmp_path).labels.tolist() == [1, 3]


def test_ignored_files_are_counted_and_reported(tmp_path, capsys):
    picture(tmp_path / "0.png")
    for name in ("a.heic", "b.HEIC", "c.txt", "README", ".hidden", "metadata.jsonl"):
        (tmp_path / name).write_bytes(b"")
    with shown(True):
        load_data(tmp_path)
    assert "4 files without a known suffix of images left out (2 of .heic" in capsys.readouterr().err


def test_two_captions_of_one_image_are_refused(tmp_path):
    picture(tmp_path / "0.png")
    lines = [{"file_name": "0.png", "text": "a"}, {"file_name": "./0.png", "text": "b"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(DataError, match=r"metadata.jsonl has several lines for 0\.png"):
        load_data(tmp_path)


# Kinds of files


def test_only_regular_files_are_opened_and_links_to_them(tmp_path):
    picture(tmp_path / "images" / "a.png")
    picture(tmp_path / "elsewhere" / "b.png")
    os.symlink(tmp_path / "elsewhere" / "b.png", tmp_path / "images" / "b.png")
    assert len(load_data(tmp_path / "images")) == 2
    os.mkfifo(tmp_path / "images" / "c.png")
    os.symlink("/dev/zero", tmp_path / "images" / "d.png")
    os.symlink("nowhere", tmp_path / "images" / "e.png")
    with at_once(), pytest.raises(DataError, match=r"3 of 5 images cannot be read: .*c\.png \(.*no regular file\)"):
        load_data(tmp_path / "images")


@pytest.mark.parametrize("name", ["a.npz", "a.parquet", "a"])
def test_a_pipe_as_data_is_refused_at_once(name, tmp_path):
    os.mkfifo(tmp_path / name)
    with at_once(), pytest.raises(DataError, match=name):
        load_data(tmp_path / name)


def test_statistics_from_a_pipe_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "a.npz")
    with at_once(), pytest.raises(DataError, match="no regular file"):
        read_statistics(tmp_path / "a.npz", 8)


# Values


def tiff(path, pixels, **options):
    Image.fromarray(pixels).save(path, "TIFF", **options)
    return path


def retagged(path, tag, value):
    """The little-endian TIFF with another value of a tag of one short."""
    content = bytearray(path.read_bytes())
    (start,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, start)
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        if struct.unpack_from("<H", content, entry)[0] == tag:
            struct.pack_into("<H", content, entry + 8, value)
    path.write_bytes(content)
    return path


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    levels = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    wanted = torch.from_numpy(np.linspace(-1, 1, 64).reshape(8, 8)).float()
    for name in ("a.png", "a.tif"):
        Image.fromarray(levels).save(tmp_path / name)
        found = decode(tmp_path / name, name, (1, 8, 8))[0]
        assert (found - wanted).abs().max() < 1 / 127


@pytest.mark.parametrize(
    "make",
    [
        lambda path: tiff(path, RNG.integers(0, 2**31 - 1, (8, 8), dtype=np.int32)),
        lambda path: tiff(path, RNG.random((8, 8), dtype=np.float32)),
        lambda path: retagged(tiff(path, RNG.integers(0, 65535, (8, 8), dtype=np.uint16), tiffinfo={339: 1}), 339, 2),
        lambda path: retagged(tiff(path, RNG.integers(0, 65535, (8, 8), dtype=np.uint16)), 262, 0),
    ],
    ids=["32 bits", "floats", "signed", "white is zero"],
)
def test_values_without_an_agreed_range_are_refused(make, tmp_path):
    make(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a\.tif \(its (values|mode)"):
        load_data(tmp_path)


@pytest.mark.parametrize("mode", ["LAB", "F"])
def test_modes_that_pillow_does_not_convert_are_refused(mode, tmp_path):
    Image.new(mode, (8, 8)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match="has no agreed range"):
        load_data(tmp_path, (3, 8, 8))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_a_large_picture_is_decoded_in_strips_to_the_same(mode, tmp_path, monkeypatch):
    pixels = RNG.integers(0, 255, (40, 30, len(Image.new(mode, (1, 1)).getbands())), dtype=np.uint8).squeeze()
    image = Image.fromarray(pixels) if mode in ("L", "LA", "RGB", "RGBA") else Image.new(mode, (30, 40), 3)
    image.save(tmp_path / "a.tif")
    for shape in ((1, 40, 30), (3, 20, 16)):
        whole = decode(tmp_path / "a.tif", "a", shape)
        with monkeypatch.context() as patch:
            patch.setattr(images_module, "PIXELS_AT_ONCE", 200)
            assert torch.equal(decode(tmp_path / "a.tif", "a", shape), whole)


# Sizes


def blank_png(path, side):
    """A transparent picture that is `side` pixels wide and high."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packer = zlib.compressobj(1)
    packed = b"".join(packer.compress(bytes(1 + 4 * side)) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 6, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b""))


@pytest.mark.parametrize("side", [10_000, 2**31 - 1])
def test_more_pixels_than_pillow_takes_for_a_picture_are_refused(side, tmp_path):
    blank_png(tmp_path / "a.png", 4)
    content = bytearray((tmp_path / "a.png").read_bytes())
    struct.pack_into(">II", content, 16, side, side)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    (tmp_path / "a.png").write_bytes(content)
    amount, said = grown(lambda: load_data(tmp_path, (3, 8, 8)))
    assert "a.png" in said
    assert amount < 0.2


@pytest.mark.slow
def test_several_wide_pictures_take_less_than_a_gigabyte(tmp_path):
    for name in "ab":
        blank_png(tmp_path / f"{name}.png", 9_000)
    amount, said = grown(lambda: load_data(tmp_path, (3, 8, 8)).batch([0, 1]))
    assert said == ""
    assert amount < 1


def npz(path, shape, dtype="|u1", held=None, name="images.npy"):
    """An archive of zeros that declares `shape` and has a number of bytes."""
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open(name, "w") as stream,
    ):
        np.lib.format.write_array_header_1_0(stream, {"descr": dtype, "fortran_order": False, "shape": shape})
        left = int(np.prod(shape)) * np.dtype(dtype).itemsize if held is None else held
        while left > 0:
            stream.write(bytes(min(left, 2**24)))
            left -= 2**24
    return path


@pytest.mark.parametrize(
    ("shape", "dtype", "held"),
    [((2**23, 8, 8), "|u1", None), ((2**40, 8, 8), "|u1", 64), ((2**62, 2**62), "<f8", 8), ((-5, 8, 8), "|u1", 64)],
)
def test_an_array_that_unpacks_to_far_more_than_its_file_is_refused(shape, dtype, held, tmp_path):
    npz(tmp_path / "data.npz", shape, dtype, held)
    amount, said = grown(lambda: load_data(tmp_path / "data.npz"))
    assert said.startswith("DataError: ")
    assert "data.npz" in said
    assert amount < 0.2


def test_images_in_an_archive_are_fitted_one_at_a_time_to_the_same(tmp_path):
    pixels = RNG.integers(0, 255, (3, 20, 14, 3), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images=pixels)
    both = load_data(tmp_path / "data.npz", (1, 8, 8)).batch([2, 0]).sample
    alone = [load_data(tmp_path / "data.npz", (1, 8, 8)).batch([index]).sample for index in (2, 0)]
    assert torch.equal(both, torch.cat(alone))


# Archives and statistics


@pytest.mark.parametrize(
    "member",
    [b"", b"not an array", b"\x93NUMPY", b"\x93NUMPY\x01\x00\xff\xff{", b"\x93NUMPY\x09\x00\x10\x00{}"],
)
def test_a_member_that_is_no_array_is_refused(member, tmp_path):
    with zipfile.ZipFile(tmp_path / "data.npz", "w") as archive:
        archive.writestr("images.npy", member)
    with pytest.raises(DataError, match=r"data\.npz is not a readable \.npz"):
        load_data(tmp_path / "data.npz")


def test_python_objects_in_an_archive_are_refused(tmp_path):
    np.savez(tmp_path / "data.npz", images=np.array([{}], dtype=object))
    with pytest.raises(DataError, match=r"data\.npz"):
        read_arrays(tmp_path / "data.npz", ["images"])


@pytest.mark.parametrize("dtype", [">f4", ">f8", "<f2", "longdouble"])
def test_images_of_any_float_are_read(dtype, tmp_path):
    np.savez(tmp_path / "data.npz", images=RNG.random((2, 8, 8)).astype(dtype))
    assert load_data(tmp_path / "data.npz").batch([0, 1]).sample.dtype == torch.float32


STATISTICS = {"mu": np.zeros(3), "sigma": np.eye(3), "count": 10}


@pytest.mark.parametrize(
    "change",
    [
        {"count": np.zeros(2)},
        {"count": np.array(np.nan)},
        {"count": np.array(np.inf)},
        {"count": np.array(-1)},
        {"count": np.array(1.5)},
        {"count": np.array("x")},
        {"mu": np.array(["a", "b", "c"])},
        {"mu": np.zeros(3, complex)},
        {"mu": np.full(3, np.nan)},
        {"mu": np.zeros((3, 1))},
        {"sigma": np.eye(2)},
        {"sigma": -np.eye(3)},
        {"sigma": np.triu(np.ones((3, 3)))},
        {"sigma": np.zeros((3, 3), dtype="datetime64[s]")},
    ],
    ids=str,
)
def test_odd_statistics_are_refused(change, tmp_path):
    np.savez(tmp_path / "s.npz", **{**STATISTICS, **change})
    with pytest.raises(DataError, match=r"s\.npz"):
        read_statistics(tmp_path / "s.npz", 3)


@pytest.mark.parametrize(
    "change", [{}, {"count": np.array(10.0)}, {"mu": np.zeros(3, ">f4")}, {"sigma": np.eye(3, dtype=int)}]
)
def test_statistics_of_other_programs_are_read(change, tmp_path):
    np.savez(tmp_path / "s.npz", **{**STATISTICS, **change})
    found = read_statistics(tmp_path / "s.npz", 3)
    assert (found.count, found.mean.dtype, found.covariance.dtype) == (10, torch.float64, torch.float64)


# Found before work


@pytest.mark.parametrize("way", ["a file", "below a file"])
def test_a_place_where_no_folder_can_be_is_found_before_work(way, tmp_path, capsys, monkeypatch):
    (tmp_path / "taken").write_text("")
    place = str(tmp_path / "taken" if way == "a file" else tmp_path / "taken" / "a" / "b")
    evaluate = ["evaluate", "digits-unet", "--data", "digits", "--evaluation.num-images", "4"]
    wrong = [
        [*evaluate, "--evaluation.frechet.save-statistics", place, "--out", str(tmp_path / "out")],
        ["sample", "digits-unet", "--out", f"{place}/x.png"],
        ["export", "digits-unet", "--format", "onnx", "--out", place],
        ["rank", "digits-unet", "--data", "digits", "--criterion", "random", "--out", place],
    ]
    for arguments in wrong:
        with pytest.raises(SystemExit):
            main(arguments)
        last = capsys.readouterr().err.strip().splitlines()[-1]
        assert last.startswith("secateur: ")
        assert "taken" in last
    assert not (tmp_path / "out").exists()


def test_a_damaged_cache_of_the_empty_prompt_is_made_again(tmp_path, monkeypatch):
    from secateur.base.rows import FileRows
    from secateur.data.encode import NULL, with_null
    from secateur.data.latents import LatentDataset

    picture(tmp_path / "images" / "a.png")
    rows = FileRows(1, 1, tmp_path / "cache")
    dataset = LatentDataset(load_data(tmp_path / "images"), (1, 8, 8), rows, rows)
    (tmp_path / "cache").mkdir()
    for content in (b"", b"\xff" * 40, b"{}"):
        (tmp_path / "cache" / NULL).write_bytes(content)
        assert not with_null(dataset).null


def test_a_header_is_read_from_bytes_too():
    assert isinstance(read_header(zipfile.io.BytesIO(b"")), str)
    with pytest.raises(SecateurError):
        decode(zipfile.io.BytesIO(b""), "row 0", (1, 8, 8))
