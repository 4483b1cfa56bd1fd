import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from secateur.base.errors import ModelError
from secateur.evaluation.networks import (
    SmallFeatures,
    feature_network,
    load_small_features,
    metric_name,
)
from secateur.evaluation.networks.inception import INCEPTION_WEIGHTS


def test_saved_features_equal_loaded_features(tmp_path: Path) -> None:
    network = SmallFeatures(3, 5, width=8)
    network.save(tmp_path / "mine")
    loaded = feature_network(tmp_path / "mine", 3, (12, 9))
    images = torch.rand(2, 3, 12, 9) * 2 - 1
    assert torch.equal(loaded(images), network(images))
    assert loaded(images).shape == (2, loaded.dim) == (2, 64)
    assert network.logits(images).shape == (2, 5)
    assert metric_name(loaded) == "FD[mine]"
    with pytest.raises(ModelError, match="takes 3 channels, the images have 1"):
        feature_network(tmp_path / "mine", 1, (8, 8))


DAMAGE: dict[str, Any] = {
    "config missing": lambda folder: (folder / "config.json").unlink(),
    "config garbage": lambda folder: (folder / "config.json").write_text("{"),
    "config list": lambda folder: (folder / "config.json").write_text("[1]"),
    "config keys": lambda folder: (folder / "config.json").write_text('{"path": 1}'),
    "config width": lambda folder: (folder / "config.json").write_text(
        '{"in_channels": 1, "num_classes": 10, "width": 16}'
    ),
    "weights missing": lambda folder: (folder / "model.safetensors").unlink(),
    "weights cut": lambda folder: (folder / "model.safetensors").write_bytes(b"123"),
}


def test_features_that_were_kept_are_classified_where_the_network_is() -> None:
    network = SmallFeatures(1, 10).to("meta")
    assert network.classify(torch.zeros(3, 64)).device.type == "meta"


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_folder_is_one_line(tmp_path: Path, case: str) -> None:
    folder = SmallFeatures(1, 10, width=8).save(tmp_path / "net")
    DAMAGE[case](folder)
    with pytest.raises(ModelError, match="holds no feature network") as caught:
        load_small_features(folder)
    assert "\n" not in str(caught.value)


class FakeInception(torch.nn.Module):
    """Stands in for torch-fidelity's class: the same constructor and call."""

    def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: Any = None) -> None:
        super().__init__()
        assert features_list == ["2048"]
        self.weights = feature_extractor_weights_path

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor]:
        assert pixels.dtype == torch.uint8
        assert pixels.shape[1] == 3
        return (pixels.float().flatten(1),)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    module = ModuleType("torch_fidelity")
    module.FeatureExtractorInceptionV3 = FakeInception  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_fidelity", module)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    return tmp_path / "checkpoints"


def test_inception_takes_bytes_of_three_channels(cache: Path) -> None:
    cache.mkdir()
    (cache / INCEPTION_WEIGHTS).touch()
    network = feature_network(None, 1, (2, 2))
    features = network(torch.tensor([[[[-1.0, 1.0], [0.0, 2.0]]]]))
    assert features.tolist() == [[0.0, 255.0, 128.0, 255.0] * 3]
    assert metric_name(network) == "FID"


def test_inception_never_downloads(cache: Path) -> None:
    with pytest.raises(ModelError, match=r"download https://.*6726825d\.pth to .*checkpoints"):
        feature_network("FID", 3, (32, 32))


def test_inception_weights_from_safetensors(cache: Path, tmp_path: Path) -> None:
    save_file({"w": torch.arange(3)}, tmp_path / "inception.safetensors")
    network: Any = feature_network(str(tmp_path / "inception.safetensors"), 3, (32, 32))
    state = torch.load(network.network.weights, weights_only=True)
    assert state["w"].tolist() == [0, 1, 2]
    with pytest.raises(ModelError, match=r"none\.safetensors is not a readable"):
        feature_network(str(tmp_path / "none.safetensors"), 3, (32, 32))


def test_inception_without_torch_fidelity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ModelError, match=r"pip install 'secateur\[eval\]'"):
        feature_network("FID", 3, (32, 32))
