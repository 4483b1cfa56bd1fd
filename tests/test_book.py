"""The teacher's book: it has the tuples that would be drawn during training, and every objective reads it."""

import copy
import json
from dataclasses import asdict, replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch

import secateur
from models import dit, half, unet
from secateur.base.errors import DataError, SecateurError, TrainingError
from secateur.cli import main
from secateur.evaluation import EvaluationConfig
from secateur.io.manifest import apply_cut
from secateur.models.jacobian import higher_order
from secateur.process.diffusion import DiffusionProcess
from secateur.process.flow import FlowProcess
from secateur.process.grid import STEPS
from secateur.recovery import JacobianConfig, RecoveryConfig, recover
from secateur.recovery.objectives.build import build_objective
from secateur.recovery.reading import book_size, check_contents, contents_of, errors_of, read_step, tuples_for
from secateur.results import read_recovery
from secateur.runs.recording import book_place, record_for_run
from secateur.runs.subject import open_subject
from secateur.schedules import CutConfig
from secateur.teacher import BookConfig, Contents, LiveTeacher, open_book, write_book
from secateur.teacher import book as books
from secateur.teacher.draw import directions_of
from training_runs import assert_same, images, log, smaller

SMALL = BookConfig(held_out=4, batch_size=4)
CONFIG = RecoveryConfig(steps=4, batch_size=4, objective="distillation", log_every=1, weights={"denoising": 0.0})
SECOND = replace(CONFIG, objective="2ndmatch", jacobian=JacobianConfig(directions=2))
FIRST = replace(CONFIG, objective="first-order")
FEATURES = replace(CONFIG, objective="features")
NULL = {"class_labels": torch.tensor(10)}


def written(model, config=CONFIG, count=12, process=None, folder=None, book=SMALL, data=None):
    contents = contents_of(config, NULL if isinstance(model, type(dit())) else {})
    return write_book(model, process or FlowProcess(), data or images(), contents, book, count, folder)


def answered(book, model, numbers):
    """The same tuples with the network's present answers."""
    draw = book.tuples.draw(numbers)
    x_t = book.tuples.process.add_noise(draw.sample, draw.noise, draw.timesteps)
    return draw, x_t, LiveTeacher(model.eval())


# ---------------------------------------------------------------------------------------------------- tuples


def test_a_tuple_is_a_function_of_seed_and_number():
    book = written(dit(), count=24)
    draw, again = book.tuples.draw(range(24)), book.tuples.draw([17, 3])
    for name in ("sample", "noise", "timesteps"):
        assert torch.equal(getattr(draw, name)[[17, 3]], getattr(again, name)), name
    assert torch.equal(draw.normal(1)[[17, 3]], again.normal(1))
    assert not torch.equal(draw.normal(1), draw.normal(2))
    assert torch.equal(draw.conditions["class_labels"][[17, 3]], again.conditions["class_labels"])
    held_out = book.held_out.draw(range(4))  # the same but for the noise
    assert not torch.isin(held_out.noise, draw.noise).any()
    assert torch.equal(held_out.timesteps, draw.timesteps[:4])
    assert torch.equal(held_out.sample, draw.sample[:4])
    other = replace(book.tuples, seed=1).draw(range(24))
    assert not torch.equal(other.noise, draw.noise)


def test_times_are_spread_evenly_however_many_there_are():
    times = written(dit()).tuples.times(range(4096))
    for count in (16, 100, 1000, 4096):
        bins = (times[:count] * count).long().bincount(minlength=count)
        assert bins.max() <= 2, count
        assert (bins > 0).float().mean() > 0.7, count
    assert (times[32:48].sort().values.diff() < 3 / 16).all()  # and of every batch


def test_images_come_in_shuffled_epochs_and_flips_and_labels_are_drawn_once():
    contents = Contents(label_dropout=0.5, horizontal_flip=True)
    book = write_book(dit(), FlowProcess(), images(), contents, SMALL, 200)
    order = [book.tuples.image(number) for number in range(200)]
    assert all(sorted(order[start : start + 10]) == list(range(10)) for start in range(0, 200, 10))
    assert order[:10] != order[10:20]
    draw, plain = book.tuples.draw(range(200)), images().batch(order)
    flipped = (draw.sample != plain.sample).flatten(1).any(1)
    assert torch.equal(draw.sample[flipped], plain.sample[flipped].flip(-1))
    labels = draw.conditions["class_labels"]
    unconditional = labels == NULL["class_labels"]
    assert torch.equal(labels[~unconditional], plain.class_labels[~unconditional])
    assert 70 < flipped.sum() < 130
    assert 70 < unconditional.sum() < 130


# --------------------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize(("build", "process"), [(unet, DiffusionProcess()), (dit, FlowProcess())])
def test_answers_are_those_on_the_fly_to_the_bit(build, process, tmp_path):
    """In float32 and at an equal batch; in memory and on disk."""
    model, numbers = build(), range(4)
    for folder in (None, tmp_path / "book"):
        book = written(model, process=process, folder=folder)
        draw, x_t, live = answered(book, model, numbers)
        read = book.read(numbers)
        assert torch.equal(book.output(x_t, read), live.output(x_t, draw))
        share = torch.tensor([0, 2])
        assert torch.equal(book.output(x_t, read, share), live.output(x_t, draw)[share])
        rounded = written(model, process=process, book=replace(SMALL, dtype="bfloat16"))
        assert torch.equal(rounded.output(x_t, rounded.read(numbers)), live.output(x_t, draw).bfloat16().float())


@pytest.mark.parametrize("projection", ["vjp", "jvp"])
def test_growth_and_products_are_those_on_the_fly_to_the_bit(projection):
    model, numbers, everyone = dit(), range(4), torch.arange(4)
    jacobian = JacobianConfig(directions=2, projection=projection)
    growth, products = (written(model, replace(each, jacobian=jacobian)) for each in (SECOND, FIRST))
    draw, x_t, live = answered(growth, model, numbers)
    directions = directions_of(draw, x_t, 2)
    asked = (x_t, draw, everyone, directions, projection)
    with higher_order(projection):
        (output, grown), (_, multiplied) = live.growth(*asked), live.projections(*asked)
    told = (x_t, growth.read(numbers), everyone, directions, projection)
    assert torch.equal(growth.growth(*told)[1], grown)
    assert torch.equal(growth.growth(*told)[0], output)
    told = (x_t, products.read(numbers), everyone, directions, projection)
    for one, other in zip(products.projections(*told)[1], multiplied, strict=True):
        assert torch.equal(one, other)


def test_hidden_states_are_those_on_the_fly_to_the_bit():
    model, numbers = dit(), range(4)
    config = replace(FEATURES, features=replace(FEATURES.features, blocks=("*.1", "*.2"), teacher_inputs=True))
    book = written(model, config)
    draw, x_t, live = answered(book, model, numbers)
    names = ["transformer_blocks.1", "transformer_blocks.2"]
    (one, told), (other, asked) = book.hidden(x_t, book.read(numbers), names), live.hidden(x_t, draw, names)
    assert torch.equal(one, other)
    for name in names:
        assert torch.equal(told[name].taken, asked[name].taken)
        assert torch.equal(told[name].returned, asked[name].returned)


@pytest.mark.parametrize("config", [CONFIG, SECOND, FIRST, FEATURES], ids=lambda config: config.objective)
@pytest.mark.parametrize(("build", "process"), [(unet, DiffusionProcess()), (dit, FlowProcess())])
def test_a_student_equal_to_the_teacher_has_no_loss_and_no_gradient(build, process, config):
    teacher, student = build(), build()
    book = written(teacher, config, process=process)
    objective, draw = build_objective(config, book), book.read(range(4))
    with objective.context(book):
        terms = objective.terms(student, book, process, draw, objective.jacobian)
        live = objective.terms(student, LiveTeacher(teacher.eval()), process, draw, objective.jacobian)
        objective.loss(terms).backward()
    assert {name: value.item() for name, value in terms.items()} == {name: value.item() for name, value in live.items()}
    assert terms["distillation"] < 1e-12  # attention by plain products rounds differently
    if config in (CONFIG, FEATURES):
        assert all(parameter.grad is None or not parameter.grad.any() for parameter in student.parameters())
        assert objective.loss(terms) == 0


# -------------------------------------------------------------------------------------------------- recovery


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


# --------------------------------------------------------------------------------------------------- on disk


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


# ------------------------------------------------------------------------------------------ functions and commands

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
