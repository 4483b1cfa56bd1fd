"""One page about many runs: which method is best at which size, and how sure that is."""

from .entries import TRIALS
from .page import write_comparison

__all__ = ["TRIALS", "write_comparison"]
