"""GANomaly: the error between two codes."""

import copy

import pytest
import torch

from offmap.core.errors import SignalError
from offmap.represent.gan import GANEncoder
from offmap.represent.nets.gan import AdversarialModel, GANShape
from offmap.score.ganomaly import GANomaly

NEEDS = frozenset({"gan.latent_error"})


def test_it_is_the_mean_squared_difference_of_the_codes() -> None:
    model = AdversarialModel(GANShape(8, widths=(8,), latent=3), generator=torch.Generator().manual_seed(2))
    x = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    encoder, exact = GANEncoder(model), copy.deepcopy(model).double()
    with torch.no_grad():
        first = exact.encoder(2 * x.double() - 1)
        second = exact.encoder(exact.generator(first))
    expected = [sum((a - b) ** 2 for a, b in zip(*pair, strict=True)) / 3 for pair in zip(first.tolist(), second.tolist(), strict=True)]
    signals = encoder.encode(x, NEEDS)
    torch.testing.assert_close(GANomaly().fit([signals]).score(signals).double(), torch.tensor(expected).double(), rtol=1e-4, atol=1e-6)


def test_trap_an_odd_image_with_a_usual_code_is_not_seen() -> None:
    """An encoder that looks at nothing gives every image one code."""
    model = AdversarialModel(GANShape(8, widths=(8,), latent=3))
    with torch.no_grad():
        model.encoder.last.weight.zero_()
    signals = GANEncoder(model).encode(torch.cat([torch.zeros(1, 1, 8, 8), torch.rand(1, 1, 8, 8)]), NEEDS)
    assert GANomaly().fit([signals]).score(signals).tolist() == [0.0, 0.0]


def test_a_signal_of_another_shape_is_refused() -> None:
    with pytest.raises(SignalError, match=r"\(4, 2\) must be \(N,\)"):
        GANomaly().fit([{"gan.latent_error": torch.zeros(4, 2)}])
