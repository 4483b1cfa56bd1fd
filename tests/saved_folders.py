"""Folders of small models and pipelines, for tests to load, change and refuse."""

import pytest
from diffusers import DDPMPipeline, DDPMScheduler

from models import half, unet
from secateur.base.errors import ModelError
from secateur.base.files import read_json, write_json
from secateur.io.checkpoint import save_pretrained
from secateur.io.manifest import apply_cut

DDPM = dict(DDPMScheduler().config) | {"_class_name": "DDPMScheduler"}


def pipeline_of_pixels(tmp_path):
    """A pipeline folder of pixels."""
    DDPMPipeline(unet(), DDPMScheduler()).save_pretrained(tmp_path / "pipeline")
    return tmp_path / "pipeline"


def dense_model(tmp_path):
    """A folder of a dense model."""
    return save_pretrained(unet(), tmp_path / "model", dict(DDPMScheduler().config, _class_name="DDPMScheduler"))


def narrower_model(tmp_path):
    """A folder of a narrower model."""
    return save_pretrained(apply_cut(unet(), half(unet())), tmp_path / "pruned")


def change(path, **entries):
    value = read_json(path) | entries
    write_json(path, {name: entry for name, entry in value.items() if entry is not None})


def refused(call, *words):
    with pytest.raises(ModelError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message
