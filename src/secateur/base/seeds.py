"""Seeds from several integers."""

import numpy as np


def seed_of(*key: int) -> int:
    """A 63-bit seed for torch from any number of integers, such as (seed, step, stream)."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)
