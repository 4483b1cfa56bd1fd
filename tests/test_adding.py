"""A new criterion, objective or metric is one file and one line in a registry: the examples of the docs work."""

import re
import sys
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch

from models import unet
from secateur.criteria import CRITERIA, ScoringConfig, score, unit_scores
from secateur.data import Batch, load_data
from secateur.evaluation import METRICS, EvaluationConfig, SmallFeatures, evaluate_models
from secateur.models.registry import describe
from secateur.process.diffusion import DiffusionProcess
from secateur.recovery import OBJECTIVES, RecoveryConfig, recover
from training_runs import images, log

DOCS = Path(__file__).resolve().parent.parent / "docs"


@pytest.fixture
def example(tmp_path):
    """Imports the first example of a page, as the module of that name in a package of secateur."""
    before = set(sys.modules)

    def imported(page, name):
        shown = re.search(
            r"^( *)```python\n(.*?)^\1```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
        )
        indent, code = shown.groups()
        path = tmp_path / "example.py"
        path.write_text(re.sub(f"^{indent}", "", code, flags=re.MULTILINE), encoding="utf-8")
        spec = spec_from_file_location(name, path)
        module = sys.modules[name] = module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    yield imported
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_criterion(example, monkeypatch):
    added = example("adding-a-criterion.md", "secateur.criteria.wanda")
    monkeypatch.setitem(CRITERIA, "wanda", added.WANDA)
    model, config = unet(), ScoringConfig(num_timesteps=2, options={"power": 0.0})
    structure, batch = describe(model), Batch(torch.randn(4, 1, 8, 8))
    scores = score(model, DiffusionProcess(), batch, structure, "wanda", config).scores
    assert {*scores} == {*structure.dims, *structure.blocks}
    weights = {
        name: weight.detach().abs()
        for name, weight in model.named_parameters()
        if name.endswith("weight") and weight.ndim > 1
    }
    for name, expected in unit_scores(structure, weights).items():  # the norms of the inputs to the power 0 are 1
        torch.testing.assert_close(scores[name], expected)
    other = score(model, DiffusionProcess(), batch, structure, "wanda", replace(config, options=None)).scores
    assert all(values.isfinite().all() and not torch.equal(values, scores[name]) for name, values in other.items())


def test_an_objective(example, monkeypatch, tmp_path):
    added = example("adding-an-objective.md", "secateur.recovery.objectives.pseudo_huber")
    monkeypatch.setitem(OBJECTIVES, "pseudo-huber", added.PSEUDO_HUBER)
    config = RecoveryConfig(steps=2, batch_size=4, objective="pseudo-huber", weights={"distillation": 0.5}, log_every=1)
    recover(unet(), DiffusionProcess(), images(), config, tmp_path / "run", unet(block_out_channels=(8, 8)))
    for line in log(tmp_path / "run"):
        assert line["loss"] == pytest.approx(line["denoising"] + 0.5 * line["distillation"], rel=1e-5)
    error = torch.tensor([3.0, 4.0]).expand(6, 2)
    assert added.pseudo_huber(error).item() == pytest.approx(5 / 2, rel=1e-3)


def test_a_metric(example, monkeypatch, tmp_path):
    added = example("adding-a-metric.md", "secateur.evaluation.metrics.cmmd")
    monkeypatch.setitem(METRICS, "cmmd", added.CMMD)
    features = str(SmallFeatures(1, 10, width=8).save(tmp_path / "tiny"))
    config = EvaluationConfig(("cmmd",), num_images=6, num_inference_steps=2, bootstrap=10, features=features)
    models = {"dense": unet(), "pruned": unet(block_out_channels=(8, 8))}
    result, _ = evaluate_models(models, DiffusionProcess(), load_data("digits"), config)
    assert result.metrics["cmmd"].label == "CMMD[tiny]"
    assert result.verdict("cmmd", "pruned", "dense") is not None
    x, once = torch.randn(5, 3), torch.ones(1, 5, dtype=torch.float64)
    same = added.gaussian_discrepancy(x, x, once)
    assert abs(same.value) < 1e-12
    assert same.replicates.abs().max() < 1e-12
