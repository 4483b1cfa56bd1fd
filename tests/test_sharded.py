"""Weights in shards (FSDP2): the same losses as in one process, the same cuts, checkpoints for any number of them."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import secateur
from models import dit, half
from secateur.base.errors import SecateurError, TrainingError, is_lost_peer
from secateur.io.manifest import apply_cut, manifest_of
from secateur.process.flow import FlowProcess
from secateur.recipes import RECIPES
from secateur.recovery import shard_files
from secateur.recovery.accelerator import check_accelerator
from secateur.recovery.checkpoints import newest_checkpoint
from sharded_runs import CONFIG, NAMES, RECIPE, run
from training_runs import assert_same, log, stage_log


def launched(folder: Path, parallel: str, names: list[str], processes: int = 2, nodes: int = 1) -> None:
    """The runs `names` in several processes; with `nodes` above 1, as on several nodes."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes))
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    script = str(Path(__file__).with_name("sharded_runs.py"))
    if nodes > 1:
        says = f"os.environ['LOCAL_WORLD_SIZE'] = '{processes // nodes}'"  # torchrun of one node says all of them
        inner = folder.with_suffix(".py")
        inner.write_text(f"import os, runpy; {says}; runpy.run_path({script!r}, run_name='__main__')")
        script = str(inner)
    arguments = [sys.executable, *launcher, script, str(folder), parallel, *names]
    assert subprocess.run(arguments, env=environment, timeout=550).returncode == 0


def assert_same_run(one: Path, other: Path) -> None:
    """Losses, terms and gradient norms within rounding, and the same cuts."""
    exact = one.name.endswith("-float64")
    for single, joined in zip(log(one), log(other), strict=True):
        measured = single.keys() - {"seconds", "peak_gib"}
        assert measured == joined.keys() - {"seconds", "peak_gib"}
        for name in measured:
            rel = 1e-10 if exact else 1e-5 if name == "loss" else 1e-4
            assert joined[name] == pytest.approx(single[name], rel=rel), (single["step"], name)
    if exact:
        assert_close(one / "average.safetensors", other / "average.safetensors")
    if (one / "stages.jsonl").exists():
        assert stage_log(one) == stage_log(other)


def assert_close(one: Path, other: Path) -> None:
    """Weights in two files, in float64."""
    expected, found = load_file(one), load_file(other)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-10)


@pytest.mark.torture
def test_two_shards_train_and_cut_as_one_process_which_resumes_their_checkpoint(tmp_path):
    names = ["denoising", "2ndmatch-float64", "features-float64", "muon-float64", "prune", "adapt-float64"]
    stopped = "stopped-float64"
    run(tmp_path / "one", "ddp", [*names, stopped, "rank"])
    launched(tmp_path / "two", "fsdp", [*names, stopped, "rank"])
    for ranked in (tmp_path / "two" / "rank").iterdir():
        expected = load_file(tmp_path / "one" / "rank" / ranked.name)
        for name, values in load_file(ranked).items():
            torch.testing.assert_close(values, expected[name], rtol=1e-7, atol=1e-12)
    for name in names:
        assert_same_run(tmp_path / "one" / name, tmp_path / "two" / name)
    checkpoint = newest_checkpoint(tmp_path / "two" / stopped)
    assert checkpoint.name == "step-00000004"
    assert sorted(path.name for path in checkpoint.iterdir()) == ["shards", "state.json"]
    sizes = [path.stat().st_size for path in (checkpoint / "shards").iterdir()]
    assert len(sizes) == 2
    assert max(sizes) < 1.2 * min(sizes)
    run(tmp_path / "two", "ddp", [stopped])
    assert_same_run(tmp_path / "one" / stopped, tmp_path / "two" / stopped)


@pytest.mark.torture
def test_a_run_in_shards_resumes_to_the_bit_and_in_another_number_of_processes(tmp_path):
    run(tmp_path / "one", "ddp", ["whole-float64"])
    launched(tmp_path / "two", "fsdp", ["whole-float64", "stopped-float64"])
    shutil.copytree(tmp_path / "two" / "stopped-float64", tmp_path / "four" / "stopped-float64")
    launched(tmp_path / "two", "fsdp", ["stopped-float64"])
    averages = [
        load_file(tmp_path / "two" / f"{name}-float64" / "average.safetensors") for name in ("whole", "stopped")
    ]
    assert all(torch.equal(value, averages[0][name]) for name, value in averages[1].items())
    launched(tmp_path / "four", "fsdp", ["stopped-float64"], processes=4)
    for name in ("two", "four"):
        assert_same_run(tmp_path / "one" / "whole-float64", tmp_path / name / "stopped-float64")


@pytest.mark.torture
def test_a_damaged_shard_is_said_in_one_line(tmp_path):
    launched(tmp_path / "two", "fsdp", ["stopped"])
    shard = next(iter((newest_checkpoint(tmp_path / "two" / "stopped") / "shards").iterdir()))
    shard.write_bytes(shard.read_bytes()[:-1000])
    with pytest.raises(TrainingError, match="is damaged or does not fit this model"):
        run(tmp_path / "two", "ddp", ["stopped"])


@pytest.mark.torture
@pytest.mark.parametrize(
    ("parallel", "processes", "nodes"), [("ddp", 2, 1), ("ddp", 4, 1), ("fsdp", 2, 1), ("fsdp", 4, 1), ("hsdp", 4, 2)]
)
def test_every_objective_in_several_processes_equals_one(parallel, processes, nodes, tmp_path):
    names = [*NAMES, "prune", "adapt-float64"]
    run(tmp_path / "one", "ddp", names)
    launched(tmp_path / "several", parallel, names, processes, nodes)
    for name in names:
        assert_same_run(tmp_path / "one" / name, tmp_path / "several" / name)


DENOISERS = sorted(RECIPES.keys() - {"decoder"})
OF_EACH_SCHEDULE = ["default", "gradient-flow-compensated", "entpruner"]


@pytest.mark.torture
@pytest.mark.parametrize(
    ("parallel", "processes", "recipes"),
    [
        *((parallel, 2, DENOISERS[part::3]) for parallel in ("ddp", "fsdp") for part in range(3)),
        *((parallel, 4, OF_EACH_SCHEDULE) for parallel in ("ddp", "fsdp")),
    ],
)
def test_every_recipe_makes_the_same_cut_in_several_processes(parallel, processes, recipes, tmp_path):
    names = [RECIPE + name for name in recipes]
    run(tmp_path / "one", "ddp", names)
    launched(tmp_path / "several", parallel, names, processes)
    for name in names:
        one, several = (secateur.from_pretrained(tmp_path / count / name / "model") for count in ("one", "several"))
        assert manifest_of(one).cuts == manifest_of(several).cuts, name
        assert manifest_of(one).cuts
        for key, value in one.state_dict().items():
            torch.testing.assert_close(several.state_dict()[key], value, rtol=0, atol=1e-8)


@pytest.mark.torture
def test_what_saves_memory_gives_the_same_on_shards(tmp_path):
    """In float64 to 1e-10; with stochastic rounding, much closer to each other than to their initial values."""
    exact = ["offload-float64", "freeze-float64", *(["lora-float64"] if find_spec("peft") else [])]
    near = ["half", "passes", *(["half-lora"] if find_spec("peft") else [])]
    run(tmp_path / "one", "ddp", [*exact, *near])
    launched(tmp_path / "two", "fsdp", [*exact, *near])
    for name in exact:
        assert_same_run(tmp_path / "one" / name, tmp_path / "two" / name)
    begun = dit().state_dict()
    for name in near:
        first, other = (log(tmp_path / part / name)[0]["loss"] for part in ("one", "two"))
        assert other == pytest.approx(first, rel=2**-8)  # nothing was rounded by chance yet
        alone, joined = (load_file(tmp_path / part / name / "average.safetensors") for part in ("one", "two"))
        moved = sum((alone[key] - value).square().sum() for key, value in begun.items())
        apart = sum((alone[key] - value).square().sum() for key, value in joined.items())
        assert 0 < apart < moved / 4, name


@pytest.mark.slow
def test_two_processes_do_the_same_with_shards_of_their_user_and_with_factors(tmp_path):
    """Factors are merged by each process, whose weights are compared there."""
    lora = ["lora-float64", "lora-replicas-float64"] if find_spec("peft") else []
    run(tmp_path / "one", "ddp", ["given", *lora])
    launched(tmp_path / "two", "fsdp", ["given", *lora])
    one, two = tmp_path / "one" / "given", tmp_path / "two" / "given"
    for name in ("dense", "pruned"):
        assert_same(secateur.from_pretrained(one / name), secateur.from_pretrained(two / name))
    assert_close(one / "average.safetensors", two / "average.safetensors")
    losses = [
        secateur.read_result(secateur.Evaluation, each / "measured" / "evaluation" / "evaluation.json")
        for each in (one, two)
    ]
    assert losses[0].final.estimates["denoising_loss"].value == pytest.approx(
        losses[1].final.estimates["denoising_loss"].value, rel=1e-6
    )
    for name in lora:
        assert_same_run(tmp_path / "one" / name, tmp_path / "two" / name)
    if lora:
        merged = [tmp_path / count / lora[1] / "merged.safetensors" for count in ("one", "two")]
        assert_close(*merged)
        assert_close(
            tmp_path / "two" / lora[0] / "average.safetensors", tmp_path / "two" / lora[0] / "merged.safetensors"
        )


@pytest.mark.parametrize(
    ("parallel", "precision", "world", "local", "message"),
    [
        ("fsdp", "no", 1, 1, "there is only one; start several with torchrun"),
        ("hsdp", "no", 4, 4, "there are 4 of 4 processes on a node; use fsdp"),
        ("fsdp", "fp16", 4, 4, "fp16 does not go with recovery.parallel fsdp"),
    ],
)
def test_what_cannot_be_sharded_is_refused(parallel, precision, world, local, message, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", str(world))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(local))
    config = replace(CONFIG, parallel=parallel, mixed_precision=precision)
    with pytest.raises(TrainingError, match=message):
        check_accelerator(config, torch.device("cpu"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("WORLD_SIZE", "8")
    check_accelerator(replace(config, mixed_precision="no"), torch.device("cpu"))


def test_weights_that_somebody_has_sharded_are_ranked_saved_and_recovered_and_not_cut(tmp_path):
    """What cuts or refits them refuses them in one line, before anything is written."""
    data = [{"images": image, "label": number % 2} for number, image in enumerate(torch.rand(8, 1, 8, 8))]
    about = {"data": data, "process": FlowProcess()}
    ranked = {"criterion": "taylor", "scoring": secateur.ScoringConfig(num_timesteps=2, num_images=4)}
    expected = secateur.rank(dit(), **about, **ranked)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        model, cut, other = dit(), apply_cut(dit(), half(dit())), torch.nn.Linear(8, 8)
        for each in (model, cut, other):
            fully_shard(each, mesh=init_device_mesh("cpu", (1,)))
        found = secateur.rank(model, **about, **ranked)
        for name, values in expected.dims.items():
            assert found.dims[name] == pytest.approx(values, rel=1e-4, abs=1e-9)
        for work in (
            lambda: secateur.prune(model, target="macs=60%", ranking=found, **about),
            lambda: secateur.compensate(model, dense=dit(), **about),
            lambda: secateur.save_pretrained(other, tmp_path / "other"),
        ):
            with pytest.raises(SecateurError, match="needs whole weights, and those of this FSDP"):
                work()
        assert not any(tmp_path.iterdir())
        for name, built in {"dense": model, "pruned": cut}.items():
            secateur.save_pretrained(built, tmp_path / name)
        recovery = replace(CONFIG, steps=2)
        tuned = secateur.finetune(model, **about, recovery=recovery)
        with pytest.raises(SecateurError, match="leave inplace out"):
            secateur.finetune(model, **about, recovery=recovery, inplace=True)
    finally:
        torch.distributed.destroy_process_group()
    assert_same(tuned, secateur.finetune(dit(), **about, recovery=recovery))
    for name, built in {"dense": dit(), "pruned": apply_cut(dit(), half(dit()))}.items():
        found = secateur.from_pretrained(tmp_path / name)
        assert type(found) is type(built)
        assert_same(found, built)
    assert not (tmp_path / "dense" / "pruning.json").exists()


def test_shards_are_joined_on_disk_and_mapped(tmp_path):
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        model = dit()
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        (tmp_path / "average").mkdir()
        (tmp_path / "average" / "left").write_text("of a killed run")
        shard_files.join_shards(
            {name: value.detach().half() for name, value in model.named_parameters()}, tmp_path / "average"
        )
    finally:
        torch.distributed.destroy_process_group()
    found = shard_files.joined(tmp_path / "average")
    assert found.keys() == dict(dit().named_parameters()).keys()
    for name, value in dit().named_parameters():
        assert torch.equal(found[name], value.half())
    first = next(iter(found))
    found[first].zero_()  # as training further would: the file does not change
    assert shard_files.joined(tmp_path / "average")[first].any()
    assert len(list((tmp_path / "average").iterdir())) == 2  # the file and its index


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [::1]:1"), True),
        (torch.distributed.DistStoreError("wait timeout after 900000ms"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_a_lost_peer_is_distinguished_from_other_errors(error, lost):
    assert is_lost_peer(error) == lost
