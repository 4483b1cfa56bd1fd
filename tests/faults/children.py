"""Commands in children of a warmed process: killed at a chosen event, watched, and what they left."""

import contextlib
import io
import json
import os
import re
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.optim.optimizer import register_optimizer_step_pre_hook

from secateur.cli import main

WRITES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod")
TIMES = re.compile(r"seconds|latency|throughput|_ms$|^versions$|^command_line$|^device$|predicted|timings|peak|memory")


@dataclass(frozen=True)
class Ended:
    """How a command in a child ended: exit status or minus a signal, output, events, GiB by which its memory grew."""

    status: int
    output: str
    events: int
    grown: float
    unpickled: bool

    @property
    def last_line(self) -> str:
        return (self.output.strip().splitlines() or [""])[-1]


def run(arguments: Sequence[str], folder: Path, kill_at: int = 0, number: int = 0, seconds: float = 60) -> Ended:
    """Run a command in `folder`; before its `kill_at`-th event, a write or an optimizer step, send it the signal."""
    return call(lambda: main([str(argument) for argument in arguments]), folder, kill_at, number, seconds)


def call(function: Callable[[], Any], folder: Path, kill_at: int = 0, number: int = 0, seconds: float = 60) -> Ended:
    """As `run`, for any function."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _child(function, folder, kill_at, number, writing)
    os.close(writing)
    until = time.monotonic() + seconds
    status = None
    while time.monotonic() < until and status is None:
        found, waited = os.waitpid(child, os.WNOHANG)
        status = os.waitstatus_to_exitcode(waited) if found else time.sleep(0.005)
    if status is None:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        status = -signal.SIGALRM
    with os.fdopen(reading, encoding="utf-8") as stream:
        answer = json.loads(stream.read() or '["", 0, 0, false]')
    return Ended(status, *answer)


def _child(function: Callable[[], Any], folder: Path, kill_at: int, number: int, writing: int) -> None:
    os.chdir(folder)
    seen, unpickled = [0], []

    def event() -> None:
        seen[0] += 1
        if seen[0] == kill_at:
            os.kill(os.getpid(), number)

    def hook(name: str, details: tuple) -> None:
        if name in WRITES or (name == "open" and isinstance(details[2], int) and details[2] & os.O_CREAT):
            event()
        elif name == "pickle.find_class":
            unpickled.append(details)

    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.addaudithook(hook)
    register_optimizer_step_pre_hook(lambda *_: event())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    status, output = 0, io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True)
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            function()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException as error:
        status = 99
        output.write(f"{type(error).__name__}: {error}")
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    said = output.buffer.getvalue().decode("utf-8", errors="replace")
    os.write(writing, json.dumps([said[-4000:], seen[0], grown, bool(unpickled)]).encode())
    os._exit(status)


def snapshot(folder: Path) -> dict[str, Any]:
    """What is in a folder, but for times: numbers of JSON, bytes of weights and arrays, names of all else."""
    return {str(path.relative_to(folder)): _content(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def _content(path: Path) -> Any:
    if path.suffix == ".json":
        return _without_times(json.loads(path.read_bytes()))
    if path.suffix == ".jsonl":
        return [_without_times(json.loads(line)) for line in path.read_bytes().splitlines()]
    if path.suffix in (".safetensors", ".npz") or path.parent.name.isdecimal():
        return path.read_bytes()
    return None  # pages, tables and plots show times


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(item) for key, item in value.items() if not TIMES.search(key)}
    return [_without_times(item) for item in value] if isinstance(value, list) else value
