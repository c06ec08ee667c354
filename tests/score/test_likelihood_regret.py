"""Likelihood regret: the signal itself, and a model for which it is known in closed form."""

import math

import pytest
import torch

from offmap.core.errors import ConfigError, SignalError
from offmap.represent.elbo_slopes import elbo_regret
from offmap.represent.likelihood import quantised
from offmap.represent.nets.autoencoder import VAE, AutoencoderShape, autoencoder
from offmap.score.likelihood_regret import LikelihoodRegret

NAME = "elbo.regret:rate=0.03,samples=8,steps=100"


def test_it_is_the_signal() -> None:
    values = torch.rand(9, generator=torch.Generator().manual_seed(0))
    detector = LikelihoodRegret()
    assert detector.needs == {NAME}
    assert torch.equal(detector.fit([{NAME: values}]).score({NAME: values}), values)


class Blank(VAE):
    """A decoder that makes one grey of every code: only the divergence can fall, to 0."""

    def decode(self, code: torch.Tensor) -> torch.Tensor:
        grey: torch.Tensor = 0.5 + 0.0 * code.sum(dim=1).view(-1, 1, 1, 1).expand(-1, 1, *self.shape.sides)
        return grey


def test_for_a_decoder_that_is_blind_it_is_the_divergence_of_the_encoders_posterior() -> None:
    pytest.importorskip("monai", reason="needs the extra [generative]")
    model = autoencoder(AutoencoderShape("vae", 1, (6, 6), (8,), 2), generator=torch.Generator().manual_seed(3)).eval()
    model.__class__ = Blank
    assert isinstance(model, VAE)
    with torch.no_grad():
        model.heads[0].bias.fill_(0.7)
    x = torch.rand(4, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    mean, log_variance = (part.detach().double() for part in model.encode(quantised(x)))
    expected = [
        sum(0.5 * (m * m + math.exp(v) - 1 - v) for m, v in zip(*rows, strict=True))
        for rows in zip(mean.tolist(), log_variance.tolist(), strict=True)
    ]
    found = elbo_regret(model, x, {"steps": 100, "rate": 0.05, "samples": 1}, NAME)
    torch.testing.assert_close(found.double(), torch.tensor(expected).double(), rtol=0.01, atol=1e-3)


def test_trap_an_image_that_the_decoder_cannot_make_has_no_more_regret_than_one_that_it_can() -> None:
    """The blind decoder again: white noise and its own grey differ in likelihood, not in regret."""
    pytest.importorskip("monai", reason="needs the extra [generative]")
    model = autoencoder(AutoencoderShape("vae", 1, (6, 6), (8,), 2), generator=torch.Generator().manual_seed(3)).eval()
    model.__class__ = Blank
    with torch.no_grad():
        model.heads[0].weight.zero_()
        model.heads[1].weight.zero_()
    x = torch.stack([torch.full((1, 6, 6), 0.5), torch.rand(1, 6, 6, generator=torch.Generator().manual_seed(0))])
    grey, noise = elbo_regret(model, x, {"steps": 100, "rate": 0.03, "samples": 1}, NAME).tolist()
    assert grey == pytest.approx(noise, abs=1e-3)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"rate": 0.0}, {"samples": 0}])
def test_values_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="likelihood_regret"):
        LikelihoodRegret(**wrong)  # type: ignore[arg-type]


def test_a_signal_of_another_shape_is_refused() -> None:
    with pytest.raises(SignalError, match=r"must be \(N,\)"):
        LikelihoodRegret().fit([{NAME: torch.zeros(4, 2)}])
