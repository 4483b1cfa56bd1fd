"""Structure of undeclared classes: found by tracing, and used only after it is proven."""

from .proofs import Discovery, describe, discover, example_inputs

__all__ = ["Discovery", "describe", "discover", "example_inputs"]
