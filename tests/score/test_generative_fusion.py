"""The generative fusion: it is the fusion of its four parts, shows them, and tells what it lacks."""

import pytest
import torch

from offmap.core.errors import ConfigError, SignalError
from offmap.core.signals import base_of
from offmap.score.fusion import Fusion
from offmap.score.generative_fusion import GenerativeFusion
from offmap.testing import FakeEncoder

PARTS = ("reconstruction", "dose", "complexity", "gradient_norm")


def given(count: int, *, seed: int, ood: bool = False) -> dict[str, torch.Tensor]:
    found = FakeEncoder().signals(count, ood=ood, generator=torch.Generator().manual_seed(seed))
    return {name: found[base_of(name)] for name in GenerativeFusion().needs}


def test_it_is_the_recalibrated_fusion_of_four_parts() -> None:
    fit, held, test = given(120, seed=1), given(40, seed=2), given(20, seed=3, ood=True)
    own = GenerativeFusion().fit([fit], held_out=[held])
    plain = Fusion(methods=PARTS, reduce="fisher", settings=("reconstruction.measure=ssim",)).fit([fit], held_out=[held])
    assert torch.equal(own.score(test), plain.score(test))
    assert tuple(own.contributions(test)) == PARTS


def test_contributions_are_surprises_of_the_parts_in_nats() -> None:
    """Where no held-out image is as odd: at least -ln(1 / 41)."""
    fitted = GenerativeFusion().fit([given(120, seed=1)], held_out=[given(40, seed=2)])
    odd, usual = (fitted.contributions(given(200, seed=3, ood=ood)) for ood in (True, False))
    for name in PARTS:
        assert float(odd[name].min()) >= 3.7
        assert float(usual[name].min()) >= 0
        assert float(usual[name].median()) == pytest.approx(0.69, abs=0.35)


def simplified(bits: float) -> dict[str, torch.Tensor]:
    """Images that the model finds likely and restores well, with so many bits less for the compressor."""
    simple = {name: value.clone() for name, value in given(20, seed=3).items()}
    for name in ("reconstruction.ssim", "input_gradient.norm"):
        (full,) = (key for key in simple if base_of(key) == name)
        simple[full] *= 0.1
    simple["elbo.parts:samples=1"][:, 0] += 150.0
    simple["complexity.bits"] -= bits
    return simple


def test_a_simple_image_that_the_model_finds_likely_is_odd() -> None:
    """150 nats are 216 bits: the compressor saves more of them than the model."""
    fitted = GenerativeFusion().fit([given(120, seed=1)], held_out=[given(40, seed=2)])
    assert float(fitted.score(simplified(bits=270)).min()) > float(fitted.score(given(200, seed=4)).quantile(0.9))


def test_trap_without_the_parts_that_see_both_sides_it_is_usual() -> None:
    blind = GenerativeFusion(methods=("reconstruction", "gradient_norm"))
    fitted = blind.fit([given(120, seed=1)], held_out=[given(40, seed=2)])
    assert float(fitted.score(simplified(bits=270)).median()) < float(fitted.score(given(200, seed=4)).median())


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be a part"):
        Fusion(methods=("knn", "generative_fusion"))
    with pytest.raises(SignalError, match=r"needs the signals complexity\.bits"):
        GenerativeFusion().fit([{name: value for name, value in given(40, seed=1).items() if "complexity" not in name}])
