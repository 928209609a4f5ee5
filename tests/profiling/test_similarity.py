"""PSNR, SSIM and MS-SSIM beside other people's implementations of them."""

import pytest
import torch
from pytorch_msssim import ms_ssim as their_ms_ssim
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from difftool.profiling.similarity import ms_ssim, psnr, ssim


def pair(*shape: int, noise: float = 0.1, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Soft random blobs, and the same with noise."""
    generator = torch.Generator().manual_seed(seed)
    blobs = torch.nn.functional.interpolate(
        torch.rand(1, shape[0], 6, 5, generator=generator), size=shape[-2:], mode="bicubic"
    )[0].clamp(0, 1)
    return blobs, (blobs + noise * torch.randn(blobs.shape, generator=generator)).clamp(0, 1)


@pytest.mark.parametrize("noise", [0.01, 0.1, 0.5])
def test_psnr_is_that_of_scikit_image(noise):
    a, b = pair(3, 40, 31, noise=noise)
    assert psnr(a, b) == pytest.approx(peak_signal_noise_ratio(a.double().numpy(), b.double().numpy(), data_range=1))


@pytest.mark.parametrize("noise", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("shape", [(3, 40, 31), (1, 11, 64)])
def test_ssim_is_that_of_scikit_image_with_the_paper_s_window(noise, shape):
    a, b = pair(*shape, noise=noise)
    theirs = structural_similarity(
        a.double().numpy(), b.double().numpy(), data_range=1, channel_axis=0,
        gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
    )  # fmt: skip
    assert ssim(a, b) == pytest.approx(theirs, abs=1e-9)


@pytest.mark.parametrize("noise", [0.05, 0.5])
@pytest.mark.parametrize("shape", [(3, 161, 200), (3, 177, 191)])
def test_ms_ssim_is_that_of_pytorch_msssim(noise, shape):
    a, b = pair(*shape, noise=noise)
    theirs = their_ms_ssim(a[None].double(), b[None].double(), data_range=1)
    assert ms_ssim(a, b) == pytest.approx(float(theirs), abs=5e-6)  # their window has single precision


def test_equal_pictures_are_alike_in_full_and_have_no_psnr():
    a, _ = pair(3, 170, 170)
    assert (psnr(a, a), ssim(a, a), ms_ssim(a, a)) == (None, 1.0, 1.0)


def test_a_video_is_as_alike_as_its_frames_are_on_average():
    first, second = pair(3, 30, 30, noise=0.1), pair(3, 30, 30, noise=0.3, seed=1)
    made, reference = (torch.stack(frames, 1) for frames in zip(first, second, strict=True))
    assert ssim(made, reference) == pytest.approx((ssim(*first) + ssim(*second)) / 2)
    flat = [frames.reshape(3, 60, 30) for frames in (made, reference)]
    assert psnr(made, reference) == pytest.approx(psnr(*flat))


def test_what_is_too_small_for_the_window_has_no_value():
    a, b = pair(3, 10, 64)
    assert ssim(a, b) is None
    a, b = pair(3, 160, 300)
    assert ms_ssim(a, b) is None
    assert ssim(a, b) is not None
