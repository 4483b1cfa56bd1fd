"""The words of a report: titles, verdicts, model cards, and names of layers and models."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from secateur.reporting import (
    model_card,
)
from secateur.reporting.layers import layer_pairs, parts
from secateur.reporting.run import Run
from secateur.reporting.style import LONGEST_NAME, shorten
from secateur.reporting.summary import verdict_of
from secateur.reporting.titles import title_of
from secateur.results import (
    CutResult,
    Latency,
    Layer,
    Ranking,
    Size,
)
from secateur.results.run_settings import RunSettings
from synthetic_runs import (
    evaluation,
)


def layers_named(**parameters: int) -> list[Layer]:
    return [Layer(name.replace("_", "."), "Linear", (), value, 2 * value) for name, value in parameters.items()]


def test_renumbered_layers_of_a_list_are_matched_to_their_originals() -> None:
    dense = layers_named(first=5, b_0_w=1, b_1_w=2, b_2_w=3)
    pairs = layer_pairs(dense, layers_named(first=5, b_0_w=1, b_1_w=3), ["b.1"])
    assert [(before.name, before.parameters, after.parameters) for before, after in pairs] == [
        ("first", 5, 5), ("b.0.w", 1, 1), ("b.1.w", 2, 0), ("b.2.w", 3, 3)
    ]  # fmt: skip
    unknown = layer_pairs(dense, layers_named(first=5, b_0_w=1, b_1_w=3), [])
    assert [(before.name, before.parameters, after.parameters) for before, after in unknown] == [
        ("first", 5, 5), ("b", 6, 4)
    ]  # fmt: skip
    skipped = layer_pairs(dense, layers_named(first=5, b_0_w=1, b_2_w=3), ["b.1"])
    assert [after.parameters for _, after in skipped] == [5, 1, 0, 3]  # a block that became a skip keeps its number


def test_parts_are_as_fine_as_fits_and_lose_nothing() -> None:
    dense = layers_named(first=5, b_0_w=1, b_0_v=1, b_1_w=2, b_1_v=2)
    pairs = layer_pairs(dense, layers_named(first=5, b_0_w=1, b_0_v=1, b_1_w=1, b_1_v=2), [])
    assert [before.name for before, _ in parts(pairs, 4)] == ["first", "b.0", "b.1"]
    assert [(before.macs, after.macs) for before, after in parts(pairs, 2)] == [(10, 10), (12, 10)]
    assert parts(pairs, 5) == pairs


@pytest.mark.parametrize(
    ("config", "title"),
    [
        ({"command": "compress"}, "unet, compressed to 50% of the MACs"),
        ({"command": "prune"}, "unet, pruned to 50% of the MACs"),
        ({"command": "finetune", "model": "tuned/pruned", "recovery": {"objective": "distillation"}},
         "tuned/pruned, fine-tuned by distillation"),
        ({"command": "evaluate", "model": "RUN/model"}, "RUN/model, evaluated"),
        ({"command": "evaluate", "model": "/x/RUN/model/", "reference": "google/ddpm"}, "RUN/model beside ddpm"),
        ({}, "unet, pruned to 50% of the MACs"),
    ],
)  # fmt: skip
def test_titles_say_what_was_done_to_what(config: dict[str, Any], title: str) -> None:
    size = Size(10.0, 0.0, 10)
    cut = CutResult("macs=50%", "macs", 5.0, 5.0, 10.0, size, size)
    assert title_of(Run(Path("runs/one"), RunSettings({"model": "org/unet", **config}), cut=cut)) == title


def test_a_title_names_the_quality_to_keep_until_something_is_cut() -> None:
    config = RunSettings({"model": "org/unet", "command": "compress", "target": "loss=5%"})
    assert title_of(Run(Path("runs/one"), config)) == "unet, compressed to a loss at most 5% higher"


def test_the_verdict_of_runs_that_lack_something(tmp_path: Path) -> None:
    size, half = Size(10.0, 0.0, 10), Size(5.0, 0.0, 5)
    cut = CutResult("blocks=4", "blocks", 4.0, 4.0, 6.0, size, half)
    assert verdict_of(Run(tmp_path, cut=cut)) == "Half the compute; speed and quality were not measured."
    assert verdict_of(Run(tmp_path, ranking=Ranking("taylor"))) == "Ranked; nothing was cut."
    found = evaluation()
    alone = replace(found, models={"dense": found.dense}, comparisons=())
    said = "6.60M parameters, 24.0M MACs, FD[digits-features] 3.14; there was nothing to compare it with."
    assert verdict_of(Run(tmp_path, evaluation=alone)) == said
    dense = replace(found.dense, latency={"1": Latency(2.0, 2.0, 2.0)})
    final = replace(found.final, latency={"1": Latency(1.96, 1.96, 1.96)})
    close = replace(found, models={**found.models, "dense": dense, found.final_name: final}, comparisons=())
    assert "1.02× faster" in verdict_of(Run(tmp_path, evaluation=close))
    same = replace(found, comparisons=tuple(replace(pair, verdict="unclear") for pair in found.comparisons))
    assert verdict_of(Run(tmp_path, evaluation=same)).endswith("FD[digits-features] not distinguishable from dense.")


def test_a_model_card_says_where_from_how_and_how_good() -> None:
    dims = {"conv_in": {"size": 8, "kept": [0, 1, 2]}}
    steps = [
        {"kind": "cut", "dims": dims, "removed_blocks": ["mid"], "target": "macs=50%", "criterion": "taylor"},
        {"kind": "compensation"},
        {"kind": "recovery", "steps": 1500, "objective": "distillation"},
    ]
    manifest = {"base": {"id": "org/unet", "class": "UNet2DModel", "config": {}}, "steps": steps}
    card = model_card(
        manifest, "me/small-unet", licence="mit", evaluation=evaluation(), command="secateur compress org/unet",
        picture="samples.png",
    )  # fmt: skip
    front = card.split("---\n")[1]
    assert 'license: "mit"' in front
    assert 'base_model: "org/unet"' in front
    assert "# small-unet" in card
    assert "1. Pruned to 50% of the MACs, ranked by taylor: 5 units of 1 width and 1 block removed." in card
    assert "3. Fine-tuned for 1,500 steps by distillation." in card
    assert "secateur.from_pretrained('me/small-unet')" in card
    assert "5.17 ± 0.20 (worse than dense, better than pruned)" in card
    assert "![Samples of each model from the same noise](samples.png)" in card
    assert "base_model" not in model_card({**manifest, "base": {**manifest["base"], "id": "/home/me/unet"}}, "out")


def test_short_names_of_layers_still_tell_them_apart() -> None:
    names = [
        f"{side}_blocks.{block}.{name}"
        for side in ("down", "up")
        for block in range(4)
        for layer in range(3)
        for name in (
            *(f"resnets.{layer}.{conv}" for conv in ("conv1", "conv2", "conv_shortcut", "time_emb_proj")),
            *(
                f"attentions.{layer}.transformer_blocks.0.{attention}.{part}"
                for attention in ("attn1", "attn2")
                for part in ("to_q", "to_k", "to_v", "to_out.0")
            ),
        )
    ]
    short = [shorten(name) for name in names]
    assert len(set(short)) == len(names)
    assert max(map(len, short)) <= LONGEST_NAME
    assert shorten("down_blocks.0.resnets.1.conv1") == "down_….0.resne….1.conv1"
    assert shorten("x" * 30) == f"{'x' * 23}…"


def test_copies_in_other_precisions_are_not_the_final_result() -> None:
    found = evaluation()
    copies = {**found.models, "bfloat16": found.models["recovered"], "int8": found.models["pruned"]}
    assert replace(found, models=copies).final_name == "recovered"
    alone = {name: copies[name] for name in ("dense", "bfloat16")}
    assert replace(found, models=alone, comparisons=()).final_name == "bfloat16"
    assert replace(found, models={"dense": copies["dense"]}, comparisons=()).final_name == "dense"
