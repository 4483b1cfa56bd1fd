"""How a recovery reads a teacher's book: which answers it needs, how many tuples, and in which order."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..base.console import note
from ..base.devices import in_float64, where_float64
from ..base.distributed import process_count, process_index
from ..base.errors import TrainingError
from ..data.latents import will_have_text
from ..models.network import device_of, inference
from ..models.predict import network_of, predict
from ..teacher import Book, BookConfig, Contents, Draw, at
from ..teacher.book import tuple_bytes
from .accelerator import precision_on
from .config import RecoveryConfig
from .draws import batch_indices
from .objectives import objective_named

FEWEST = 4096  # with fewer tuples, repeated reading costs quality (docs/teachers-book.md)
READINGS = 4  # readings of every tuple in longer recoveries
JUDGED = 4  # times in a run that the error on held-out tuples is measured
OVERFITTED = 2.0  # ratio of that error to the one on trained tuples at which quality begins to suffer


def contents_of(config: RecoveryConfig, has_null: bool = False) -> Contents:
    """The answers that the recovery's objective needs for every tuple; `has_null` tells whether some may have the null
    condition."""
    objective = objective_named(config.objective)
    jacobian, states = objective.teacher_jacobian, objective.compares_blocks
    return Contents(
        label_dropout=config.label_dropout if has_null else 0.0,
        horizontal_flip=config.horizontal_flip,
        jacobian=jacobian,
        directions=0 if jacobian == "none" else config.jacobian.directions,
        projection=config.jacobian.projection if jacobian != "none" else "vjp",
        blocks=config.features.blocks if states else (),
        inputs=states and config.features.teacher_inputs,
    )


def tuples_for(config: RecoveryConfig, book: BookConfig) -> int:
    """Number of tuples to train on: as given, or a quarter of the recovery's draws, but at least 4,096.

    A recovery with fewer draws than that reads every tuple once.
    """
    drawn = config.steps * config.batch_size
    return book.num_tuples or max(min(drawn, FEWEST), math.ceil(drawn / READINGS))


def book_size(teacher: nn.Module, config: RecoveryConfig, book: BookConfig, device: torch.device) -> tuple[int, int]:
    """Number of tuples, held-out ones included, and bytes of the book for a recovery on `device`."""
    tuples = tuples_for(config, book) + book.held_out
    return tuples, tuples * tuple_bytes(teacher, contents_of(config), book, autocast_on(config, device))


def autocast_on(config: RecoveryConfig, device: torch.device) -> torch.dtype | None:
    """The lower precision of the teacher's passes for a recovery on `device`; None for that of its weights."""
    return {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision_on(config, device)]


def check_contents(book: Book, config: RecoveryConfig) -> None:
    """Check that a book holds what the objective asks for.

    Raises:
        TrainingError: it does not, or it was drawn with other flips or another label dropout.
    """
    found, needed = book.contents, contents_of(config, bool(book.tuples.null) or will_have_text(book.tuples.dataset))
    lacking = {
        "label_dropout": found.label_dropout != needed.label_dropout,
        "horizontal_flip": found.horizontal_flip != needed.horizontal_flip,
    }
    if others := [name for name, differs in lacking.items() if differs]:
        there = ", ".join(f"{name} {getattr(found, name)}" for name in others)
        raise TrainingError(f"the book was recorded with {there}; recover with the same")
    holds = needed.jacobian in ("none", found.jacobian) and found.directions >= needed.directions
    same = needed.jacobian == "none" or found.projection == needed.projection
    states = needed.blocks in ((), found.blocks) and found.inputs >= needed.inputs
    if not (holds and same and states):
        raise TrainingError(
            f"the book does not hold what objective {config.objective} asks of its teacher; write one for it: "
            f"secateur record --objective {config.objective}, with its other options"
        )


def read_step(book: Book, config: RecoveryConfig, step: int, rank: int = 0, processes: int = 1) -> list[Draw]:
    """The micro-batches of process `rank` in step `step`: as `draw_step`, from the book's tuples.

    Tuples come in shuffled epochs, like images without a book.
    """
    numbers = batch_indices(config.seed, step, config.batch_size, book.num_tuples)
    size = config.batch_size // (config.accumulation * processes)
    starts = [(micro * processes + rank) * size for micro in range(config.accumulation)]
    return [book.read(numbers[start : start + size].tolist()) for start in starts]


def errors_due(book: Book, step: int, steps: int) -> bool:
    """Whether `errors_of` is due after `step` of `steps`: at every quarter, if every process has tuples to judge by."""
    return judged(book) > 0 and step in {math.ceil(steps * part / JUDGED) for part in range(1, JUDGED + 1)}


def judged(book: Book) -> int:
    """The number of tuples of each kind that `errors_of` asks for, equally many of every process, since all take part
    in passes of a sharded student."""
    count = min(book.held_out_rows.count, book.num_tuples)
    return count - count % process_count()


def note_overfitting(read: float, held_out: float) -> None:
    """Print a note if the student fits the trained tuples much better than held-out ones."""
    if held_out > OVERFITTED * read:
        note(
            f"recovery: the error on held-out tuples is {held_out / read:.2f} times that on trained "
            "tuples; a book of more tuples helps"
        )


def errors_of(student: nn.Module, book: Book, batch_size: int) -> Tensor:
    """The squared error against the teacher on trained tuples, and on as many held-out ones.

    This process's share: sums of squares and numbers of values, (2, 2) float64, held-out tuples last.
    """
    device, count = device_of(network_of(student)), judged(book)
    sums = torch.zeros(2, 2, dtype=torch.float64, device=where_float64(device))
    with inference(student):
        for numbers in torch.arange(process_index(), count, process_count()).split(batch_size):
            for place, read in enumerate((book.read, book.read_held_out)):
                draw = read(numbers.tolist()).to(device)
                x_t = book.tuples.process.add_noise(draw.sample, draw.noise, draw.timesteps)
                error = in_float64(predict(student, *at(x_t, draw)) - book.output(x_t, draw)).square()
                sums[place] += torch.stack([error.sum(), error.new_tensor(float(error.numel()))])
    return sums
