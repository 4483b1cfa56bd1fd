"""Commands in children of a warmed-up process: start, kill at a chosen moment, watch, and compare what they left."""

import contextlib
import faulthandler
import io
import json
import os
import re
import resource
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.optim.optimizer import register_optimizer_step_pre_hook
from tqdm import tqdm

from secateur.cli import main

WRITES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod")
STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn")
TIMES = re.compile(r"seconds|latency|throughput|_ms$|^versions$|^command_line$|^device$|predicted|timings|peak|memory")
AMOUNTS = re.compile(r"[\d.]+ (s|min|h|MiB|GiB)\b")  # in sentences
CPU_SECONDS = 30  # what is slow because the machine is busy does not hang
WALL = 5  # times as much by the clock: something waits for ever


@dataclass(frozen=True)
class Moment:
    """When to send a signal: before the `event`-th write or optimizer step, or `seconds` after the start."""

    number: int = signal.SIGKILL
    event: int = 0
    seconds: float = 0.0


NEVER = Moment()


@dataclass(frozen=True)
class Ended:
    """How a command in a child ended.

    `status` is an exit status or minus a signal; `events` and `seconds` are how long it was; `grown` the GiB by which
    its memory grew; `ran` what it unpickled, started or executed out of its folder.
    """

    status: int
    output: str = ""
    events: int = 0
    seconds: float = 0.0
    grown: float = 0.0
    ran: tuple[str, ...] = ()

    @property
    def last_line(self) -> str:
        return (self.output.strip().splitlines() or [""])[-1]


def run(arguments: Sequence[str], folder: Path, moment: Moment = NEVER, seconds: int = CPU_SECONDS) -> Ended:
    """Run a command in `folder`, and send it a signal at `moment`."""
    return start(lambda: main([str(argument) for argument in arguments]), folder, moment, seconds)()


def call(function: Callable[[], Any], folder: Path) -> Ended:
    """As `run`, for any function."""
    return start(function, folder)()


def start(
    function: Callable[[], Any], folder: Path, moment: Moment = NEVER, seconds: int = CPU_SECONDS
) -> Callable[[], Ended]:
    """Start `function` in a child; the returned function waits for its end."""
    reading, writing = os.pipe()
    stacks = os.memfd_create("stacks")
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.close(reading)
        faulthandler.register(signal.SIGUSR1, stacks)
        _child(function, folder, moment, seconds, writing)
    os.close(writing)
    begun = time.monotonic()

    def wait() -> Ended:
        status, sent = None, moment.seconds == 0
        while status is None and time.monotonic() < begun + WALL * seconds:
            if not sent and time.monotonic() >= begun + moment.seconds:
                os.kill(child, moment.number)  # not waited for yet, so that the number is nobody else's
                sent = True
            found, waited = os.waitpid(child, os.WNOHANG)
            status = os.waitstatus_to_exitcode(waited) if found else time.sleep(0.002)
        hangs = ""
        if status is None:
            os.kill(child, signal.SIGUSR1)
            time.sleep(1)
            hangs = f"it hangs in {os.pread(stacks, 4000, 0).decode(errors='replace')}"
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            status = -signal.SIGALRM
        os.close(stacks)
        with os.fdopen(reading, encoding="utf-8") as stream:
            answer = json.loads(stream.read() or "{}")
        answer = {"output": hangs, **answer}
        return Ended(status, **{**answer, "ran": tuple(answer.get("ran", ()))})

    return wait


def _child(function: Callable[[], Any], folder: Path, moment: Moment, seconds: int, writing: int) -> None:
    os.chdir(folder)
    warnings.resetwarnings()  # a warning of another library is no error, as it is in tests
    tqdm.set_lock(threading.RLock())  # the one that it has is shared with children that were killed, maybe holding it
    sys.path.insert(0, "")  # as `python -m secateur` has it
    os.environ["SECATEUR_CACHE"] = str(folder / "cache")
    resource.setrlimit(resource.RLIMIT_CPU, (seconds + round(time.process_time()), resource.RLIM_INFINITY))
    seen, ran, began = [0], [], time.monotonic()

    def event() -> None:
        seen[0] += 1
        if seen[0] == moment.event:
            os.kill(os.getpid(), moment.number)

    def hook(name: str, details: tuple) -> None:
        if name in WRITES or (name == "open" and isinstance(details[2], int) and details[2] & os.O_CREAT):
            event()
        elif name == "pickle.find_class" or name in STARTS:
            ran.append(f"{name} {details}"[:200])
        elif name == "exec" and str(getattr(details[0], "co_filename", "")).startswith((str(folder), "./")):
            ran.append(f"{name} {details[0].co_filename}")

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
    answer = {
        "output": output.buffer.getvalue().decode("utf-8", errors="replace")[-4000:],
        "events": seen[0],
        "seconds": time.monotonic() - began,
        "grown": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20,
        "ran": ran[:5],
    }
    os.write(writing, json.dumps(answer).encode())
    os._exit(status)


def snapshot(folder: Path) -> dict[str, Any]:
    """The contents of a folder without times: numbers of JSON, bytes of weights and arrays, names of other files."""
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
    if isinstance(value, str):
        return AMOUNTS.sub("", value)
    return [_without_times(item) for item in value] if isinstance(value, list) else value
