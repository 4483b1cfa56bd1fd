"""Distances between sets of features, against brute force, scipy and closed forms."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.spatial.distance import cdist

from secateur.base.errors import DataError
from secateur.evaluation.estimates import resample, resample_counts
from secateur.evaluation.metrics import prdc
from secateur.evaluation.metrics.frechet import basis, frechet_distance, frechet_estimate
from secateur.evaluation.metrics.inception_score import inception_score
from secateur.evaluation.metrics.kid import kernel_distance
from secateur.evaluation.metrics.per_class import diversity, per_class_scores
from secateur.evaluation.metrics.prdc import manifold_scores
from secateur.evaluation.statistics import read_statistics, statistics, write_statistics


def gaussian(count: int, dim: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def counts(size: int, resamples: int = 4) -> torch.Tensor:
    return resample_counts(size, resamples)


# ---------------------------------------------------------------------------------------------------- Fréchet


def test_frechet_of_badly_conditioned_covariances() -> None:
    scales = torch.logspace(-9, 3, 24, dtype=torch.float64)  # condition number 1e24
    rotation = torch.linalg.qr(gaussian(24, 24)).Q
    a, b = (rotation @ (scale * scales.square()).diag() @ rotation.T for scale in (1.0, 4.0))
    zero = torch.zeros(24, dtype=torch.float64)
    assert frechet_distance(zero, a, zero, b) == pytest.approx(scales.square().sum().item(), rel=1e-6)  # (2 - 1)^2
    assert frechet_distance(zero, a, zero, a) == pytest.approx(0, abs=1e-6 * scales.square().sum().item())


def test_frechet_with_fewer_samples_than_dimensions() -> None:
    a, b = gaussian(10, 30), gaussian(12, 30, 1) + 0.3
    covariance_a, covariance_b = np.cov(a.numpy().T), np.cov(b.numpy().T)
    # Of singular matrices scipy's root loses digits; the nuclear norm of the product of factors has none to lose.
    factor_a, factor_b = ((x - x.mean(0)).numpy() / math.sqrt(len(x) - 1) for x in (a, b))
    trace = np.linalg.svd(factor_a @ factor_b.T, compute_uv=False).sum()
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum().item() + np.trace(covariance_a) + np.trace(covariance_b) - 2 * trace
    assert frechet_estimate(a, statistics(b), counts(10)).value == pytest.approx(expected, rel=1e-6)
    assert not basis("FD[x]", a, statistics(b)).full_rank


def test_resampled_frechet_equals_that_of_the_repeated_images() -> None:
    a, b = gaussian(60, 5) * 2, statistics(gaussian(90, 5, 1))
    found = frechet_estimate(a, b, counts(60, 3))
    for indices, value in zip(resample(60, 3), found.replicates.tolist(), strict=True):
        drawn, covariance_b = a[indices], b.covariance.numpy()
        covariance_a = np.cov(drawn.numpy().T)
        root = np.real(sqrtm(covariance_a @ covariance_b))
        shift = ((drawn.mean(0) - b.mean) ** 2).sum().item()
        assert value == pytest.approx(shift + np.trace(covariance_a + covariance_b - 2 * root), rel=1e-7)


# ---------------------------------------------------------------------------------------------------- KID


def brute_force_kid(x: np.ndarray, y: np.ndarray) -> float:
    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return (a @ b / len(a) + 1) ** 3

    def within(z: np.ndarray) -> float:
        return np.mean([kernel(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j])

    return within(x) + within(y) - 2 * np.mean([kernel(a, b) for a in x for b in y])


def test_kernel_distance_equals_brute_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.evaluation.metrics.kid.CHUNK", 7)  # several chunks, the last one short
    x, y = gaussian(20, 4) + 0.5, gaussian(16, 4, 1)
    found = kernel_distance(x, y, counts(20, 3))
    assert found.value == pytest.approx(brute_force_kid(x.numpy(), y.numpy()), rel=1e-10)
    # A resample weighs pairs of different images by how often both were drawn.
    drawn = resample(20, 3)[1]
    kernel = ((x @ x.T / 4 + 1) ** 3)[drawn][:, drawn]
    different = drawn[:, None] != drawn[None]
    within_y = np.mean([(a @ b / 4 + 1) ** 3 for i, a in enumerate(y) for j, b in enumerate(y) if i != j])
    assert found.replicates[1].item() == pytest.approx(
        (kernel[different].mean() + within_y - 2 * ((x[drawn] @ y.T / 4 + 1) ** 3).mean()).item(), rel=1e-10
    )


def test_kernel_distance_is_unbiased() -> None:
    same = [kernel_distance(gaussian(30, 3, 2 * i), gaussian(30, 3, 2 * i + 1), counts(30)).value for i in range(60)]
    assert abs(np.mean(same)) < 3 * np.std(same) / math.sqrt(60)
    assert min(same) < 0
    shifted = kernel_distance(gaussian(3000, 1) + 1, gaussian(3000, 1, 1), counts(3000)).value
    # k(x,x') = (xx'+1)^3: 1 + 3 mu^2 + 3 (1+mu^2)^2 + (mu^3+3mu)^2 = 32 at mu 1; k(y,y') = 4; k(x,y) = 1 + 3 * 2 = 7
    assert shifted == pytest.approx(32 + 4 - 2 * 7, rel=0.15)


# ---------------------------------------------------------------------------------------------------- Inception Score


def test_inception_score_of_known_predictions() -> None:
    sure = torch.eye(5, dtype=torch.float64).repeat(20, 1) * 200
    assert inception_score(sure, counts(100), splits=1).value == pytest.approx(5)
    assert inception_score(torch.zeros(30, 5), counts(30)).value == pytest.approx(1)
    collapsed = torch.zeros(30, 5)
    collapsed[:, 2] = 200
    assert inception_score(collapsed, counts(30)).value == pytest.approx(1)


def test_inception_score_equals_brute_force() -> None:
    logits = gaussian(50, 7) * 3
    p = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(1, keepdims=True)
    parts = [p[i * 50 // 4 : (i + 1) * 50 // 4] for i in range(4)]
    expected = np.mean([np.exp((q * np.log(q / q.mean(0))).sum(1).mean()) for q in parts])
    found = inception_score(logits, counts(50, 3), splits=4)
    assert found.value == pytest.approx(expected, rel=1e-10)
    assert found.interval.std > 0


@pytest.mark.parametrize("count", [3, 10, 57, 101])
def test_part_i_of_the_inception_score_begins_at_i_n_by_ten(count: int) -> None:
    logits = gaussian(count, 20) * 3
    p, parts = logits.softmax(1), min(10, count)
    cuts = [p[i * count // parts : (i + 1) * count // parts] for i in range(parts)]
    expected = torch.stack([(cut * (cut.log() - cut.mean(0).log())).sum(1).mean().exp() for cut in cuts]).mean()
    assert inception_score(logits, counts(count)).value == pytest.approx(expected.item(), rel=1e-12)


# ---------------------------------------------------------------------------------------------------- manifolds


def test_manifold_scores_equal_brute_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prdc, "PAIRS_AT_ONCE", 100)
    x, y = gaussian(40, 3) * 0.7 + 100, gaussian(55, 3, 1) + 100  # far from the origin, where digits could be lost
    scores = manifold_scores(x, y)
    distances, within_y, within_x = cdist(x, y), np.sort(cdist(y, y)), np.sort(cdist(x, x))
    precision = [any(distances[i, j] <= within_y[j, 3] for j in range(55)) for i in range(40)]
    recall = [any(distances[i, j] <= within_x[i, 3] for i in range(40)) for j in range(55)]
    density = [sum(distances[i, j] < within_y[j, 5] for j in range(55)) / 5 for i in range(40)]
    coverage = [min(distances[:, j]) < within_y[j, 5] for j in range(55)]
    assert scores.precision_N.tolist() == precision
    assert scores.recall_M.tolist() == recall
    np.testing.assert_allclose(scores.density_N.numpy(), density)
    assert scores.coverage_M.tolist() == coverage
    assert 0 < scores.means()["recall"] < 1
    assert 0 < scores.means()["coverage"] < 1

    counts_RN = resample_counts(40, 3)
    found = manifold_scores(x, y, counts_RN).estimates(counts_RN)
    drawn = sorted(set(resample(40, 3)[2].tolist()))
    assert found["precision"].replicates[2].item() == pytest.approx(np.mean(np.array(precision)[resample(40, 3)[2]]))
    recalled = [any(distances[i, j] <= within_x[i, 3] for i in drawn) for j in range(55)]
    covered = [min(distances[drawn, j]) < within_y[j, 5] for j in range(55)]
    assert found["recall"].replicates[2].item() == pytest.approx(np.mean(recalled))
    assert found["coverage"].replicates[2].item() == pytest.approx(np.mean(covered))
    assert {name: estimate.value for name, estimate in found.items()} == pytest.approx(scores.means())


def test_manifold_scores_of_extremes() -> None:
    y = gaussian(100, 3)
    same = manifold_scores(y, y).means()
    assert (same["precision"], same["recall"], same["coverage"]) == (1, 1, 1)
    assert same["density"] == pytest.approx(1, abs=1e-12)
    apart = manifold_scores(gaussian(50, 3, 1) + 50, y).means()
    assert set(apart.values()) == {0}
    one_mode = manifold_scores(y[:1] + 1e-3 * gaussian(50, 3, 1), y).means()
    assert one_mode["precision"] == 1
    assert max(one_mode["recall"], one_mode["coverage"]) < 0.2


@pytest.mark.parametrize("chunk", [50, 2**24])
@pytest.mark.parametrize("dim", [2, 3, 40])
def test_ties_fall_as_exact_arithmetic_has_them(dim: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Repeated images are exactly on the borders of balls; points with integer coordinates have many such ties."""
    monkeypatch.setattr(prdc, "PAIRS_AT_ONCE", chunk)
    spread = 2 if dim < 40 else 0.3
    samples, real = (gaussian(90, dim, 2) * spread).round() + 7, (gaussian(100, dim, 3) * spread).round() + 7
    across, within, own = (
        (a[:, None] - b[None]).square().sum(-1) for a, b in ((samples, real), (real, real), (samples, samples))
    )
    narrow, wide = (within.sort(1).values[:, neighbours] for neighbours in (3, 5))
    reach = own.sort(1).values[:, 3]
    scores = manifold_scores(samples, real)
    assert torch.equal(scores.precision_N, (across <= narrow).any(1).double())
    assert torch.equal(scores.recall_M, (across <= reach[:, None]).any(0).double())
    assert torch.equal(scores.density_N, (across < wide).sum(1).double() / 5)
    assert torch.equal(scores.coverage_M, (across.amin(0) < wide).double())


def test_images_that_are_all_the_same_lie_on_every_border() -> None:
    same = torch.full((20, 3), 0.1, dtype=torch.float64)
    assert manifold_scores(same, same).means() == {"precision": 1, "recall": 1, "density": 0, "coverage": 0}


def test_a_collapsed_class_shows() -> None:
    real = torch.cat([gaussian(60, 4, 1), gaussian(60, 4, 2) + 20, gaussian(3, 4, 3) + 40])
    real_labels = torch.tensor([0] * 60 + [1] * 60 + [2] * 3)
    drawn = torch.cat([gaussian(50, 4, 4), 20 + 0.01 * gaussian(50, 4, 5), gaussian(50, 4, 6) + 40])
    labels = torch.tensor([0] * 50 + [1] * 50 + [2] * 50)
    good, collapsed, small = per_class_scores(drawn, labels, real, real_labels, ("a", "b", "c"))
    assert (good.name, good.samples, good.real) == ("a", 50, 60)
    assert good.diversity == pytest.approx(1, abs=0.2)
    assert good.coverage > 0.7
    assert collapsed.diversity == pytest.approx(0.01, rel=0.3)
    assert collapsed.precision == 1
    assert collapsed.coverage < 0.3
    assert (small.real, small.coverage, small.diversity) == (3, None, None)


def test_diversity_is_the_ratio_of_distances() -> None:
    x, y = gaussian(20, 3), 2 * gaussian(30, 3, 1)
    ratio = (cdist(x, x) ** 2).sum() / (20 * 19) / ((cdist(y, y) ** 2).sum() / (30 * 29))
    assert diversity(x, y) == pytest.approx(math.sqrt(ratio), rel=1e-9)


# ---------------------------------------------------------------------------------------------------- files


def test_statistics_files_in_the_layout_of_pytorch_fid(tmp_path: Path) -> None:
    found = statistics(gaussian(50, 6))
    path = write_statistics(tmp_path / "real.npz", found)
    with np.load(path) as archive:
        np.testing.assert_allclose(archive["mu"], found.mean)
        np.testing.assert_allclose(archive["sigma"], found.covariance)
    again = read_statistics(path, 6)
    assert again.count == 50
    assert frechet_estimate(gaussian(50, 6), again, counts(50)).value == pytest.approx(0, abs=1e-9)
    np.savez(tmp_path / "published.npz", mu=np.zeros(6, np.float32), sigma=np.eye(6))
    published = read_statistics(tmp_path / "published.npz", 6)
    assert published.count is None
    assert basis("FID", gaussian(50, 6), published).reference_samples is None


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"images": np.zeros(3)}, "holds no `mu` and `sigma`"),
        ({"mu": np.zeros(4), "sigma": np.eye(4)}, "the feature network gives 6 dimensions"),
        ({"mu": np.full(6, np.nan), "sigma": np.eye(6)}, "not finite"),
        (None, "not a readable .npz"),
    ],
)
def test_bad_statistics_files_are_one_line(tmp_path: Path, arrays: dict[str, np.ndarray] | None, said: str) -> None:
    path = tmp_path / "bad.npz"
    path.write_bytes(b"PK\x03\x04 not really") if arrays is None else np.savez(path, **arrays)
    with pytest.raises(DataError, match=said) as caught:
        read_statistics(path, 6)
    assert "\n" not in str(caught.value)
