"""A teacher that would not fit beside its student is asked before the recovery, and its answers are read."""

import json
import logging
from dataclasses import replace

import pytest
import torch

import secateur
from models import dit, unet
from secateur.base.errors import TrainingError
from secateur.evaluation import EvaluationConfig
from secateur.process.flow import FlowProcess
from secateur.recovery import RecoveryConfig
from secateur.recovery import memory as counting
from secateur.recovery.memory import RecoveryMemory, reason_for_book, recovery_memory
from secateur.runs import teaching
from secateur.runs.subject import open_subject
from secateur.runs.teaching import why_record
from secateur.teacher import BookConfig
from training_runs import images, log

CONFIG = RecoveryConfig(steps=2, batch_size=2, objective="distillation", grad_norms_every=0, log_every=1)
AUTO = replace(CONFIG, memory="auto")
CPU = torch.device("cpu")


@pytest.fixture
def device_of(monkeypatch):
    """Let the CPU pass for a device with a memory of its own, of so many bytes for a recovery."""

    def having(available: int) -> None:
        monkeypatch.setattr(counting, "device_memory", lambda device: int(available / counting.SHARE) + 1)
        for module in (counting, teaching):
            monkeypatch.setattr(module, "has_own_memory", lambda device: True)

    return having


def taken(config=CONFIG, by_book=False):
    return recovery_memory(dit(), dit(), FlowProcess(), config, by_book=by_book).total


def counted(model, teacher, process, config, device=None, processes=None, by_book=False):
    """A count that takes no time."""
    weights = sum(parameter.nbytes for parameter in teacher.parameters())
    dense, average = (0 if by_book else weights), (0 if "ema" in config.offload else weights)
    return RecoveryMemory(weights, average, 2 * weights, dense, weights)


def test_answers_are_recorded_where_that_makes_the_recovery_fit(device_of, monkeypatch):
    monkeypatch.setattr(counting, "recovery_memory", counted)
    model = dit()

    def reason(config):
        return reason_for_book(model, model, FlowProcess(), config, CPU)

    with_teacher, by_book = (counted(model, model, None, CONFIG, by_book=each).total for each in (False, True))
    device_of(with_teacher)
    assert reason(CONFIG) is None
    device_of(with_teacher - 1)
    assert "with the teacher, recovery takes" in reason(CONFIG)
    assert "with the teacher, recovery takes" in reason(AUTO)
    assert reason(replace(CONFIG, objective="denoising")) is None
    assert reason(replace(CONFIG, offload=("teacher",))) is None  # the user has chosen otherwise
    device_of(by_book - 1)
    assert reason(CONFIG) is None  # nor would it fit so
    assert reason(AUTO) is not None  # but so, and with the average on the CPU
    device_of(by_book // 2)
    with pytest.raises(TrainingError, match=r"recovery takes .* give recovery\.weight_precision bf16"):
        reason(AUTO)


def test_a_resumed_run_goes_on_as_it_was_begun(device_of, monkeypatch, tmp_path):
    teacher, checkpoint = open_subject(dit(), "flow", device="cpu"), tmp_path / "recovery" / "checkpoints" / "step-1"
    asked = (dit, teacher, CONFIG, BookConfig(num_tuples=8), tmp_path)
    device_of(taken() - 1)
    assert why_record(*asked).startswith("with the teacher")
    with monkeypatch.context() as shared:
        shared.setattr(teaching, "has_own_memory", lambda device: False)
        assert why_record(*asked) is None  # a book does not make room where both are in one memory
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.json").write_text(json.dumps({"settings": {"book": None}}))
    assert why_record(*asked) is None
    (checkpoint / "state.json").write_text(json.dumps({"settings": {"book": "fingerprint"}}))
    device_of(2 * taken())
    assert why_record(*asked) == teaching.RESUMED


def test_a_book_too_large_for_the_disk_is_not_chosen(device_of, tmp_path):
    teacher = open_subject(dit(), "flow", device="cpu")
    device_of(taken() - 1)
    assert why_record(dit, teacher, CONFIG, BookConfig(num_tuples=10**12), tmp_path / "new" / "run") is None


@pytest.mark.slow
def test_compress_and_its_dry_run_choose_the_book_by_themselves(device_of, tmp_path, caplog):
    asked = {"target": "macs=60%", "data": images(), "process": "flow", "device": "cpu", "criterion": "magnitude"}
    asked |= {"recipe": "diff-pruning", "recovery": CONFIG, "book": BookConfig(num_tuples=8, held_out=2)}
    asked |= {"evaluation": EvaluationConfig(metrics=("loss",), num_images=4, num_inference_steps=2)}
    device_of(10 * taken())
    assert secateur.plan(dit(), **asked).book is None
    device_of(taken(by_book=True))
    plan = secateur.plan(dit(), **asked)
    assert plan.book == (10, 10 * 64 * 4)
    assert "recorded with the teacher, recovery takes" in str(plan)
    with caplog.at_level(logging.WARNING, "secateur"):
        run = secateur.compress(dit(), **asked, out=tmp_path)
    assert "the teacher's answers are recorded before it: with the teacher" in caplog.text
    assert (run.recorded.tuples, run.recorded.held_out) == (8, 2)
    assert "error_held_out" in log(tmp_path / "recovery")[-1]
    assert not (tmp_path / "book").exists()


def test_finetune_and_its_dry_run_choose_the_book_by_themselves(device_of, tmp_path):
    asked = {"data": images(), "process": "flow", "device": "cpu", "teacher": dit(), "recovery": CONFIG}
    device_of(taken() - 1)
    assert "recorded with the teacher, recovery takes" in str(secateur.plan_finetune(dit(), **asked))
    secateur.finetune(dit(), **asked, out=tmp_path)
    assert "error_held_out" in log(tmp_path / "recovery")[-1]
    assert not (tmp_path / "book").exists()
    assert json.loads((tmp_path / "recorded.json").read_text())["tuples"] == 4
    assert "The dense model answered 4 tuples" in (tmp_path / "report.html").read_text()


@pytest.mark.slow
def test_a_book_that_is_too_large_is_not_recorded(monkeypatch, caplog):
    given = {"target": "macs=60%", "process": "ddpm"}
    whole = secateur.plan(unet(), **given)
    assert whole.book is not None
    monkeypatch.setattr(teaching, "LARGEST_BOOK", whole.book[1] - 1)
    with caplog.at_level(logging.INFO, logger="secateur"):
        assert secateur.plan(unet(), **given).book is None
    assert "so the teacher is asked live" in caplog.text
    assert secateur.plan(unet(), book=BookConfig(num_tuples=64), **given).book is not None
