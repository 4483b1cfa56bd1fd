"""Small random models of the classes of `diffusers.models` with Transformer or DiT in their names, and their table."""

import inspect
import re
import textwrap
from collections.abc import Iterable
from pathlib import Path

import diffusers.models
import torch
from torch import nn

from secateur.base.layer_names import counted, grouped
from secateur.models.discovery.inputs import working
from secateur.models.discovery.prove import Proven, prove
from secateur.models.discovery.shrink import reductions

TABLE = Path(__file__).parent.parent / "docs" / "architectures.md"
NAMES = sorted(name for name in dir(diffusers.models) if "Transformer" in name or "DiT" in name)
DEPTH = 3  # blocks of a list
LARGEST = 12_000_000  # parameters of a model that is worth the time

# What a small model needs beyond the general rule, or because the class's own defaults fail.
BEFORE_THE_RULE = {
    "LuminaNextDiT2DModel": {"num_kv_heads": 8, "ffn_dim_multiplier": 1.0},
}
AFTER_THE_RULE = {
    "AceStepTransformer1DModel": {"in_channels": 12, "audio_acoustic_hidden_dim": 4},
    "ChromaTransformer2DModel": {
        "approximator_num_channels": 8,
        "approximator_hidden_dim": 16,
        "approximator_layers": 1,
    },
    "CosmosTransformer3DModel": {"concat_padding_mask": False},  # its own code needs torchvision
    "DiTTransformer2DModel": {"sample_size": 8},
    "DreamLiteTransformer2DModel": {"in_channels": 32, "cross_attention_dim": 24, "num_layers": 3},
    "EasyAnimateTransformer3DModel": {"in_channels": 4, "out_channels": 4, "patch_size": 2, "mmdit_layers": 2},
    "GlmImageTransformer2DModel": {"prior_vq_quantizer_codebook_size": 64},
    "HiDreamImageTransformer2DModel": {
        "in_channels": 4,
        "patch_size": 2,
        "out_channels": 4,
        "caption_channels": [20, 24],
        "llama_layers": [0, 1, 2, 3, 4, 5],
        "axes_dims_rope": (8, 4, 4),
        "max_resolution": (16, 16),
        "force_inference_output": True,
    },
    "HunyuanDiT2DModel": {
        "in_channels": 4,
        "patch_size": 2,
        "sample_size": 8,
        "num_layers": 4,
        "text_len": 4,
        "text_len_t5": 5,
    },
    "HunyuanVideoFramepackTransformer3DModel": {"has_image_proj": True, "has_clean_x_embedder": True},
    "LatteTransformer3DModel": {
        "in_channels": 4,
        "out_channels": 4,
        "patch_size": 2,
        "num_layers": 3,
        "sample_size": 8,
        "video_length": 3,
        "caption_channels": 24,
        "cross_attention_dim": 64,
        "norm_type": "ada_norm_single",
        "norm_elementwise_affine": False,
        "num_embeds_ada_norm": 1000,
    },
    "Lumina2Transformer2DModel": {"multiple_of": 16, "axes_lens": (30, 16, 16), "sample_size": 8},
    "LuminaNextDiT2DModel": {"multiple_of": 16},
    "PixArtTransformer2DModel": {"sample_size": 8, "caption_channels": 24},
    "PriorTransformer": {"num_embeddings": 5, "additional_embeddings": 4},
    "StableAudio3DiTModel": {"num_memory_tokens": 4, "io_channels": 8, "local_add_cond_dim": 9},
    "StableAudioDiTModel": {"sample_size": 8},
    "Transformer2DModel": {"in_channels": 32, "cross_attention_dim": 24, "num_layers": 3},
    "TransformerTemporalModel": {"in_channels": 32, "num_layers": 3},
    "WanVACETransformer3DModel": {"vace_layers": [0, 1], "vace_in_channels": 8},
}


def small(name: str, **changes: object) -> nn.Module:
    """A small random model of the class `name` of diffusers."""
    architecture = getattr(diffusers.models, name)
    parameters = list(inspect.signature(architecture.__init__).parameters.values())[1:]
    defaults = {each.name: each.default for each in parameters if each.default is not each.empty}
    sizes, reasons = [], []
    for config in reductions(defaults | BEFORE_THE_RULE.get(name, {}), DEPTH):
        config |= AFTER_THE_RULE.get(name, {}) | changes
        try:
            with torch.device("meta"):
                sizes.append(sum(parameter.numel() for parameter in architecture(**config).parameters()))
        except Exception as error:
            reasons.append(one_line(error))
        else:
            if sizes[-1] <= LARGEST:
                torch.manual_seed(0)
                return architecture(**config).eval()
    if sizes:
        raise ValueError(f"no small config of it is known: the rule leaves {min(sizes) / 1e6:.0f} M parameters")
    raise ValueError(f"cannot be built by its defaults, reduced by rule: {reasons[0]}")


def proven(name: str) -> tuple[nn.Module, Proven]:
    """The model and the structure that was proven."""
    model = small(name)
    inputs, _ = working(model)
    return model, prove(model, inputs)


def row(name: str, model: nn.Module, result: Proven) -> str:
    """A row of the table."""
    widths, blocks = quoted(counted(result.structure.dims)), quoted(counted(result.structure.blocks))
    why = "; ".join(f"{quoted(names)}: {reason}" for names, reason in grouped(result.left_out))
    return f"| {name} | {widths or 'none'} | {blocks or 'none'} | {why.replace('|', '/')} |"


def quoted(names: Iterable[str]) -> str:
    """Names in the font of code, their counts outside of it."""
    return ", ".join(re.sub(r"^[^ ]+", r"`\g<0>`", name) for name in names)


def one_line(error: BaseException) -> str:
    """The message of an error as the cell of a table."""
    return textwrap.shorten((str(error).strip() or repr(error)).splitlines()[0].replace("|", "/"), 240)


def page(rows: list[str], works: int) -> str:
    """The page of the documentation."""
    return PAGE.format(works=works, count=len(rows), rows="\n".join(rows))


PAGE = """# Architectures whose structure is discovered

The table below covers every class of `diffusers.models` with Transformer or DiT in its name, each with a small random
configuration. For {works} of {count}, removable widths were found by tracing and proven: masks equal removal for each
width, each block and random cuts of many. Widths and blocks that are not listed are not cut. `make torture` writes this
page (`tests/test_discovery.py`).

A plan counts MACs without running the network. Where a network sends tokens to experts by scores that it computes
(`HiDreamImage`), the count assumes that every expert gets equally many.

Only what the sample passes through is cut. Layers that work on conditions alone stay whole: token refiners, which are
blocks over text, and modulations. They are told by the inputs that they are called with, not by their names.

The configurations are the defaults of the classes, reduced by the rule that discovery uses for models of released
sizes too. Where the defaults build nothing, or stay large under the rule, the test gives a few numbers. Fifty of the
classes with widths have defaults that build something. Of these, 48 are discovered, and their MACs counted, at the
defaults in full size. The other two are `PixArtTransformer2DModel`, which is declared by hand and
takes more inputs at 1024 pixels, and `CosmosTransformer3DModel`, whose code needs torchvision unless
`concat_padding_mask` is off, as it is here.

Some of these classes are declared by hand ([adding an architecture](adding-an-architecture.md)), and then more of them
can be removed; this table has only what discovery finds. `*` stands for the number of a layer; numbers in brackets
count layers.

Nothing is cut that was not proven. *Without it, outputs are not those of its mask* means that the model does something
else at this place, such as a modulation or an embedding of its own; *without it, the model fails* that a size which it
needs does not follow.

How long it takes for models of released sizes is what `python benchmarks/sizes.py` measures.

| class | widths | blocks | what is not cut, and why |
|---|---|---|---|
{rows}
"""
