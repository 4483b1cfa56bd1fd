"""Recoveries in several processes, each with all weights or with shards of them; torchrun starts them."""

import atexit
import json
import os
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.distributed.fsdp import fully_shard

import secateur
from adaptive_runs import adaptive, sit
from models import dit, half, unet
from progressive_runs import BOTH, SCORING, pruner_for
from secateur.base.distributed import is_main_process, process_group, same_in_all_processes
from secateur.base.errors import SecateurError, TrainingError
from secateur.base.shards import reshard, whole
from secateur.criteria import CRITERIA, score
from secateur.data import Batch
from secateur.models.registry import describe
from secateur.process.diffusion import DiffusionProcess
from secateur.process.flow import FlowProcess
from secateur.recovery import FeaturesConfig, JacobianConfig, LoraConfig, RecoveryConfig, recover
from secateur.recovery.checkpoints import newest_checkpoint
from secateur.recovery.shards import mesh_over, sharded
from training_runs import Failing, images, smaller

CONFIG = RecoveryConfig(steps=10, batch_size=8, learning_rate=1e-3, log_every=1, label_dropout=0.0, grad_norms_every=5)
RECIPE = "recipe-"
RUNS = {
    "denoising": {"accumulation": 2},
    "stopped": {"objective": "denoising", "checkpoint_every": 4},  # by an error, when it is begun in shards
    "whole": {"objective": "denoising", "checkpoint_every": 4},
    "distillation": {"gradient_checkpointing": True},
    "features": {"features": FeaturesConfig(teacher_inputs=True)},
    "first-order": {"jacobian": JacobianConfig(every_n_samples=2)},
    "2ndmatch": {"weights": {"jacobian": 1e6}, "jacobian": JacobianConfig(auto_weight=True, every_n=2)},
    "jvp": {"objective": "2ndmatch", "jacobian": JacobianConfig("jvp")},
    "muon": {"objective": "denoising", "optimizer": "muon"},
}
NAMES = [f"{name}{dtype}" for name in RUNS for dtype in ("-float64", "") if name not in ("stopped", "whole")]
SAVING = {
    "offload": {"objective": "distillation", "offload": ("ema", "teacher")},
    "lora": {"objective": "distillation", "lora": LoraConfig(2, keep=True)},
    "lora-replicas": {"objective": "distillation", "lora": LoraConfig(2), "parallel": "ddp"},
    "freeze": {"objective": "distillation", "freeze": ("transformer_blocks.0.*",)},
    "half": {"objective": "distillation", "weight_precision": "bf16"},
    "half-lora": {"objective": "distillation", "weight_precision": "bf16", "lora": LoraConfig(2)},
    "passes": {"objective": "distillation", "mixed_precision": "bf16"},
}


def train(folder: Path, asked: str, parallel: str, fails: bool = False) -> None:
    """Ten steps of a run of `RUNS` or `SAVING`, in float64 if its name says so; a run named as failing stops early."""
    name, _, double = asked.partition("-float")
    dtype = torch.float64 if double else torch.float32
    config = replace(CONFIG, **{"objective": name, "parallel": parallel, **(RUNS | SAVING)[name]})
    data = Failing(8, OSError) if fails else images()
    model = dit().to(dtype)
    average = recover(model, FlowProcess(), data, config, folder / asked, smaller().to(dtype))
    assert json.loads(average.to_json_string())["_class_name"] == type(average).__name__ == "DiTTransformer2DModel"
    keep(average, folder / asked)
    if config.lora.rank:
        keep(model, folder / asked, "merged")


def given(folder: Path, parallel: str) -> None:
    """What users do with models that they have sharded themselves, or with whole ones, in float64."""
    dense, pruned = dit().double(), secateur.apply_cut(dit().double(), half(dit()))
    data = [{"images": image, "label": number % 2} for number, image in enumerate(images().batch(range(8)).sample)]
    about = {"data": data, "process": FlowProcess(), "device": "cpu"}
    if parallel == "fsdp":
        process_group(on_cpu=True)
        for model in (dense, pruned):
            fully_shard(model, mesh=mesh_over(torch.device("cpu"), hybrid=False))
        for said, work in {
            "prune runs in one process": lambda: secateur.prune(dense, target="macs=60%", **about),
            "the refit needs whole weights": lambda: secateur.compensate(pruned, dense, **about),
            "a cut needs whole weights": lambda: secateur.apply_cut(dense, half(dit())),
            "leave inplace out": lambda: secateur.finetune(pruned, inplace=True, out=folder, **about),
        }.items():
            with pytest.raises(SecateurError, match=said):
                work()
        assert not folder.exists()
    for name, model in {"dense": dense, "pruned": pruned}.items():
        secateur.save_pretrained(model, folder / name)
    config = replace(CONFIG, steps=2, objective="distillation")
    keep(secateur.finetune(pruned, teacher=dense, recovery=config, out=folder / "run", **about), folder)
    evaluation = secateur.EvaluationConfig(metrics=("loss",), num_images=8)
    secateur.evaluate(pruned, reference=dense, evaluation=evaluation, out=folder / "measured", **about)


def compress(folder: Path, name: str, parallel: str) -> None:
    """A short compression by a recipe, in float64."""
    data = [{"images": image, "label": number % 2} for number, image in enumerate(images().batch(range(8)).sample)]
    recipe = secateur.recipe_named(name)
    depth = recipe.cut.granularity == "depth"
    secateur.compress(
        (sit(4) if depth else unet()).double(),
        target="blocks=2" if depth else "macs=60%",
        data=data,
        process=FlowProcess() if depth else DiffusionProcess(),
        device="cpu",
        recipe=name,
        scoring=replace(recipe.scoring, num_timesteps=2, num_images=4, batch_size=4),
        recovery=replace(recipe.recovery, steps=16, batch_size=8, log_every=1, parallel=parallel),
        progressive=replace(recipe.progressive, stages=2, decay_stages=2, stage_steps=2),
        book=secateur.BookConfig(num_tuples=16, held_out=4),
        evaluation=secateur.EvaluationConfig(metrics=("loss",), num_images=4),
        out=folder,
    )


def prune(folder: Path, parallel: str) -> None:
    """A run that cuts widths and blocks during recovery."""
    pruner = pruner_for(unet(), DiffusionProcess(), "macs=60%", "random", BOTH)
    config = replace(CONFIG, parallel=parallel, steps=8)
    keep(recover(unet(), DiffusionProcess(), images(), config, folder, None, pruner), folder)


def adapt(folder: Path, parallel: str) -> None:
    """A run in which blocks leave on the way, as many at a time as a judgement of the smaller model allows."""
    model = sit(4).double()
    config = replace(CONFIG, parallel=parallel, steps=8)
    keep(recover(model, FlowProcess(), images(), config, folder, None, adaptive(sit(4), "blocks=2")), folder)


def rank(folder: Path, parallel: str) -> None:
    """The scores of every criterion, of whole weights or of shards, in float64."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in CRITERIA:
        model, process = unet().double(), DiffusionProcess()
        structure, batch = describe(model), Batch(images().batch(range(4)).sample.double())
        if parallel == "fsdp":
            process_group(on_cpu=True)
            model = sharded(model, mesh_over(torch.device("cpu"), hybrid=False))
        config = SCORING
        if name == "gradient-flow":
            config = replace(SCORING, batch_size=2, options={"hessian_product": "finite-difference"})
            if parallel == "fsdp":
                with pytest.raises(TrainingError, match="cannot be differentiated twice; give"):
                    score(model, process, batch, structure, name, SCORING)
        before = {key: whole(value.detach()).clone() for key, value in model.named_parameters()}
        found = score(model, process, batch, structure, name, config).scores
        reshard(model)
        for key, value in model.named_parameters():
            assert torch.equal(whole(value.detach()), before[key]), (name, key)
        if is_main_process():
            save_file(dict(found), folder / f"{name}.safetensors")


def keep(model: nn.Module, folder: Path, name: str = "average") -> None:
    """Write the weights of `model`, which must be those of all processes."""
    for key, value in model.state_dict().items():
        assert torch.equal(same_in_all_processes(value.clone()), value), key
    if is_main_process():
        save_file(model.state_dict(), folder / f"{name}.safetensors")


def run(folder: Path, parallel: str, names: list[str]) -> None:
    for name in names:
        if name == "prune":
            prune(folder / name, parallel)
        elif name == "adapt-float64":
            adapt(folder / name, parallel)
        elif name in ("rank", "given"):
            {"rank": rank, "given": given}[name](folder / name, parallel)
        elif name.startswith(RECIPE):
            compress(folder / name, name.removeprefix(RECIPE), parallel)
        elif name.startswith("stopped") and parallel == "fsdp" and newest_checkpoint(folder / name) is None:
            with suppress(OSError):
                train(folder, name, parallel, fails=True)
        else:
            train(folder, name, parallel)


def no_group_is_left() -> None:
    """Fail if threads of a process group run on: they abort the interpreter at times when it shuts down under them."""
    running = {task.joinpath("comm").read_text().strip() for task in Path("/proc/self/task").iterdir()}
    if left := [name for name in running if "gloo" in name]:
        print(f"still running at exit: {left}", file=sys.stderr, flush=True)
        os._exit(3)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.platform == "linux":
        atexit.register(no_group_is_left)  # runs last: what is registered later is called before
    run(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
