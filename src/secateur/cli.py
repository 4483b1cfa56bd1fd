"""The command line. A command's imports happen when it is called, so that `secateur --help` answers at once."""

from __future__ import annotations

import difflib
import importlib
import io
import os
import shutil
import sys
import tempfile
import traceback
import warnings
from collections.abc import Sequence
from typing import NoReturn

from . import __version__
from .commands import COMMANDS, RESUMING

USAGE = "usage: secateur COMMAND ..."
DESCRIPTION = "Prune pretrained diffusion and flow models, and recover what pruning cost."
START = """Start with `secateur quickstart`. `secateur COMMAND --help` shows the options of a command.
Every command but recipes and completion is also a function, such as `secateur.compress(...)`."""
GOES_ON = "everything written so far is kept; run the same command again to resume"
BEGINS_AGAIN = "run the same command again to start over"
LONGEST_LINE = 1000  # characters of an error: a damaged file may have chosen some
FEWEST_COLUMNS = 40  # of help, which would not end in a narrower terminal


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exit with 0, or with 1 and a one-line error."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    _fit_terminal()
    try:
        _called(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output, such as `head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _called(arguments: Sequence[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview())
    elif arguments[0] in ("-V", "--version"):
        print(f"secateur {__version__}")
    elif arguments[0] in COMMANDS:
        _guarded(arguments)
    else:
        close = difflib.get_close_matches(arguments[0], COMMANDS, 1, 0.5)
        hint = f"did you mean {close[0]}?" if close else "secateur --help lists the commands"
        _fail(f"there is no command {arguments[0]!r}; {hint}")


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {what}" for name, what in COMMANDS.items()]
    return "\n".join([USAGE, "", DESCRIPTION, "", *lines, "", START])


def _guarded(arguments: Sequence[str]) -> None:
    """Run a command; an error becomes one line and exit status 1, Ctrl-C status 130, SIGTERM 143."""
    try:
        from .base.distributed import adopt_launcher
        from .base.errors import SecateurError, first_line, is_lost_peer, is_out_of_memory
        from .base.interrupts import Terminated, sigterm_raises
    except KeyboardInterrupt:  # importing takes seconds
        _fail("stopped before anything was done", status=130)
    try:
        adopt_launcher()
        with warnings.catch_warnings(), sigterm_raises():
            warnings.simplefilter("ignore")
            _run(arguments)
    except SecateurError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        _fail(f"stopped; {_again(arguments)}", status=130)
    except Terminated:
        _fail(f"stopped by SIGTERM; {_again(arguments)}", status=143)
    except BrokenPipeError:
        raise
    except OSError as error:
        _fail(f"{error.filename or 'input or output'}: {error.strerror or error}")
    except Exception as error:
        if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and is_out_of_memory(error)):
            _fail(f"out of memory: lower the batch sizes and run again ({first_line(error)})")
        if isinstance(error, RuntimeError) and is_lost_peer(error):
            _fail(f"another process is gone or does not answer ({first_line(error)}); see its own error message")
        _fail(f"internal error: {type(error).__name__}: {first_line(error)}; {_write_traceback()}")


def _again(arguments: Sequence[str]) -> str:
    """What the same command will do after it was stopped."""
    return GOES_ON if arguments[0] in RESUMING and not {"--dry-run", "--dry_run"} & set(arguments) else BEGINS_AGAIN


def _fit_terminal() -> None:
    """Replace characters that the terminal cannot show, and treat it as at least wide enough for help."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    if shutil.get_terminal_size().columns < FEWEST_COLUMNS:
        os.environ["COLUMNS"] = str(FEWEST_COLUMNS)


def _write_traceback() -> str:
    """Write the traceback of the current error to a temporary file; return words that say where it is."""
    try:
        descriptor, path = tempfile.mkstemp(".txt", "secateur-error-")
        with open(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            traceback.print_exc(file=file)
    except OSError:
        traceback.print_exc()
        return "its traceback is above"
    return f"its traceback is in {path}"


def _run(arguments: Sequence[str]) -> None:
    os.environ.setdefault("DATASETS_VERBOSITY", "critical")  # errors that it logs are raised as well
    from diffusers.utils import logging as diffusers_logging

    from .base.console import shown
    from .base.origin import begun_by
    from .commands.defaults import defaults_of
    from .commands.grammar import Grammar
    from .commands.options_file import named_in, with_file

    diffusers_logging.set_verbosity_error()
    name = arguments[0]
    module = importlib.import_module(f".commands.{name.replace('-', '_')}", __package__)
    with shown(True), begun_by(arguments):
        given = with_file(arguments[1:])
        with named_in(given.file):
            defaults = defaults_of(name, given.words)
            command = Grammar(getattr(module, name.replace("-", "_")), defaults, given.model).parse(name, given.words)
        command()


def _fail(message: str, status: int = 1) -> NoReturn:
    line = " ".join(message.split())
    if len(line) > LONGEST_LINE:
        line = f"{line[: LONGEST_LINE // 2]} ... {line[-LONGEST_LINE // 2 :]}"
    print(f"secateur: {line}", file=sys.stderr)
    if "torch" in sys.modules:
        from .base.distributed import abandon_process_group

        abandon_process_group()
    sys.exit(status)
