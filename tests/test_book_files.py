"""The teacher's book on disk: read back, extended, resumed, and refused where it does not fit."""

import json
from dataclasses import asdict, replace

import pytest
import torch

from book_runs import CONFIG, FEATURES, FIRST, SECOND, SMALL, written
from models import dit
from secateur.base.errors import DataError, SecateurError, TrainingError
from secateur.process.diffusion import DiffusionProcess
from secateur.process.flow import FlowProcess
from secateur.process.grid import STEPS
from secateur.recovery import RecoveryConfig
from secateur.recovery.objectives.build import build_objective
from secateur.recovery.reading import book_size, check_contents
from secateur.teacher import book as books
from secateur.teacher import open_book
from training_runs import images, smaller


def test_a_book_is_read_back_extended_and_resumed_after_a_stop(tmp_path):
    model, folder = dit(), tmp_path / "book"
    whole = written(model, count=600)
    asked = []

    class Stopping(type(images())):
        def batch(self, indices):
            asked.append(len(indices))
            if len(asked) == 70:
                raise OSError
            return super().batch(indices)

    data = Stopping(
        **{field: getattr(images(), field) for field in ("name", "shape", "class_names", "images", "labels")}
    )
    with pytest.raises(OSError, match=r"^$"):
        written(model, count=600, folder=folder, data=data)
    with pytest.raises(DataError, match="lacks 348 of its tuples"):
        open_book(folder, FlowProcess(), images(), model)
    written(model, count=600, folder=folder, data=data)
    assert len(asked) == 70 + 150 - 64 + 1  # only the unfinished file is recorded again
    found = open_book(folder, FlowProcess(), images(), model)
    for numbers in ([0, 599], [300, 256, 255]):
        assert torch.equal(found.read(numbers).answers["output"], whole.read(numbers).answers["output"])
    assert torch.equal(found.read_held_out([1]).answers["output"], whole.read_held_out([1]).answers["output"])
    asked.clear()
    written(model, count=700, folder=folder, data=data)
    assert sum(asked) == 700 - 512
    assert written(model, count=100, folder=folder).num_tuples == 100
    assert open_book(folder, FlowProcess(), images(), model).num_tuples == 700


def test_no_process_writes_into_a_book_before_the_main_one_has_taken_it(tmp_path, monkeypatch):
    def refused(on_cpu):
        raise RuntimeError("the main process refused it")

    monkeypatch.setattr(books, "is_main_process", lambda: False)
    monkeypatch.setattr(books, "wait_for_everyone", refused)
    with pytest.raises(RuntimeError, match="refused"):
        written(dit(), folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_book_of_passes_in_half_precision_is_half_as_large():
    cpu = torch.device("cpu")
    tuples, whole = book_size(dit(), CONFIG, SMALL, cpu)
    assert whole == tuples * 64 * 4
    assert book_size(dit(), replace(CONFIG, mixed_precision="bf16"), SMALL, cpu) == (tuples, whole // 2)


def test_another_teacher_process_or_data_is_refused(tmp_path):
    model, folder = dit(), tmp_path / "book"
    book = written(model, folder=folder)
    other = replace(images(), images=1 - images().images)
    for changes, name in (
        ({"model": smaller()}, "teacher"),
        ({"process": DiffusionProcess()}, "process"),
        ({"process": FlowProcess({STEPS: 4})}, "process"),  # answers at other times
        ({"data": other}, "data"),
    ):
        with pytest.raises(SecateurError, match=f"belongs to another .*{name}"):
            written(**{"model": model, "folder": folder} | changes)
    with pytest.raises(SecateurError, match="another seed"):
        written(model, folder=folder, book=replace(SMALL, seed=1))
    with pytest.raises(SecateurError, match="another contents"):
        written(model, SECOND, folder=folder)
    with pytest.raises(SecateurError, match="another process"):
        open_book(folder, DiffusionProcess(), images(), model)
    with pytest.raises(SecateurError, match="another data"):
        open_book(folder, FlowProcess(), other, model)
    with pytest.raises(SecateurError, match="another teacher"):
        book.check(FlowProcess(), images(), smaller())
    book.check(FlowProcess(), images(), model)
    with pytest.raises(SecateurError, match="is no teacher's book"):
        open_book(tmp_path, FlowProcess(), images(), model)
    about = json.loads((folder / "book.json").read_text())
    (folder / "book.json").write_text(json.dumps(about | {"num_tuples": "many"}))
    with pytest.raises(SecateurError, match="num_tuples"):
        open_book(folder, FlowProcess(), images(), model)


def test_an_objective_without_a_teacher_reads_no_book():
    with pytest.raises(TrainingError, match="objective denoising reads no book; leave the book out"):
        build_objective(RecoveryConfig(steps=2, objective="denoising"), written(dit()))


def test_what_a_book_lacks_is_named():
    plain, growing = written(dit()), written(dit(), SECOND)
    for config in (SECOND, FIRST, FEATURES):
        with pytest.raises(TrainingError, match=f"objective {config.objective} asks of its teacher"):
            check_contents(plain, config)
    check_contents(growing, SECOND)
    check_contents(growing, CONFIG)
    with pytest.raises(TrainingError, match=r"label_dropout 0\.1"):
        check_contents(plain, replace(CONFIG, label_dropout=0.0))
    with pytest.raises(TrainingError, match="horizontal_flip False"):
        check_contents(plain, replace(CONFIG, horizontal_flip=True))
    assert asdict(growing.contents)["directions"] == 2
