"""Two commands in one folder: the second is refused in one line, and the first ends as if it had been alone.

`python tests/faults/test_pairs.py 100` starts 100 pairs and prints the counts.
"""

import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from campaigns import carried_on, command_line, warmed
from children import Ended, snapshot, start
from test_kills import COMMANDS, CPU_SECONDS, prepared, quiet

from secateur.cli import main

IN_FOLDERS = ("rank", "prune", "finetune", "evaluate", "compress", "sweep", "best")
IN_USE = "secateur: run is in use by process "


def pair(first: str, second: str, folder: Path, delay: float) -> tuple[Ended, Ended, dict[str, Any]]:
    """How two commands ended, the second begun `delay` seconds after the first, and what they left."""
    prepared(folder)
    ends = [start(after(pause, name), folder, seconds=CPU_SECONDS) for pause, name in ((0.0, first), (delay, second))]
    one, other = (wait() for wait in ends)
    return one, other, snapshot(folder)


def after(seconds: float, name: str) -> Callable[[], None]:
    def begin() -> None:
        time.sleep(seconds)
        main(COMMANDS[name])

    return begin


def judged(ends: dict[str, Ended], found: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """The outcome of a pair; `ends` has the command that got the folder first."""
    winner, loser = ends.values()
    if winner.status != 0:
        return {"outcome": f"the first ended with {winner.status}", "line": winner.last_line}
    if loser.status == 0 or "was begun with another" in loser.last_line:
        return {"outcome": "one after the other"}
    if loser.status != 1 or not loser.last_line.startswith(IN_USE) or len(loser.output.strip().splitlines()) != 1:
        return {"outcome": f"the second ended with {loser.status}", "line": loser.output[-300:]}
    changed = [key for key in {*found, *wanted} if found.get(key, 0) != wanted.get(key, 0)]
    return {"outcome": "another result", "changed": changed[:9]} if changed else {"outcome": "identical"}


def campaign(
    count: int, folder: Path, seed: int = 0, names: tuple[str, ...] = IN_FOLDERS, **settings: Any
) -> dict[str, int]:
    """Start `count` pairs, half of them of one command, the second at a random time while the first runs."""
    references: dict[str, tuple[Ended, dict]] = {}

    def trial(index: int) -> dict[str, Any]:
        draw = random.Random(f"{seed}-{index}")
        first = draw.choice(names)
        second = first if draw.random() < 0.5 else draw.choice(names)
        for name in (first, second):
            if name not in references:
                references[name] = quiet(name, folder / f"quiet-{name}")
        delay = draw.random() * references[first][0].seconds
        while True:
            one, other, found = pair(first, second, folder / f"{index}", delay)
            shutil.rmtree(folder / f"{index}")
            winner = first if one.status == 0 else second
            ends = {"winner": one, "loser": other} if one.status == 0 else {"winner": other, "loser": one}
            result = judged(ends, found, references[winner][1])
            if result["outcome"] != "one after the other":
                return {"first": first, "second": second, "delay": round(delay, 3)} | result
            delay /= 2

    with warmed():
        return carried_on(count, trial, **settings)


@pytest.mark.slow
def test_two_commands_in_one_folder(tmp_path):
    assert campaign(4, tmp_path, names=("rank", "finetune")) == {"identical": 4}


@pytest.mark.torture
@pytest.mark.timeout(7200)
def test_a_hundred_pairs(tmp_path):
    assert campaign(100, tmp_path, log=tmp_path / "trials.jsonl") == {"identical": 100}


if __name__ == "__main__":
    command_line(campaign, "start two commands in one folder")
