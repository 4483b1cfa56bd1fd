"""Models on disks and hubs: what may be read of them, and what is written."""

from . import pruned  # noqa: F401  its classes are registered with diffusers
