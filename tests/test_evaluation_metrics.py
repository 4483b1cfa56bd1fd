from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.ndimage import correlate
from torch._subclasses.fake_tensor import FakeTensorMode

from secateur.base.errors import DataError
from secateur.evaluation.estimates import resample_counts
from secateur.evaluation.metrics.consistency import mse, psnr, ssim
from secateur.evaluation.metrics.frechet import basis, frechet_distance, frechet_estimate
from secateur.evaluation.metrics.ms_ssim import ms_ssim
from secateur.evaluation.statistics import FeatureStatistics, statistics


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def gaussian(count: int, dim: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def frechet(features_a: torch.Tensor, features_b: torch.Tensor) -> float:
    a, b = statistics(features_a), statistics(features_b)
    return frechet_distance(a.mean, a.covariance, b.mean, b.covariance)


def reference_ssim(a: np.ndarray, b: np.ndarray, size: int) -> float:
    """Wang et al. 2004 with a full two-dimensional window, by scipy; images (H, W) in [0, 1]."""
    offsets = np.arange(size) - size // 2
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    inside = slice(size // 2, -(size // 2))

    def local(x: np.ndarray) -> np.ndarray:
        return correlate(x, window)[inside, inside]

    mean_a, mean_b = local(a), local(b)
    luminance = (2 * mean_a * mean_b + 0.01**2) / (mean_a**2 + mean_b**2 + 0.01**2)
    contrast = (2 * (local(a * b) - mean_a * mean_b) + 0.03**2) / (
        local(a * a) - mean_a**2 + local(b * b) - mean_b**2 + 0.03**2
    )
    return float((luminance * contrast).mean())


@pytest.mark.parametrize(("height", "width", "size"), [(24, 17, 11), (8, 8, 7), (9, 30, 9)])
def test_ssim_equals_an_independent_implementation(height: int, width: int, size: int) -> None:
    a = images(3, 2, height, width)
    b = (a + 0.4 * images(3, 2, height, width, seed=1)).clamp(-1, 1)
    pairs = ((a + 1) / 2).double().numpy(), ((b + 1) / 2).double().numpy()
    expected = [
        np.mean([reference_ssim(x, y, size) for x, y in zip(xs, ys, strict=True)])
        for xs, ys in zip(*pairs, strict=True)
    ]
    np.testing.assert_allclose(ssim(a, b).numpy(), expected, rtol=1e-6)
    np.testing.assert_allclose(ssim((a + 1) / 2, (b + 1) / 2, (0, 1)).numpy(), expected, rtol=1e-5)


def test_ssim_of_equal_and_of_inverted_images() -> None:
    a = images(2, 1, 16, 16)
    torch.testing.assert_close(ssim(a, a), torch.ones(2, dtype=torch.float64))
    assert ssim(a, -a).max() < 0


@pytest.mark.parametrize("metric", [mse, psnr, ssim, ms_ssim])
def test_float64_is_of_the_cpu_where_the_device_has_none(
    metric: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> None:
    with FakeTensorMode():  # of an accelerator that need not be there
        image = torch.zeros(2, 3, 176, 176, device="mps")
        found = metric(image, image)
    assert (found.device.type, found.dtype, found.shape) == ("cpu", torch.float64, (2,))


def test_mse_and_psnr_by_hand() -> None:
    a, b = torch.zeros(2, 1, 4, 4), torch.full((2, 1, 4, 4), 0.2)
    b[1] = 0
    torch.testing.assert_close(mse(a, b), torch.tensor([0.04, 0.0], dtype=torch.float64), atol=1e-7, rtol=0)
    assert psnr(a, b)[0].item() == pytest.approx(20.0, abs=1e-5)
    assert psnr(a, b, (0, 1))[0].item() == pytest.approx(13.9794, abs=1e-4)
    assert psnr(a, b)[1].item() == float("inf")


def test_frechet_closed_forms() -> None:
    mean, identity = torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
    assert frechet_distance(mean, identity, mean, identity) == pytest.approx(0, abs=1e-12)
    assert frechet_distance(mean, identity, mean + 2, identity) == pytest.approx(12)
    spread = torch.tensor([1.0, 4.0, 9.0], dtype=torch.float64).diag()
    assert frechet_distance(mean, identity, mean, spread) == pytest.approx(0 + 1 + 4)  # (sigma_a - sigma_b)^2


def test_frechet_equals_the_matrix_root_of_scipy() -> None:
    a, b = gaussian(200, 6) @ gaussian(6, 6, 5), gaussian(150, 6, 1) + 0.5
    covariance_a, covariance_b = np.cov(a.numpy().T), np.cov(b.numpy().T)
    root = np.real(sqrtm(covariance_a @ covariance_b))
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum().item() + np.trace(covariance_a + covariance_b - 2 * root)
    assert frechet(a, b) == pytest.approx(expected, rel=1e-8)
    assert frechet(b, a) == pytest.approx(expected, rel=1e-8)


def test_frechet_of_rank_deficient_features() -> None:
    a = gaussian(5, 40)
    assert frechet(a, a) == pytest.approx(0, abs=1e-6)
    flat = a.clone()
    flat[:, 20:] = 0
    mean, covariance = flat.mean(0), torch.cov(flat.T)
    assert frechet_distance(mean, covariance, mean, covariance * 4) == pytest.approx(
        covariance.trace().item(), rel=1e-6
    )


def test_statistics_of_a_stream() -> None:
    features = gaussian(100, 7) * 3 + 1e4  # a large offset: naive sums of squares would lose digits
    stream = FeatureStatistics(7)
    for chunk in features.split(9):
        stream.update(chunk)
    assert stream.count == 100
    torch.testing.assert_close(stream.mean, features.mean(0))
    torch.testing.assert_close(stream.covariance, torch.cov(features.T), rtol=1e-9, atol=1e-9)


def test_bootstrap_spread_shrinks_with_the_number_of_images() -> None:
    reference = statistics(gaussian(4000, 4, 9))
    few, many, again = (
        frechet_estimate(gaussian(count, 4), reference, resample_counts(count, 50)).interval.std
        for count in (50, 3000, 50)
    )
    assert 0 < many < few / 2
    assert again == few


def test_fidelity_says_when_images_are_too_few() -> None:
    reference = statistics(gaussian(100, 8))
    assert basis("FD[x]", gaussian(50, 8, 1), reference).full_rank
    assert not basis("FD[x]", gaussian(8, 8, 1), reference).full_rank
    with pytest.raises(DataError, match="at least 2 images"):
        frechet_estimate(gaussian(1, 8), reference, resample_counts(1, 10))


def reference_ms_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Wang et al. 2003 by scipy, images (H, W) in [0, 1]: contrast at four scales, all of it at the fifth."""
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()

    def local(x: np.ndarray) -> np.ndarray:
        return correlate(x, window)[5:-5, 5:-5]

    product = 1.0
    for scale, weight in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
        mean_a, mean_b = local(a), local(b)
        contrast = (2 * (local(a * b) - mean_a * mean_b) + 0.03**2) / (
            local(a * a) - mean_a**2 + local(b * b) - mean_b**2 + 0.03**2
        )
        luminance = (2 * mean_a * mean_b + 0.01**2) / (mean_a**2 + mean_b**2 + 0.01**2)
        product *= max(0, (contrast * (luminance if scale == 4 else 1)).mean()) ** weight
        a, b = (np.pad(x, [(0, size % 2) for size in x.shape], "symmetric") for x in (a, b))
        a, b = (x.reshape(x.shape[0] // 2, 2, x.shape[1] // 2, 2).mean((1, 3)) for x in (a, b))
    return product


def test_ms_ssim_equals_an_independent_implementation() -> None:
    a = images(2, 2, 161, 190)
    b = (a + 0.3 * images(2, 2, 161, 190, seed=1)).clamp(-1, 1)
    pairs = ((a + 1) / 2).double().numpy(), ((b + 1) / 2).double().numpy()
    expected = [
        np.mean([reference_ms_ssim(x, y) for x, y in zip(xs, ys, strict=True)]) for xs, ys in zip(*pairs, strict=True)
    ]
    np.testing.assert_allclose(ms_ssim(a, b).numpy(), expected, rtol=1e-6)
    torch.testing.assert_close(ms_ssim(a, a), torch.ones(2, dtype=torch.float64))
    with pytest.raises(DataError, match="needs images of 161 pixels a side or more, these are 160x200; use SSIM"):
        ms_ssim(*[images(1, 1, 160, 200)] * 2)
