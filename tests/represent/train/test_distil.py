"""A student ranks images as its teacher does."""

import math

import pytest
import torch
from scipy.stats import spearmanr
from tests.represent.train.test_diffusion import blobs
from torch import Tensor

from offmap.core.errors import BundleError, ConfigError, DataError, SignalError
from offmap.core.trainer import Examples
from offmap.represent.nets.student import Student, StudentShape
from offmap.represent.student import StudentEncoder
from offmap.represent.train.distil import distil, given, lesson_of, rank_correlation, varied
from offmap.represent.train.judged import Schedule
from offmap.represent.trainers.student import DistilledDiffusion

SHAPE, PLAN = StudentShape(widths=(8, 16)), Schedule(steps=250, batch=32, rate=5e-3, warmup=10, check_every=50)


def pictures(count: int = 60, side: int = 16, seed: int = 0) -> Tensor:
    """Spots with more or less noise."""
    rng = torch.Generator().manual_seed(seed)
    noise = (0.02 + 0.1 * torch.rand(count, 1, 1, 1, generator=rng)) * torch.randn(count, 1, side, side, generator=rng)
    return (blobs(count, side) + noise).clamp(0, 1)


def rough(images: Tensor) -> Tensor:
    """A teacher that is known: how much neighbours differ."""
    return images.double().diff(dim=-1).square().flatten(1).mean(dim=1)


def test_a_student_ranks_like_its_teacher_on_images_of_neither_part() -> None:
    images = pictures(200)
    found = distil(rough, images[40:], images[:40], SHAPE, PLAN)
    assert found.agreement > 0.8
    assert found.usual > 0.8
    new = lesson_of(rough, pictures(40, seed=9), (0.0, 1.0), 3, seed=77)
    mine = given(found.net, new.images, torch.device("cpu"))
    assert rank_correlation(mine, rough((new.images + 1) / 2).float()) > 0.8


def test_rank_correlation_is_that_of_scipy() -> None:
    a, b = torch.rand(30), torch.rand(30).round(decimals=1)
    assert rank_correlation(a, b) == pytest.approx(spearmanr(a.numpy(), b.numpy()).statistic)
    assert rank_correlation(a, torch.ones(30)) == 0.0


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 16, 16), (1, 8, 8, 8)])
def test_variants_are_pictures_of_the_same_shape(shape: tuple[int, ...]) -> None:
    import numpy as np

    image, other = (torch.rand(shape, generator=torch.Generator().manual_seed(i)) for i in range(2))
    for kind in range(6):
        drawn = varied(image, other, kind, np.random.default_rng(kind))
        assert drawn.shape == image.shape
        assert 0 <= float(drawn.min()) <= float(drawn.max()) <= 1
        assert not torch.equal(drawn, image)


def test_a_teacher_that_says_nothing_or_nonsense_is_refused() -> None:
    with pytest.raises(DataError, match="the same score"):
        distil(lambda x: torch.zeros(len(x)), pictures(20), pictures(8), SHAPE, PLAN)
    with pytest.raises(SignalError, match="not finite in rows"):
        distil(lambda x: torch.full((len(x),), math.nan), pictures(20), pictures(8), SHAPE, PLAN)
    with pytest.raises(DataError, match="four of each"):
        distil(rough, pictures(20), pictures(2), SHAPE, PLAN)


def test_the_encoder_gives_a_map_whose_mean_is_the_score() -> None:
    own = StudentEncoder(Student(SHAPE), 16)
    found = own.encode(pictures(4), frozenset({"student.score", "student.map"}))
    assert found["student.map"].shape == (4, 1, 4, 4)
    torch.testing.assert_close(found["student.score"], found["student.map"].flatten(1).mean(dim=1))
    again = StudentEncoder.rebuilt(own.config(), own.state())
    assert again.sha256 == own.sha256
    with pytest.raises(BundleError, match="do not fit"):
        StudentEncoder.rebuilt(own.config(), {})
    with pytest.raises(SignalError, match="at least 4 pixels"):
        own.encode(torch.rand(1, 1, 3, 9), frozenset({"student.score"}))
    volumes = StudentEncoder(Student(StudentShape(axes=3, widths=(8, 8))), 8)
    assert volumes.encode(torch.rand(2, 1, 8, 8, 8), frozenset({"student.map"}))["student.map"].shape == (2, 1, 2, 2, 2)


def test_a_diffusion_model_is_distilled() -> None:
    pytest.importorskip("monai", reason="needs the extra [generative]")
    pytest.importorskip("einops", reason="needs the extra [generative]")
    trainer = DistilledDiffusion(
        size=8, widths=(8, 16), steps=20, batch=8, warmup=2, check_every=10, student_widths=(8,), student_steps=40, variants=1
    )
    found = trainer.train(Examples(pictures(24, 8), None, torch.arange(6)), seed=0, device=torch.device("cpu"))
    assert -1 <= found.facts["rank_correlation_with_teacher"] <= 1
    assert found.facts["kept_step"] in (10, 20)
    assert trainer.open(0, found.state, device=torch.device("cpu")).provides == {"student.score", "student.map", "image"}
    with pytest.raises(ConfigError, match="variants = 0"):
        DistilledDiffusion(variants=0)
    with pytest.raises(ConfigError, match="less than the student's stride"):
        DistilledDiffusion(size=8, widths=(8, 16), student_widths=(8, 8, 8, 8))
