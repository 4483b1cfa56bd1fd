"""Any signal at any moment: what was done is kept, the same command goes on, and the result is that of a quiet run.

`python tests/faults/test_kills.py 200` kills so many commands at random moments and prints the count.
"""

import collections
import random
import shutil
import signal
import sys
from pathlib import Path

import pytest
from children import Ended, run, snapshot
from diffusers import DDPMScheduler

from models import unet
from secateur.io.checkpoint import save_pretrained

SMALL = ["--scoring.num-timesteps", "2", "--scoring.num-images", "4"]
TRAIN = ["--recovery.batch-size", "4", "--recovery.log-every", "1", "--recovery.checkpoint-every", "2"]
MEASURE = ["--evaluation.num-images", "4", "--evaluation.num-real-images", "4", "--evaluation.bootstrap", "10"]
MEASURE += ["--evaluation.num-inference-steps", "1", "--evaluation.metrics", "loss", "consistency"]
DATA = ["--data", "digits", "--device", "cpu", "--out", "run"]
TRIALS = [*DATA, "--shared.batch-size", "4", "--shared.num-timesteps", "2", "--shared.num-images", "4"]
RECIPES = ["--recipes", "magnitude", "random"]
COMMANDS = {
    "rank": ["rank", "model", *DATA, *SMALL],
    "prune": ["prune", "model", "--target", "macs=60%", *DATA, *SMALL],
    "finetune": ["finetune", "model", *DATA, *TRAIN, "--steps", "5"],
    "sample": ["sample", "model", "--num-images", "6", "--batch-size", "2", "--num-inference-steps", "1", *DATA[2:]],
    "evaluate": ["evaluate", "model", "--reference", "model", *DATA, *MEASURE, "--evaluation.batch-size", "2"],
    "compress": ["compress", "model", "--target", "macs=60%", *DATA, *SMALL, *TRAIN, *MEASURE, "--steps", "3"],
    "sweep": ["sweep", "model", "--targets", "macs=60%", *RECIPES, "--steps", "2", *TRIALS, *MEASURE],
    "best": ["best", "model", "--target", "macs=60%", *RECIPES, "--budget-steps", "24", *TRIALS, *MEASURE],
}
STATUS = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 143, signal.SIGINT: 130}


def prepared(folder: Path) -> Path:
    """A folder with a small model in it."""
    config = dict(DDPMScheduler().config) | {"_class_name": "DDPMScheduler"}
    save_pretrained(unet(), folder / "model", config)
    return folder


def quiet(name: str, folder: Path) -> tuple[Ended, dict]:
    """The command left alone, and what it wrote."""
    ended = run(COMMANDS[name], prepared(folder))
    assert ended.status == 0, ended.output
    return ended, snapshot(folder / "run")


def killed(name: str, folder: Path, kill_at: int, number: int) -> tuple[int, Ended, dict]:
    """How the killed command ended, how the same command ended after it, and what there is then."""
    first = run(COMMANDS[name], prepared(folder), kill_at, number)
    second = run(COMMANDS[name], folder)
    return first.status, second, snapshot(folder / "run")


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    found = {}

    def reference(name):
        if name not in found:
            found[name] = quiet(name, tmp_path_factory.mktemp("quiet"))
        return found[name]

    return reference


@pytest.mark.slow
@pytest.mark.parametrize("number", STATUS, ids=lambda number: number.name)
@pytest.mark.parametrize(("name", "share"), [("rank", 0.1), ("sample", 0.5), ("finetune", 0.3), ("finetune", 0.7)])
def test_a_command_that_is_killed_goes_on_to_the_same_result(name, share, number, references, tmp_path):
    ended, wanted = references(name)
    status, second, found = killed(name, tmp_path, max(1, round(share * ended.events)), number)
    assert status == STATUS[number]
    assert second.status == 0, second.output
    assert found == wanted


def campaign(count: int, folder: Path, seed: int = 0, names: tuple[str, ...] = tuple(COMMANDS)) -> dict[str, int]:
    """Kill `count` commands at random events by random signals; counts of what came of it."""
    draw, quiet_runs = random.Random(seed), {name: quiet(name, folder / f"quiet-{name}") for name in names}
    outcomes: collections.Counter[str] = collections.Counter()
    for index in range(count):
        name, number = draw.choice(names), draw.choice(list(STATUS))
        ended, wanted = quiet_runs[name]
        kill_at = draw.randint(1, ended.events)
        place = folder / f"{index}"
        place.mkdir()
        status, second, found = killed(name, place, kill_at, number)
        outcome = "identical"
        if status != STATUS[number]:
            outcome = f"signal swallowed, exit {status}"
        elif second.status != 0:
            outcome = "refused" if second.status == 1 else f"lost, exit {second.status}"
        elif found != wanted:
            outcome = "another result"
        outcomes[outcome] += 1
        if outcome != "identical":
            changed = [key for key in {*found, *wanted} if found.get(key, 0) != wanted.get(key, 0)]
            said = f"{name}, {signal.Signals(number).name} at event {kill_at} of {ended.events}"
            print(f"{said}: {outcome}; {second.last_line}; {changed[:5]}", flush=True)
        shutil.rmtree(place)
        if (index + 1) % 10 == 0:
            print(index + 1, dict(outcomes), flush=True)
    return dict(outcomes)


@pytest.mark.torture
@pytest.mark.timeout(7200)
def test_two_hundred_kills_lose_nothing(tmp_path):
    assert campaign(200, tmp_path) == {"identical": 200}


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        print(campaign(int(sys.argv[1]), Path(scratch), seed=int(sys.argv[2]) if len(sys.argv) > 2 else 0))
