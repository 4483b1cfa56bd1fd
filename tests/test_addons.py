"""Add-ons of the dense model (docs/export.md): a ControlNet fits if skip connections are not cut."""

import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel

import secateur
from secateur import CutConfig


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=4,
    ).eval()


def controlled(model: torch.nn.Module, dense: UNet2DConditionModel) -> torch.Size:
    control = ControlNetModel.from_unet(dense, conditioning_embedding_out_channels=(8, 16))
    x, t, text = torch.randn(1, 4, 8, 8), torch.tensor(10), torch.randn(1, 5, 8)
    down, middle = control(x, t, text, controlnet_cond=torch.randn(1, 3, 16, 16), return_dict=False)
    return model(x, t, text, down_block_additional_residuals=down, mid_block_additional_residual=middle).sample.shape


def test_a_controlnet_does_not_fit_narrower_skip_connections(unet: UNet2DConditionModel) -> None:
    pruned = secateur.prune(unet, target="macs=70%", criterion="magnitude", process="ddpm")
    assert controlled(unet, unet) == (1, 4, 8, 8)
    with pytest.raises(RuntimeError, match="size of tensor"):
        controlled(pruned, unet)


def test_a_controlnet_fits_if_only_inner_widths_were_removed(unet: UNet2DConditionModel) -> None:
    cut = CutConfig(include=("*.inner", "*.heads", "*.ff*"))
    pruned = secateur.prune(unet, target="macs=85%", criterion="magnitude", process="ddpm", cut=cut)
    assert pruned.down_blocks[0].resnets[0].conv1.out_channels < unet.down_blocks[0].resnets[0].conv1.out_channels
    assert controlled(pruned, unet) == (1, 4, 8, 8)
