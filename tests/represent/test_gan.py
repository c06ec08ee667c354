"""Signals of an adversarial model against a naive computation in float64, and images that do not suit it."""

import copy

import pytest
import torch
from torch import Tensor

from offmap.core.errors import BundleError, ConfigError, SignalError
from offmap.represent.gan import GANEncoder
from offmap.represent.nets.gan import AdversarialModel, GANShape

ALL = frozenset({"gan.errors", "gan.latent_error", "gan.map"})


def model(channels: int = 1, size: int = 13) -> AdversarialModel:
    """With sides that are no multiple of the stride."""
    return AdversarialModel(GANShape(size, channels, 2, (8, 16), 4), generator=torch.Generator().manual_seed(3))


def images(count: int = 5, channels: int = 1, size: int = 13) -> Tensor:
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("channels", [1, 3])
def test_signals_are_those_of_the_formula_in_float64(channels: int) -> None:
    net, x = model(channels), images(channels=channels)
    found = GANEncoder(net).encode(x, ALL)
    exact, seen = copy.deepcopy(net).double(), 2 * x.double() - 1
    with torch.no_grad():
        back = exact.generator(exact.encoder(seen))
        pixels = [float(((a - b) ** 2).sum() / a.numel()) for a, b in zip(seen, back, strict=True)]
        own, other = exact.critic.features(seen), exact.critic.features(back)
        features = [float(((a - b) ** 2).sum() / a.numel()) for a, b in zip(own, other, strict=True)]
        codes = [float(((a - b) ** 2).sum() / 4) for a, b in zip(exact.encoder(seen), exact.encoder(back), strict=True)]
    torch.testing.assert_close(found["gan.errors"].double(), torch.tensor([pixels, features], dtype=torch.float64).T, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found["gan.latent_error"].double(), torch.tensor(codes, dtype=torch.float64), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found["gan.map"].double(), (seen - back).abs().mean(dim=1, keepdim=True), rtol=1e-4, atol=1e-5)


def test_what_is_not_asked_for_is_not_given_and_one_image_is_as_in_its_batch() -> None:
    encoder, x = GANEncoder(model()), images(40)
    assert set(encoder.encode(x, frozenset({"gan.latent_error"}))) == {"gan.latent_error"}
    assert set(encoder.encode(x, frozenset({"image"}))) == {"image"}
    whole, alone = encoder.encode(x, ALL), encoder.encode(x[37:38], ALL)
    for name, value in alone.items():
        torch.testing.assert_close(whole[name][37:38], value, rtol=1e-4, atol=1e-6)


def test_grey_and_colour_suit_either_model() -> None:
    grey, colour = images(), images(channels=3)
    assert tuple(GANEncoder(model(3)).encode(grey, ALL)["gan.map"].shape) == (5, 1, 13, 13)
    assert tuple(GANEncoder(model(1)).encode(colour, ALL)["gan.map"].shape) == (5, 1, 13, 13)


@pytest.mark.parametrize("shape", [(2, 1, 13, 16), (2, 1, 4, 4), (2, 1, 26, 26), (2, 2, 13, 13), (2, 1, 13, 13, 13)])
def test_images_of_another_kind_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(SignalError, match="images of shape"):
        GANEncoder(model()).encode(torch.rand(shape), ALL)


def test_it_is_built_again_from_what_it_says_of_itself() -> None:
    encoder = GANEncoder(model())
    again = encoder.to("cpu")
    assert again.sha256 == encoder.sha256
    assert torch.equal(again.encode(images(), ALL)["gan.errors"], encoder.encode(images(), ALL)["gan.errors"])
    with pytest.raises(BundleError, match="do not fit"):
        GANEncoder.rebuilt(encoder.config(), {})
    with pytest.raises(ConfigError, match="no table net"):
        GANEncoder.rebuilt({}, encoder.state())
    with pytest.raises(ConfigError, match="makes no sense"):
        GANEncoder.rebuilt({"net": {"side": 3}}, encoder.state())


def test_weights_that_are_not_finite_are_refused() -> None:
    net = model()
    with torch.no_grad():
        net.encoder.last.bias[0] = torch.nan
    with pytest.raises(BundleError, match=r"not finite: encoder\.last\.bias"):
        GANEncoder(net)
