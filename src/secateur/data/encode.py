"""Encoding a data set once: latents by the VAE, captions by the text encoders, into a cache on disk.

Folders of the cache are named by a fingerprint of their inputs, so that a stale one is never read. VAE and text
encoders are loaded one after the other, and only if something is missing.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from ..base.cache import cache_folder
from ..base.errors import DataError, ModelError, require
from ..base.files import write_json
from ..base.fingerprint import files_fingerprint, fingerprint, model_fingerprint
from ..base.rows import FileRows, chunk_size_of
from ..base.seeds import VERSION, Purpose, normal
from ..base.tensors import read_tensors, write_tensors
from ..io.index import INDEX, read_object
from ..io.pipeline import Loaded
from ..models.family import Shape
from ..models.network import device_of, example_batch, input_shape, takes_text
from . import LatentDataset, load_data
from .autoencoder import Autoencoder, latent_space, open_autoencoder
from .latents import LATENTS, EncodedDataset, RowsMadeWhenRead
from .text import KEPT, TEXT_PARTS, check_text, open_text_encoder, text_parts

FORMAT = 1
AT_ONCE = 8  # images or captions per pass
POSTERIOR_SEED = 0  # one draw per image, for all uses
ABOUT = "about.json"
NULL = "null.safetensors"


def open_encoded(source: str, loaded: Loaded) -> EncodedDataset:
    """The data set of latents that `encode` writes, complete or not.

    Raises:
        DataError: as `load_data`; no captions for a text-conditional model.
        ModelError: another VAE than the model's, or text encoders that are not supported.
    """
    assert loaded.pipeline is not None
    assert loaded.vae is not None
    space, shape = latent_space(loaded.vae), input_shape(loaded.model)
    if space.channels != shape[0]:
        raise ModelError(
            f"the VAE, {_named(loaded.vae)}, has {space.channels} latent channels, the model takes {shape[0]}: "
            "this pipeline is not supported"
        )
    images = load_data(source, space.image_shape(shape))
    about = {
        "format": FORMAT,
        "draws": VERSION,
        "vae": _fingerprint_of(loaded.vae),
        "data": images.fingerprint,
        "latents": list(shape),
    }
    chunk_size = chunk_size_of(_latent_bytes(shape))
    latents = FileRows(len(images), chunk_size, cache_folder() / "latents" / fingerprint(about))
    dataset = EncodedDataset(images, shape, latents)
    if not takes_text(loaded.model):
        return dataset
    check_text(loaded.pipeline)
    if not images.captions:
        raise DataError(
            f"{source} has no captions, which the model needs; give a folder of images with metadata.jsonl, or a table "
            "with its column, datasets:NAME,caption=COLUMN"
        )
    encoders = {name: _fingerprint_of(part) for name, part in text_parts(loaded.pipeline).items()}
    chunk_size = chunk_size_of(_text_bytes(loaded.model))
    about = {
        "format": FORMAT,
        "pipeline": _settings_of(loaded.pipeline),  # these decide how prompts are encoded
        "encoders": encoders,
        "captions": list(images.captions),
        "size": list(images.shape[-2:]),
        "chunk_size": chunk_size,
    }
    folder = cache_folder() / "text" / fingerprint(about)
    return with_null(replace(dataset, text=FileRows(len(images), chunk_size, folder)))


def with_null(dataset: EncodedDataset) -> EncodedDataset:
    """The data set with the conditions of the empty prompt, if known."""
    if dataset.text is None or not (dataset.text.folder / NULL).is_file():
        return dataset
    try:
        return replace(dataset, null=read_tensors(dataset.text.folder / NULL))
    except DataError:  # damaged: it is made again
        return dataset


def encoded_when_read(images: Any, loaded: Loaded) -> LatentDataset:
    """A data set of latents and conditions of `images`, encoded in memory when rows are first read.

    Raises:
        DataError: no captions for a text-conditional model.
        ModelError: text encoders that are not supported.
    """
    assert loaded.pipeline is not None
    assert loaded.vae is not None
    device, shape = device_of(loaded.model), input_shape(loaded.model)
    autoencoder = open_autoencoder(loaded.vae, device)

    def latents(indices: range) -> dict[str, Tensor]:
        return {LATENTS: _latents_of(images, indices, shape, autoencoder)}

    def rows(make: Callable[[range], dict[str, Tensor]]) -> RowsMadeWhenRead:
        return RowsMadeWhenRead(len(images), AT_ONCE, make=make)

    made_by = partial(_fingerprint_of, loaded.vae)
    if not takes_text(loaded.model):
        return LatentDataset(images, shape, rows(latents), made_by=made_by)
    if not images.captions:
        raise DataError("the data has no captions, which the model needs; give dictionaries with captions")
    encoder = open_text_encoder(loaded.pipeline, images.shape[-2:], device)

    def conditions(indices: range) -> dict[str, Tensor]:
        return dict(encoder([images.captions[index] for index in indices]))

    return LatentDataset(images, shape, rows(latents), rows(conditions), encoder.null(), made_by)


def whole(dataset: EncodedDataset) -> bool:
    """Whether everything is encoded."""
    text = dataset.text
    return not dataset.latents.missing() and (text is None or (bool(dataset.null) and not text.missing()))


def sizes(dataset: EncodedDataset, loaded: Loaded) -> Iterator[tuple[str, int, int, Path]]:
    """What remains to be encoded: name, bytes on disk, bytes of the encoder's weights, and the folder."""
    assert loaded.pipeline is not None
    assert loaded.vae is not None
    if dataset.latents.missing():
        size = len(dataset) * _latent_bytes(dataset.shape)
        yield "latents", size, _weights_bytes([loaded.vae]), dataset.latents.folder
    if dataset.text is not None and (not dataset.null or dataset.text.missing()):
        size = len(dataset) * _text_bytes(loaded.model)
        parts = text_parts(loaded.pipeline).values()
        yield "captions", size, _weights_bytes(parts), dataset.text.folder


def encode(dataset: EncodedDataset, loaded: Loaded) -> EncodedDataset:
    """Write what is missing, and return the data set with the conditions of the empty prompt.

    After a kill, it resumes with the current shard. Each of several processes writes a part of the shards.

    Raises:
        ModelError: VAE or text encoders that cannot be loaded, or latents that are not finite.
        SecateurError: the disk does not suffice.
    """
    if dataset.latents.missing():
        _encode_latents(dataset, loaded)
    dataset = with_null(dataset)  # another run may have encoded since it was opened
    if dataset.text is not None and (not dataset.null or dataset.text.missing()):
        return _encode_captions(dataset, loaded)
    return dataset


def _encode_latents(dataset: EncodedDataset, loaded: Loaded) -> None:
    assert loaded.vae is not None
    latents = dataset.latents
    _check_disk(latents, _latent_bytes(dataset.shape))
    autoencoder = open_autoencoder(loaded.vae, device_of(loaded.model))

    def encoded(indices: range) -> dict[str, Tensor]:
        return {LATENTS: _latents_of(dataset.images, indices, dataset.shape, autoencoder)}

    _write_about(latents, dataset, {"shape": list(dataset.shape), "vae": _named(loaded.vae)})
    latents.fill(encoded, "encoding latents", AT_ONCE)


def _latents_of(images: Any, indices: range, shape: Shape, autoencoder: Autoencoder) -> Tensor:
    """Latents of the images at `indices`, on the CPU.

    Latent models are trained on draws of the posterior, not on its mean; there is one per image, drawn by its number.
    """
    noise = normal(shape, indices, POSTERIOR_SEED, Purpose.POSTERIOR)
    samples = images.batch(list(indices)).sample
    drawn = autoencoder.encode(samples.to(autoencoder.scale), noise.to(autoencoder.scale)).cpu()
    if not drawn.isfinite().all():
        raise ModelError(f"the VAE gives latents of {images.name} that are not finite")
    return drawn


def _encode_captions(dataset: EncodedDataset, loaded: Loaded) -> EncodedDataset:
    assert loaded.pipeline is not None
    assert dataset.text is not None
    height, width = dataset.images.shape[-2:]
    encoder = open_text_encoder(loaded.pipeline, (height, width), device_of(loaded.model))
    null, captions, text = encoder.null(), dataset.captions, dataset.text
    _check_disk(text, sum(value.numel() * value.element_size() for value in null.values()))
    if not dataset.null:
        _write_about(text, dataset, {"pipeline": _named(loaded.pipeline)})
        write_tensors(text.folder / NULL, null)
    text.fill(lambda indices: dict(encoder([captions[index] for index in indices])), "encoding captions", AT_ONCE)
    return replace(dataset, null=null)


def _check_disk(rows: FileRows, row_bytes: int) -> None:
    rows.folder.mkdir(parents=True, exist_ok=True)
    needed = sum(map(len, rows.missing())) * row_bytes
    free = shutil.disk_usage(rows.folder).free
    there = f"{rows.folder} needs {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free"
    require(needed < free, f"{there}; set SECATEUR_CACHE to a folder of another disk")


def _write_about(rows: FileRows, dataset: EncodedDataset, made_by: dict[str, Any]) -> None:
    """Write a description of the folder, for people."""
    write_json(rows.folder / ABOUT, {"data": dataset.name, "images": rows.count, **made_by})


def _latent_bytes(shape: Shape) -> int:
    return torch.float32.itemsize * math.prod(shape)


def _text_bytes(model: nn.Module) -> int:
    """Approximate bytes of a caption on disk, from the model's config and the usual pipelines' text lengths."""
    _, conditions = example_batch(model, 1)
    return sum(value.numel() for value in conditions.values()) * KEPT.itemsize


def _weights_bytes(parts: Iterable[Any]) -> int:
    """Bytes of the weights that must still be loaded."""
    folders = [part for part in parts if isinstance(part, Path)]
    return sum(path.stat().st_size for folder in folders for path in folder.glob("*.safetensors"))


def _fingerprint_of(part: Any) -> str:
    """Changes with the files of a folder, the tensors of a module, or the vocabulary of a tokenizer."""
    if isinstance(part, Path):
        return files_fingerprint((path for path in part.rglob("*") if path.is_file()), part)
    if isinstance(part, nn.Module):
        return model_fingerprint(part, getattr(part, "config", None))
    return fingerprint([type(part).__name__, sorted(part.get_vocab().items()), part.model_max_length])


def _settings_of(pipeline: Path | DiffusionPipeline) -> dict[str, Any]:
    settings = read_object(pipeline / INDEX) if isinstance(pipeline, Path) else dict(pipeline.config)
    return {
        name: value
        for name, value in settings.items()
        if name != "_name_or_path" and (not isinstance(value, list | tuple) or name.startswith(TEXT_PARTS))
    }


def _named(part: Any) -> str:
    return str(part) if isinstance(part, Path) else f"the {type(part).__name__} in memory"
