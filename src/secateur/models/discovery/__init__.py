"""Structure of classes that nobody declared: found by tracing, and believed only when proven."""

from .proofs import Discovery, describe, discover, example_inputs

__all__ = ["Discovery", "describe", "discover", "example_inputs"]
