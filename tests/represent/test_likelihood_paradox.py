"""Simple images are more probable than usual ones to a network that never saw any: likelihood alone is worse than chance, and complexity
and typicality repair it."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from offmap.core.detector import Detector
from offmap.datasets import local
from offmap.represent.autoencoder import AutoencoderEncoder
from offmap.represent.train.objectives import VAEPlan
from offmap.represent.train.reconstruction import train_reconstruction
from offmap.score.complexity import Complexity
from offmap.score.elbo import ELBO
from offmap.score.typicality import Typicality

pytest.importorskip("monai", reason="needs the extra [generative]")

PLAN = VAEPlan(widths=(8, 16), latent=4, steps=150, batch=16, rate=5e-3, warmup=10, check_every=75)


def gradients(count: int, *, seed: int, texture: float) -> Tensor:
    """A plane of random height and slope, with noise."""
    rng = torch.Generator().manual_seed(seed)
    height, slope = 0.3 + 0.4 * torch.rand(count, 1, 1, 1, generator=rng), 0.2 * torch.randn(count, 2, 1, 1, generator=rng)
    axis = torch.linspace(-1, 1, 16)
    plane = height + slope[:, :1] * axis.view(-1, 1) + slope[:, 1:] * axis
    return (plane + texture * torch.randn(plane.shape, generator=rng)).clamp(0, 1)


def trained(images: Tensor) -> AutoencoderEncoder:
    return AutoencoderEncoder(train_reconstruction(images, PLAN).net)


def area(detector: Detector, encoder: AutoencoderEncoder, fit: Tensor, usual: Tensor, odd: Tensor) -> float:
    """AUROC of odd images against usual ones."""
    fitted = detector.fit([encoder.encode(fit, detector.needs)])
    one, other = (fitted.score(encoder.encode(x, detector.needs)) for x in (usual, odd))
    return float((other[:, None] > one).double().mean())


def test_smooth_images_are_too_probable_and_complexity_and_typicality_say_so() -> None:
    fit, usual, odd = (gradients(n, seed=s, texture=t) for n, s, t in ((200, 0, 0.08), (50, 1, 0.08), (50, 2, 0.0)))
    encoder = trained(fit)
    areas = {d.method(): area(d, encoder, fit, usual, odd) for d in (ELBO(), Complexity(), Typicality())}
    assert areas["elbo"] < 0.2, areas
    assert areas["complexity"] > 0.95, areas
    assert areas["typicality"] > 0.8, areas


def test_blurred_ultrasound_is_too_probable_and_complexity_says_so() -> None:
    root = local.find()
    if root is None or not (root / "medmnist" / "breastmnist.npz").is_file():
        pytest.skip("breastmnist is not among the local data")
    with np.load(root / "medmnist" / "breastmnist.npz") as file:
        fit, usual = (torch.from_numpy(file[f"{part}_images"][:200])[:, None].float() / 255 for part in ("train", "test"))
    odd = functional.avg_pool2d(usual, 9, stride=1, padding=4, count_include_pad=False)
    encoder = trained(fit)
    areas = {d.method(): area(d, encoder, fit, usual, odd) for d in (ELBO(), Complexity())}
    assert areas["elbo"] < 0.35, areas
    assert areas["complexity"] > 0.9, areas
