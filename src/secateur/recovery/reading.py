"""How a recovery reads a teacher's book: what it needs to find there, how many tuples, and in which order."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..base.console import note
from ..base.devices import in_float64, where_float64
from ..base.distributed import process_count, process_index
from ..base.errors import TrainingError
from ..models.conditions import Conditions
from ..models.network import device_of, inference
from ..models.predict import network_of, predict
from ..teacher import Book, BookConfig, Contents, Draw, at
from .config import RecoveryConfig
from .draws import batch_indices

FEWEST = 4096  # tuples below which reading again costs quality (docs/teachers-book.md)
READINGS = 4  # of every tuple, where there are more
JUDGED = 4  # times in a run that the error on held out tuples is measured
OVERFITTED = 2.0  # that error over the one on tuples that were read, where quality begins to suffer


def contents_of(config: RecoveryConfig, null: Conditions) -> Contents:
    """What the recovery's objective asks of a teacher at every tuple; `null` is what stands for no condition."""
    jacobian = {"2ndmatch": "growth", "first-order": "products"}.get(config.objective, "none")
    states = config.objective == "features"
    return Contents(
        label_dropout=config.label_dropout if null else 0.0,
        horizontal_flip=config.horizontal_flip,
        jacobian=jacobian,  # type: ignore[arg-type]
        directions=0 if jacobian == "none" else config.jacobian.directions,
        projection=config.jacobian.projection if jacobian != "none" else "vjp",
        blocks=config.features.blocks if states else (),
        inputs=states and config.features.teacher_inputs,
    )


def tuples_for(config: RecoveryConfig, book: BookConfig) -> int:
    """How many tuples the recovery learns from: as given, or a quarter of its draws, though no fewer than 4,096.

    A recovery that draws no more than that reads every tuple once.
    """
    drawn = config.steps * config.batch_size
    return book.num_tuples or max(min(drawn, FEWEST), math.ceil(drawn / READINGS))


def check_contents(book: Book, config: RecoveryConfig) -> None:
    """Check that a book holds what the objective asks for.

    Raises:
        TrainingError: it does, or it was drawn with other flips or another label dropout.
    """
    found, needed = book.contents, contents_of(config, book.tuples.null)
    lacking = {
        "label_dropout": found.label_dropout != needed.label_dropout,
        "horizontal_flip": found.horizontal_flip != needed.horizontal_flip,
    }
    if others := [name for name, differs in lacking.items() if differs]:
        there = ", ".join(f"{name} {getattr(found, name)}" for name in others)
        raise TrainingError(f"the book was written with {there}, which are drawn then; recover with the same")
    holds = needed.jacobian in ("none", found.jacobian) and found.directions >= needed.directions
    same = needed.jacobian == "none" or found.projection == needed.projection
    states = needed.blocks in ((), found.blocks) and found.inputs >= needed.inputs
    if not (holds and same and states):
        raise TrainingError(
            f"the book does not hold what objective {config.objective} asks of its teacher; write one for it: "
            f"secateur record --objective {config.objective}, with its other options"
        )


def read_step(book: Book, config: RecoveryConfig, step: int, rank: int = 0, processes: int = 1) -> list[Draw]:
    """The micro-batches that process `rank` works through in step `step`: as `draw_step`, from the book's tuples.

    Tuples come in shuffled epochs, as images do without a book.
    """
    numbers = batch_indices(config.seed, step, config.batch_size, book.num_tuples)
    size = config.batch_size // (config.accumulation * processes)
    starts = [(micro * processes + rank) * size for micro in range(config.accumulation)]
    return [book.read(numbers[start : start + size].tolist()) for start in starts]


def errors_due(book: Book, step: int, steps: int) -> bool:
    """Whether `errors_of` is measured after `step` of `steps`, if anything is held out: at every quarter."""
    return book.held_out_rows.count > 0 and step in {math.ceil(steps * part / JUDGED) for part in range(1, JUDGED + 1)}


def note_overfitting(read: float, held_out: float) -> None:
    """Say that the student knows the tuples that it learned from, rather than the teacher, if so it is."""
    if held_out > OVERFITTED * read:
        note(
            f"recovery: the error on held out tuples is {held_out / read:.2f} times that on tuples that were learned "
            "from; a book of more tuples helps"
        )


def errors_of(student: nn.Module, book: Book, batch_size: int) -> Tensor:
    """The squared error against the teacher on tuples that are learned from, and on as many that are held out.

    This process's share of it: sums of squares and numbers of values, (2, 2) float64, the held out ones last.
    """
    device, count = device_of(network_of(student)), min(book.held_out_rows.count, book.num_tuples)
    count -= count % process_count()  # passes of a student in shards are everybody's
    sums = torch.zeros(2, 2, dtype=torch.float64, device=where_float64(device))
    with inference(student):
        for numbers in torch.arange(process_index(), count, process_count()).split(batch_size):
            for place, read in enumerate((book.read, book.read_held_out)):
                draw = read(numbers.tolist()).to(device)
                x_t = book.tuples.process.add_noise(draw.sample, draw.noise, draw.timesteps)
                error = in_float64(predict(student, *at(x_t, draw)) - book.output(x_t, draw)).square()
                sums[place] += torch.stack([error.sum(), error.new_tensor(float(error.numel()))])
    return sums
