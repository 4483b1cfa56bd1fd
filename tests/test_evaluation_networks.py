"""Networks that are not ours: any torch network, timm, transformers, LPIPS and CLIP, each behind a clear message."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.base.errors import ModelError, SecateurError
from secateur.data import ArrayDataset
from secateur.evaluation.metrics.clip import clip_score, load_clip
from secateur.evaluation.metrics.lpips import ALEXNET_WEIGHTS, LPIPS, load_lpips
from secateur.evaluation.networks import feature_network, load_inception, metric_name, network_fingerprint
from secateur.evaluation.networks.inception import INCEPTION_WEIGHTS
from secateur.evaluation.networks.pretrained import IMAGENET_MEAN, IMAGENET_STD, NetworkFeatures


class Means(nn.Module):
    """The mean of every channel of the input."""

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1:] == (3, 4, 4)
        return x.mean((2, 3))


def test_any_network_sees_normalized_rgb_of_its_size() -> None:
    network = NetworkFeatures(Means(), "means", 3, (4, 4))
    grey = torch.full((2, 1, 9, 7), 0.5)
    expected = (0.75 - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    torch.testing.assert_close(network(grey), expected.expand(2, 3))
    assert network.classify(network(grey)) is None
    assert (metric_name(network), metric_name(network, "KID")) == ("FD[means]", "KID[means]")


def test_timm_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def create_model(name: str, pretrained: bool, num_classes: int) -> nn.Module:
        if name != "resnet_of_means":
            raise RuntimeError(f"Unknown model ({name})")
        assert pretrained
        assert num_classes == 0
        network = Means()
        network.num_features = 3  # type: ignore[assignment]
        network.pretrained_cfg = {"input_size": (3, 4, 4), "mean": (0.5,) * 3, "std": (0.5,) * 3}  # type: ignore[assignment]
        return network

    module = ModuleType("timm")
    module.create_model = create_model  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", module)
    network = feature_network("timm:resnet_of_means", 1, (8, 8))
    torch.testing.assert_close(network(torch.full((2, 1, 8, 8), 0.5)), torch.full((2, 3), 0.5))
    assert (network.dim, metric_name(network)) == (3, "FD[timm:resnet_of_means]")
    with pytest.raises(ModelError, match="features timm:nothing cannot be loaded"):
        feature_network("timm:nothing", 1, (8, 8))


def test_a_vision_transformer_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    transformers.Dinov2Model(config).save_pretrained(tmp_path / "dino")
    network = feature_network(f"transformers:{tmp_path / 'dino'}", 3, (16, 16))
    features = network(torch.rand(2, 3, 16, 16) * 2 - 1)
    assert features.shape == (2, network.dim) == (2, 8)
    assert metric_name(network) == "FD[dino]"
    assert not torch.equal(features[0], features[1])


@pytest.mark.parametrize("name", ["timm:vit", "transformers:facebook/dinov2-small"])
def test_missing_packages_are_one_line(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    package = name.partition(":")[0]
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModelError, match=rf"features {name} cannot be loaded \(pip install {package}\)") as caught:
        feature_network(name, 3, (32, 32))
    assert "\n" not in str(caught.value)


class FakeInception(nn.Module):
    """Stands in for torch-fidelity's class: 2048 features, and 1008 logits from them without bias."""

    def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: Any = None) -> None:
        super().__init__()
        self.fc = nn.Linear(2048, 1008)
        if feature_extractor_weights_path is not None:
            self.load_state_dict(torch.load(feature_extractor_weights_path, weights_only=True))

    def forward(self, pixels: Tensor) -> tuple[Tensor]:
        return (pixels.float().flatten(1)[:, :1].expand(-1, 2048),)


def test_inception_from_a_local_file_of_torch_fidelity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("torch_fidelity")
    module.FeatureExtractorInceptionV3 = FakeInception  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_fidelity", module)
    weights = {"fc.weight": torch.randn(1008, 2048), "fc.bias": torch.randn(1008)}
    torch.save(weights, tmp_path / INCEPTION_WEIGHTS)
    network = feature_network(str(tmp_path / INCEPTION_WEIGHTS), 3, (32, 32))
    features = network(torch.rand(2, 3, 32, 32))
    torch.testing.assert_close(network.classify(features), features @ weights["fc.weight"].T)
    assert [metric_name(network, name) for name in ("FD", "rFD", "KID", "IS")] == ["FID", "rFID", "KID", "IS"]
    (tmp_path / "bad.pth").write_bytes(b"not weights")
    with pytest.raises(ModelError, match=r"bad\.pth is not a readable \.pth file of weights"):
        load_inception(tmp_path / "bad.pth")


class Hostile:
    def __reduce__(self) -> Any:
        return print, ("unpickled",)


def test_a_hostile_file_of_weights_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = ModuleType("torch_fidelity")
    module.FeatureExtractorInceptionV3 = FakeInception  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_fidelity", module)
    torch.save({"fc.weight": Hostile()}, tmp_path / "hostile.pth")
    with pytest.raises(ModelError, match="not a readable"):
        load_inception(tmp_path / "hostile.pth")
    assert "unpickled" not in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------- LPIPS and CLIP


def test_lpips_refuses_small_images_and_latents_before_anything_is_drawn() -> None:
    for shape, said in (((1, 16, 16), "31 pixels a side, these are 16x16"), ((4, 32, 32), "these have 4")):
        data = ArrayDataset("some", shape, (), torch.zeros(4, *shape), None)
        about = SimpleNamespace(dataset=data, device="cpu")
        with pytest.raises(SecateurError, match=said):
            LPIPS.check(about)


def test_a_network_is_another_where_it_looks_at_images_otherwise() -> None:
    network = nn.Linear(2, 2)
    ours = [
        NetworkFeatures(network, "mine", 2, (8, 8)),
        NetworkFeatures(network, "mine", 2, (9, 9)),
        NetworkFeatures(network, "mine", 2, (8, 8), mean=(0.1, 0.2, 0.3)),
    ]
    assert len({network_fingerprint(each) for each in ours}) == 3
    assert network_fingerprint(ours[0]) == network_fingerprint(NetworkFeatures(network, "mine", 2, (8, 8)))


def test_lpips_of_pairs_and_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class LPIPS(nn.Module):
        def __init__(self, net: str, verbose: bool) -> None:
            super().__init__()
            assert net == "alex"

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            assert a.shape[1] == 3
            return (a - b).abs().mean((1, 2, 3), keepdim=True)

    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(ModelError, match="pip install lpips"):
        load_lpips()
    module = ModuleType("lpips")
    module.LPIPS = LPIPS  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lpips", module)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ModelError, match=rf"download https://.*{ALEXNET_WEIGHTS} to .*checkpoints"):
        load_lpips()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / ALEXNET_WEIGHTS).touch()
    found = load_lpips()(torch.zeros(2, 1, 8, 8), torch.ones(2, 1, 8, 8))
    assert found.tolist() == [1.0, 1.0]


def test_clip_score_by_hand() -> None:
    image = torch.tensor([[1.0, 0.0], [3.0, 4.0], [1.0, 0.0]])
    text = torch.tensor([[5.0, 0.0], [4.0, 3.0], [-1.0, 0.1]])
    assert clip_score(image, text).tolist() == pytest.approx([100, 96, 0])


def test_clip_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config={**sizes, "vocab_size": 10, "max_position_embeddings": 6, "eos_token_id": 9, "bos_token_id": 8},
        vision_config={**sizes, "image_size": 8, "patch_size": 4},
        projection_dim=8,
    )
    model = transformers.CLIPModel(config)
    model.save_pretrained(tmp_path / "clip")

    class Tokens(dict[str, Tensor]):
        def to(self, device: object) -> "Tokens":
            return self

    def tokenizer(prompts: list[str], **options: object) -> Tokens:
        return Tokens(input_ids=torch.tensor([[8, len(prompt), 9] for prompt in prompts]))

    monkeypatch.setattr(
        transformers, "AutoTokenizer", SimpleNamespace(from_pretrained=lambda name, **options: tokenizer)
    )
    score = load_clip(str(tmp_path / "clip"))
    found = score(torch.rand(2, 1, 20, 20) * 2 - 1, ["a", "bcd"])
    assert found.shape == (2,)
    assert ((found >= 0) & (found <= 100)).all()
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_clip(str(tmp_path / "nothing"))
