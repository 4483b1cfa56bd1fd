"""Any value in any foreign file works or is refused in one line: fast, in little memory, and nothing is run.

`python tests/faults/test_damage.py 1000` damages 1000 files and prints the counts.
"""

import json
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from campaigns import carried_on, command_line, warmed
from children import Ended, Moment, call, run
from damage import damaged
from PIL import Image
from safetensors.torch import save_file
from test_kills import COMMANDS, CPU_SECONDS, prepared

from models import sd3
from original_models import HEADS, Original
from secateur.base.errors import SecateurError
from secateur.data import load_data
from secateur.evaluation.statistics import read_statistics
from secateur.io.single_file import load_single_file, write_single_file

GIB = 1
TRAPS = ("x.py", "a.py", "custom.py", "model/x.py", "pipeline/x.py", "pipeline/unet/x.py")  # names in damaged files


def pictures(folder: Path) -> None:
    """Pictures of every kind, with captions."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    names = [f"{index}.{suffix}" for index, suffix in enumerate(("png", "jpg", "webp", "bmp", "tiff", "gif"))]
    for name in names:
        Image.fromarray(draw.integers(0, 255, (8, 8), dtype=np.uint8)).save(folder / name)
    lines = [json.dumps({"file_name": name, "text": "a"}) for name in names]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def build(folder: Path, needed: set[str]) -> None:
    """One file of each kind that we read; runs only of the commands that are needed."""
    shutil.rmtree(folder, ignore_errors=True)
    prepared(folder)
    for name in sorted(needed & COMMANDS.keys()):
        begun(name, folder, name)
    shutil.rmtree(folder / "compress" / "model", ignore_errors=True)  # half done, to be taken up again
    if "stopped" in needed:
        begun("finetune", folder, "stopped", share=0.8)
        assert list((folder / "stopped").glob("recovery/checkpoints/*/*"))
    if "measured" in needed:  # half done, with what was measured of single images
        begun("evaluate", folder, "measured", share=0.6)
        assert list((folder / "measured").rglob("*.safetensors"))
    if "cache" in needed:
        assert run(ENCODED, folder, seconds=CPU_SECONDS).status == 0
        shutil.rmtree(folder / "out")
    single_files(folder)
    traps(folder)


def begun(command: str, folder: Path, place: str, share: float = 0.0) -> None:
    """A run in `place`, killed after a share of its events."""
    ended = run(COMMANDS[command], folder, seconds=CPU_SECONDS)
    assert ended.status == 0, ended.output
    if share:
        shutil.rmtree(folder / "run")
        run(COMMANDS[command], folder, Moment(event=round(share * ended.events)), CPU_SECONDS)
    (folder / "run").rename(folder / place)


def single_files(folder: Path) -> None:
    """Data, statistics and checkpoints in one file each."""
    pictures(folder / "images")
    numbers = np.random.default_rng(0)
    np.savez(folder / "data.npz", images=numbers.integers(0, 255, (4, 8, 8), dtype=np.uint8), labels=np.arange(4))
    np.savez(folder / "statistics.npz", mu=np.zeros(3), sigma=np.eye(3), count=9)
    layer = "unet.time_embedding.linear_1"
    rank = {f"{layer}.lora_A.weight": torch.randn(2, 8), f"{layer}.lora_B.weight": torch.randn(32, 2)}
    save_file(rank, folder / "lora.safetensors")
    torch.save(Original().state_dict(), folder / "DiT-tiny-2.pt")
    write_single_file(
        sd3(num_attention_heads=1, attention_head_dim=64, caption_projection_dim=64), folder / "m.safetensors"
    )
    paths = sorted((folder / "captions").glob("*.png"))[:4]
    columns = {"image": [{"bytes": path.read_bytes(), "path": None} for path in paths], "text": ["a"] * 4}
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    datasets.Dataset.from_dict(columns, features=features).to_parquet(folder / "table.parquet")


def traps(folder: Path) -> None:
    """Modules by the names that damaged files hold."""
    for trap in TRAPS:
        (folder / trap).write_text("raise SystemExit(77)\n")


def opened(place: str) -> Callable[[Path], Ended]:
    def read() -> None:
        data = load_data(place, (1, 8, 8))
        data.batch(list(range(min(len(data), 4))))

    return refusing(read)


def refusing(read: Callable[[], Any]) -> Callable[[Path], Ended]:
    """`read` in a folder; a SecateurError ends as on the command line."""

    def reading() -> None:
        try:
            read()
        except SecateurError as error:
            print(f"secateur: {error}"[:1000])
            sys.exit(1)

    return lambda folder: call(reading, folder)


def commanded(*arguments: str) -> Callable[[Path], Ended]:
    return lambda folder: run(arguments, folder)


def again(name: str, place: str = "") -> Callable[[Path], Ended]:
    """The command of a run once more."""
    return commanded(*(part if part != "run" else place or name for part in COMMANDS[name]))


RANK = ["--criterion", "random", "--data", "digits", "--device", "cpu", "--out", "out"]
ENCODED = ["rank", "pipeline", "--criterion", "diff-pruning", "--data", "captions", "--device", "cpu", "--out", "out"]
ENCODED += ["--scoring.num-images", "2", "--scoring.num-timesteps", "1"]
DRAWN = ["--num-images", "1", "--num-inference-steps", "1", "--device", "cpu", "--out", "a.png"]
LORA = ["slice-lora", "lora.safetensors", "--model", "prune/pruned", "--out", "out"]
CONVERT = ["convert", "DiT-tiny-2.pt", "out", "--num-heads", str(HEADS)]
READERS: dict[str, tuple[str, str, Callable[[Path], Ended]]] = {  # the files, what else is needed, and who reads them
    "a model": ("model/*", "", commanded("rank", "model", *RANK)),
    "a pruned model": ("prune/pruned/*", "", commanded("rank", "prune/pruned", *RANK)),
    "a model to describe": ("prune/pruned/*", "", commanded("inspect", "prune/pruned")),
    "a pipeline to encode": ("pipeline/**/*", "captions", commanded(*COMMANDS["encode"])),
    "a pipeline to sample": ("pipeline/**/*", "", commanded("sample", "pipeline", "--prompt", "a", *DRAWN)),
    "a cache": ("cache/**/*", "pipeline captions", commanded(*ENCODED)),
    "a run": ("prune/*.json", "", commanded("report", "prune")),
    "a log": ("finetune/recovery/log.jsonl", "", commanded("report", "finetune")),
    "an evaluation": ("evaluate/**/*.json", "", commanded("report", "evaluate")),
    "a sweep": ("sweep/**/*.json*", "", commanded("report", "sweep")),
    "a search": ("best/**/*.json*", "", commanded("report", "best")),
    "two runs": ("compress/*.json", "evaluate", commanded("report", "compress", "evaluate", "--out", "out")),
    "an evaluation to resume": ("measured/**/*.[js]*", "model", again("evaluate", "measured")),
    "a sweep to resume": ("sweep/trials.json", "dit sweep", again("sweep")),
    "a search to resume": ("best/trials.json", "dit best", again("best")),
    "a run to resume": ("stopped/**/*.json*", "model", again("finetune", "stopped")),
    "a compression to resume": ("compress/**/*.[js]*", "dit", again("compress")),
    "a checkpoint": ("stopped/recovery/checkpoints/*/*", "model", again("finetune", "stopped")),
    "a LoRA": ("lora.safetensors", "prune", commanded(*LORA)),
    "an original checkpoint": ("DiT-tiny-2.pt", "", commanded(*CONVERT)),
    "a single file": ("m.safetensors", "", refusing(lambda: load_single_file(Path("m.safetensors")))),
    "images": ("images/*", "", opened("images")),
    "an archive": ("data.npz", "", opened("data.npz")),
    "a table": ("table.parquet", "", opened("table.parquet")),
    "statistics": ("statistics.npz", "", refusing(lambda: read_statistics("statistics.npz", 3))),
}
LIGHT = ("a model", "a pipeline to sample", "a single file", "images", "an archive", "a table", "statistics")
LONG = (
    "a sweep",
    "a search",
    "a sweep to resume",
    "a search to resume",
    "two runs",
    "a compression to resume",
)  # to build


def verdict(ended: Ended) -> str:
    """What is wrong with a command's reaction to a damaged file; "" if nothing."""
    if ended.ran:
        return f"ran {ended.ran}"
    if ended.grown > GIB:
        return f"took {ended.grown:.1f} GiB"
    if ended.status == 0:
        return ""
    if ended.status != 1:
        return f"ended with {ended.status}: {ended.last_line}"
    if not ended.last_line.startswith("secateur: ") or "internal error" in ended.last_line:
        return ended.last_line
    return ""


def tops(name: str) -> set[str]:
    """The files that a reader needs."""
    pattern, needed, _ = READERS[name]
    return {pattern.partition("/")[0], *needed.split(), *TRAPS[:3]}


def copied(good: Path, place: Path, names: set[str]) -> Path:
    """A folder with some files of another folder."""
    place.mkdir()
    for name in names:
        source = good / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, place / name)
    return place


def campaign(
    count: int, folder: Path, seed: int = 0, names: tuple[str, ...] = tuple(READERS), **settings: Any
) -> dict[str, int]:
    """Damage `count` files one after another; returns counts of the outcomes."""

    def trial(index: int) -> dict[str, Any]:
        draw = random.Random(f"{seed}-{index}")
        name = draw.choice(names)
        pattern, _, read = READERS[name]
        shutil.rmtree(folder / f"{index}", ignore_errors=True)  # of a campaign that was stopped
        place = copied(folder / "good", folder / f"{index}", tops(name))
        path = draw.choice(sorted(path for path in place.glob(pattern) if path.is_file() and path.suffix != ".py"))
        how = damaged(path, draw)
        ended = read(place)
        shutil.rmtree(place)
        wrong = verdict(ended)
        outcome = "wrong" if wrong else ("worked" if ended.status == 0 else "refused in one line")
        said = {"reader": name, "how": how, "seconds": round(ended.seconds, 2), "grown": round(ended.grown, 3)}
        return said | {"outcome": outcome} | ({"why": wrong} if wrong else {})

    with warmed():
        if not (folder / "good").exists():
            build(folder / "good-unfinished", {top for name in names for top in tops(name)})
            (folder / "good-unfinished").rename(folder / "good")
        return carried_on(count, trial, **settings)


def test_some_damage_to_what_is_read_at_once(tmp_path):
    assert "wrong" not in campaign(14, tmp_path, names=LIGHT)


@pytest.mark.slow
def test_some_damage_to_every_kind_of_file(tmp_path):
    names = tuple(name for name in READERS if name not in LONG)
    assert "wrong" not in campaign(2 * len(names), tmp_path, seed=2, names=names)


@pytest.mark.torture
@pytest.mark.timeout(36_000)
def test_ten_thousand_damaged_files(tmp_path):
    assert "wrong" not in campaign(10_000, tmp_path, seed=1, log=tmp_path / "trials.jsonl")


if __name__ == "__main__":
    command_line(campaign, "damage files at random, and read them")
