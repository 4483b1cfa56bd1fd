"""The declaration of diffusers' `Attention`, shared by the architecture families."""

from diffusers.models.attention_processor import Attention

from .dims import StructureBuilder


def declare_self_attention(builder: StructureBuilder, name: str, attention: Attention, hidden: list[str]) -> None:
    """Declare self-attention at `name` over the residual stream `hidden` ([] when that width stays).

    With several heads a unit is a head. With one head a unit is a channel of it: then the query is masked too, since
    scores sum over channels, and rescaled on removal, since scores are divided by the root of the head size.
    """
    heads, inner_dim = attention.heads, attention.to_q.out_features
    bias = attention.to_q.bias is not None
    if heads > 1:
        inner = builder.dim(f"{name}.heads", heads, inner_dim // heads)
    else:
        rescaled = (f"{name}.to_q.weight", *([f"{name}.to_q.bias"] if bias else []))
        inner = builder.dim(f"{name}.channels", inner_dim, rescaled=rescaled if attention.scale_qk else ())
    if attention.group_norm is not None:
        builder.normalizes(f"{name}.group_norm", hidden, attention.group_norm.num_groups)
    for projection in ("to_q", "to_k", "to_v"):
        builder.reads(f"{name}.{projection}", hidden)
        builder.writes(f"{name}.{projection}", inner, bias=bias, gate=heads == 1 and projection == "to_q")
    builder.reads(f"{name}.to_out.0", inner)
    builder.writes(f"{name}.to_out.0", hidden, bias=attention.to_out[0].bias is not None)
    builder.attention[name] = inner[0]
