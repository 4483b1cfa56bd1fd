"""Data and functions given as objects: what is read of them, which labels fit, and what counts as the same input."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, SequentialSampler

import secateur
from models import dit
from pipelines import dit_pipeline
from secateur.base.errors import DataError, SecateurError
from secateur.data.objects import AT_ONCE, open_objects
from secateur.process.own import OwnObjective, taken_apart
from secateur.recovery import RecoveryConfig
from secateur.runs.data import open_data
from secateur.runs.subject import open_subject

LABELLED = [(torch.randn(1, 8, 8), label) for label in (0, 1, 4, 2)]
_, LAYOUT = taken_apart({"x": torch.zeros(2, 3)})


class Reading(Dataset):
    """Images of a size, which remembers how many were read at once."""

    def __init__(self, count, shape, label=None):
        self.count, self.shape, self.label, self.reads = count, shape, label, []

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        image = torch.full(self.shape, index / self.count)
        return image if self.label is None else (image, self.label)


def own(source):
    """A function of this source, another object every time."""
    names = {}
    exec(source, {"__name__": "script"}, names)
    return OwnObjective(*names.values(), None, LAYOUT)


def test_functions_of_the_same_code_are_the_same_input():
    source = "def f(m, b):\n    return [each for each in b if each in {'a', 'b'}] + [m(2.0)]"
    assert own(source) is not own(source)
    assert repr(own(source)) == repr(own("\n\n" + source))
    for old, new in (("2.0", "3.0"), ("'b'}", "'c'}"), ("[m(", "[abs("), ("f(m", "g(m")):
        assert repr(own(source)) != repr(own(source.replace(old, new)))
    assert "at 0x" not in repr(OwnObjective(nn.Linear(2, 2), len, LAYOUT))


SCRIPT = """
import sys, torch, secateur
from diffusers import UNet2DModel
torch.manual_seed(0)
blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (8,)}
model = UNet2DModel(8, 1, 1, layers_per_block=1, norm_num_groups=4, **blocks)
def forward(model, batch):
    return model(batch["x"], 0).sample
def loss(model, batch):
    return (forward(model, batch) - FACTOR).square().mean()
data = [{"x": torch.ones(4, 1, 8, 8)}]
recovery = secateur.RecoveryConfig(steps=1, batch_size=2)
secateur.finetune(model, data=data, forward=forward, loss=loss, recovery=recovery, out=sys.argv[1])
"""


@pytest.mark.slow
def test_a_script_with_its_own_loss_resumes_in_another_process(tmp_path):
    def run(factor):
        text = SCRIPT.replace("FACTOR", factor)
        command = [sys.executable, "-c", text, str(tmp_path / "run")]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    first, again, other = run("1.0"), run("1.0"), run("2.0")
    assert (first.returncode, again.returncode) == (0, 0), first.stderr + again.stderr
    assert other.returncode != 0
    assert "another model: its contents have changed" in other.stderr


def test_what_diffusers_cannot_save_is_refused_before_the_work(tmp_path):
    functions = {"data": [{"x": torch.ones(4, 2)}], "forward": lambda net, batch: net(batch["x"])}
    functions["loss"] = lambda net, batch: net(batch["x"]).square().mean()

    class Net(nn.Sequential):
        pass

    secateur.register_structure(Net, lambda net: secateur.StructureBuilder().build())
    net = Net(nn.Linear(2, 2))
    with pytest.raises(SecateurError, match="Net is no diffusers model, so it cannot be written to a folder"):
        secateur.finetune(net, recovery=RecoveryConfig(steps=1), out=tmp_path / "out", **functions)
    assert not (tmp_path / "out").exists()


def test_labels_that_the_model_does_not_know_are_refused_and_new_ones_counted():
    subject = open_subject(dit(num_embeds_ada_norm=3), "flow", device="cpu")
    with pytest.raises(DataError, match="the label 4, the model knows 0 to 2"):
        open_data(LABELLED, subject).batch(range(4))
    with pytest.raises(DataError, match="the label -1"):
        open_data([(torch.randn(1, 8, 8), -1)], subject)
    assert len(open_data(LABELLED, subject, new_labels=True).class_names) == 5
    assert len(open_data(LABELLED[:2], subject, new_labels=True).class_names) == 2
    assert len(open_data(LABELLED[:2], subject).class_names) == 3


def test_a_loader_s_collate_function_counts_with_its_own_batches_too():
    def named(items):
        return {"images": 2 * torch.stack(items)}

    images = list(torch.rand(6, 1, 8, 8))
    batches = BatchSampler(SequentialSampler(images), 2, drop_last=False)
    for options in ({"batch_size": 2}, {"batch_sampler": batches}):
        read, count = open_objects(DataLoader(images, collate_fn=named, **options))
        assert count == 6
        torch.testing.assert_close(read([3])["images"], 2 * images[3][None])
    single, _ = open_objects(DataLoader(images, batch_size=None))
    assert single([1, 2]).shape == (2, 1, 8, 8)


@pytest.mark.parametrize("labelled", [False, True])
def test_a_sequence_holds_clips_where_the_model_takes_clips(labelled):
    clips = [torch.randn(4, 2, 8, 8) for _ in range(3)]
    given = [(clip, 1) for clip in clips] if labelled else clips
    assert open_objects(given, axes=4)[1] == 3
    assert open_objects(given)[1] == 12  # batches of images


def test_labels_of_encoded_images_are_read_a_part_at_a_time(tmp_path):
    pipeline = dit_pipeline(tmp_path / "pipeline")
    subject = open_subject(pipeline, device="cpu")
    shape = (3, 16, 16)
    for label in (None, 1):
        data = Reading(2 * AT_ONCE + 3, shape, label)
        dataset = open_data(data, subject)
        images, sizes = dataset.images, []

        def read(indices, read=images.read, sizes=sizes):
            sizes.append(len(indices))
            return read(indices)

        batch = replace(dataset, images=replace(images, read=read)).batch([0, 5])
        assert max(sizes) == (1 if label is None else AT_ONCE)
        assert (batch.class_labels is None) == (label is None)


def test_another_autoencoder_in_memory_is_other_data(tmp_path):
    pipeline = dit_pipeline(tmp_path / "pipeline")
    data = Reading(4, (3, 16, 16), 1)

    def found():
        return open_data(data, open_subject(pipeline, device="cpu")).fingerprint

    first = found()
    assert first == found()
    with torch.no_grad():
        next(pipeline.vae.parameters()).add_(1)
    assert first != found()


def test_a_run_saved_from_memory_says_why_it_cannot_be_continued(tmp_path):
    options = {"target": "macs=80%", "data": "generated:4", "process": "flow", "device": "cpu"}
    options |= {"recipe": "magnitude", "recovery": RecoveryConfig(steps=1, batch_size=2)}
    options["evaluation"] = secateur.EvaluationConfig(metrics=("loss",))
    run = secateur.compress(dit(), **options)
    run.save(tmp_path / "run")
    with pytest.raises(SecateurError, match="saved from memory, so it cannot be continued"):
        secateur.compress(dit(), out=tmp_path / "run", **options)
