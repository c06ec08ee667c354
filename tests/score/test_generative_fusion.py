"""The generative fusion: it is the fusion of its four parts, shows them, and tells what it lacks."""

import pytest
import torch

from offmap.core.errors import ConfigError, SignalError
from offmap.core.signals import base_of
from offmap.score.fusion import Fusion
from offmap.score.generative_fusion import GenerativeFusion
from offmap.testing import FakeEncoder

PARTS = ("reconstruction", "latent_distance", "likelihood_ratio", "gradient_norm")


def given(count: int, *, seed: int, ood: bool = False) -> dict[str, torch.Tensor]:
    found = FakeEncoder().signals(count, ood=ood, generator=torch.Generator().manual_seed(seed))
    return {name: found[base_of(name)] for name in GenerativeFusion().needs}


def test_it_is_the_recalibrated_fusion_of_four_parts() -> None:
    fit, held, test = given(120, seed=1), given(40, seed=2), given(20, seed=3, ood=True)
    own = GenerativeFusion().fit([fit], held_out=[held])
    plain = Fusion(methods=PARTS, reduce="fisher").fit([fit], held_out=[held])
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


def test_trap_parts_that_are_all_turned_round_call_a_simple_image_usual() -> None:
    fit, held = given(120, seed=1), given(40, seed=2)
    simple = {name: (value if name == "latent.code" else value.clone()) for name, value in given(20, seed=3).items()}
    simple["reconstruction.l2"] = 0.1 * simple["reconstruction.l2"]
    simple["elbo.parts:samples=1"][:, 0] += 150.0
    (gradient,) = (name for name in simple if base_of(name) == "input_gradient.norm")
    simple[gradient] = 0.1 * simple[gradient]
    fitted = GenerativeFusion().fit([fit], held_out=[held])
    assert float(fitted.score(simple).median()) < float(fitted.score(given(200, seed=4)).median())


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be a part"):
        Fusion(methods=("knn", "generative_fusion"))
    with pytest.raises(SignalError, match=r"needs the signals elbo\.background"):
        GenerativeFusion().fit([{name: value for name, value in given(40, seed=1).items() if "background" not in name}])
