"""Data and functions given as objects: what is read of them, which labels fit, and what counts as the same input."""

import logging
import random
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

import secateur
from models import dit, unet
from pipelines import dit_pipeline
from secateur.base.errors import DataError, SecateurError
from secateur.data.objects import AT_ONCE, is_random, open_objects
from secateur.process.diffusion import DiffusionProcess
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


@pytest.mark.parametrize("kind", [tuple, list])
@pytest.mark.parametrize("whole", [torch.from_numpy, lambda array: array])
def test_all_images_and_all_labels_are_a_pair(kind, whole):
    images, labels = np.random.default_rng(0).random((6, 1, 8, 8), np.float32), np.arange(6)
    read, count = open_objects(kind((whole(images), whole(labels))))
    assert count == 6
    found, classes = read([4, 1])
    assert classes.tolist() == [4, 1]
    torch.testing.assert_close(found, torch.from_numpy(images[[4, 1]]))
    assert open_objects(kind(torch.rand(2, 6, 1, 8, 8).unbind()))[1] == 12  # two batches


def test_a_loader_s_sampler_chooses_the_samples_or_is_refused():
    images = list(torch.rand(6, 1, 8, 8))
    read, count = open_objects(DataLoader(images, sampler=SubsetRandomSampler([5, 2, 3])))
    assert count == 3
    torch.testing.assert_close(read([0, 2]), torch.stack([images[2], images[5]]))
    for sampler in (RandomSampler(images), DistributedSampler(images, num_replicas=2, rank=0)):
        assert open_objects(DataLoader(images, sampler=sampler))[1] == 6
    with pytest.raises(DataError, match=r"WeightedRandomSampler.*Subset of it"):
        open_objects(DataLoader(images, sampler=WeightedRandomSampler([1.0] * 5 + [9.0], 6)))


def test_whole_numbers_of_unknown_range_are_refused():
    subject = open_subject(unet(), "ddpm", device="cpu")
    with pytest.raises(DataError, match=r"samples are int64; give uint8"):
        open_data(torch.randint(0, 256, (4, 1, 8, 8)), subject)
    assert open_data(torch.full((4, 1, 8, 8), 255, dtype=torch.uint8), subject).batch([0]).sample.unique() == 1


class Flipping(Reading):
    """Images that are mirrored at random, by one of the generators that users draw from."""

    def __init__(self, draw):
        super().__init__(80, (1, 8, 8))
        self.draw = draw

    def __getitem__(self, index):
        image = torch.arange(64.0).reshape(1, 8, 8) / 64
        return image.flip(-1) if self.draw() < 0.5 else image


@pytest.mark.parametrize("draw", [random.random, np.random.rand, lambda: torch.rand(()).item()])
def test_data_that_changes_between_reads_is_the_same_input_and_is_not_recorded(draw):
    model = unet()
    subject = open_subject(model, "ddpm", device="cpu")
    first, again = (open_data(Flipping(draw), subject) for _ in range(2))
    before = random.getstate()
    assert first.fingerprint == again.fingerprint
    assert random.getstate() == before
    assert is_random(first)
    assert not is_random(open_data(Reading(80, (1, 8, 8)), subject))
    with pytest.raises(DataError, match=r"changes from one read to the next"):
        secateur.record(model, process="ddpm", data=Flipping(draw), recovery=RecoveryConfig(steps=2, batch_size=4))


def test_a_compression_by_data_that_changes_between_reads_asks_the_teacher_live(caplog):
    with caplog.at_level(logging.INFO, logger="secateur"):
        run = secateur.compress(
            unet(),
            process="ddpm",
            data=Flipping(random.random),
            target="macs=60%",
            compensates=False,
            recovery=RecoveryConfig(steps=2, batch_size=4, objective="distillation", grad_norms_every=0),
            evaluation=secateur.EvaluationConfig(metrics=("loss",), num_images=2, num_real_images=2),
        )
    assert run.recorded is None
    assert "the teacher is asked live" in caplog.text


@pytest.mark.parametrize("scheduler", [EulerDiscreteScheduler(), DPMSolverMultistepScheduler(), "ddpm", "v-prediction"])
def test_latents_of_a_bare_network_are_not_clipped(scheduler):
    process = open_subject(unet(in_channels=4, out_channels=4), scheduler, device="cpu").process
    assert not process.scheduler().config.clip_sample


def test_a_flow_on_latents_is_opened_without_a_word(caplog):
    open_subject(unet(in_channels=4, out_channels=4), "flow", device="cpu")
    assert not caplog.records


def test_images_are_clipped_as_their_scheduler_says():
    for scheduler, clips in ((EulerDiscreteScheduler(), False), (DDPMScheduler(), True), ("ddpm", True)):
        process = open_subject(unet(), scheduler, device="cpu").process
        assert process.scheduler().config.clip_sample is clips


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
    run.model.save_pretrained(tmp_path / "model")
    before = (tmp_path / "model" / "config.json").read_bytes()
    with pytest.raises(SecateurError, match=r"holds the config\.json of a model, which would be overwritten"):
        run.save(tmp_path / "model")
    with pytest.raises(SecateurError, match="exists and is not a run of secateur"):
        secateur.compress(dit(), out=tmp_path / "model", **options)
    assert (tmp_path / "model" / "config.json").read_bytes() == before


class Unknown(DiffusionProcess):
    """A process of a user that prints as an address."""

    __repr__ = object.__repr__


def test_a_process_that_prints_as_an_address_is_refused_where_a_run_would_be_resumed(tmp_path):
    given = {"process": Unknown(), "data": torch.rand(4, 1, 8, 8), "target": "macs=60%", "criterion": "magnitude"}
    with pytest.raises(SecateurError, match=r"^Unknown prints as an address, .*: make it a dataclass$"):
        secateur.prune(unet(), out=tmp_path / "run", **given)
    assert secateur.prune(unet(), **given) is not None


def test_a_loaded_model_is_called_by_its_place():
    assert open_subject(secateur.load("digits-unet")).name == "digits-unet"
