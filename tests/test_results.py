"""Results: the same after JSON, damage named by file and field, numbers as people write them, tables in notebooks."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from secateur.base.errors import SecateurError
from secateur.base.units import number_of
from secateur.results import (
    Compensation,
    CutResult,
    Decisions,
    DimCut,
    Evaluation,
    LossCurve,
    Ranking,
    Reader,
    Recorded,
    Recovery,
    Size,
    SoftStage,
    Trials,
    from_json,
    read_decisions,
    read_recovery,
    read_result,
    to_json,
    write_result,
)
from secateur.results.cut import goal_in_words
from secateur.results.numbers import format_change, format_measured, format_seconds, format_series, format_value
from secateur.results.table import Table
from secateur.results.trials import Round, Score, Search, TrialResult
from synthetic_runs import HOSTILE, evaluation

SIZES = Size(24e6, 1e6, 6_600_000), Size(12e6, 5e5, 3_300_000)
CUT = CutResult("macs=50%", "macs", 12e6, 11.9e6, 24e6, *SIZES, dims={"conv_in": DimCut(32, 16, 2)}, excluded=("x",))
RESULTS: list[Any] = [
    Ranking("taylor", {"conv_in": (1.0, 0.5)}, {"mid": 0.25}, LossCurve((5.0, 9.0), (0.4, 0.1), 1), seconds=1.5),
    CUT,
    Decisions((SoftStage(0, 1, 2, 10**6, (0, 2, 3), removed=True),)),
    Compensation({"conv_out": Reader(512, 289, 0.3, 0.02)}, 512, 0.2, 0.03, {"ridge": 0.01}, 4.2),
    Recovery(({"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.4, "jvp": 1e-5})),
    evaluation(),
    Trials(
        (TrialResult("a", "done", "taylor", score=Score(0.3, 0.01, (0.3, 0.31)), rung=0), TrialResult("b", "failed")),
        Search(("taylor",), "loss", "the loss", "time", (Round(2, 5),), 40, winner="taylor", sentences=("won",)),
    ),
]


@pytest.mark.parametrize("result", RESULTS, ids=lambda result: type(result).__name__)
def test_a_result_is_the_same_after_json_and_shows_itself(result: Any, tmp_path: Path) -> None:
    path = write_result(tmp_path / "result.json", result)
    assert read_result(type(result), path) == result
    assert to_json(result) == json.loads(path.read_text(), parse_constant=pytest.fail)
    shown = result._repr_html_()
    assert "<table>" in shown
    assert "<script>" not in shown
    assert len(str(result).splitlines()) > 1


def damaged(result: Any, **changes: Any) -> Any:
    return to_json(result) | changes


@pytest.mark.parametrize(
    ("kind", "value", "said"),
    [
        (Ranking, [], "expected `object`, got `array`"),
        (Ranking, {}, "object missing required field `criterion`"),
        (Ranking, damaged(RESULTS[0], dims=[1]), "dims: expected `object`, got `array`"),
        (Ranking, damaged(RESULTS[0], dims={"conv_in": ["a"]}), r"dims\[...\]\[0\]: expected `float`, got `str`"),
        (
            Ranking,
            damaged(RESULTS[0], curve={"timesteps": [1], "losses": [1], "used": 7}),
            "curve: a curve has as many",
        ),
        (CutResult, damaged(CUT, dims={"x": {"units": 0, "kept": 0}}), r"dims\[...\]: a dim of 0 units cannot keep 0"),
        (CutResult, damaged(CUT, before=None), "before: expected `object`, got `null`"),
        (Evaluation, damaged(evaluation(), models=["dense"]), "models: expected `object`, got `array`"),
        (Evaluation, damaged(evaluation(), models={}), "the reference 'dense' is not among the models"),
        (Evaluation, damaged(evaluation(), metrics={}), "the metric 'denoising_loss' is not described"),
        (Evaluation, damaged(evaluation(), format=2), "format: invalid enum value 2"),
        (Trials, {}, "object missing required field `trials`"),
        (Trials, {"trials": [{"name": "a", "status": "lost"}]}, r"trials\[0\].status: invalid enum value 'lost'"),
    ],
)
def test_damage_is_named_by_file_and_field(kind: type, value: Any, said: str, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps(value))
    with pytest.raises(SecateurError, match=f"result.json is damaged: {said}") as caught:
        read_result(kind, path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("read", [read_recovery, read_decisions])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b'{"step": 1}\n{"st\xffep": 2}\n', "line 2"),
        (b"[1]\n", "line 1: expected `object`, got `array`"),
        (b"{}}\n", "line 1"),
        (b"[" * 100_000 + b"\n", "line 1"),
    ],
)
def test_damaged_logs_are_named_by_line(read: Any, text: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(text)
    with pytest.raises(SecateurError, match=said) as caught:
        read(path)
    assert "log.jsonl" in str(caught.value)


def test_half_a_last_line_and_lines_of_other_kinds_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "added": {"conv_in": {}}')
    assert read_recovery(path).records == ({"step": 1.0, "loss": 0.5},)
    path.write_text('{"step": 0, "choice": "x"}\n')
    assert read_decisions(path) == Decisions()
    path.write_text('{"loss": 1.0}\n')
    with pytest.raises(SecateurError, match="line 1, is damaged: it has no step"):
        read_recovery(path)


def test_an_evaluation_is_asked_for_ratios_values_and_intervals() -> None:
    found = evaluation()
    assert found.macs.ratio == 0.5
    assert found["fd"].value == 5.17
    assert found["fd"].interval == (5.17 - 1.96 * 0.2, 5.17 + 1.96 * 0.2)
    assert found.latency["32"].ratio == 0.5
    assert found.verdict("fd", "pruned", "recovered") == "worse"  # the pair the other way round
    with pytest.raises(KeyError, match="kid was not measured; there are fd, denoising_loss"):
        found["kid"]
    assert "5.17 ± 0.20 (worse than dense, better than pruned)" in str(found)
    with pytest.raises(ValueError, match="'kid' of 'dense' is compared, and was not measured"):
        replace(found, comparisons=(replace(found.comparisons[0], metric="kid"),))


def test_a_notebook_shows_text_as_text_and_figures() -> None:
    import secateur.reporting  # noqa: F401  teaches results to draw themselves

    shown = evaluation()._repr_html_()
    assert shown.count("<svg") == 2
    assert HOSTILE not in replace(CUT, dims={HOSTILE: DimCut(2, 1)})._repr_html_()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.005, "1.005"), (0.3245, "0.3245"), (16.84, "16.8"), (2857.3, "2,860"), (999.6, "1,000"), (1.2e-5, "1.2e-5"),
        (0.0, "0"), (2.5e7, "25.0M"), (5, "5"), (99_999, "99,999"), (123_456, "123K"), (-0.5, "-0.5"), (None, "–"),
        (float("inf"), "∞"), (float("nan"), "–"), ("text", "text"),
    ],
)  # fmt: skip
def test_numbers_as_people_write_them(value: Any, text: str) -> None:
    assert format_value(value) == text


@pytest.mark.parametrize(
    ("value", "std", "text"),
    [
        (1.11, 0.001, "1.110 ± 0.001"), (41.234, 0.23, "41.23 ± 0.23"), (6.0, 1.0, "6 ± 1"), (50.0, 0.0, "50 ± 0"),
        (2860.2, 31.0, "2,860 ± 31"), (0.1234, 0.0121, "0.123 ± 0.012"), (3.14, None, "3.14"),
        (0.5, 1e-9, "0.5 ± 1e-9"),
    ],
)  # fmt: skip
def test_uncertain_numbers_have_the_digits_of_their_uncertainty(value: float, std: float | None, text: str) -> None:
    assert format_measured(value, std) == text


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("macs=50%", "50% of the MACs"), ("params=20M", "20M parameters"), ("blocks=4", "4 blocks"),
        ("blocks=1", "1 block"),
        ("latency=20ms", "20 ms a call"), ("latency=50%", "50% of the latency"),
        ("ssim=0.95", "an SSIM of 0.95"), ("loss=5%", "a loss at most 5% higher"),
    ],
)  # fmt: skip
def test_targets_in_words(target: str, words: str) -> None:
    assert goal_in_words(target) == words


def test_a_target_in_blocks_is_answered_in_blocks() -> None:
    cut = CutResult("blocks=4", "blocks", 4, 4, 6, *SIZES, removed_blocks=("a", "b"))
    assert cut.sentences()[0] == "Asked for blocks=4; 4 of 6 blocks stay."
    assert from_json(CutResult, to_json(cut), "here") == cut


def test_a_book_of_any_size_is_written_with_its_unit() -> None:
    said = ("The dense model answered 64,000 tuples in 83.3 min (6,400.00 MB).",)
    assert Recorded(64_000, 512, 6_400_000_000, 5000.0).sentences() == said
    assert Recorded(10, 2, 21_000, 0.0).sentences() == ("The dense model answered 10 tuples (0.02 MB).",)


def test_two_amounts_have_as_many_decimals_each() -> None:
    assert format_change(13.9, 8.945) == "13.90 → 8.95"
    assert format_change(190.4, 152.1) == "190 → 152"
    assert format_change(2860.4, 1512.7) == "2,860 → 1,513"
    assert format_change(0.0123, 0.00456) == "0.01230 → 0.00456"
    assert format_change(3.0, 0.0) == "3 → 0"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0284, "0.03 s"), (0.912, "0.9 s"), (8.079, "8.1 s"), (270, "4.5 min"), (144_360, "40.1 h")]
)
def test_durations_as_people_say_them(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_a_note_on_several_models_is_said_once() -> None:
    found = evaluation()
    models = {name: replace(model, notes=("too large",)) for name, model in found.models.items()}
    notes = replace(found, models=models, notes=()).all_notes()
    assert notes == ("dense, pruned, recovered: too large",)


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ((7.773, 248.1, 9.58, 7.786), ["7.773", "248", "9.580", "7.786"]),
        ((0.8507, 0.831), ["0.8507", "0.8310"]),
        ((0.07073, 0.2066), ["0.07073", "0.2066"]),
        ((2857.3, 16.84), ["2,860", "16.8"]),
        ((0.31, 0.7, 0.0), ["0.31", "0.70", "0"]),
        ((2.5e7, float("nan"), 1e-6), ["25.0M", "–", "1e-6"]),
    ],
)
def test_numbers_beside_each_other_keep_their_zeros(values: tuple[float, ...], texts: list[str]) -> None:
    assert format_series(values) == texts


def test_a_compensation_of_no_layer_has_no_table() -> None:
    found = Compensation(left={"conv_out": "it is shared"})
    assert found.tables() == {}
    assert (
        str(found)
        == "0 layers were refitted to the dense model.\n\nconv_out keeps the weights of the cut: it is shared."
    )


def test_a_table_without_rows_keeps_its_columns() -> None:
    empty = Table(("layer", "error"), ())
    assert empty.without_empty_columns() == empty


def test_a_count_of_one_is_singular() -> None:
    assert [number_of(count, "block") for count in (0, 1, 2000)] == ["0 blocks", "1 block", "2,000 blocks"]
    assert [number_of(count, "class") for count in (1, 2)] == ["1 class", "2 classes"]
    size = Size(10.0, 0.0, 10)
    cut = CutResult("blocks=1", "blocks", 1.0, 1.0, 6.0, size, size)
    assert cut.sentences()[0] == "Asked for blocks=1; 1 of 6 blocks stays."
    assert Recorded(1, 0, 10**6, 0.0).sentences() == ("The dense model answered 1 tuple (1.00 MB).",)
    assert Recovery(({"step": 1.0},)).sentences() == ("Recovered for 1 step.",)
