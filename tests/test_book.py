"""The teacher's book: it has the tuples that would be drawn during training, and the answers as they would be given."""

from dataclasses import replace

import pytest
import torch

from book_runs import CONFIG, FEATURES, FIRST, NULL, SECOND, SMALL, answered, written
from models import dit, unet
from secateur.models.jacobian import higher_order
from secateur.process.diffusion import DiffusionProcess
from secateur.process.flow import FlowProcess
from secateur.recovery import JacobianConfig
from secateur.recovery.objectives.build import build_objective
from secateur.teacher import Contents, LiveTeacher, write_book
from secateur.teacher.draw import directions_of
from training_runs import images

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
    with objective.context():
        terms = objective.terms(student, book, process, draw, objective.jacobian)
        live = objective.terms(student, LiveTeacher(teacher.eval()), process, draw, objective.jacobian)
        objective.loss(terms).backward()
    assert {name: value.item() for name, value in terms.items()} == {name: value.item() for name, value in live.items()}
    assert terms["distillation"] < 1e-12  # attention by plain products rounds differently
    if config in (CONFIG, FEATURES):
        assert all(parameter.grad is None or not parameter.grad.any() for parameter in student.parameters())
        assert objective.loss(terms) == 0
