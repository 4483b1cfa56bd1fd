"""The command line: an edge over `secateur.commands`."""

from __future__ import annotations

import functools
import io
import os
import shutil
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import tyro
from diffusers.utils import logging as diffusers_logging

from . import commands
from .base.distributed import abandon_process_group
from .base.errors import SecateurError, first_line, is_out_of_memory
from .base.interrupts import Terminated, sigterm_raises
from .criteria import ScoringConfig, criterion_named
from .evaluation import EvaluationConfig
from .recovery import RecoveryConfig, WarmupConfig
from .runs.compression import resolve
from .runs.trials import TrialConfig
from .schedules import CutConfig

DESCRIPTION = """Prune pretrained diffusion and flow models, and recover what pruning cost.

Start with `secateur quickstart`. Every command is a Python function of the same name and arguments."""
GOES_ON = "what was written stays, and the same command takes it up again"
FEWEST_COLUMNS = 40  # of help; in a narrower one it would never end
SPELLINGS = tyro.constructors.ConstructorRegistry()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line.

    Exits with 0; with 1 and one line that says what was wrong; with 130 after Ctrl-C, 143 after SIGTERM.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    diffusers_logging.set_verbosity_error()
    os.environ.setdefault("DATASETS_VERBOSITY", "critical")  # what it logs as an error is raised as one too
    _fit_terminal()
    try:
        with warnings.catch_warnings(), sigterm_raises():
            warnings.simplefilter("ignore")
            _run(arguments)
    except SecateurError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        _fail(f"stopped; {GOES_ON}", status=130)
    except Terminated:
        _fail(f"stopped by SIGTERM; {GOES_ON}", status=143)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        _fail(f"{error.filename or 'input or output'}: {error.strerror or error}")
    except Exception as error:
        if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and is_out_of_memory(error)):
            _fail(f"out of memory: lower the batch sizes and run again ({first_line(error)})")
        _fail(f"internal error: {type(error).__name__}: {first_line(error)}; {_write_traceback()}")


def _fit_terminal() -> None:
    """Print what the terminal cannot show as a replacement, and take no terminal for narrower than a word of help."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    if shutil.get_terminal_size().columns < FEWEST_COLUMNS:
        os.environ["COLUMNS"] = str(FEWEST_COLUMNS)


def _write_traceback() -> str:
    """Write the traceback of the error at hand to a file of its own; where it is."""
    try:
        descriptor, path = tempfile.mkstemp(".txt", "secateur-error-")
        with open(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            traceback.print_exc(file=file)
    except OSError:
        traceback.print_exc()
        return "its traceback is above"
    return f"its traceback is in {path}"


def _run(arguments: Sequence[str]) -> None:
    with SPELLINGS:
        tyro.extras.subcommand_cli_from_dict(
            _commands(arguments),
            prog="secateur",
            description=DESCRIPTION,
            args=arguments,
            config=(tyro.conf.AvoidSubcommands,),
        )


@SPELLINGS.primitive_rule
def _named_numbers(field: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec | None:
    """`--recovery.weights denoising 1 jacobian 10`: one spelling whatever the recipe's own are."""
    if field.type != dict[str, float]:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="[NAME NUMBER ...]",
        instance_from_str=_numbers_by_name,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda numbers: [word for name, value in numbers.items() for word in (name, f"{value:g}")],
    )


def _numbers_by_name(words: list[str]) -> dict[str, float]:
    if len(words) % 2:
        raise ValueError("give a number after every name")
    return {name: float(number) for name, number in zip(words[::2], words[1::2], strict=True)}


def _commands(arguments: Sequence[str]) -> dict[str, Callable[..., Any]]:
    """The commands, with option groups opened at their defaults.

    Those of `compress` are the chosen recipe's; the options of scoring are the chosen criterion's.
    """
    criterion = _value_of("--criterion", arguments)
    chosen = resolve(_value_of("--recipe", arguments) or "diff-pruning", criterion=criterion)
    scoring = criterion_named(criterion or "diff-pruning").configured(ScoringConfig())
    opened: dict[str, dict[str, Any]] = {
        "quickstart": {},
        "compress": {
            "scoring": chosen.scoring,
            "progressive": chosen.progressive,
            "adaptive": chosen.adaptive,
            "cut": chosen.cut,
            "recovery": chosen.recovery,
            "warmup": WarmupConfig(),
            "evaluation": chosen.evaluation,
        },
        "rank": {"scoring": scoring},
        "prune": {"scoring": scoring, "cut": CutConfig()},
        "finetune": {"recovery": RecoveryConfig()},
        "evaluate": {"evaluation": EvaluationConfig()},
        "sample": {},
        "inspect": {},
        "check-structure": {},
        "convert": {},
        "encode": {},
        "sweep": {"shared": TrialConfig(), "evaluation": EvaluationConfig(), "warmup": WarmupConfig()},
        "best": {"shared": TrialConfig(), "evaluation": EvaluationConfig(), "warmup": WarmupConfig()},
        "report": {},
        "slice-lora": {},
        "export": {},
    }
    functions = {name: getattr(commands, name.replace("-", "_")) for name in opened}
    return {name: functools.partial(functions[name], **groups) for name, groups in opened.items()}


def _value_of(option: str, arguments: Sequence[str]) -> str | None:
    """The value of an option that is needed before parsing, because it decides which other options there are."""
    for position, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name == option:
            return value if equals else "".join(arguments[position + 1 : position + 2])
    return None


def _fail(message: str, status: int = 1) -> NoReturn:
    print(f"secateur: {' '.join(message.split())}", file=sys.stderr)
    abandon_process_group()
    sys.exit(status)
