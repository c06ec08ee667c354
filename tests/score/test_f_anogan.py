"""f-AnoGAN: the two errors of its formula, and where it is turned round."""

import numpy as np
import pytest
import torch

from offmap.core.errors import ConfigError, SignalError
from offmap.represent.gan import GANEncoder
from offmap.represent.nets.gan import AdversarialModel, GANShape
from offmap.score.f_anogan import FAnoGAN

ERRORS = torch.rand(20, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("kappa", [0.0, 1.0, 2.5])
def test_it_is_the_sum_of_both_errors(kappa: float) -> None:
    fitted = FAnoGAN(kappa=kappa).fit([{"gan.errors": ERRORS}])
    expected = [pixels + kappa * features for pixels, features in ERRORS.tolist()]
    np.testing.assert_allclose(fitted.score({"gan.errors": ERRORS}).numpy(), expected, rtol=1e-6)


def test_the_map_is_the_signal() -> None:
    maps = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    fitted = FAnoGAN().fit([{"gan.errors": ERRORS}])
    torch.testing.assert_close(fitted.map({"gan.map": maps}), maps[:, 0])


def test_trap_a_smooth_odd_image_looks_more_usual_than_a_usual_one_rich_in_detail() -> None:
    """A generator that makes nothing but grey: a blank image scores less than any with grain, odd or not."""
    model = AdversarialModel(GANShape(16, widths=(8,), latent=4))
    with torch.no_grad():
        for value in model.generator.parameters():
            value.zero_()
    rng = torch.Generator().manual_seed(0)
    grain = (0.5 + 0.2 * torch.randn(20, 1, 16, 16, generator=rng)).clamp(0, 1)
    blank = torch.full((1, 1, 16, 16), 0.55)
    encoder, needs = GANEncoder(model), frozenset({"gan.errors"})
    fitted = FAnoGAN().fit([encoder.encode(grain, needs)])
    assert float(fitted.score(encoder.encode(blank, needs))) < float(fitted.score(encoder.encode(grain, needs)).min())


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"kappa = -1\.0"):
        FAnoGAN(kappa=-1.0)
    with pytest.raises(SignalError, match=r"\(20, 3\) must be \(N, 2\)"):
        FAnoGAN().fit([{"gan.errors": torch.zeros(20, 3)}])
