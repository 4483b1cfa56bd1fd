"""The declaration of diffusers' `Attention` and `FluxAttention`, shared by the architecture families."""

from collections.abc import Sequence

from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_flux import FluxAttention
from torch import nn

from ...base.errors import StructureError
from ...structure.dims import StructureBuilder


def declare_attention(
    builder: StructureBuilder, name: str, attention: Attention | FluxAttention, hidden: Sequence[str] = ()
) -> list[str]:
    """Declare the attention at `name` over the residual stream `hidden` (empty if that width is not cut); return its
    dim.

    Cross-attention takes the text encoder's width, which is not cut, so `hidden` is for self-attention only. Text
    tokens of joint attention have separate projections and share the heads.

    With several heads a unit is a head. With one head a unit is a channel of it: then the query is masked too, since
    scores sum over channels, and rescaled on removal, since scores are divided by the root of the head size. A single
    head with a norm is not cut.

    Raises:
        StructureError: its projections are fused, or its processor has weights, whose heads would be regrouped
            silently.
    """
    if attention.fused_projections:
        raise StructureError(f"the projections of {name} are fused: load the model again, prune it, and fuse them then")
    if isinstance(attention.processor, nn.Module) and next(attention.processor.parameters(), None) is not None:
        raise StructureError(f"the processor of {name} holds weights (an IP-Adapter): unload it, then prune")
    stream = list(hidden)
    projections = {
        projection: module
        for projection in ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj")
        if (module := getattr(attention, projection, None)) is not None
    }
    queries = [projection for projection in ("to_q", "add_q_proj") if projection in projections]
    heads, inner_dim = attention.heads, attention.to_q.out_features
    inner: list[str] = []
    if heads > 1:
        inner = builder.dim(f"{name}.heads", heads, inner_dim // heads)
    elif attention.norm_q is None:
        rescaled = [f"{query}.{kind}" for query in queries for kind, _ in projections[query].named_parameters()]
        scaled = tuple(f"{name}.{parameter}" for parameter in rescaled) if attention.scale_qk else ()
        inner = builder.dim(f"{name}.channels", inner_dim, rescaled=scaled)
    if getattr(attention, "group_norm", None) is not None:
        builder.normalizes(f"{name}.group_norm", stream, attention.group_norm.num_groups)
    for projection, module in projections.items():
        builder.reads(f"{name}.{projection}", stream)
        gate = heads == 1 and projection in queries
        builder.writes(f"{name}.{projection}", inner, bias=module.bias is not None, gate=gate)
    for norm in ("norm_q", "norm_k"):
        if _spans_heads(getattr(attention, norm), heads, inner_dim):
            builder.normalizes_all(f"{name}.{norm}", inner)
    for output in _outputs(attention):
        builder.reads(f"{name}.{output}", inner)
        builder.writes(f"{name}.{output}", stream, bias=attention.get_submodule(output).bias is not None)
    if inner:
        builder.attention[name] = inner[0]
    return inner


def _spans_heads(norm: nn.Module | None, heads: int, inner_dim: int) -> bool:
    """Whether a norm of queries or keys runs over all heads at once, rather than within each."""
    weight = getattr(norm, "weight", None)
    return heads > 1 and weight is not None and len(weight) == inner_dim


def _outputs(attention: Attention | FluxAttention) -> list[str]:
    """Projections back to the residual stream; a single-stream Flux block has its own outside."""
    image = [] if attention.pre_only else ["to_out.0"]
    return image if getattr(attention, "to_add_out", None) is None else [*image, "to_add_out"]
