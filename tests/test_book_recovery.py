"""Recovery by the teacher's book: every objective reads it, resumed or shared, with errors on held-out tuples."""

import copy
from dataclasses import replace

import pytest
import torch

from book_runs import CONFIG, FEATURES, FIRST, SECOND, SMALL, answered, written
from models import dit, half
from secateur.base.errors import TrainingError
from secateur.io.manifest import apply_cut
from secateur.process.flow import FlowProcess
from secateur.recovery import recover
from secateur.recovery.objectives.build import build_objective
from secateur.recovery.reading import errors_of, read_step, tuples_for
from secateur.results import read_recovery
from secateur.teacher import BookConfig, LiveTeacher
from training_runs import assert_same, images, log, smaller


@pytest.mark.parametrize("config", [CONFIG, SECOND, FIRST, FEATURES], ids=lambda config: config.objective)
def test_every_objective_learns_from_a_book_as_from_the_teacher(config, tmp_path):
    """Tuples of the book, answered by the network, train to the same weights."""
    teacher = smaller()
    book = written(teacher, config)

    class Live(LiveTeacher):
        pass

    student = recover(dit(), FlowProcess(), images(), config, tmp_path / "book", book)
    asked = copy.copy(book)
    for name in ("output", "growth", "projections", "hidden"):
        object.__setattr__(asked, name, getattr(Live(teacher.eval()), name))
    live = recover(dit(), FlowProcess(), images(), config, tmp_path / "live", asked)
    for one, other in zip(student.parameters(), live.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    records = log(tmp_path / "book")
    assert records[-1]["distillation"] < records[0]["distillation"]


def test_removed_blocks_and_widths_are_compared_by_the_book(tmp_path):
    teacher, student = dit(), dit()
    apply_cut(student, half(student))
    book = written(teacher, FEATURES)
    draw = book.read(range(4))
    objective = build_objective(FEATURES, book)
    told = objective.terms(student, book, FlowProcess(), draw, objective.jacobian)
    live = objective.terms(student, teacher.eval(), FlowProcess(), draw, objective.jacobian)
    assert {name: value.item() for name, value in told.items()} == {name: value.item() for name, value in live.items()}


@pytest.mark.slow
def test_a_run_resumes_to_the_bit_and_logs_the_error_on_held_out_tuples(tmp_path):
    book, config = written(smaller()), replace(CONFIG, steps=6, checkpoint_every=2)
    expected = recover(dit(), FlowProcess(), images(), config, tmp_path / "whole", book)

    class Stopping:
        def __init__(self):
            self.asked = 0

        def __call__(self, numbers):
            self.asked += 1
            if self.asked == 5:
                raise OSError
            return type(book).read(book, numbers)

    stopped = copy.copy(book)
    object.__setattr__(stopped, "read", Stopping())
    with pytest.raises(OSError, match=r"^$"):
        recover(dit(), FlowProcess(), images(), config, tmp_path / "cut", stopped)
    assert_same(expected, recover(dit(), FlowProcess(), images(), config, tmp_path / "cut", book))
    found = [record for record in log(tmp_path / "whole") if "error_read" in record]
    assert [record["step"] for record in found] == [2, 3, 5, 6]
    assert all(record["error_held_out"] > 0 for record in found)
    with pytest.raises(TrainingError, match="book"):
        recover(
            dit(), FlowProcess(), images(), config, tmp_path / "cut", written(smaller(), book=replace(SMALL, seed=1))
        )


def test_fewer_held_out_tuples_than_processes_leave_their_error_out_of_the_log(tmp_path, monkeypatch):
    monkeypatch.setattr("secateur.recovery.reading.process_count", lambda: 8)
    recover(dit(), FlowProcess(), images(), CONFIG, tmp_path, written(smaller()))
    assert len(read_recovery(tmp_path / "log.jsonl").records) == 4
    assert all("error_read" not in record for record in log(tmp_path))


def test_micro_batches_and_processes_share_a_batch():
    book = written(dit())
    (whole,) = read_step(book, CONFIG, 1)
    parts = [read_step(book, replace(CONFIG, accumulation=2), 1, rank, 2) for rank in range(2)]
    order = [parts[0][0], parts[1][0], parts[0][1], parts[1][1]]
    assert torch.equal(torch.cat([draw.noise for draw in order]), whole.noise)
    assert torch.equal(torch.cat([draw.answers["output"] for draw in order]), whole.answers["output"])
    epoch = [int(number) for step in range(3) for number in read_step(book, CONFIG, step)[0].timesteps * 1e6]
    assert len(set(epoch)) == 12  # every tuple once before any twice


def test_errors_are_those_of_the_student():
    book, student = written(smaller()), dit()
    (read, values), (held_out, _) = errors_of(student, book, 3).tolist()
    draw, x_t, _ = answered(book, student, range(4))
    output = LiveTeacher(student).output(x_t, draw)
    assert read == pytest.approx((output - book.output(x_t, book.read(range(4)))).square().sum().item())
    assert values == output.numel()
    assert held_out > 0
    assert held_out != read


def test_the_rule_of_how_many_tuples():
    few, short, long = (replace(CONFIG, steps=steps, batch_size=32) for steps in (10, 500, 10_000))
    assert [tuples_for(each, BookConfig()) for each in (few, short, long)] == [320, 4096, 80_000]
    assert tuples_for(long, BookConfig(num_tuples=100)) == 100
