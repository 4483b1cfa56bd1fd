"""Any value in any file of others: it works, or one line says what is wrong; at once, in little memory, nothing run.

`python tests/faults/test_damage.py 1000` damages so many files and prints the counts.
"""

import collections
import json
import random
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from children import Ended, call, run
from damage import damaged
from PIL import Image
from safetensors.torch import save_file
from test_kills import COMMANDS, prepared

from secateur.base.errors import SecateurError
from secateur.data import load_data
from secateur.evaluation.statistics import read_statistics

SECONDS, GIB = 30, 1


def pictures(folder: Path) -> None:
    folder.mkdir()
    draw = np.random.default_rng(0)
    for index in range(4):
        Image.fromarray(draw.integers(0, 255, (8, 8), dtype=np.uint8)).save(folder / f"{index}.png")
    lines = [json.dumps({"file_name": f"{index}.png", "text": "a"}) for index in range(4)]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def build(folder: Path, commands: Sequence[str]) -> None:
    """One of each kind of file that we read, and what some commands write."""
    prepared(folder)
    for name in commands:
        assert run(COMMANDS[name], folder).status == 0
        (folder / "run").rename(folder / name)
    if "finetune" in commands:
        shutil.rmtree(folder / "finetune" / "model")  # half done, to be taken up again
    pictures(folder / "images")
    numbers = np.random.default_rng(0)
    np.savez(folder / "data.npz", images=numbers.integers(0, 255, (4, 8, 8), dtype=np.uint8), labels=np.arange(4))
    np.savez(folder / "statistics.npz", mu=np.zeros(3), sigma=np.eye(3), count=9)
    layer = "unet.time_embedding.linear_1"
    rank = {f"{layer}.lora_A.weight": torch.randn(2, 8), f"{layer}.lora_B.weight": torch.randn(32, 2)}
    save_file(rank, folder / "lora.safetensors")


def opened(place: str) -> Callable[[], None]:
    def read() -> None:
        data = load_data(place, (1, 8, 8))
        data.batch(list(range(min(len(data), 4))))

    return read


def refusing(read: Callable[[], None]) -> Callable[[], None]:
    """`read`, where an error of ours ends as at the command line."""

    def reading() -> None:
        try:
            read()
        except SecateurError as error:
            print(f"secateur: {error}")
            sys.exit(1)

    return reading


RESUME = [part if part != "run" else "finetune" for part in COMMANDS["finetune"]]
RANK = ["--data", "digits", "--criterion", "random", "--device", "cpu", "--out", "out"]
READERS: dict[str, tuple[str, Callable[[Path], Ended]]] = {
    "a model": ("model/*", lambda folder: run(["rank", "model", *RANK], folder)),
    "a pruned model": ("prune/pruned/*", lambda folder: run(["rank", "prune/pruned", *RANK], folder)),
    "a run": ("prune/*.json", lambda folder: run(["report", "prune"], folder)),
    "a log": ("finetune/recovery/log.jsonl", lambda folder: run(["report", "finetune"], folder)),
    "an evaluation": ("evaluate/**/*.json", lambda folder: run(["report", "evaluate"], folder)),
    "a sweep": ("sweep/*.json", lambda folder: run(["report", "sweep"], folder)),
    "a run to resume": ("finetune/**/*.json*", lambda folder: run(RESUME, folder)),
    "a checkpoint": ("finetune/recovery/checkpoints/*/*", lambda folder: run(RESUME, folder)),
    "a LoRA": (
        "lora.safetensors",
        lambda folder: run(["slice-lora", "lora.safetensors", "--model", "prune/pruned", "--out", "out"], folder),
    ),
    "images": ("images/*", lambda folder: call(refusing(opened("images")), folder)),
    "an archive": ("data.npz", lambda folder: call(refusing(opened("data.npz")), folder)),
    "statistics": (
        "statistics.npz",
        lambda folder: call(refusing(lambda: read_statistics("statistics.npz", 3) and None), folder),
    ),
}


def verdict(ended: Ended) -> str:
    """What is wrong with how a command took a damaged file; "" if nothing."""
    if ended.unpickled:
        return "unpickled"
    if ended.grown > GIB:
        return f"took {ended.grown:.1f} GiB"
    if ended.status == 0:
        return ""
    if ended.status != 1:
        return f"ended with {ended.status}: {ended.last_line}"
    if not ended.last_line.startswith("secateur: ") or "internal error" in ended.last_line:
        return ended.last_line
    return ""


def campaign(count: int, folder: Path, seed: int = 0, names: tuple[str, ...] = tuple(READERS)) -> dict[str, int]:
    """Damage `count` files; counts of what came of it, and a line for everything wrong."""
    (folder / "good").mkdir()
    written = {READERS[name][0].partition("/")[0] for name in names} | {"prune"}
    build(folder / "good", sorted(written & COMMANDS.keys()))
    draw, outcomes = random.Random(seed), collections.Counter()
    for index in range(count):
        name = draw.choice(names)
        pattern, read = READERS[name]
        place = folder / f"{index}"
        shutil.copytree(folder / "good", place)
        path = draw.choice(sorted(path for path in place.glob(pattern) if path.is_file()))
        how = damaged(path, draw)
        ended = read(place)
        wrong = verdict(ended)
        outcomes["wrong" if wrong else ("worked" if ended.status == 0 else "refused")] += 1
        if wrong:
            print(f"{index}: {name}, {how}: {wrong}", flush=True)
        shutil.rmtree(place)
        if (index + 1) % 10 == 0:
            print(index + 1, dict(outcomes), flush=True)
    return dict(outcomes)


def test_some_damage_to_what_is_read_at_once(tmp_path):
    names = ("a model", "a run", "a LoRA", "images", "an archive", "statistics")
    assert "wrong" not in campaign(18, tmp_path, names=names)


@pytest.mark.slow
def test_some_damage_to_every_kind_of_file(tmp_path):
    assert "wrong" not in campaign(60, tmp_path, seed=2)


@pytest.mark.torture
@pytest.mark.timeout(36_000)
def test_ten_thousand_damaged_files(tmp_path):
    assert "wrong" not in campaign(10_000, tmp_path, seed=1)


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        print(campaign(int(sys.argv[1]), Path(scratch), seed=int(sys.argv[2]) if len(sys.argv) > 2 else 0))
