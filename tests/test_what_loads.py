"""Which loaders read a pruned model if secateur is installed, imported, or neither; and the errors of the others."""

import json
import subprocess
import sys
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import AutoModel, DDPMPipeline, DDPMScheduler

import models
import secateur
from models import dit, half, unet
from secateur.base.errors import ModelError
from secateur.io.checkpoint import save_pretrained
from secateur.io.manifest import apply_cut, manifest_of
from secateur.io.pipeline import load
from secateur.io.pruned import dense_class, saved_module
from secateur.models.families.autoencoder_kl import AutoencoderKLDecoder
from secateur.structure import Cut

FORMAT = Path(__file__).parents[1] / "docs" / "checkpoint-format.md"
FAMILIES = {
    "unet": models.unet,
    "dit": models.dit,
    "unet-condition": models.unet_condition,
    "sdxl": models.sdxl,
    "pixart": models.pixart,
    "sd3": models.sd3,
    "flux": models.flux,
    "sana": models.sana,
    "autoencoder": lambda: AutoencoderKLDecoder(models.autoencoder()),
}
# In a process of its own: first as if secateur were not installed, then before it is imported, then after.
CALLS = """
import json, sys
import diffusers

class Absent:
    def find_spec(self, name, *_):
        if name == "secateur":
            raise ModuleNotFoundError("No module named 'secateur'")

def said(call):
    try:
        eval(call)
        return "loads"
    except Exception as error:
        return "`" + str(error).split(" - supported types")[0].replace("`", "'") + "`"

calls = json.loads(sys.argv[1])
sys.meta_path.insert(0, Absent())
absent = [said(call) for call in calls]
del sys.meta_path[0]
installed = [said(call) for call in calls if "RUN/pipeline" not in call]
installed += [said(call) for call in calls if "RUN/pipeline" in call]  # imports it by itself
import secateur
print(json.dumps([absent, installed, [said(call) for call in calls]]))
"""
ROWS = (
    'diffusers.UNet2DModel.from_pretrained("RUN/model")',
    'diffusers.AutoModel.from_pretrained("RUN/model")',
    'diffusers.DiTTransformer2DModel.from_pretrained("BLOCKS/model")',
    'diffusers.AutoModel.from_pretrained("RUN/pipeline", subfolder="unet")',
    'diffusers.DiffusionPipeline.from_pretrained("RUN/pipeline")',
)


@pytest.fixture
def narrower(tmp_path):
    return save_pretrained(apply_cut(unet(), half(unet())), tmp_path / "model")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_narrower_model_of_every_family(tmp_path, monkeypatch, family):
    model = FAMILIES[family]()
    folder = save_pretrained(apply_cut(model, half(model)), tmp_path / "model")
    saved, dense = saved_module(model), dense_class(model)
    found = AutoModel.from_pretrained(str(folder))
    assert type(found) is type(saved) is getattr(secateur, f"Pruned{dense.__name__}")
    assert all(map(torch.equal, found.state_dict().values(), saved.state_dict().values()))
    assert manifest_of(found) == manifest_of(saved)
    with pytest.raises(ValueError, match=r"pruned: load this model with secateur.from_pretrained, or with AutoModel"):
        dense.from_pretrained(folder)
    monkeypatch.setattr(diffusers, "__class__", type(diffusers).__bases__[0])  # as before `import secateur`
    with pytest.raises(AttributeError, match=rf"no attribute secateur\.Pruned{dense.__name__}"):
        AutoModel.from_pretrained(str(folder))


def test_one_device_is_followed_and_what_cannot_be_is_refused(narrower):
    loaded = AutoModel.from_pretrained(str(narrower), torch_dtype=torch.float64, device_map={"": "meta"})
    assert (loaded.device.type, loaded.dtype) == ("meta", torch.float64)
    for options in ({"device_map": "auto"}, {"quantization_config": {"quant_method": "torchao"}}):
        with pytest.raises(ModelError, match=next(iter(options))):
            AutoModel.from_pretrained(str(narrower), **options)


def test_a_name_that_is_none_of_ours_stays_unknown():
    for name in ("secateur.PrunedNonsense", "PrunedUNet2DModel", "Nonsense"):
        assert not hasattr(diffusers, name)


def test_importing_secateur_imports_no_diffusers():
    code = "import sys, secateur; print('diffusers' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


@pytest.mark.slow
def test_the_table_of_the_documentation_is_what_happens(tmp_path):
    DDPMPipeline(unet(), DDPMScheduler()).save_pretrained(tmp_path / "pipeline")
    loaded = load(tmp_path / "pipeline")
    narrow = apply_cut(loaded.model, half(loaded.model))
    secateur.save_pipeline(loaded, narrow, tmp_path / "RUN" / "pipeline")
    save_pretrained(narrow, tmp_path / "RUN" / "model")
    save_pretrained(apply_cut(dit(), Cut({}, ("transformer_blocks.0",))), tmp_path / "BLOCKS" / "model")
    ran = subprocess.run(
        [sys.executable, "-c", CALLS, json.dumps(ROWS)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    columns = json.loads(ran.stdout.splitlines()[-1])
    columns[1] = [columns[1][_position(row)] for row in ROWS]
    table = [
        " | ".join(["", f"`{row.removeprefix('diffusers.')}`", *cells, ""]).strip()
        for row, *cells in zip(ROWS, *columns, strict=True)
    ]
    text = FORMAT.read_text(encoding="utf-8")
    assert all(line in text for line in table), "the table is now\n" + "\n".join(table)


def _position(row):
    """The index of a call among those made before secateur was imported; calls of pipelines came last."""
    return sorted(ROWS, key=lambda each: "RUN/pipeline" in each).index(row)
