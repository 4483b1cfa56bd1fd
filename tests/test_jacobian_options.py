"""Options of the Jacobian terms: which steps and samples have them, what they cost, and what their weight buys."""

from functools import partial

import pytest
import torch
from torch import nn

from jacobian_runs import MODELS, draw, objective_for, terms_of, twins
from models import unet
from secateur.base.errors import SecateurError
from secateur.data import ArrayDataset
from secateur.models.conditions import rows
from secateur.models.registry import describe
from secateur.process.diffusion import DiffusionProcess
from secateur.recovery import JacobianConfig, RecoveryConfig
from secateur.recovery.balance import norm, summed_gradient
from secateur.recovery.draws import draw_step
from secateur.structure import Cut, remove
from secateur.teacher import Draw


def test_every_nth_step_has_the_term_with_n_times_its_weight():
    objective = objective_for(unet(), every_n=4)
    assert ["jacobian" in objective.at(step).weights for step in range(9)] == [step % 4 == 3 for step in range(9)]
    assert objective.at(3).weights == {"denoising": 1.0, "distillation": 1.0, "jacobian": pytest.approx(0.4)}
    assert not objective.at(1).differentiates_twice
    student, teacher, process = twins("unet")
    assert list(objective.at(1).terms(student, teacher, process, draw(process), objective.jacobian)) == [
        "denoising",
        "distillation",
    ]


@pytest.mark.parametrize("name", MODELS)
def test_every_nth_sample_keeps_the_other_terms(name):
    student, teacher, process = twins(name)
    found = draw(process, batch_size=6, labels=name == "dit")
    whole = terms_of(objective_for(teacher), student, teacher, process, found)
    part = terms_of(objective_for(teacher, every_n_samples=3), student, teacher, process, found)
    assert torch.allclose(whole["denoising"], part["denoising"], rtol=1e-10)
    assert torch.allclose(whole["distillation"], part["distillation"], rtol=1e-10)
    chosen = torch.tensor([0, 3])
    normal = found.normal
    thinned = Draw(
        found.sample[chosen],
        found.noise[chosen],
        found.timesteps[chosen],
        rows(found.conditions, chosen),
        lambda k: normal(k)[chosen],
    )
    alone = terms_of(objective_for(teacher), student, teacher, process, thinned)
    assert torch.allclose(part["jacobian"], alone["jacobian"], rtol=1e-10)


def test_cost_in_passes():
    assert objective_for(unet(), "denoising").passes() == (3, 0)
    assert objective_for(unet(), "distillation").passes() == (3, 1)
    assert objective_for(unet()).passes() == (6, 2)
    assert objective_for(unet(), every_n=2, every_n_samples=2).passes() == (3.75, 1.25)
    assert objective_for(unet(), directions=3).passes() == (12, 4)
    assert objective_for(unet(), projection="jvp").passes() == (9, 3)


def test_gradients_of_micro_batches_add_up():
    parameter, other = nn.Parameter(torch.tensor([1.0, 2.0])), nn.Parameter(torch.ones(3))
    gradient = summed_gradient((parameter[0] * 3, parameter[1] * 2, 2 * parameter[1]), [parameter, other])
    assert [part.tolist() for part in gradient] == [[3, 4], [0, 0, 0]]
    assert norm(gradient) == 5
    assert parameter.grad is None


@pytest.mark.parametrize("name", ["directions", "every_n", "every_n_samples"])
def test_options_that_make_no_sense_are_refused(name):
    with pytest.raises(SecateurError, match=f"jacobian {name} is 0; give at least 1"):
        JacobianConfig(**{name: 0})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "options"),
    [
        pytest.param(
            *("2ndmatch", {"relative": True}),
            marks=pytest.mark.xfail(reason="3.1 measured from 8x8 to 64x64, where 3 is wanted", strict=False),
        ),
        ("first-order", {}),
    ],
)
def test_a_weight_buys_the_same_share_of_the_gradient_at_every_resolution(objective, options):
    """One architecture, its teacher and its pruned student at 8x8, 32x32 and 64x64."""
    teacher = unet()
    student = remove(unet(), describe(unet()), Cut({"down_blocks.0.resnets.0.inner": (0, 3, 4, 7)}))
    process, shares = DiffusionProcess(), []
    for size in (8, 32, 64):
        pixels = torch.rand(4, 1, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
        dataset = ArrayDataset("noise", (1, size, size), (), pixels, None)
        (found,) = draw_step(dataset, process, RecoveryConfig(batch_size=4), 0)
        built = objective_for(teacher, objective, **options)
        gradients = partial(
            torch.autograd.grad, inputs=list(student.parameters()), retain_graph=True, allow_unused=True
        )
        with built.context():
            terms = built.terms(student, teacher, process, found, built.jacobian)
            lengths = {
                name: norm([part for part in gradients(built.loss({name: value})) if part is not None])
                for name, value in terms.items()
            }
        shares.append(lengths["jacobian"] / sum(lengths.values()))
    assert min(shares) > 0
    assert max(shares) < 3 * min(shares), shares
