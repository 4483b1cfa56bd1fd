"""No command imports or unpickles anything from a model folder, and loaders are called accordingly."""

import pickle
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from campaigns import warmed
from children import run, start
from test_damage import CONVERT, LORA, single_files
from test_kills import COMMANDS as ALONE
from test_kills import CPU_SECONDS, DATA, MEASURE, SMALL, TRAIN, prepared

from secateur.cli import main
from secateur.commands import COMMANDS

TEXT = ["--data", "captions", "--device", "cpu", "--out", "out"]
CUT = ["--target", "macs=80%"]
REFIT = ["--compensation.num-tuples", "16"]
PRUNED = ["--criterion", "random", "--target", "macs=60%", "--data", "digits", "--device", "cpu", "--out", "pruned"]
EVERY = {
    "inspect": ["inspect", "pipeline"],
    "rank": ["rank", "pipeline", *TEXT, *SMALL],
    "prune": ["prune", "pipeline", *CUT, *TEXT, *SMALL],
    "record": ["record", "pipeline", *TEXT, *TRAIN, "--steps", "1"],
    "recipes": ["recipes", "show", "default"],
    "completion": ["completion", "bash"],
    "compensate": ["compensate", "pruned/pruned", "--reference", "model", *DATA, *REFIT],
    "compress": ["compress", "pipeline", *CUT, *TEXT, *SMALL, *TRAIN, *MEASURE, *REFIT, "--steps", "1"],
    "finetune": ["finetune", "pipeline", *TEXT, *TRAIN, "--steps", "1"],
    "evaluate": ["evaluate", "pipeline", "--reference", "pipeline", *TEXT, *MEASURE],
    "sample": ["sample", "pipeline", "--prompt", "a", "--num-images", "1", "--num-inference-steps", "1", *TEXT[2:]],
    "report": ["report", "pruned"],
    "encode": ["encode", "pipeline", "--data", "captions"],
    "convert": CONVERT,
    "export": ["export", "pipeline", "--format", "diffusers", "--out", "out"],
    "slice-lora": [part.replace("prune/", "pruned/") for part in LORA],
    "check-structure": ["check-structure", "model", "--random-cuts", "0"],
    "sweep": ALONE["sweep"],
    "best": ALONE["best"],
}
MODULES = ("x", "unet", "vae", "tokenizer", "stable_diffusion", "modeling", "diffusers", "transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models beside modules and pickles that must not be touched, in a warmed-up process."""
    place = prepared(tmp_path_factory.mktemp("strange"))
    with warmed():
        assert run(["prune", "model", *PRUNED], place).status == 0
        single_files(place)
        for inside in [place, *(path for path in place.rglob("*") if path.is_dir() and "pruned" not in path.parts)]:
            for name in MODULES[: -2 if inside.parent.name == "pipeline" else None]:  # diffusers refuses those two
                (inside / f"{name}.py").write_text("raise SystemExit(77)\n")
            for name in ("diffusion_pytorch_model.bin", "pytorch_model.bin"):
                (inside / name).write_bytes(pickle.dumps(print))
        yield place


def test_every_command_is_here():
    assert EVERY.keys() == COMMANDS.keys() - {"quickstart"}  # which compresses a model that comes along


LONG = ("sweep", "best", "compress")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.torture] if name in LONG else []) for name in EVERY]
)
def test_nothing_of_a_folder_runs(name, folder):
    for left in ("out", "run", "cache"):
        shutil.rmtree(folder / left, ignore_errors=True)
    ended = start(lambda: spied(EVERY[name]), folder, seconds=CPU_SECONDS)()
    assert ended.ran == ()
    assert ended.status == 0, ended.output


def spied(arguments: list[str]) -> None:
    """The command; a loader that is not forbidden to run or unpickle is an error."""
    load = torch.load

    def only_weights(place: Any, *rest: Any, **options: Any) -> Any:
        if not options.get("weights_only") or Path(place).name != "DiT-tiny-2.pt":
            raise AssertionError(f"torch.load of {place}")
        return load(place, *rest, **options)

    torch.load = only_weights
    for loader in (diffusers.DiffusionPipeline, transformers.AutoModel, transformers.CLIPModel):
        loader.from_pretrained = classmethod(told(loader.from_pretrained.__func__))  # type: ignore[method-assign]
    main(arguments)


def told(inner: Any) -> Any:
    def from_pretrained(kind: Any, *rest: Any, **options: Any) -> Any:
        if options.get("trust_remote_code") is not False or options.get("use_safetensors") is not True:
            raise AssertionError(f"{kind.__name__} was not told to take safetensors and no code")
        return inner(kind, *rest, **options)

    return from_pretrained
