"""Small networks of recent architectures, whose structure is discovered."""

from diffusers import Lumina2Transformer2DModel, QwenImageTransformer2DModel, ZImageTransformer2DModel


def z_image() -> ZImageTransformer2DModel:
    """Takes lists of latents and captions."""
    sizes = {"dim": 48, "n_layers": 5, "n_refiner_layers": 1, "n_heads": 6, "n_kv_heads": 6, "cap_feat_dim": 8}
    rotary = {"axes_dims": [2, 2, 4], "axes_lens": [64, 64, 64]}
    model = ZImageTransformer2DModel(in_channels=2, **sizes, **rotary)
    model.register_to_config(sample_size=8)
    return model


def lumina_2() -> Lumina2Transformer2DModel:
    """Reads the length of each caption."""
    sizes = {"hidden_size": 32, "num_layers": 5, "num_refiner_layers": 1, "cap_feat_dim": 8, "multiple_of": 8}
    heads = {"num_attention_heads": 4, "num_kv_heads": 2, "axes_dim_rope": (2, 2, 4), "axes_lens": (30, 64, 64)}
    return Lumina2Transformer2DModel(sample_size=8, in_channels=2, **sizes, **heads)


def qwen_image() -> QwenImageTransformer2DModel:
    """Two streams; a mask says which tokens of the text count."""
    sizes = {"in_channels": 8, "out_channels": 2, "num_layers": 4, "joint_attention_dim": 8}
    heads = {"attention_head_dim": 16, "num_attention_heads": 2, "axes_dims_rope": (4, 6, 6)}
    model = QwenImageTransformer2DModel(**sizes, **heads)
    model.register_to_config(sample_size=8)
    return model
