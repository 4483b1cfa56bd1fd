"""The teacher's book in functions and commands: written, read, shared by trials, resumed and priced."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch

import secateur
from book_runs import CONFIG, SMALL
from models import dit, half
from secateur.base.errors import SecateurError
from secateur.cli import main
from secateur.evaluation import EvaluationConfig
from secateur.io.manifest import apply_cut
from secateur.process.flow import FlowProcess
from secateur.recovery import RecoveryConfig
from secateur.runs.recording import book_place, record_for_run
from secateur.runs.subject import open_subject
from secateur.schedules import CutConfig
from secateur.teacher import BookConfig
from secateur.teacher import book as books
from training_runs import assert_same, images, smaller

DISTILLING = RecoveryConfig(steps=2, batch_size=4, objective="distillation", weights={"denoising": 0.0})


def test_a_pruned_model_is_finetuned_by_a_book_without_the_teacher(tmp_path):
    dense, data = dit(), images()
    pruned = apply_cut(dit(), half(dit()))
    about = {"data": data, "process": "flow", "device": "cpu"}
    config = BookConfig(num_tuples=8, held_out=2, batch_size=4)
    in_memory = secateur.record(dense, recovery=DISTILLING, book=config, **about)
    on_disk = secateur.record(dense, recovery=DISTILLING, book=config, out=tmp_path / "book", **about)
    assert (in_memory.folder, on_disk.folder) == (None, tmp_path / "book")
    one = secateur.finetune(pruned, teacher=in_memory, recovery=DISTILLING, **about)
    other = secateur.finetune(pruned, book=tmp_path / "book", recovery=DISTILLING, **about)
    assert_same(one, other)
    secateur.finetune(pruned, book=on_disk, teacher=dense, recovery=DISTILLING, **about)
    with pytest.raises(SecateurError, match="another teacher"):
        secateur.finetune(pruned, book=on_disk, teacher=smaller(), recovery=DISTILLING, **about)
    with pytest.raises(SecateurError, match="objective 2ndmatch asks"):
        secateur.finetune(pruned, book=on_disk, recovery=replace(DISTILLING, objective="2ndmatch"), **about)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").touch()
    with pytest.raises(SecateurError, match="something else than a teacher's book"):
        secateur.record(dense, out=tmp_path / "other", **about)


@pytest.mark.slow
def test_compress_writes_a_book_and_reads_it(tmp_path):
    """In memory and in a folder, with the same final model; the book in the folder is removed after recovery."""
    asked = {"target": "macs=60%", "data": images(), "process": "flow", "device": "cpu", "criterion": "magnitude"}
    asked |= {"cut": CutConfig(round_to=2), "recovery": DISTILLING, "records": True}
    asked |= {"book": BookConfig(num_tuples=8, held_out=2), "recipe": "diff-pruning"}
    asked |= {"evaluation": EvaluationConfig(metrics=("loss",), num_images=4, num_inference_steps=2)}
    one = secateur.compress(dit(), **asked)
    other = secateur.compress(dit(), **asked, out=tmp_path / "run")
    assert_same(one.model, other.model)
    assert not (tmp_path / "run" / "book").exists()
    assert "on tuples of the book" in " ".join(other.recovery.sentences())
    for run in (one, other):
        assert (run.recorded.tuples, run.recorded.held_out, run.recorded.bytes) == (8, 2, 10 * 64 * 4)
    assert "The dense model answered 8 tuples" in " ".join(other.sentences)
    live = secateur.compress(dit(), **asked | {"records": False})
    assert live.recorded is None
    assert any(not torch.equal(*pair) for pair in zip(one.model.parameters(), live.model.parameters(), strict=True))
    plan = secateur.plan(dit(), **asked)
    assert plan.book == (10, 10 * 64 * 4)
    assert "10 tuples, 2.56KB" in str(plan)
    assert plan.flops["recover"] < secateur.plan(dit(), **asked | {"records": False}).flops["recover"]


def test_trials_share_a_book(tmp_path):
    subject = open_subject(dit(), "flow", device="cpu")
    cache, config = tmp_path / "cache", BookConfig(num_tuples=8, held_out=2)
    place = partial(book_place, tmp_path, cache, subject, images(), config)
    assert place(DISTILLING) == place(replace(DISTILLING, steps=9, learning_rate=1.0, weights={}))
    assert place(DISTILLING) != place(replace(DISTILLING, objective="2ndmatch"))
    assert place(DISTILLING) != place(replace(DISTILLING, label_dropout=0.0))
    assert place(DISTILLING).is_relative_to(cache)
    others = [images(), replace(images(), images=1 - images().images)]
    other = open_subject(smaller(), "flow", device="cpu")
    pairs = [(teacher, data) for teacher in (subject, other) for data in others]
    elsewhere = {book_place(tmp_path, cache, *pair, config, DISTILLING) for pair in pairs}
    assert len(elsewhere) == 4  # as many as pairs of a teacher and its data


def test_the_command_records_resumes_and_predicts_its_cost(tmp_path, capsys):
    out = str(tmp_path / "book")
    options = ["--data", "digits", "--out", out, "--book.num-tuples", "64", "--book.held-out", "8", "--device", "cpu"]
    with pytest.raises(SystemExit):
        main(["record", "digits-sit", *options, "--data", str(tmp_path / "none"), "--dry-run"])
    assert "none" in capsys.readouterr().err
    main(["record", "digits-sit", *options, "--dry-run"])
    said = capsys.readouterr().out
    assert "72 tuples, 18.4KB" in said
    assert "record" in said
    assert not (tmp_path / "book").exists()
    main(["record", "digits-sit", *options])
    assert "book     64 tuples, 8 held out" in capsys.readouterr().out
    steps = ["--steps", "1", "--objective", "distillation", "--recovery.batch-size", "4", "--data", "digits"]
    main(["finetune", "digits-sit", *steps, "--book", out, "--out", str(tmp_path / "tuned"), "--device", "cpu"])
    assert (tmp_path / "tuned" / "model").is_dir()
    steps[steps.index("distillation")] = "denoising"
    with pytest.raises(SystemExit):
        main(["finetune", "digits-sit", *steps, "--book", out, "--out", str(tmp_path / "other"), "--device", "cpu"])
    assert "objective denoising reads no book; leave the book out, or use distillation" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_the_seconds_of_a_stopped_recording_are_added(tmp_path, monkeypatch):
    """Every pass takes ten seconds; the second of four is stopped."""
    clock, passes, answers = [0.0], [], books._answers

    def slow(*asked):
        clock[0] += 10
        passes.append(1)
        if len(passes) == 2:
            raise KeyboardInterrupt
        return answers(*asked)

    monkeypatch.setattr(books, "_answers", slow)
    monkeypatch.setattr(books, "CHUNK", 4)
    monkeypatch.setattr("secateur.runs.recording.time", SimpleNamespace(perf_counter=lambda: clock[0]))
    asked = (tmp_path, tmp_path / "book", open_subject(dit(), FlowProcess()), images(), replace(SMALL, num_tuples=12))
    with pytest.raises(KeyboardInterrupt):
        record_for_run(*asked, CONFIG)
    clock[0] = 1000.0
    assert record_for_run(*asked, CONFIG)[1].seconds == 40
    assert record_for_run(*asked, CONFIG)[1].seconds == 40
    assert sorted(path.name for path in tmp_path.iterdir()) == ["book", "recorded.json"]
