"""All random numbers of the library: a pure function of seed, purpose, step and index.

Philox (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") turns a key and a counter into random bits.
Seed and purpose are the key, and step and index are in the counter, so no two streams overlap, runs with different
seeds are independent, and any process can draw any row without the rows before it. Numbers are drawn on the CPU, so
that they are the same for every device, batch size and number of processes.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from enum import IntEnum

import numpy as np
import torch
from numpy.random import Generator, Philox
from torch import Tensor

VERSION = 1  # part of the fingerprint of everything stored by seed; to be raised when any draw changes
MOST = 2**63 - 1  # largest seed
ENTRIES_FOR_THREADS = 2**22


class Purpose(IntEnum):
    """What numbers are drawn for; each purpose has its own streams."""

    SAMPLE = 1  # the noise that an image starts from
    SAMPLER = 2  # noise added by a stochastic sampler
    POSTERIOR = 3  # an autoencoder's draw of an image's latents
    EPOCH = 4  # the order of the images in training
    STEP = 5  # timesteps, flips and dropped labels of a training batch
    NOISE = 6  # of a training batch, and further directions of it
    DROPOUT = 7  # layers that draw from torch's generator
    LOSS = 8  # noise of the evaluated loss
    LYAPUNOV = 9  # the first direction of a power iteration
    SCORING = 10  # timesteps and noise of calibration tuples
    COMPENSATION = 11  # timesteps, noise and positions of compensation tuples
    JUDGEMENT = 12  # images and noise of the losses by which trials are compared
    BOOK = 13  # images, timesteps, noise and directions of a teacher's book
    HELD_OUT = 14  # noise of its held-out tuples
    ROUNDING = 15  # stochastic rounding of bfloat16 weights
    FACTORS = 16  # initial LoRA factors


def stream(seed: int, purpose: Purpose, *, step: int = 0, index: int = 0, part: int = 0) -> Generator:
    """The generator of one stream; `part` tells streams of one step and index apart."""
    return Generator(Philox(key=_key(seed, purpose), counter=[0, index, step, part]))


def _key(seed: int, purpose: Purpose) -> list[int]:
    return [seed, VERSION << 32 | purpose]


def normal(
    shape: Sequence[int], indices: Sequence[int], seed: int, purpose: Purpose, *, step: int = 0, part: int = 0
) -> Tensor:
    """Standard normal numbers (len(indices), *shape) in float32, each row by its index."""
    rows = np.empty((len(indices), *shape), np.float32)

    def fill(places: range) -> None:
        bits = Philox(key=_key(seed, purpose))
        generator, state = Generator(bits), bits.state
        for place in places:  # making a generator takes longer than moving one
            state["state"]["counter"][:] = (0, indices[place], step, part)
            bits.state = state
            generator.standard_normal(dtype=np.float32, out=rows[place, ...])

    if rows.size < ENTRIES_FOR_THREADS:
        fill(range(len(rows)))
    else:
        threads = torch.get_num_threads()
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(fill, [range(start, len(rows), threads) for start in range(threads)]))
    return torch.from_numpy(rows)


def uniform(count: int, seed: int, purpose: Purpose, *, step: int = 0, part: int = 0) -> Tensor:
    """Numbers (count,) in float32, multiples of 2^-24 in [0, 1)."""
    return torch.from_numpy(stream(seed, purpose, step=step, part=part).random(count, np.float32))


def permutation(count: int, seed: int, purpose: Purpose, *, step: int = 0, part: int = 0) -> Tensor:
    """The numbers 0 to count - 1 in random order, (count,) int64."""
    return torch.from_numpy(stream(seed, purpose, step=step, part=part).permutation(count))


def torch_seed(seed: int, purpose: Purpose, *, step: int = 0, index: int = 0, part: int = 0) -> int:
    """A 63-bit seed for code that draws from a torch generator: layers, diffusers' samplers."""
    return int(stream(seed, purpose, step=step, index=index, part=part).bit_generator.random_raw() >> 1)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the generators of Python, numpy and torch's CPU inside the block, for code of users; afterwards they go on
    as before."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the one that users draw from
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
