"""Images mixed with proxies: what is mixed, that it follows from the image, and that scoring costs nothing."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from offmap.core.errors import ConfigError
from offmap.represent.classifier import ClassifierEncoder
from offmap.represent.encoder import BuiltinEncoder
from offmap.represent.layers import LUMA
from offmap.represent.proxy import PREFIX, WithProxies, phantom, with_proxies, without_proxies
from offmap.represent.slices import SliceWise
from offmap.simulate.phantoms import draw

NEEDS = frozenset({"features.last", "proxy_features.last"})


@pytest.fixture(scope="module")
def encoder() -> BuiltinEncoder:
    return BuiltinEncoder.shipped(size=64)


def images(count: int = 6, *, channels: int = 1, side: int = 64) -> Tensor:
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(1))


def test_proxy_features_are_those_of_the_mixed_images(encoder: BuiltinEncoder) -> None:
    proxied, x = WithProxies(encoder), images()
    signals = proxied.encode(x, NEEDS)
    assert set(signals) == NEEDS
    torch.testing.assert_close(signals["features.last"], encoder.encode(x, NEEDS)["features.last"])
    expected = encoder.encode(proxied.mixed(x), frozenset({"features.last"}))["features.last"]
    torch.testing.assert_close(signals["proxy_features.last"], expected)
    assert set(proxied.provides - encoder.provides) == {PREFIX + n for n in encoder.provides if n.startswith("features.")}
    assert set(proxied.encode(x, frozenset({"proxy_features.*"}))) == proxied.provides - encoder.provides


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("family", ["page", "scene"])
def test_the_mix_is_a_share_of_the_image_and_the_rest_of_a_phantom(encoder: BuiltinEncoder, channels: int, family: str) -> None:
    x = images(12, channels=channels)
    for image, mixed in zip(x, WithProxies(encoder, [family]).mixed(x), strict=True):
        found = []
        for share in (0.25, 0.5, 0.75):
            for index in range(16):
                planes = phantom(family, index, 64, 64)
                grey = planes if len(planes) == 1 else torch.tensordot(torch.tensor(LUMA), planes, dims=1)[None]
                proxy = grey if channels == 1 else planes.expand(3, -1, -1)
                if torch.allclose(mixed, share * image + (1 - share) * proxy, atol=1e-6):
                    found.append((share, index))
        assert len(found) == 1


def test_a_phantom_is_the_drawn_picture(encoder: BuiltinEncoder) -> None:
    np.testing.assert_allclose(phantom("page", 3, 128, 128)[0].numpy(), draw("page", 3, seed=0, size=128) / 255, atol=1e-6)


def test_the_proxy_follows_from_the_image_alone(encoder: BuiltinEncoder) -> None:
    for sources in ((), ("noise", "blur", "brain")):
        proxied, x = WithProxies(encoder, sources), images(8)
        whole = proxied.mixed(x)
        assert torch.equal(whole, proxied.to("cpu").mixed(x))
        assert torch.equal(whole.flip(0), proxied.mixed(x.flip(0)))
        assert torch.equal(whole[5:6], proxied.mixed(x[5:6]))
        assert 0 <= float(whole.min()) <= float(whole.max()) <= 1
    assert len({float((a - b).mean()) for a, b in zip(whole, x, strict=True)}) == 8


def test_a_corrupted_copy_stays_near_the_image(encoder: BuiltinEncoder) -> None:
    smooth = torch.linspace(0, 1, 64).expand(4, 1, 64, 64)
    noisy = WithProxies(encoder, ["noise"]).mixed(smooth)
    assert 0.005 < float((noisy - smooth).abs().mean()) < 0.15


def test_volumes_are_mixed_slice_by_slice(encoder: BuiltinEncoder) -> None:
    x = torch.rand(2, 1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    for source in ("waves", "blur"):
        proxied = WithProxies(SliceWise(encoder), [source])
        assert proxied.mixed(x).shape == x.shape
        signals = proxied.encode(x, NEEDS)
        assert signals["proxy_features.last"].shape == signals["features.last"].shape
    flat = WithProxies(encoder, ["waves"]).mixed(torch.full((1, 1, 3, 64, 64), 0.5))
    torch.testing.assert_close(flat[:, :, 0], flat[:, :, 2])


def test_any_encoder_takes_it_and_only_where_it_is_asked_for(encoder: BuiltinEncoder) -> None:
    assert with_proxies(encoder, {"features.*", "label"}) is encoder
    wrapped = with_proxies(encoder, NEEDS, ["skin"])
    assert isinstance(wrapped, WithProxies)
    assert wrapped.sources == ("skin",)
    assert without_proxies(wrapped) is without_proxies(encoder) is encoder
    assert wrapped.config() != encoder.config()
    assert wrapped.sha256 == encoder.sha256
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    mine = with_proxies(ClassifierEncoder(body), {"proxy_features.penultimate"})
    assert mine.encode(images(2, side=224), frozenset({"proxy_features.penultimate"}))["proxy_features.penultimate"].shape == (2, 4)


def test_scoring_makes_no_second_pass(encoder: BuiltinEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    proxied = WithProxies(encoder)
    monkeypatch.setattr(proxied, "mixed", lambda _: pytest.fail("mixed"))
    assert set(proxied.encode(images(), frozenset({"features.*"}))) >= {"features.last", "features.stem"}


def test_an_unknown_source_is_refused(encoder: BuiltinEncoder) -> None:
    with pytest.raises(ConfigError, match=r"'brian' is neither a phantom family .*did you mean 'brain'"):
        with_proxies(encoder, (), ["brian"])
