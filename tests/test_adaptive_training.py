"""Training while blocks are removed: a resumed run ends the same, in one process or two, and so does the command."""

import json
import math
import os
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
import torch
from diffusers import DiTTransformer2DModel, FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file

import folders
import secateur
from adaptive_runs import CONFIG, macs_of, random_scorer, run, sit
from models import output
from secateur.base.errors import TrainingError
from secateur.cli import main
from secateur.criteria import ScoringConfig
from secateur.recipes import recipe_named
from secateur.recovery import AttachedPruner
from secateur.recovery.checkpoints import TrainingState, newest_checkpoint
from secateur.recovery.ema import Ema
from secateur.schedules import AdaptiveConfig, OneShot
from secateur.structure import Cut
from training_runs import TWO, Failing, assert_logs_agree, assert_same, log, stage_log, start


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return *run(folder), folder


@pytest.mark.slow
def test_blocks_are_removed_from_the_model_the_average_and_the_moments(whole):
    model, average, folder = whole
    assert len(model.transformer_blocks) == len(average.transformer_blocks) == 3
    assert model.config.num_layers == 3
    state = TrainingState(model, Ema(model), torch.optim.AdamW(model.parameters()))
    names = {name for name, _ in state.model.named_parameters()}
    saved = load_file(newest_checkpoint(folder) / "optimizer.safetensors")
    assert {name.rpartition(".")[0] for name in saved} == names
    records = stage_log(folder)
    assert [record["step"] for record in records] == [0, 1, 3, 4]
    assert [record["blocks"] for record in records][-1] == 3
    assert sum(len(record["removed"]) for record in records) == 5
    assert all(math.isfinite(record["loss"]) for record in log(folder))


@pytest.mark.slow
@pytest.mark.parametrize("failures", [[2], [4], [5, 3]])
def test_a_run_that_failed_takes_the_same_decisions(failures, whole, tmp_path):
    config = replace(CONFIG, checkpoint_every=1)
    for at in failures:
        with pytest.raises(OSError, match=r"^$"):
            run(tmp_path, Failing(at, OSError), config)
    found = run(tmp_path, config=config)
    for one, other in zip(found, whole[:2], strict=True):
        assert_same(one, other)
    assert stage_log(tmp_path) == stage_log(whole[2])
    assert [record["loss"] for record in log(tmp_path)] == [record["loss"] for record in log(whole[2])]


def test_other_settings_are_refused(whole):
    with pytest.raises(TrainingError, match=r"macs_weight 0.5 there, 0.0 here"):
        run(whole[2], macs_weight=0.0)


class AtSeven(OneShot):
    def due(self, step):
        return step == 7


def test_the_average_restarts_at_a_cut():
    model = sit(3)
    optimizer, ema = torch.optim.AdamW(model.parameters()), Ema(model)
    pruning = AttachedPruner(AtSeven(Cut({}, ("transformer_blocks.1",))), model, optimizer, ema)
    state = TrainingState(model, ema, optimizer, step=7, pruning=pruning)
    assert [pruning.step() for _ in range(7)] == [False] * 7
    assert state.since_cut == 7
    assert pruning.step()
    assert state.since_cut == 0
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    state.ema.update(model, state.since_cut)
    assert_same(state.ema.model, model)
    state.step = 9
    assert state.since_cut == 2


@pytest.mark.slow
def test_a_decision_that_was_trained_on_is_never_taken_again(tmp_path):
    """Even if a score or a latency would differ the second time."""
    config = replace(CONFIG, checkpoint_every=100)
    options = {"scorer": random_scorer(), "rerank": "stage"}
    with pytest.raises(OSError, match=r"^$"):
        run(tmp_path, Failing(5, OSError), config, **options)
    decided = stage_log(tmp_path)
    assert [record["step"] for record in decided] == [0, 1, 3]  # and the step after the third decision was made
    run(tmp_path, config=config, **options)
    assert stage_log(tmp_path)[: len(decided)] == decided


SCRIPT = """
import sys
import torch
from dataclasses import replace
from adaptive_runs import CONFIG, run
from training_runs import Failing, images
torch.set_num_threads(1)
folder, fail_at = sys.argv[1], int(sys.argv[2])
run(folder, Failing(fail_at, OSError) if fail_at else images(), replace(CONFIG, checkpoint_every=1))
"""


def train(folder, fail_at=0, launcher=()):
    """The exit status of a run in new processes."""
    return start(folder.with_suffix(".py"), SCRIPT, folder, fail_at, launcher=launcher).wait()


@pytest.mark.torture
def test_two_processes_take_the_decisions_of_one_and_resume_them(tmp_path):
    assert train(tmp_path / "one") == 0
    assert train(tmp_path / "two", launcher=TWO) == 0
    decided = [[(r["step"], r["removed"]) for r in stage_log(tmp_path / folder)] for folder in ("one", "two")]
    assert decided[0] == decided[1]
    for single, joined in zip(log(tmp_path / "one"), log(tmp_path / "two"), strict=True):
        assert single["loss"] == pytest.approx(joined["loss"], rel=1e-3)
    assert train(tmp_path / "cut", fail_at=6, launcher=TWO) != 0
    assert 3 < int(newest_checkpoint(tmp_path / "cut").name[-8:]) < 8
    assert train(tmp_path / "cut", launcher=TWO) == 0
    for name in ("model.safetensors", "ema.safetensors", "optimizer.safetensors"):
        saved = [(newest_checkpoint(tmp_path / folder) / name).read_bytes() for folder in ("two", "cut")]
        assert saved[0] == saved[1]
    assert stage_log(tmp_path / "two") == stage_log(tmp_path / "cut")


# -------------------------------------------------------------------------------------------- command line

FEW = [
    *("--scoring.num-timesteps", "2", "--scoring.num-images", "4"),
    *("--recovery.batch-size", "4", "--recovery.log-every", "1", "--recovery.checkpoint-every", "2"),
    *("--evaluation.num-images", "12", "--evaluation.num-inference-steps", "2", "--evaluation.latency.rounds", "2"),
]

BRIEFLY = {
    "recipe": "entpruner-deviation",
    "adaptive": AdaptiveConfig(stages=2),
    "scoring": ScoringConfig(num_timesteps=2, num_images=4),
    "evaluation": secateur.EvaluationConfig(metrics=("loss",), num_images=4),
}


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "sit"
    scheduler = FlowMatchEulerDiscreteScheduler()
    secateur.save_pretrained(sit(), folder, {**scheduler.config, "_class_name": type(scheduler).__name__})
    return folder


def compress(model, out, *more, target="blocks=3", steps=8):
    options = ["--target", target, "--data", "digits", "--out", str(out), "--steps", str(steps)]
    main(["compress", str(model), "--recipe", "entpruner", *options, "--adaptive.until", "0.5", *FEW, *more])


@pytest.mark.slow
def test_compress_ends_at_the_target_with_a_model_for_plain_diffusers(dense, tmp_path, capsys):
    run = tmp_path / "run"
    compress(dense, run)
    assert "Asked for blocks=3; 3 of 8 blocks stay." in capsys.readouterr().out
    ours = secateur.from_pretrained(run / "model")
    plain = DiTTransformer2DModel.from_pretrained(run / "model")
    assert len(plain.transformer_blocks) == plain.config.num_layers == 3
    assert torch.equal(output(ours), output(plain))
    cut = json.loads((run / "cut.json").read_text())
    records = stage_log(run / "recovery")
    removed = [name for record in records for name in record["removed"]]
    assert sorted(cut["removed_blocks"]) == sorted(removed)
    assert (cut["target"], cut["reached"], cut["asked"]) == ("blocks=3", 3, 3)
    assert cut["after"]["parameters"] == sum(parameter.numel() for parameter in ours.parameters())
    steps = json.loads((run / "model" / "pruning.json").read_text())["steps"]
    assert [step["kind"] for step in steps][-1] == "recovery"
    assert {step["schedule"] for step in steps[:-1]} == {"adaptive"}
    written = json.loads(json.dumps(asdict(recipe_named("entpruner").cut)))
    assert [step["cut"] for step in steps[:-1]] == [written] * (len(steps) - 1)
    assert sum(len(step["removed_blocks"]) for step in steps[:-1]) == 5
    compress(dense, run)  # finished: nothing is computed again
    assert stage_log(run / "recovery") == records


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--steps", "4"], "4 adaptive stages do not fit into the first 50% of 4 steps"),
        (["--cut.granularity", "width", "--criterion", "taylor", "--target", "macs=50%"], "drops blocks"),
        (["--target", "blocks=9"], "out of reach"),
    ],
)
def test_what_cannot_work_is_one_line_before_any_work(more, message, dense, tmp_path, capsys):
    with pytest.raises(SystemExit):
        compress(dense, tmp_path / "run", *more)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert not (tmp_path / "run").exists()


def test_a_dry_run_predicts_rankings_and_decisions(dense, tmp_path, capsys):
    compress(dense, tmp_path / "run", "--dry-run")
    printed = capsys.readouterr().out
    assert "rank again" not in printed
    assert "decide " in printed
    compress(dense, tmp_path / "run", "--dry-run", "--adaptive.rerank", "stage", "--adaptive.selector", "fixed")
    printed = capsys.readouterr().out
    assert "rank again" in printed
    assert "decide " not in printed


@pytest.mark.slow
@pytest.mark.parametrize("criterion", [None, "ced"], ids=["the recipe's", "the source's"])
def test_the_real_scorer_prunes_to_the_target(criterion, dense, tmp_path):
    out = folders.compress(
        str(dense),
        target="macs=60%",
        data="digits",
        out=tmp_path / "run",
        recovery=replace(CONFIG, objective="2ndmatch"),
        criterion=criterion,
        **BRIEFLY,
    )
    model = secateur.from_pretrained(out / "model")
    assert macs_of(model) <= 0.6 * macs_of(sit())
    ranking = json.loads((out / "ranking.json").read_text())
    effects = ranking["block_report"]["blocks"]
    score = "ced_stratified" if criterion == "ced" else "deviation"
    assert ranking["blocks"] == pytest.approx({name: effect[score] for name, effect in effects.items()})


BOOK = ("--objective", "distillation", "--book", "--book.num-tuples", "24", "--book.held-out", "8")


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        (),
        pytest.param(
            ("--recipe", "diff-pruning", "--target", "macs=60%", "--new-labels", "--warmup.steps", "3", *BOOK),
            marks=pytest.mark.torture,
        ),
    ],
)
def test_compress_in_two_processes_ends_as_in_one(more, dense, tmp_path):
    """The real ranking, proxies and evaluation: one process ranks and decides, all refit, record, train and sample."""
    options = [
        "--target",
        "blocks=3",
        "--data",
        "digits",
        "--steps",
        "8",
        "--recipe",
        "entpruner",
    ]
    # Well-conditioned systems, since the two are compared after a step of rounding.
    options += ["--compensation", "--compensation.num-tuples", "64", "--compensation.ridge", "0.1"]
    options += ["--adaptive.until", "0.5", "--recovery.label-dropout", "0.5", "--recovery.dropout", "None", *FEW, *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for name, launcher in (("one", ()), ("two", TWO)):
        command = [sys.executable, *launcher, "-m", "secateur", "compress", str(dense), "--out", str(tmp_path / name)]
        subprocess.run([*command, *options], env=environment, check=True)
    one, two = tmp_path / "one", tmp_path / "two"
    assert_logs_agree(one / "recovery", two / "recovery", rel=1e-3)
    if not more:
        decided = [[(r["chosen"], r["removed"]) for r in stage_log(run / "recovery")] for run in (one, two)]
        assert decided[0] == decided[1]
    cuts = [json.loads((run / "cut.json").read_text()) for run in (one, two)]
    assert cuts[0]["after"] == cuts[1]["after"]
    assert (two / "report.html").is_file()
    measured = [json.loads((run / "evaluation" / "evaluation.json").read_text())["models"] for run in (one, two)]
    assert measured[0].keys() == measured[1].keys()
    weights = [secateur.from_pretrained(run / "model").state_dict() for run in (one, two)]
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=1e-2, atol=1e-3)


@pytest.mark.slow
def test_new_labels_are_learned_before_the_blocks_are_ranked(dense, tmp_path):
    out = folders.compress(
        str(dense),
        target="blocks=3",
        data="digits",
        out=tmp_path / "run",
        new_labels=True,
        warmup=secateur.WarmupConfig(steps=2),
        recovery=CONFIG,
        **BRIEFLY,
    )
    relabelled, model = (secateur.from_pretrained(out / name) for name in ("relabelled", "model"))
    embedding = "transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight"
    assert relabelled.state_dict()[embedding].shape[0] == 11  # the data's ten classes, and none
    assert len(model.transformer_blocks) == 3
    ranked = folders.rank(str(out / "relabelled"), criterion="deviation", data="digits", out=tmp_path / "rank",
                           scoring=BRIEFLY["scoring"])  # fmt: skip
    first, second = (json.loads((folder / "ranking.json").read_text())["blocks"] for folder in (out, ranked))
    assert first == second  # the blocks were ranked with the new labels
