"""Zero-cost proxies of how well a network will train: the condition number of its NTK, and ZiCo.

EntPruner (Li et al. 2025, arXiv 2511.21122) weighs both equally when it chooses a sub-network. Both use gradients of
the weights and biases of linear and convolution layers on a few batches, without training.

N samples of a batch; K batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from ..criteria.reductions import LAYERS
from ..data import Batch
from ..models.conditions import Conditions, rows
from ..models.predict import predict
from ..process.base import Process, timesteps_at
from ..structure import first_argument
from ..structure.cost import skeleton

NTK_DRAWS = 4
ZICO_BATCHES = 8  # two are far too noisy
BATCH_SIZE = 16
JUDGED_PASSES = BATCH_SIZE * (ZICO_BATCHES + NTK_DRAWS)  # passes of one image, forward and backward


@dataclass(frozen=True)
class Judgement:
    """What is measured of a candidate.

    Attributes:
        loss: mean denoising loss.
        log_condition: log of the condition number of the NTK; low trains fast.
        zico: mean over layers of the log of the inverse coefficient of variation of the gradient; high trains well.
    """

    loss: float
    log_condition: float
    zico: float


@dataclass(frozen=True)
class ProxyBatch:
    """Noisy samples (N, C, H, W), their targets, timesteps (N,) in the network's unit, and conditions (N, ...)."""

    noisy: Tensor
    target: Tensor
    timesteps: Tensor
    conditions: Conditions = field(default_factory=dict)


def proxy_batches(process: Process, batch: Batch, seed: int) -> list[ProxyBatch]:
    """`ZICO_BATCHES` batches of `BATCH_SIZE` images, taken from `batch` in turn, each with timesteps over the whole
    range."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for number in range(ZICO_BATCHES):
        index = torch.arange(number * BATCH_SIZE, (number + 1) * BATCH_SIZE) % len(batch.sample)
        jitter = torch.rand(BATCH_SIZE, generator=generator, dtype=torch.float64)
        timesteps = timesteps_at(process, (torch.arange(BATCH_SIZE) + jitter) / BATCH_SIZE)
        sample, at = batch.sample[index], timesteps.to(batch.sample.device)
        noise = torch.randn(sample.shape, generator=generator).to(sample)
        target = process.target(sample, noise, at)
        batches.append(ProxyBatch(process.add_noise(sample, noise, at), target, at, rows(batch.conditions, index)))
    return batches


def judge(process: Process, batch: Batch, seed: int) -> Callable[[nn.Module], Judgement]:
    """A function from a model, in eval mode, to its judgement, always on the same samples."""
    batches = proxy_batches(process, batch, seed)

    def judged(model: nn.Module) -> Judgement:
        gram = ntk_gram(model, batches[0], NTK_DRAWS, seed)
        losses, score = zico(model, batches)
        return Judgement(sum(losses) / len(losses), log_condition_number(gram), score)

    return judged


# --------------------------------------------------------------------------------------------- NTK


def weighted_layers(model: nn.Module) -> dict[str, Any]:
    """Linear and convolution layers that are trained, by name."""
    return {
        name: layer for name, layer in model.named_modules() if isinstance(layer, LAYERS) and layer.weight.requires_grad
    }


def log_condition_number(gram_NN: Tensor) -> float:
    """log of the largest over the smallest eigenvalue, the latter being at least float64's precision of the largest."""
    values = torch.linalg.eigvalsh(gram_NN.double())
    largest = values[-1].item()
    if not largest > 0:
        return math.nan
    return math.log(largest / max(values[0].item(), torch.finfo(torch.float64).eps * largest))


def ntk_gram(model: nn.Module, batch: ProxyBatch, draws: int, seed: int) -> Tensor:
    """Gram matrix (N, N), float64 on the CPU, of the gradients of <output_i, r>, averaged over random signs r.

    Every sample has the same r, so that the mean over r is the NTK summed over the entries of the output. A layer's
    per-sample gradients exist only while the backward pass is at that layer, so memory is that of the largest layer.
    """
    count = len(batch.noisy)
    generator = torch.Generator().manual_seed(seed)
    layers = weighted_layers(model)
    gram = torch.zeros(count, count, dtype=torch.float64)
    weights = [layer.weight for layer in layers.values()]
    with torch.enable_grad(), _collected(layers, count, gram) as flush:
        output = predict(model, batch.noisy, batch.timesteps, batch.conditions)
        for draw in range(draws):
            signs = torch.randint(0, 2, output.shape[1:], generator=generator).to(output) * 2 - 1
            # All are asked for, so that the pass reaches every layer; the results, summed over samples, are not used.
            last = draw == draws - 1
            torch.autograd.grad((output * signs).sum(), weights, retain_graph=not last, allow_unused=True)
            flush()
    return gram / draws


@contextmanager
def _collected(layers: dict[str, Any], count: int, gram: Tensor) -> Iterator[Callable[[], None]]:
    """Add the products of each layer's per-sample gradients to `gram` in every backward pass through its outputs.

    A layer that is called several times has one gradient, the sum over its calls, so it is added after the pass: call
    the function that this yields.
    """
    calls: dict[str, int] = dict.fromkeys(layers, 0)
    waiting: dict[str, Tensor] = {}

    def add(gradients: Tensor) -> None:
        gram.add_((gradients @ gradients.T).cpu().double())

    def watch(name: str, layer: nn.Module) -> Any:
        hookless = skeleton(layer)
        parameters = {key: parameter.detach() for key, parameter in layer.named_parameters()}

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            calls[name] += 1
            x = first_argument(args, kwargs).detach()

            def arrived(g: Tensor) -> None:
                gradients = per_sample_gradients(hookless, parameters, x, g, count)
                if calls[name] == 1:
                    add(gradients)
                else:
                    waiting[name] = waiting[name] + gradients if name in waiting else gradients

            output.register_hook(arrived)

        return hook

    def flush() -> None:
        for gradients in waiting.values():
            add(gradients)
        waiting.clear()

    with ExitStack() as hooks:
        for name, layer in layers.items():
            hooks.enter_context(layer.register_forward_hook(watch(name, layer), with_kwargs=True))
        yield flush


def per_sample_gradients(layer: nn.Module, parameters: dict[str, Tensor], x: Tensor, g: Tensor, count: int) -> Tensor:
    """Gradients (count, entries) of a layer's `parameters` for each sample, from its input x and output gradient g.

    The first axis of x and g is `count` samples, or a multiple of it with the rows of a sample together.
    """
    if isinstance(layer, nn.Linear):  # the same as below, far faster
        x_NTI, g_NTO = (y.reshape(count, -1, y.shape[-1]) for y in (x, g))
        weight = (g_NTO.mT @ x_NTI).flatten(1)
        return torch.cat([weight, g_NTO.sum(1)], dim=1) if "bias" in parameters else weight

    def product(values: dict[str, Tensor], x: Tensor, g: Tensor) -> Tensor:
        return (functional_call(layer, values, (x,)) * g).sum()

    split = vmap(grad(product), in_dims=(None, 0, 0))(parameters, *(y.unflatten(0, (count, -1)) for y in (x, g)))
    return torch.cat([gradient.flatten(1) for gradient in split.values()], dim=1)


# -------------------------------------------------------------------------------------------- ZiCo


def zico(model: nn.Module, batches: Sequence[ProxyBatch]) -> tuple[list[float], float]:
    """The denoising loss of each batch, and ZiCo (Li et al. 2023, arXiv 2301.11300, eq. 14), averaged over layers.

    For a layer: the log of the sum of mean |g| / std(g), both over the batches, at entries where g varies, as in the
    released code. Layers are averaged, where the source sums, so that depth as such is not rewarded.
    """
    weights = [layer.weight for layer in weighted_layers(model).values()]
    losses, running = [], [_Variation(weight) for weight in weights]
    for batch in batches:
        with torch.enable_grad():
            prediction = predict(model, batch.noisy, batch.timesteps, batch.conditions)
            loss = (prediction - batch.target).square().mean()
            gradients = torch.autograd.grad(loss, weights, allow_unused=True)
        losses.append(loss.item())
        for variation, gradient in zip(running, gradients, strict=True):
            if gradient is not None:
                variation.add(gradient)
    scores = [variation.score() for variation in running]
    found = [score for score in scores if score is not None]
    return losses, sum(found) / len(found) if found else math.nan


class _Variation:
    """Running mean, squared deviation (Welford) and mean magnitude of a weight's gradient."""

    def __init__(self, weight: Tensor) -> None:
        self.count = 0
        self.mean, self.squares, self.magnitude = (torch.zeros_like(weight) for _ in range(3))

    @torch.no_grad()
    def add(self, gradient: Tensor) -> None:
        self.count += 1
        deviation = gradient - self.mean
        self.mean += deviation / self.count
        self.squares += deviation * (gradient - self.mean)
        self.magnitude += gradient.abs()

    @torch.no_grad()
    def score(self) -> float | None:
        """log of the sum of mean |g| / std(g); None if nothing varies."""
        deviation = (self.squares / max(self.count, 1)).sqrt()
        varies = deviation > 0
        ratios = self.magnitude[varies] / self.count / deviation[varies]
        total = ratios.cpu().double().sum().item()
        return math.log(total) if total > 0 else None
