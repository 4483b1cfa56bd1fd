"""Networks that are chains of blocks whose effects are known, and short settings to score them."""

import dataclasses

import torch
from torch import nn

from secateur.criteria import CedOptions, ScoringConfig, score
from secateur.data import Batch
from secateur.process.diffusion import DiffusionProcess
from secateur.structure import Block, Structure

FEW = ScoringConfig(num_timesteps=4, batch_size=16)
CED = dataclasses.replace(FEW, options=CedOptions(output="prediction"))


class Apply(nn.Module):
    """A block that applies a function of its input and the timesteps."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x, timestep):
        return self.function(x, timestep.reshape(-1, 1, 1, 1))


class Chain(nn.Module):
    """Runs its input through a list of blocks, with the call of a diffusers model."""

    def __init__(self, *functions):
        super().__init__()
        self.blocks = nn.ModuleList(map(Apply, functions))

    def forward(self, sample, timestep, return_dict=False):
        for block in self.blocks:
            sample = block(sample, timestep)
        return (sample,)


@dataclasses.dataclass(frozen=True)
class Noise:
    """A process whose noisy sample is the noise, at timesteps in [0, 1)."""

    num_train_timesteps: int = 1000

    def timesteps(self, u):
        return u

    def add_noise(self, sample, noise, timesteps):
        return noise

    def target(self, sample, noise, timesteps):
        return noise

    def denoised(self, noisy, output, timesteps):
        return output


class Knowing(DiffusionProcess):
    """Passes the clean sample to the network, whatever the noise."""

    def add_noise(self, sample, noise, timesteps):
        return sample


def identity(x, t):
    return x


def negate(x, t):
    return -x


def mirror(x, t):
    return x.flip(-1)


def scale(by):
    return lambda x, t: by * x


def chain_of(*functions):
    model = Chain(*functions)
    names = [f"blocks.{i}" for i in range(len(functions))]
    return model, Structure({}, {name: Block(name, listed=True) for name in names})


class Parametrized(nn.Module):
    """Converts the prediction of a chain to a(t) x + b(t) prediction, as from noise to velocity."""

    def __init__(self, chain):
        super().__init__()
        self.blocks, self.chain = chain.blocks, chain

    def forward(self, sample, timestep, return_dict=False):
        level = timestep.reshape(-1, 1, 1, 1)
        (prediction,) = self.chain(sample, timestep)
        return (torch.cos(level) * sample + (2 + torch.sin(level)) * prediction,)


def effects_of(model, structure, process=None, batch=None, config=None, criterion="ced"):
    config = config or (CED if criterion == "ced" else FEW)
    batch = batch or Batch(torch.randn(6, 2, 4, 4, generator=torch.Generator().manual_seed(0)))
    ranking = score(model, process or Noise(), batch, structure, criterion, config)
    return ranking, list(ranking.report.blocks.values())
