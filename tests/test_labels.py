"""Another set of labels on a pretrained class-conditional model."""

import json
import os
import re
from dataclasses import replace

import pytest
import torch

import folders
import secateur
from models import dit, output, unet
from pipelines import dit_pipeline, image_folder
from secateur import CutConfig, EvaluationConfig, LoraConfig, RecoveryConfig, ScoringConfig, TrialConfig, WarmupConfig
from secateur.base.errors import DataError, ModelError, SecateurError
from secateur.base.files import read_json
from secateur.cli import main
from secateur.data import load_data
from secateur.io.checkpoint import save_pretrained
from secateur.io.manifest import apply_cut, manifest_of, note_labels
from secateur.models.labels import label_tables, relabel, train_only_labels
from secateur.models.network import class_count, null_class
from secateur.runs import stages
from secateur.runs.stages import warmup_stage
from secateur.runs.subject import open_subject
from secateur.structure import Cut

RECOVERY = RecoveryConfig(steps=3, batch_size=4, checkpoint_every=1, log_every=1, ema_decay=0.5)


def call(model, labels):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(len(labels), 1, 8, 8, generator=generator)
    with torch.no_grad():
        return model(x, torch.full((len(labels),), 500), class_labels=torch.tensor(labels)).sample


def test_new_classes_start_at_the_null_class_which_is_kept():
    model, before = dit(), call(dit(), [10, 10, 10])
    relabel(model, 3)
    assert (class_count(model), null_class(model)) == (3, 3)
    tables = list(label_tables(model))
    assert len(tables) == 4  # a block's own
    assert all(table.weight.shape == (4, 32) for table in tables)
    assert torch.equal(call(model, [3, 3, 3]), before)
    found = call(model, [0, 1, 2])
    assert not torch.equal(found, before)
    assert (found - before).abs().max() < 0.2 * before.abs().max()
    noises = [table.weight[:3] - table.weight[3] for table in tables]
    assert all(torch.allclose(noise, noises[0], atol=1e-6) for noise in noises)
    with pytest.raises(IndexError):
        call(model, [4])
    net = relabel(unet(num_class_embeds=5), 2)
    (table,) = label_tables(net)
    assert torch.allclose(table.weight.mean(0), next(label_tables(unet(num_class_embeds=5))).weight.mean(0), atol=0.05)
    assert (class_count(net), table.weight.shape[0]) == (2, 2)
    with pytest.raises(ModelError, match="UNet2DModel knows no classes"):
        relabel(unet(), 2)


@pytest.mark.parametrize("make", [dit, lambda: unet(num_class_embeds=5)], ids=["dit", "unet"])
def test_a_relabelled_model_comes_back_also_when_it_was_pruned_before(tmp_path, make):
    model = make()
    apply_cut(model, Cut({}, ()))
    relabel(model, 3)
    note_labels(model, ("a", "b", "c"))
    save_pretrained(model, tmp_path / "model")
    loaded = secateur.from_pretrained(tmp_path / "model")
    assert torch.equal(output(loaded), output(model))
    assert class_count(loaded) == 3
    assert [step["kind"] for step in manifest_of(loaded).steps] == ["cut", "labels"]


def test_the_warm_up_trains_only_the_labels_unless_all_and_resumes(tmp_path):
    data = load_data("digits")
    dense = dit()
    save_pretrained(dense, tmp_path / "dense")

    def warmed(name, recovery=RECOVERY, **changes):
        subject = open_subject(tmp_path / "dense", {"_class_name": "DDPMScheduler"})
        relabel(subject.model, 10)
        return warmup_stage(tmp_path / name, subject, data, WarmupConfig(steps=3, **changes), recovery).model

    labels = warmed("labels")
    fresh = relabel(dit(), 10)
    changed = {
        name
        for name, value in labels.state_dict().items()
        if not torch.equal(value, fresh.state_dict()[name].to(value.dtype))
    }
    assert changed == {f"transformer_blocks.{i}.norm1.emb.class_embedder.embedding_table.weight" for i in range(4)}
    factors = replace(RECOVERY, lora=LoraConfig(rank=2))  # of the recovery after it
    assert torch.equal(output(warmed("lora", factors)), output(labels))
    everything = warmed("all", train="all")
    assert not torch.equal(everything.proj_out_2.weight, fresh.proj_out_2.weight)
    assert all(parameter.requires_grad for parameter in labels.parameters())
    manifest = manifest_of(labels)
    assert [step["kind"] for step in manifest.steps] == ["labels", "warmup"]
    assert manifest.steps[0]["names"] == [str(digit) for digit in range(10)]
    assert (manifest.base["id"], manifest.steps[1]["train"]) == (str(tmp_path / "dense"), "labels")
    # Taken up from the newest checkpoint.
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "warmup").symlink_to(tmp_path / "labels" / "warmup")
    stamp = next((tmp_path / "labels" / "warmup" / "checkpoints").iterdir()).stat().st_mtime_ns
    assert torch.equal(output(warmed("again")), output(labels))
    assert next((tmp_path / "labels" / "warmup" / "checkpoints").iterdir()).stat().st_mtime_ns == stamp


def test_the_learning_rate_of_labels_rises_in_as_large_a_share_of_their_steps(tmp_path):
    subject = open_subject(relabel(dit(), 10), "flow")
    recovery = replace(RECOVERY, steps=12, warmup_steps=8, lr_schedule="constant")
    warmup_stage(tmp_path, subject, load_data("digits"), WarmupConfig(steps=3, learning_rate=0.5), recovery)
    log = (tmp_path / "warmup" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["lr"] for line in log] == [0.25, 0.5, 0.5]


def test_after_a_warm_up_in_memory_every_weight_is_trained_again():
    subject = open_subject(relabel(dit(), 10), "flow")
    assert warmup_stage(
        None, subject, load_data("digits"), WarmupConfig(steps=1), RECOVERY
    ).model.proj_out_2.weight.requires_grad


@pytest.mark.slow
def test_what_is_excluded_stays_whole_after_a_warm_up():
    run = secateur.compress(
        dit(),
        target="macs=80%",
        data=load_data("digits"),
        process="flow",
        criterion="magnitude",
        compensates=False,
        new_labels=True,
        warmup=WarmupConfig(steps=1),
        steps=1,
        cut=secateur.CutConfig(round_to=2, exclude=("transformer_blocks.0.*",)),
        evaluation=secateur.EvaluationConfig(metrics=("loss",)),
    )
    assert run.model.transformer_blocks[0].ff.net[2].weight.shape == dit().transformer_blocks[0].ff.net[2].weight.shape
    assert run.model.transformer_blocks[1].ff.net[2].weight.shape != dit().transformer_blocks[1].ff.net[2].weight.shape


@pytest.mark.parametrize("name", ["compress", "plan", "sweep", "plan_sweep", "best", "plan_best"])
def test_a_warm_up_of_no_new_labels_is_refused(name):
    given = {"targets": ("macs=50%",)} if "sweep" in name else {"target": "macs=50%"}
    given |= {"budget_steps": 9} if "best" in name else {}
    with pytest.raises(SecateurError, match=r"^the warm-up trains new labels; give new_labels too"):
        getattr(secateur, name)(unet(), data="digits", process="ddpm", warmup=WarmupConfig(), **given)


def test_only_labels_have_gradients():
    model = dit()
    train_only_labels(model)
    named = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert named == [f"transformer_blocks.{i}.norm1.emb.class_embedder.embedding_table.weight" for i in range(4)]


@pytest.mark.slow
def test_compress_on_new_labels(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))
    dit_pipeline(tmp_path / "pipeline")
    data = image_folder(tmp_path / "images", classes=True)
    arguments = {
        "target": "macs=60%",
        "recipe": "diff-pruning",
        "data": str(data),
        "scoring": ScoringConfig(num_timesteps=3, num_images=4),
        "recovery": replace(RECOVERY, objective="distillation"),
        "evaluation": EvaluationConfig(metrics=("loss", "consistency"), num_images=4, num_inference_steps=2),
        "cut": CutConfig(round_to=1),
        "new_labels": True,
        "warmup": WarmupConfig(steps=2),
        "device": "cpu",
    }
    folder = str(tmp_path / "pipeline")
    folders.compress(folder, out=tmp_path / "run", dry_run=True, **arguments)
    assert "warm up    about" in capsys.readouterr().out
    run = folders.compress(folder, out=tmp_path / "run", **arguments)
    model = secateur.from_pretrained(run / "model")
    assert (class_count(model), model.config["num_embeds_ada_norm"]) == (2, 2)
    assert [step["kind"] for step in manifest_of(model).steps] == ["labels", "warmup", "cut", "recovery"]
    assert read_json(run / "model" / "config.json")["num_embeds_ada_norm"] == 2
    pipeline = secateur.load_pipeline(run / "pipeline")
    assert pipeline.labels == {"cat": 0, "dog": 1}
    options = {"num_inference_steps": 2, "guidance_scale": 1.0, "output_type": "np"}
    assert pipeline([1], generator=torch.Generator().manual_seed(0), **options).images.shape == (1, 16, 16, 3)
    before = os.stat(run / "relabelled" / "config.json").st_mtime_ns
    folders.compress(folder, out=tmp_path / "run", **arguments)  # everything is there
    assert os.stat(run / "relabelled" / "config.json").st_mtime_ns == before
    with pytest.raises(SecateurError, match="was begun with another warmup"):
        folders.compress(folder, out=tmp_path / "run", **(arguments | {"warmup": WarmupConfig(steps=4)}))
    bare = image_folder(tmp_path / "bare")
    with pytest.raises(DataError, match="has no labels to learn"):
        folders.compress(folder, out=tmp_path / "no", **(arguments | {"data": str(bare)}))


MANY = {
    "recipes": ("magnitude", "random"),
    "shared": TrialConfig(batch_size=4, num_timesteps=2, num_images=4),
    "evaluation": EvaluationConfig(metrics=("loss",), num_images=4, num_inference_steps=2),
    "new_labels": True,
    "warmup": WarmupConfig(steps=2),
    "component": "transformer",
    "device": "cpu",
}


@pytest.fixture
def places(tmp_path, monkeypatch):
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))
    dit_pipeline(tmp_path / "pipeline")
    return str(tmp_path / "pipeline"), str(image_folder(tmp_path / "images", classes=True))


@pytest.mark.torture
def test_sweep_on_new_labels_warms_up_once(tmp_path, places, capsys, monkeypatch):
    model, data = places
    arguments = {"data": data, "targets": ("macs=80%",), "steps": 2, "out": tmp_path / "sweep", **MANY}
    folders.planned_sweep(model, **{name: value for name, value in arguments.items() if name != "out"})
    assert re.search(r"^warm up +about", capsys.readouterr().out, re.MULTILINE)
    secateur.sweep(model, **arguments)
    run = tmp_path / "sweep"
    relabelled = secateur.from_pretrained(run / "relabelled")
    assert (run / "warmup").is_dir()
    for trial in ("magnitude", "random"):
        folder = run / "trials" / f"{trial}_macs-80pct_seed-0"
        history = [step["kind"] for step in manifest_of(secateur.from_pretrained(folder / "model")).steps]
        assert history == ["labels", "warmup", "cut", "recovery"]
        assert not (folder / "pipeline").exists()  # VAE and text encoders would be there once for every trial
        config = read_json(folder / "config.json")
        assert (config["component"], config["warmup"]["steps"]) == ("transformer", 2)
    chosen = secateur.from_pretrained(run / "trials" / "random_macs-80pct_seed-0" / "model")
    secateur.save_pipeline(secateur.load(model), chosen, tmp_path / "chosen")
    assert secateur.load_pipeline(tmp_path / "chosen").labels == {"cat": 0, "dog": 1}
    monkeypatch.setattr(stages, "recover", None)  # taken up, nothing is trained again
    secateur.sweep(model, **arguments)
    assert torch.equal(output(secateur.from_pretrained(run / "relabelled")), output(relabelled))
    with pytest.raises(SecateurError, match="was begun with another warmup"):
        secateur.sweep(model, **(arguments | {"new_labels": False, "warmup": None}))
    with pytest.raises(ModelError, match="lists no unet"):
        secateur.sweep(model, **(arguments | {"component": "unet"}))
    bare = str(image_folder(tmp_path / "bare"))
    with pytest.raises(DataError, match="has no labels to learn"):
        secateur.sweep(model, **(arguments | {"data": bare, "out": tmp_path / "no"}))
    assert not (tmp_path / "no").exists()


@pytest.mark.slow
def test_best_on_new_labels_ends_in_a_pipeline(tmp_path, places, capsys):
    model, data = places
    run = tmp_path / "search"
    shared = "--shared.batch-size 4 --shared.num-timesteps 2 --shared.num-images 4 --new-labels --warmup.steps 2"
    measured = "--metrics loss --evaluation.num-images 4 --evaluation.num-inference-steps 2"
    options = f"--target macs=80% --budget-steps 20 --recipes magnitude random --component transformer {shared}"
    main(["best", model, "--data", data, "--out", str(run), *f"{options} {measured} --device cpu".split()])
    assert f"pipeline {run / 'winner' / 'pipeline'}" in capsys.readouterr().out
    assert read_json(run / "trials.json")["search"]["warm_up_seconds"] > 0
    assert secateur.load_pipeline(run / "winner" / "pipeline").labels == {"cat": 0, "dog": 1}
    assert not list(run.glob("trials/*/pipeline"))
