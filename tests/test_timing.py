"""What predicted times are measured on."""

import pytest

from models import unet
from secateur.io.pipeline import Loaded
from secateur.process.diffusion import DiffusionProcess
from secateur.runs import timing


@pytest.mark.parametrize(
    ("seconds_alone", "entries", "batches"),
    [(0.001, 2**19, [1, 32]), (0.1, 2**19, [1, 10]), (30.0, 2**19, [1]), (0.001, 1, [1]), (0.001, 5 * 64, [1, 5])],
)
def test_the_timed_batch_is_small_where_a_pass_takes_long(monkeypatch, seconds_alone, entries, batches):
    timed = []

    def seconds_of_pass(loaded: Loaded, batch_size: int) -> float:
        timed.append(batch_size)
        return seconds_alone * (1 + batch_size) / 2

    monkeypatch.setattr(timing, "_seconds_of_pass", seconds_of_pass)
    monkeypatch.setattr(timing, "TIMED_ENTRIES", entries)
    found = timing.seconds_per_pair(Loaded(unet(sample_size=8), DiffusionProcess()))
    assert timed == batches
    assert found == pytest.approx(seconds_alone * (1 + batches[-1]) / 2 / batches[-1])


def test_a_timed_pass_leaves_no_gradients():
    model = unet(sample_size=8)
    assert timing.seconds_per_pair(Loaded(model, DiffusionProcess())) > 0
    assert all(parameter.grad is None for parameter in model.parameters())
