"""Teacher's books of tiny models, and the recoveries that read them."""

from dataclasses import replace

import torch

from models import dit
from secateur.process.flow import FlowProcess
from secateur.recovery import JacobianConfig, RecoveryConfig
from secateur.recovery.reading import contents_of
from secateur.teacher import BookConfig, LiveTeacher, write_book
from training_runs import images

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
