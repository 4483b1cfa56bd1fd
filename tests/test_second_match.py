"""2ndMatch: the checks U1 to U8 of its specification, in float64, and the loss against a naive double backward."""

import copy
import weakref
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from jacobian_runs import MODELS, draw, objective_for, terms_of, twins
from secateur.models.conditions import rows
from secateur.models.jacobian import higher_order, project, squared_lengths, unit_directions
from secateur.models.predict import predict
from secateur.recovery.objectives.first_order import projection_mismatch
from secateur.recovery.objectives.second_match import growth_mismatch

W = torch.tensor([[2.0, 1.0], [0.0, 3.0]], dtype=torch.float64)
V = torch.tensor([0.6, 0.8], dtype=torch.float64).view(1, 2, 1, 1)


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
    with objective.context():
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


# ------------------------------------------------------------------------------------------- numerics


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
