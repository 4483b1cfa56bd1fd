"""The teacher's book: a dense model's answers at many tuples, written once and read many times.

    book = write_book(dense, process, dataset, Contents(), BookConfig(), 8192, folder)
    draw = book.read([0, 1, 2])
    book.output(process.add_noise(draw.sample, draw.noise, draw.timesteps), draw)  # does not run the network

A book without a folder is in memory. In a folder, answers are in memory-mapped safetensors files; book.json records
what they were made from, and a book made from anything else is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

import msgspec
import torch
from torch import Tensor, nn

from ..base.distributed import is_main_process, wait_for_everyone
from ..base.errors import DataError, SecateurError, TrainingError, require
from ..base.files import read_json, write_json
from ..base.fingerprint import fingerprint, tensors_fingerprint
from ..base.records import record_of
from ..base.rows import Chunk, Rows, chunk_size_of, rows_at
from ..base.seeds import VERSION, Purpose
from ..data import ImageDataset
from ..data.conditions import accepts, null_conditions
from ..models.jacobian import Projection, higher_order, squared_lengths
from ..models.network import device_of, example_batch, inference
from ..models.predict import predict
from ..models.registry import describe
from ..process.base import Process
from ..process.own import OwnObjective
from ..structure import Cut
from ..structure.cost import skeleton
from ..structure.known_values import without_memory
from .config import BookConfig, Contents, stored_dtype
from .draw import Draw, directions_of
from .hidden import Call, Lineage, hidden_states, lineage_of
from .teachers import LiveTeacher
from .tuples import Tuples

ABOUT = "book.json"
FORMAT = 1
CHUNK = 256  # most tuples in a file: what a killed process loses, and the unit of work of several processes
OUTPUT, GROWTH, PRODUCT, TAKEN, RETURNED = "output", "growth", "product", "taken", "returned"


class About(msgspec.Struct, forbid_unknown_fields=True):
    """The content of `book.json`."""

    format: int
    num_tuples: int
    held_out: int
    chunk_size: int
    made_from: dict[str, str]
    seed: int
    dtype: str
    contents: Contents
    blocks: tuple[str, ...]
    cuts: tuple[Cut, ...]


@dataclass(frozen=True, eq=False)
class Book:
    """A `Teacher` that returns recorded answers; made by `write_book` or `open_book`.

    Attributes:
        tuples: the tuples to train on.
        rows: their answers.
        held_out: tuples that are not trained on.
        held_out_rows: their answers.
        made_from: fingerprints of teacher, process, data and settings.
        lineage: origin of the dense model's blocks.
        folder: its folder; None in memory.
    """

    tuples: Tuples
    rows: Rows
    held_out: Tuples
    held_out_rows: Rows
    made_from: Mapping[str, str]
    lineage: Lineage
    folder: Path | None = None

    network = None

    @property
    def contents(self) -> Contents:
        return self.tuples.contents

    @property
    def num_tuples(self) -> int:
        return self.rows.count

    @property
    def bytes(self) -> int:
        """Size of all answers."""
        row = sum(value[0].numel() * value.element_size() for value in self.rows.chunk(self.rows.ranges()[0]).values())
        return row * (self.rows.count + self.held_out_rows.count)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of everything that the answers depend on, and of their number."""
        return fingerprint([dict(self.made_from), asdict(self.contents), self.tuples.seed, self.num_tuples])

    @property
    def dense(self) -> Lineage | None:
        return self.lineage if self.contents.blocks else None

    def read(self, numbers: Sequence[int]) -> Draw:
        """The tuples of these numbers (below `num_tuples`), with the teacher's answers."""
        return self.tuples.draw(numbers, self.rows.read(numbers))

    def read_held_out(self, numbers: Sequence[int]) -> Draw:
        """Held-out tuples, with the teacher's answers."""
        return self.held_out.draw(numbers, self.held_out_rows.read(numbers))

    def output(self, x_t: Tensor, draw: Draw, share: Tensor | None = None) -> Tensor:
        return _taken(draw.answers[OUTPUT], share).to(x_t.dtype)

    def projections(
        self, x_t: Tensor, draw: Draw, share: Tensor, directions: Sequence[Tensor], projection: Projection
    ) -> tuple[Tensor, list[Tensor]]:
        products = [draw.answers[f"{PRODUCT}.{place}"] for place in range(len(directions))]
        return self.output(x_t, draw, share), [product[share].to(x_t.dtype) for product in products]

    def growth(
        self, x_t: Tensor, draw: Draw, share: Tensor, directions: Sequence[Tensor], projection: Projection
    ) -> tuple[Tensor, Tensor]:
        grown = draw.answers[GROWTH][share].unbind(1)[: len(directions)]
        return self.output(x_t, draw, share), torch.stack(grown).mean(0)  # as `squared_lengths` takes the mean

    def hidden(self, x_t: Tensor, draw: Draw, blocks: Collection[str]) -> tuple[Tensor, Mapping[str, Call]]:
        states = {}
        for name in blocks:
            returned = draw.answers[f"{RETURNED}.{name}"]
            states[name] = Call((), {}, draw.answers.get(f"{TAKEN}.{name}", returned), returned)
        return self.output(x_t, draw), states

    def check(self, process: Process, dataset: ImageDataset, teacher: nn.Module | None = None) -> None:
        """Check that the book belongs to this process, data and teacher.

        Raises:
            SecateurError: it does not.
        """
        _require_same(self.folder, self.made_from, made_from(process, dataset, teacher))


def write_book(
    model: nn.Module,
    process: Process,
    dataset: ImageDataset,
    contents: Contents,
    config: BookConfig,
    num_tuples: int,
    folder: str | Path | None = None,
    autocast: torch.dtype | None = None,
    written: Callable[[], None] = lambda: None,
) -> Book:
    """Run `model` on all tuples, and return the book of its answers.

    In a `folder` every process writes its part, and existing answers are kept: a book that was stopped is resumed, and
    one of fewer tuples is extended.

    Args:
        model: the dense network; run in eval mode.
        process: how noise is added to the tuples.
        dataset: images or latents, with the conditions that the model takes.
        contents: what each tuple holds.
        config: held-out tuples, dtype, batch size and seed.
        num_tuples: number of tuples to train on.
        folder: folder of the book; None keeps it in memory.
        autocast: lower precision of the passes, if any.
        written: called after every part of the book.

    Raises:
        SecateurError: `folder` holds another book; or there are no noisy samples (forward= and loss=).
        TrainingError: an answer is not finite.
    """
    require_noisy_samples(process)
    lineage, weights = lineage_of(model), next(model.parameters()).dtype
    dtype = stored_dtype(config, autocast or weights)
    about = About(
        FORMAT,
        num_tuples,
        config.held_out,
        min(CHUNK, chunk_size_of(tuple_bytes(model, contents, config))),
        {**made_from(process, dataset, model), "precision": f"{autocast or weights}"},
        config.seed,
        str(dtype).removeprefix("torch."),
        contents,
        lineage.blocks,
        lineage.cuts,
    )
    folder = None if folder is None else Path(folder)
    if folder is not None and is_main_process():
        _begin(folder, about)
    wait_for_everyone(device_of(model).type == "cpu")  # nobody writes where the book is refused
    book = _book_of(about, process, dataset, model, folder)
    lower = nullcontext() if autocast is None else torch.autocast(device_of(model).type, autocast)
    with inference(model), lower:
        for tuples, rows, name in (
            (book.tuples, book.rows, "teacher's book"),
            (book.held_out, book.held_out_rows, "held out tuples"),
        ):
            rows.fill(partial(_answers, LiveTeacher(model), tuples, dtype), name, config.batch_size, written)
    return book


def require_noisy_samples(process: Process) -> None:
    """Refuse a process whose network is called by functions of its user.

    Raises:
        SecateurError: it is one.
    """
    require(not isinstance(process, OwnObjective), "a book is of noisy samples, and forward= and loss= have none")


def open_book(folder: str | Path, process: Process, dataset: ImageDataset, model: nn.Module) -> Book:
    """Open the book in `folder` for `model`, a student that takes the teacher's conditions.

    Raises:
        SecateurError: there is none, it is incomplete, or it was recorded for another process or other data.
    """
    folder = Path(folder)
    require((folder / ABOUT).is_file(), f"{folder} is no teacher's book: it has no {ABOUT}; write one: secateur record")
    about = record_of(About, read_json(folder / ABOUT), folder / ABOUT)
    require(about.format == FORMAT, f"{folder / ABOUT} has format {about.format}; this secateur reads {FORMAT}")
    book = _book_of(about, process, dataset, model, folder)
    book.check(process, dataset)
    if missing := book.rows.missing() + book.held_out_rows.missing():
        raise DataError(
            f"{folder} lacks {sum(map(len, missing)):,} of its tuples: the command that writes it goes on with them"
        )
    return book


def tuple_bytes(model: nn.Module, contents: Contents, config: BookConfig, autocast: torch.dtype | None = None) -> int:
    """Bytes of a tuple, in memory or on disk; found by one pass of the model, which may be on the meta device."""
    itemsize = stored_dtype(config, autocast or next(model.parameters()).dtype).itemsize
    if device_of(model).type == "meta":
        model = skeleton(model)  # in some networks a pass leaves tables behind
    sample, conditions = example_batch(model, 1)
    blocks = _chosen(contents, tuple(describe(model).blocks))
    with inference(model), without_memory(), hidden_states(model, blocks) as states:
        at = torch.ones(1, dtype=torch.int64, device=sample.device)
        output = predict(model, sample, at, conditions)
    held = output.numel()
    for call, *_ in states.values():
        held += call.returned.numel() + (call.taken.numel() if contents.inputs else 0)
    if contents.jacobian == "products":
        held += contents.directions * (sample if contents.projection == "vjp" else output).numel()
    return held * itemsize + (4 * contents.directions if contents.jacobian == "growth" else 0)


def _answers(teacher: LiveTeacher, tuples: Tuples, dtype: torch.dtype, numbers: range) -> Chunk:
    """The teacher's answers for the tuples of these numbers."""
    contents, draw = tuples.contents, tuples.draw(numbers).to(device_of(teacher.network))
    x_t = tuples.process.add_noise(draw.sample, draw.noise, draw.timesteps)
    found: Chunk = {}
    if contents.jacobian != "none":
        target = tuples.process.target(draw.sample, draw.noise, draw.timesteps)
        directions = directions_of(draw, x_t if contents.projection == "jvp" else target, contents.directions)
        everyone = torch.arange(len(x_t), device=x_t.device)
        with higher_order(contents.projection):
            output, products = teacher.projections(x_t, draw, everyone, directions, contents.projection)
        if contents.jacobian == "growth":
            found[GROWTH] = torch.stack([squared_lengths([product]) for product in products], dim=1)
        else:
            found |= {f"{PRODUCT}.{place}": product.to(dtype) for place, product in enumerate(products)}
    elif blocks := _chosen(contents, tuple(describe(teacher.network).blocks)):
        output, states = teacher.hidden(x_t, draw, blocks)
        found |= {f"{RETURNED}.{name}": call.returned.to(dtype) for name, call in states.items()}
        if contents.inputs:
            found |= {f"{TAKEN}.{name}": call.taken.to(dtype) for name, call in states.items()}
    else:
        output = teacher.output(x_t, draw)
    found[OUTPUT] = output.to(dtype)
    if not all(bool(value.isfinite().all()) for value in found.values()):
        raise TrainingError(
            f"an answer of the teacher is not finite in {dtype}; check its weights, or give a wider dtype"
        )
    return found


def _chosen(contents: Contents, blocks: Sequence[str]) -> list[str]:
    return [name for name in blocks if any(fnmatchcase(name, pattern) for pattern in contents.blocks)]


def _taken(values: Tensor, share: Tensor | None) -> Tensor:
    return values if share is None else values[share]


def _book_of(about: About, process: Process, dataset: ImageDataset, model: nn.Module, folder: Path | None) -> Book:
    """The book described by `about`, complete or not; `model` takes the teacher's conditions."""
    null, takes = null_conditions(model, dataset), accepts(model)

    def tuples(noise: Purpose) -> Tuples:
        return Tuples(dataset, process, about.contents, takes, null, about.seed, noise)

    def rows(name: str, count: int) -> Rows:
        return rows_at(None if folder is None else folder / name, count, about.chunk_size)

    return Book(
        tuples(Purpose.BOOK),
        rows("tuples", about.num_tuples),
        tuples(Purpose.HELD_OUT),
        rows("held-out", about.held_out),
        {**about.made_from, "dtype": about.dtype},
        Lineage(about.blocks, about.cuts),
        folder,
    )


def _begin(folder: Path, about: About) -> None:
    """Write `book.json`, or check that the existing one describes the same book with as many tuples or fewer."""
    path = folder / ABOUT
    if path.is_file():
        before = record_of(About, read_json(path), path)
        _require_same(folder, before.made_from, about.made_from)
        for name in ("seed", "dtype", "contents", "chunk_size", "held_out"):
            there, here = getattr(before, name), getattr(about, name)
            require(there == here, f"{folder} is a book with another {name} ({there} there, {here} here)")
        about = msgspec.structs.replace(about, num_tuples=max(before.num_tuples, about.num_tuples))
    write_json(path, msgspec.to_builtins(about))


def made_from(process: Process, dataset: ImageDataset, teacher: nn.Module | None) -> dict[str, str]:
    """Fingerprints of what a book's answers depend on, beside its options; without a teacher, of all but that."""
    found = {"draws": str(VERSION), "process": fingerprint(repr(process)), "data": dataset.fingerprint}
    if teacher is None:
        return found
    return {**found, "teacher": fingerprint([type(teacher).__name__, tensors_fingerprint(teacher.state_dict())])}


def _require_same(folder: Path | None, before: Mapping[str, str], asked: Mapping[str, str]) -> None:
    others = [name for name, value in asked.items() if before.get(name) != value]
    where = "the book" if folder is None else f"the book in {folder}"
    if others:
        raise SecateurError(
            f"{where} belongs to another {', '.join(others)}; give what it was recorded for, or record a new one"
        )
