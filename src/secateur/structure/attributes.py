"""Static attributes of diffusers and torch modules that must follow their weights after a cut."""

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.normalization import RMSNorm
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.transformers.transformer_flux import FluxAttention, FluxSingleTransformerBlock
from diffusers.models.upsampling import Upsample2D
from torch import nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
FOLLOWED = (Attention, FluxAttention, FluxSingleTransformerBlock, ResnetBlock2D, Transformer2DModel)


def follow_weights(model: nn.Module) -> None:
    """Set channel counts, heads and scales from the shapes that the weights have now.

    A stale `Attention.heads` does not crash: it regroups the channels of the heads silently.
    """
    for module in model.modules():
        if isinstance(module, CONVOLUTIONS):
            _follow_conv(module)
        elif isinstance(module, nn.Linear):
            module.out_features, module.in_features = module.weight.shape
        elif isinstance(module, nn.GroupNorm) and module.affine:
            module.num_channels = module.weight.shape[0]
        elif isinstance(module, nn.Embedding):
            module.embedding_dim = module.weight.shape[1]
        elif isinstance(module, nn.RMSNorm) and module.weight is not None:
            module.normalized_shape = tuple(module.weight.shape)
        elif isinstance(module, RMSNorm) and module.weight is not None:
            module.dim = torch.Size(module.weight.shape)
    for module in model.modules():
        if isinstance(module, Attention):
            _follow_attention(module)
        elif isinstance(module, FluxAttention):
            module.inner_dim = module.to_q.out_features
            module.heads = module.inner_dim // module.head_dim
        elif isinstance(module, FluxSingleTransformerBlock):
            module.mlp_hidden_dim = module.proj_mlp.out_features
            module.proj_out._tp_packed_row_blocks = [module.attn.to_q.out_features, module.mlp_hidden_dim]
        elif isinstance(module, ResnetBlock2D):
            _follow_resnet(module)
        elif isinstance(module, Downsample2D | Upsample2D) and module.use_conv:
            module.channels = module.conv.in_channels
            module.out_channels = module.conv.out_channels
        elif isinstance(module, Transformer2DModel) and module.is_input_continuous:
            module.in_channels = module.out_channels = module.norm.num_channels


def _follow_conv(module: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> None:
    if module.groups > 1 and module.groups == module.in_channels:  # depthwise, with one or more outputs per input
        module.groups = module.weight.shape[0] // (module.out_channels // module.groups)
    module.out_channels = module.weight.shape[0]
    module.in_channels = module.weight.shape[1] * module.groups


def _follow_attention(module: Attention) -> None:
    head_dim = module.inner_dim // module.heads
    module.inner_dim = module.to_q.out_features
    module.inner_kv_dim = module.to_k.out_features
    module.query_dim = module.to_q.in_features
    module.cross_attention_dim = module.to_k.in_features
    if module.to_out is not None:
        output = module.to_out if isinstance(module.to_out, nn.Linear) else module.to_out[0]
        module.out_dim = output.out_features
    if module.heads == 1:
        module.scale = module.inner_dim**-0.5 if module.scale_qk else 1.0
    else:
        module.heads = module.sliceable_head_dim = module.inner_dim // head_dim


def _follow_resnet(module: ResnetBlock2D) -> None:
    module.in_channels = module.conv1.in_channels
    module.out_channels = module.conv2.out_channels
    for resampler in (module.upsample, module.downsample):
        if isinstance(resampler, Downsample2D | Upsample2D):
            resampler.channels = resampler.out_channels = module.in_channels
