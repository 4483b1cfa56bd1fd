"""Reading and writing models on disk and on the hub."""

from . import pruned  # noqa: F401  its classes are registered with diffusers
