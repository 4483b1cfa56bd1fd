"""Allowed values of settings: annotated types and rules, names checked in Python, one line for everything else."""

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

import pytest

import secateur
from secateur import EvaluationConfig, RecoveryConfig, ScoringConfig, TrialConfig, WarmupConfig
from secateur.base.devices import choose_device
from secateur.base.errors import SecateurError
from secateur.base.rules import ONE_OR_MORE, Count, Seed, above, check, check_fields, checked, within
from secateur.recovery import JacobianConfig
from secateur.schedules import AdaptiveConfig, CutConfig, ProgressiveConfig

HUGE = 10**30


@dataclass(frozen=True)
class Example:
    steps: Count = 1
    seed: Seed = 0
    rate: Annotated[float, above(0)] | None = None
    share: Annotated[float, within(0, 1)] = 0.5
    kind: Literal["constant", "cosine"] = "constant"
    names: Annotated[tuple[Literal["a", "b"], ...], ONE_OR_MORE] = ("a",)
    pair: tuple[float, float] = (0.0, 1.0)
    weights: dict[str, float] = field(default_factory=dict)
    flag: bool = False

    def __post_init__(self) -> None:
        check_fields("example", self)


def test_what_the_rules_allow():
    Example(steps=3, seed=2**63 - 1, rate=1, share=0, names=("b", "a"), pair=(1, 2), weights={"x": 1}, flag=True)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"steps": 0}, "example steps is 0; give at least 1"),
        ({"steps": 1.5}, "example steps is 1.5; give a whole number below 2^63"),
        ({"steps": True}, "example steps is True; give a whole number below 2^63"),
        ({"steps": "3"}, "example steps is '3'; give a whole number below 2^63"),
        ({"steps": HUGE}, f"example steps is {HUGE}; give a whole number below 2^63"),
        ({"seed": -1}, "example seed is -1; give a whole number from 0 to below 2^63"),
        ({"seed": 2**64}, f"example seed is {2**64}; give a whole number below 2^63"),
        ({"rate": 0.0}, "example rate is 0.0; give more than 0, or none"),
        ({"rate": math.inf}, "example rate is inf; give a finite number, or none"),
        ({"share": math.nan}, "example share is nan; give a finite number"),
        ({"share": 1.1}, "example share is 1.1; give a number from 0 to 1"),
        ({"kind": "cosin"}, "example kind is 'cosin'; did you mean cosine? give constant or cosine"),
        ({"kind": 3}, "example kind is 3; give constant or cosine"),
        ({"names": ()}, "example names is (); give one or more"),
        ({"names": ("a", "c")}, "example names is ('a', 'c'); give a or b"),
        ({"names": "a"}, "example names is 'a'; give a tuple"),
        ({"pair": (1.0,)}, "example pair is (1.0,); give 2 values"),
        ({"pair": (1.0, math.nan)}, "example pair is (1.0, nan); give a finite number"),
        ({"weights": {"x": math.inf}}, "example weights is {'x': inf}; give a finite number"),
        ({"weights": [1]}, "example weights is [1]; give numbers by name"),
        ({"flag": "yes"}, "example flag is 'yes'; give True or False"),
    ],
)
def test_values_that_a_rule_refuses_have_one_line(given, said):
    with pytest.raises(SecateurError) as raised:
        Example(**given)
    assert str(raised.value) == said


def test_a_long_value_is_shortened():
    with pytest.raises(SecateurError) as raised:
        check("name", "x" * 10_000, int)
    assert len(str(raised.value)) < 100


def test_the_arguments_of_a_function_are_checked_before_it_begins():
    @checked
    def function(kind: Literal["one", "two"] = "one", *, count: Count = 1) -> int:
        """Documented."""
        return count

    assert function("two", count=3) == 3
    assert function.__doc__ == "Documented."
    with pytest.raises(SecateurError, match="did you mean two"):
        function("tow")
    with pytest.raises(SecateurError, match="count is 0; give at least 1"):
        function(count=0)


CONFIGS = (
    RecoveryConfig,
    WarmupConfig,
    ScoringConfig,
    EvaluationConfig,
    TrialConfig,
    JacobianConfig,
    ProgressiveConfig,
    AdaptiveConfig,
    CutConfig,
)


@pytest.mark.parametrize("config", CONFIGS)
def test_no_field_of_any_config_takes_what_is_out_of_range(config):
    for name, default in vars(config()).items():
        if isinstance(default, bool) or not isinstance(default, int | float):
            continue
        for value in (math.nan, math.inf, -math.inf, 10**400, "cosine", *([2**64, -1] if type(default) is int else [])):
            with pytest.raises(SecateurError, match=name):
                config(**{name: value})


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: secateur.rank("nowhere", data="digits", out="out", process="ddpn"),
        lambda: secateur.prune("nowhere", data="digits", out="out", target="50%", component="une"),
        lambda: secateur.compress("nowhere", data="digits", out="out", target="50%", schedule="one-shoot"),
        lambda: secateur.export("nowhere", out="out", format="onx"),
        lambda: RecoveryConfig(lr_schedule="cosin"),
        lambda: CutConfig(granularity="widht"),
        lambda: EvaluationConfig(metrics=("frechett",)),
    ],
)
def test_names_are_checked_in_python_with_the_nearest_one(wrong, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SecateurError, match=r"did you mean (ddpm|unet|one-shot|onnx|cosine|width|frechet)"):
        wrong()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["meta", "cuda:99", "xla", "hpu", "mtia", "privateuseone", "nonsense", ""])
def test_a_device_that_cannot_compute_is_one_line(name):
    with pytest.raises(SecateurError, match="there is no device") as raised:
        choose_device(name)
    assert repr(name) in str(raised.value)
    assert "\n" not in str(raised.value)
