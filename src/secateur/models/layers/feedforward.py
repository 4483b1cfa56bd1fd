"""The declaration of diffusers' `FeedForward`: its inner width."""

from diffusers.models.activations import GEGLU, SwiGLU
from diffusers.models.attention import FeedForward

from ...structure.dims import StructureBuilder


def declare_feed_forward(builder: StructureBuilder, name: str, feed_forward: FeedForward) -> None:
    """Declare the inner width of `feed_forward`; GEGLU and SwiGLU project to two halves of it at once."""
    activation, output = feed_forward.net[0], feed_forward.net[2]
    inner = builder.dim(name, output.in_features)
    halves = 2 if isinstance(activation, GEGLU | SwiGLU) else 1
    builder.writes(f"{name}.net.0.proj", inner, bias=activation.proj.bias is not None, repeats=halves)
    builder.reads(f"{name}.net.2", inner)
