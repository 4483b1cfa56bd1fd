"""The autoencoder of a latent model: images or clips to the latents that the network sees, and back."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    AutoencoderKLWan,
    VQModel,
)
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from ..base.errors import ModelError
from ..io.checkpoint import described, load_any
from ..io.foreign import loading
from ..io.locate import Place
from ..io.pruned import dense_class
from ..models.family import Shape
from ..models.network import device_of

AT_ONCE = 8  # images to decode; activations of a VAE are large


@dataclass(frozen=True)
class LatentSpace:
    """Shapes on both sides of an autoencoder, by its config alone."""

    channels: int
    image_channels: int
    factor: int  # pixels per latent, along each side
    frames: int | None = None  # frames of a clip per latent, except the first, which has its own; None for images

    def image_shape(self, latent_shape: Shape) -> Shape:
        """C, H, W of the images, or C, T, H, W of the clips, whose latents have `latent_shape`."""
        _, *times, height, width = latent_shape
        times = [self.frames * (each - 1) + 1 for each in times] if self.frames is not None else []
        return self.image_channels, *times, height * self.factor, width * self.factor


def _as_it_is(x: Tensor) -> Tensor:
    return x


@dataclass(frozen=True)
class Kind:
    """The properties of a class of autoencoders.

    Attributes:
        architecture: the class.
        space: its shapes, from its config.
        normalization: (mean, deviation) of the encoder's output by channel, if not in the config.
        enter, leave: convert a batch of images to the encoder's input, and the decoder's output to images.
        fold, unfold: convert the encoder's output to the network's input, and back.
    """

    architecture: type[Any]
    space: Callable[[Mapping[str, Any]], LatentSpace]
    normalization: Callable[[Any], tuple[Tensor, Tensor]] | None = None
    enter: Callable[[Tensor], Tensor] = _as_it_is
    leave: Callable[[Tensor], Tensor] = _as_it_is
    fold: Callable[[Tensor], Tensor] = _as_it_is
    unfold: Callable[[Tensor], Tensor] = _as_it_is


def _of_images(config: Mapping[str, Any]) -> LatentSpace:
    widths = config.get("block_out_channels") or config["encoder_block_out_channels"]
    return LatentSpace(config["latent_channels"], config["in_channels"], 2 ** (len(widths) - 1))


def _of_flux2(config: Mapping[str, Any]) -> LatentSpace:
    """2 x 2 latents are folded into one, with four times the channels."""
    factor = 2 ** len(config["block_out_channels"])
    return LatentSpace(4 * config["latent_channels"], config["in_channels"], factor)


def _of_qwen_image(config: Mapping[str, Any]) -> LatentSpace:
    return LatentSpace(config["z_dim"], config["input_channels"], 2 ** len(config["temperal_downsample"]))


def _of_wan(config: Mapping[str, Any]) -> LatentSpace:
    channels = config["in_channels"] // (config["patch_size"] or 1) ** 2
    return LatentSpace(
        config["z_dim"], channels, config["scale_factor_spatial"], frames=config["scale_factor_temporal"]
    )


def _batch_statistics(model: AutoencoderKLFlux2) -> tuple[Tensor, Tensor]:
    """Statistics of the batch norm of Flux.2's autoencoder."""
    return model.bn.running_mean, (model.bn.running_var + model.config.batch_norm_eps).sqrt()


def _one_frame(x_BCHW: Tensor) -> Tensor:
    return x_BCHW.unsqueeze(2)


def _only_frame(x_BCTHW: Tensor) -> Tensor:
    return x_BCTHW.squeeze(2)


KINDS = (
    Kind(AutoencoderKL, _of_images),
    Kind(AutoencoderDC, _of_images),
    Kind(VQModel, _of_images),
    Kind(
        AutoencoderKLFlux2,
        _of_flux2,
        _batch_statistics,
        fold=lambda z: pixel_unshuffle(z, 2),
        unfold=lambda z: pixel_shuffle(z, 2),
    ),
    Kind(
        AutoencoderKLQwenImage, _of_qwen_image, enter=_one_frame, leave=_only_frame, fold=_only_frame, unfold=_one_frame
    ),
    Kind(AutoencoderKLWan, _of_wan),
)
AUTOENCODERS = {kind.architecture.__name__: kind for kind in KINDS}


def latent_space(source: Path | nn.Module) -> LatentSpace:
    """The latent space of an autoencoder, from its config or that in its folder.

    Raises:
        ModelError: the class is not in `AUTOENCODERS`, or the config is not one of it.
    """
    name, config = _described(source)
    if name not in AUTOENCODERS:
        where = source if isinstance(source, Path) else "the pipeline"
        raise ModelError(f"{where} holds a {name}; latents are supported of {', '.join(AUTOENCODERS)}")
    kind = AUTOENCODERS[name]
    parameters = inspect.signature(kind.architecture).parameters.values()
    defaults = {each.name: each.default for each in parameters if each.default is not inspect.Parameter.empty}
    with loading(_named(source), "has a config that is not of an autoencoder"):
        space = kind.space({**defaults, **config})
        if not all(isinstance(size, int) and size > 0 for size in (space.channels, space.image_channels, space.factor)):
            raise ValueError(f"it says {space}")
    return space


def _named(source: Path | nn.Module) -> str:
    return str(source) if isinstance(source, Path) else f"the {type(source).__name__} in memory"


def _described(source: Path | nn.Module) -> tuple[str, Mapping[str, Any]]:
    if isinstance(source, Path):
        return described(Place(source))
    return dense_class(source).__name__, source.config  # type: ignore[return-value]


@dataclass(frozen=True)
class Autoencoder:
    """An autoencoder with the normalization of its latents: (z - shift) scale, z the encoder's output.

    `scale` and `shift` are (C, 1, 1): `scaling_factor` and `shift_factor` of the config (Rombach et al. 2022, section
    D.1), or `latents_mean` and `latents_std` if it has them, used as in diffusers' pipelines; for clips they are (C, 1,
    1, 1).
    """

    model: nn.Module
    scale: Tensor
    shift: Tensor
    kind: Kind
    name: str

    @torch.no_grad()
    def encode(self, x: Tensor, noise: Tensor) -> Tensor:
        """Latents (B, C, h, w) of images in [-1, 1]: mean + std * noise of each posterior, if there is one.

        For clips (B, C, T, H, W), latents are (B, C, t, h, w).
        """
        weight, fold = next(self.model.parameters()), self.kind.fold
        with loading(self.name, "cannot encode images"):
            (encoded,) = self.model.encode(self.kind.enter(x.to(weight)), return_dict=False)  # type: ignore[operator]
        if isinstance(encoded, Tensor):
            drawn = fold(encoded)
        else:
            drawn = fold(encoded.mean) + fold(encoded.std) * noise.to(weight)
        return (drawn.to(self.scale) - self.shift) * self.scale

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Images (B, C, H, W) or clips (B, C, T, H, W) of latents, a few at a time; about [-1, 1], not clamped."""
        weight = next(self.model.parameters())
        parts = (z.to(self.scale) / self.scale + self.shift).to(weight).split(AT_ONCE)
        decode: Callable[..., Any] = self.model.decode  # type: ignore[assignment]
        with loading(self.name, "cannot decode latents"):
            images = [self.kind.leave(decode(self.kind.unfold(part), return_dict=False)[0]) for part in parts]
        return torch.cat(images).to(self.scale).contiguous()


def open_autoencoder(source: Path | nn.Module, device: torch.device | str = "cpu") -> Autoencoder:
    """The autoencoder in a folder, in float32 on `device`; one in memory is used without changes.

    Raises:
        ModelError: as `latent_space`; damaged or missing weights.
    """
    space = latent_space(source)
    kind = AUTOENCODERS[_described(source)[0]]
    model: Any = source
    if isinstance(source, Path):
        model = load_any(Place(source), kind.architecture)  # its decoder may be pruned
        nn.Module.to(model, device, torch.float32).requires_grad_(False)  # avoids diffusers' warning
    config, shape, here = model.config, (space.channels, 1, 1), device_of(model)
    with loading(_named(source), "has no numbers to normalize its latents by"):
        scale = torch.full(shape, config.get("scaling_factor") or 1.0, device=here)
        shift = torch.full(shape, config.get("shift_factor") or 0.0, device=here)
        mean, deviation = config.get("latents_mean"), config.get("latents_std")
        if kind.normalization is not None:
            mean, deviation = kind.normalization(model)
        if mean is not None and deviation is not None:
            shift = torch.as_tensor(mean, dtype=torch.float32, device=here).view(shape)
            scale = scale / torch.as_tensor(deviation, dtype=torch.float32, device=here).view(shape)
    if space.frames is not None:
        shift, scale = shift.unsqueeze(1), scale.unsqueeze(1)
    return Autoencoder(model, scale, shift, kind, _named(source))
