"""Block criteria on whole networks, as the EntPruner specification checks them, and in the commands."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

import secateur
from block_chains import CED, FEW
from models import dit, output, sample_for, unet
from secateur.base.errors import SecateurError
from secateur.cli import main
from secateur.criteria import CRITERIA, CedOptions, ScoringConfig, score
from secateur.criteria.blocks.effects import spearman
from secateur.criteria.blocks.entropy import deviations, log_sd_changes
from secateur.criteria.blocks.measure import draw_tuples, measure_blocks
from secateur.criteria.uniform import stride_order
from secateur.data import Batch
from secateur.models.network import inference
from secateur.models.predict import predict
from secateur.models.registry import describe
from secateur.process.diffusion import DiffusionProcess
from secateur.process.flow import FlowProcess
from secateur.reporting import write_report
from secateur.structure import Structure, masked

BLOCK_CRITERIA = sorted(name for name, criterion in CRITERIA.items() if criterion.ranks == "blocks")
BOTH = [(unet(), DiffusionProcess()), (dit(), FlowProcess())]


def batch_of(model, count=6):
    sample = torch.randn(count, model.config.in_channels, 8, 8, generator=torch.Generator().manual_seed(0))
    return Batch(sample, sample_for(model, count)[1])


def test_ced_looks_at_the_output_that_is_chosen():
    model, process = dit(), FlowProcess()
    found = [score(model, process, batch_of(model), describe(model), "ced", config).scores for config in (FEW, CED)]
    assert found[0] != found[1]


def test_deviation_and_loss_change_are_of_the_prediction_whatever_ced_looks_at():
    model = dit()
    arguments = model, FlowProcess(), batch_of(model), describe(model), FEW
    found, same = (measure_blocks(*arguments, ced_output) for ced_output in ("sample", "prediction"))
    assert not np.array_equal(found.total, same.total)
    assert np.array_equal(deviations(found), deviations(same))
    assert np.array_equal(found.loss_change(), same.loss_change())


def test_a_resample_has_its_images_in_every_sum():
    model = dit()
    sums = measure_blocks(model, FlowProcess(), batch_of(model), describe(model), FEW)
    resample = sums.of_images(np.array([5, 0, 0]))
    for name in ("total", "square", "size", "loss", "change", "cosine"):
        assert np.array_equal(getattr(resample, name), getattr(sums, name)[..., [5, 0, 0]])
    assert (resample.names, resample.entries) == (sums.names, sums.entries)


@pytest.mark.parametrize("ced_output", ["prediction", "sample"])
@pytest.mark.parametrize(("model", "process"), BOTH)
def test_log_sd_changes_are_those_of_the_outputs(model, process, ced_output):
    structure, batch = describe(model), batch_of(model)
    sums = measure_blocks(model, process, batch, structure, FEW, ced_output)
    signed, pooled = log_sd_changes(sums.total, sums.square, sums.entries)
    tuples = next(draw_tuples(process, batch, dataclasses.replace(FEW, batch_size=1000)))
    with inference(model):
        full = predict(model, tuples.noisy, tuples.timesteps, tuples.conditions).double()
        name = sums.names[2]
        with masked(model, structure, {name: torch.zeros(1)}):
            without = predict(model, tuples.noisy, tuples.timesteps, tuples.conditions).double()
    error = ((without - full).square().sum() / full.square().sum()).item()
    assert sums.change[2].sum() / sums.size.sum() == pytest.approx(error, abs=1e-6)
    losses = [(out - tuples.target).square().mean().item() for out in (full, without)]
    assert sums.loss_change()[2].mean() == pytest.approx(losses[1] - losses[0], abs=1e-6)
    if ced_output == "sample":
        noisy = tuples.noisy.double()
        clean = (process.denoised(noisy, output, tuples.timesteps) for output in (full, without))
        full, without = (sample.clamp(-batch.sample.abs().max(), batch.sample.abs().max()) for sample in clean)
    assert pooled[2] == pytest.approx(math.log(without.std(correction=0) / full.std(correction=0)), abs=1e-6)
    pairs = zip(without.split(6), full.split(6), strict=True)
    bins = [math.log(ours.std(correction=0) / theirs.std(correction=0)) for ours, theirs in pairs]
    assert signed[2] == pytest.approx(bins, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("criterion", BLOCK_CRITERIA)
@pytest.mark.parametrize(("model", "process"), BOTH, ids=["unet", "dit"])
def test_scores_do_not_depend_on_how_batches_are_split(model, process, criterion):
    structure, batch = describe(model), batch_of(model)
    found = []
    for batch_size in (24, 7, 1):
        config = dataclasses.replace(FEW, batch_size=batch_size)
        scores = score(model, process, batch, structure, criterion, config).scores
        assert list(scores) == list(structure.blocks)
        found.append(torch.cat(list(scores.values())))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-5, atol=1e-6)
        assert torch.equal(other.argsort(), found[0].argsort())


def test_draws_are_paired_stratified_and_split_alike():
    batch = Batch(torch.randn(5, 1, 8, 8), {"class_labels": torch.arange(5)})
    process = FlowProcess()
    whole = next(draw_tuples(process, batch, ScoringConfig(8, batch_size=100)))
    split = list(draw_tuples(process, batch, ScoringConfig(8, batch_size=3)))
    assert torch.equal(whole.noisy, torch.cat([part.noisy for part in split]))
    assert torch.equal(whole.conditions["class_labels"], torch.arange(5).repeat(8))
    bins = (whole.timesteps / 125).long().reshape(8, 5)
    assert torch.equal(bins, torch.arange(8)[:, None].expand(8, 5))
    assert len(whole.timesteps.unique()) == 40
    later = next(draw_tuples(process, batch, ScoringConfig(8, batch_size=100, seed=1)))
    assert not torch.equal(whole.timesteps, later.timesteps)


def test_magnitude_and_others_are_correlated_as_their_criteria_rank():
    model, process = dit(), FlowProcess()
    structure, batch = describe(model), batch_of(model)
    ranking = score(model, process, batch, structure, "ced", CED)
    mine = torch.cat([ranking.scores[name] for name in structure.blocks]).numpy()
    for criterion in ("deviation", "magnitude", "uniform", "cosine", "loss-change"):
        scores = score(model, process, batch, structure, criterion, FEW).scores
        other = torch.cat([scores[name] for name in structure.blocks]).numpy()
        correlation = ranking.report.correlations[criterion.replace("-", " ")]
        assert correlation == pytest.approx(stats.spearmanr(mine, other).statistic)
    assert "ced" not in ranking.report.correlations


@given(st.lists(st.integers(0, 4), min_size=2, max_size=12), st.randoms())
def test_spearman_is_scipys(values, shuffler):
    other = shuffler.sample(values, len(values))
    found = spearman(np.array(values, dtype=float), np.array(other, dtype=float))
    if len(set(values)) == 1:
        assert found is None
    else:
        assert found == pytest.approx(stats.spearmanr(values, other).statistic)


@pytest.mark.parametrize("count", range(1, 41))
def test_uniform_stride_is_nested_and_even(count):
    order = stride_order(count)
    assert sorted(order) == list(range(count))
    for n in range(1, count + 1):
        removed = set(order[:n])
        if n <= count // 2:
            assert not any(index + 1 in removed for index in removed)
        gone = np.isin(np.arange(count), list(removed)).cumsum()
        assert np.abs(gone - n * np.arange(1, count + 1) / count).max() < 1.75  # off by a block or two
    if count % 2 == 0:
        assert set(order[: count // 2]) == set(range(1, count, 2))
    if count % 4 == 0:
        assert set(order[: count // 4]) == set(range(1, count, 4))


def test_a_model_without_blocks_is_refused():
    structure = Structure({}, {})
    for criterion in BLOCK_CRITERIA:
        with pytest.raises(SecateurError, match="no block"):
            score(unet(), DiffusionProcess(), batch_of(unet()), structure, criterion, FEW)


def test_pooling_is_validated():
    with pytest.raises(SecateurError, match="pooling"):
        CedOptions(pooling="mean")


# ---------------------------------------------------------------------------------------------------- commands


REPORTED = ("ced", "deviation", "ent-prog")
QUICK = ["--scoring.num-timesteps", "4", "--scoring.num-images", "8"]


@pytest.fixture(scope="module")
def sit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "sit"
    flow = dict(FlowMatchEulerDiscreteScheduler().config) | {"_class_name": "FlowMatchEulerDiscreteScheduler"}
    return str(secateur.save_pretrained(dit(), folder, flow) or folder)


@pytest.mark.parametrize("criterion", BLOCK_CRITERIA)
def test_rank_writes_json_tables_plot_and_page(sit, tmp_path, capsys, criterion):
    run = tmp_path / "run"
    main(["rank", sit, "--data", "digits", "--out", str(run), "--criterion", criterion, *QUICK])
    printed = capsys.readouterr().out
    ranking = json.loads((run / "ranking.json").read_text())
    assert ranking["dims"] == {}
    assert list(ranking["blocks"]) == [f"transformer_blocks.{i}" for i in range(4)]
    assert f"seconds  {ranking['seconds']}" in printed
    assert "transformer_blocks.3" in printed
    assert not (run / "tables" / "ranking.md").exists()
    assert (run / "tables" / "correlations.csv").exists() == (criterion in REPORTED)
    with Image.open(run / "plots" / "ranking.png") as image:
        assert min(image.size) > 100
    page = write_report(run).read_text()
    assert f"Ranked 4 blocks by {criterion}" in page
    assert ("resampling the images" in page) == (criterion in REPORTED)
    if criterion in REPORTED:
        report = ranking["block_report"]
        assert report["timesteps"] == [125, 375, 625, 875]
        assert all(len(effect["signed"]) == 4 for effect in report["blocks"].values())


def test_prune_by_ced_removes_the_lowest_and_loads_in_diffusers(sit, tmp_path):
    run = tmp_path / "run"
    arguments = ["--data", "digits", "--out", str(run), "--criterion", "ced", *QUICK]
    main(["prune", sit, "--target", "blocks=2", *arguments])
    cut, ranking = (json.loads((run / f"{name}.json").read_text()) for name in ("cut", "ranking"))
    lowest = sorted(ranking["blocks"], key=ranking["blocks"].get)[:2]
    assert sorted(cut["removed_blocks"]) == sorted(lowest)
    dense = dit()
    plain = type(dense).from_pretrained(run / "pruned").eval()
    assert len(plain.transformer_blocks) == 2
    with masked(dense, describe(dense), {name: torch.zeros(1) for name in lowest}):
        torch.testing.assert_close(output(plain), output(dense), rtol=1e-6, atol=1e-6)
    write_report(run)


@pytest.mark.parametrize("more", [[], ["--cut.granularity", "both"], ["--cut.granularity", "width", "--dry-run"]])
@pytest.mark.parametrize("command", ["prune", "compress"])
def test_cuts_of_widths_are_refused_in_one_line(sit, tmp_path, capsys, command, more):
    arguments = ["--target", "60%", "--data", "digits", "--out", str(tmp_path / "run"), "--criterion", "ced"]
    with pytest.raises(SystemExit):
        main([command, sit, *arguments, *more])
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert "ced ranks blocks only" in lines[0]
    assert "--cut.granularity depth" in lines[0]
    assert not (tmp_path / "run").exists()


def test_depth_reaches_other_targets_and_dry_runs_predict_the_time(sit, tmp_path, capsys):
    arguments = ["--data", "digits", "--out", str(tmp_path / "run"), "--criterion", "uniform"]
    cut = ["prune", sit, "--target", "macs=60%", *arguments, "--cut.granularity", "depth"]
    main([*cut, "--dry-run"])
    assert "rank " in capsys.readouterr().out
    main(cut)
    assert json.loads((tmp_path / "run" / "cut.json").read_text())["removed_blocks"] == [
        "transformer_blocks.1",
        "transformer_blocks.3",
    ]
    main(["rank", sit, "--data", "digits", "--out", str(tmp_path / "rank"), "--criterion", "ced", "--dry-run"])
    assert any(line.startswith("rank ") for line in capsys.readouterr().out.splitlines())
