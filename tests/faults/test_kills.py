"""Any signal at any moment: finished work is kept, and the resumed command ends as an undisturbed run.

`python tests/faults/test_kills.py 200` kills 200 commands at random moments and prints the counts.
"""

import functools
import random
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Any

import pytest
from campaigns import carried_on, command_line, warmed
from children import Ended, Moment, run, snapshot
from diffusers import DDPMScheduler

from models import dit, unet
from pipelines import image_folder
from secateur.io.checkpoint import save_pretrained
from text_pipelines import stable_diffusion

SMALL = ["--scoring.num-timesteps", "2", "--scoring.num-images", "4"]
TRAIN = ["--recovery.batch-size", "4", "--recovery.log-every", "1", "--recovery.checkpoint-every", "2"]
MEASURE = ["--evaluation.num-images", "4", "--evaluation.num-real-images", "4", "--evaluation.bootstrap", "10"]
MEASURE += [
    "--evaluation.num-inference-steps",
    "1",
    "--evaluation.batch-size",
    "64",
    "--metrics",
    "loss",
    "consistency",
]
DATA = ["--data", "digits", "--device", "cpu", "--out", "run"]
TRIALS = [*DATA, "--shared.batch-size", "4", "--shared.num-timesteps", "2", "--shared.num-images", "4"]
RECIPES = ["--recipes", "magnitude", "random"]
COMMANDS = {
    "rank": ["rank", "model", *DATA, *SMALL],
    "prune": ["prune", "model", "--target", "macs=60%", *DATA, *SMALL],
    "finetune": ["finetune", "model", *DATA, *TRAIN, "--steps", "5"],
    "sample": ["sample", "model", "--num-images", "6", "--batch-size", "2", "--num-inference-steps", "1", *DATA[2:]],
    "encode": ["encode", "pipeline", "--data", "captions"],
    "evaluate": ["evaluate", "model", "--reference", "model", *DATA, *MEASURE],
    "compress": ["compress", "dit", "--target", "macs=60%", *DATA, *SMALL, *TRAIN, *MEASURE, "--steps", "3"],
    "sweep": ["sweep", "dit", "--targets", "macs=60%", *RECIPES, "--steps", "2", *TRIALS, *MEASURE],
    "best": ["best", "dit", "--target", "macs=60%", *RECIPES, "--budget-steps", "24", *TRIALS, *MEASURE],
}
LONG = ("compress", "sweep", "finetune", "encode", "evaluate", "best")
STATUS = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 143, signal.SIGINT: 130}
CPU_SECONDS = 60


def prepared(folder: Path) -> Path:
    """A folder with two small models, a small pipeline, and pictures with captions."""
    return Path(shutil.copytree(_inputs().name, folder, dirs_exist_ok=True))


@functools.cache
def _inputs() -> tempfile.TemporaryDirectory:
    folder = tempfile.TemporaryDirectory()
    config = dict(DDPMScheduler().config) | {"_class_name": "DDPMScheduler"}
    save_pretrained(unet(), Path(folder.name) / "model", config)
    save_pretrained(dit(num_layers=2, num_attention_heads=2), Path(folder.name) / "dit", config)  # quick
    stable_diffusion(Path(folder.name) / "pipeline")
    image_folder(Path(folder.name) / "captions", count=12, captions=True)
    return folder


def quiet(name: str, folder: Path) -> tuple[Ended, dict[str, Any]]:
    """The undisturbed command, and what it wrote."""
    ended = run(COMMANDS[name], prepared(folder), seconds=CPU_SECONDS)
    assert ended.status == 0, ended.output
    return ended, snapshot(folder)


def killed(name: str, folder: Path, moment: Moment) -> tuple[Ended, Ended, dict[str, Any]]:
    """How the killed command ended, how the resumed command ended, and the final contents."""
    first = run(COMMANDS[name], prepared(folder), moment, CPU_SECONDS)
    second = run(COMMANDS[name], folder, seconds=CPU_SECONDS)
    return first, second, snapshot(folder)


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    found = {}

    def reference(name):
        if name not in found:
            found[name] = quiet(name, tmp_path_factory.mktemp("quiet"))
        return found[name]

    return reference


MOMENTS = [("rank", 0.1), ("sample", 0.5), ("encode", 0.5), ("finetune", 0.7), ("prune", 0.6)]


@pytest.mark.slow
@pytest.mark.parametrize("number", STATUS, ids=lambda number: number.name)
@pytest.mark.parametrize(("name", "share"), MOMENTS)
def test_a_killed_command_resumes_to_the_same_result(name, share, number, references, tmp_path):
    with warmed():
        check(name, share, number, references, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_a_compression_that_is_killed_resumes_to_the_same_result(share, references, tmp_path):
    with warmed():
        check("compress", share, signal.SIGKILL, references, tmp_path)


def check(name, share, number, references, tmp_path):
    ended, wanted = references(name)
    first, second, found = killed(name, tmp_path, Moment(number, event=max(1, round(share * ended.events))))
    assert first.status == STATUS[number]
    assert second.status == 0, second.output
    assert found == wanted


def campaign(count: int, folder: Path, seed: int = 0, names: tuple[str, ...] = LONG, **settings: Any) -> dict[str, int]:
    """Kill `count` commands by random signals, half of them at random writes and steps, half at random times."""
    references: dict[str, tuple[Ended, dict]] = {}

    def trial(index: int) -> dict[str, Any]:
        draw = random.Random(f"{seed}-{index}")
        name, number, timed = draw.choice(names), draw.choice(list(STATUS)), draw.random() < 0.5
        if name not in references:
            references[name] = quiet(name, folder / f"quiet-{name}")
        ended, wanted = references[name]
        longest = ended.seconds
        while True:
            moment = Moment(number, event=draw.randint(1, ended.events))
            if timed:
                moment = Moment(number, seconds=max(0.02, draw.random() * longest))
            first, second, found = killed(name, folder / f"{index}", moment)
            shutil.rmtree(folder / f"{index}")
            if first.status != 0 or not timed:
                break
            longest /= 2  # it had ended before the signal came
        said = {"command": name, "signal": number.name, "event": moment.event, "seconds": round(moment.seconds, 3)}
        return said | _judged(first, second, number, [key for key in {*found, *wanted} if _differ(found, wanted, key)])

    with warmed():
        return carried_on(count, trial, **settings)


def _differ(found: dict[str, Any], wanted: dict[str, Any], key: str) -> bool:
    return key not in found or key not in wanted or found[key] != wanted[key]


def _judged(first: Ended, second: Ended, number: signal.Signals, changed: list[str]) -> dict[str, Any]:
    if first.status not in (STATUS[number], -number):  # a process that has just begun dies of SIGTERM itself
        return {"outcome": f"signal swallowed, exit {first.status}", "line": first.last_line}
    if second.status != 0:
        outcome = "refused" if second.status == 1 else f"lost, exit {second.status}"
        return {"outcome": outcome, "line": second.output[-3000:] if second.status < 0 else second.last_line}
    return {"outcome": "another result", "changed": changed[:9]} if changed else {"outcome": "identical"}


@pytest.mark.torture
@pytest.mark.timeout(7200)
def test_two_hundred_kills_lose_nothing(tmp_path):
    assert campaign(200, tmp_path, log=tmp_path / "trials.jsonl") == {"identical": 200}


if __name__ == "__main__":
    command_line(campaign, "kill commands at random moments")
