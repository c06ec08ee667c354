"""Passes with dropout: masks written out by hand, their statistics, and what must not change them."""

import pytest
import torch
from tests.represent.tiny import SPEC, encoder, images, pixels, tiny
from torch import Tensor, nn

from offmap.core.errors import ConfigError
from offmap.represent.classifier import ClassifierEncoder
from offmap.represent.stochastic import SELU_FLOOR, dropped, seed_of

NAME = "mc_dropout.logits:passes=6"


def test_passes_equal_masks_written_out() -> None:
    net = tiny()
    got = encoder(net).encode(images(), frozenset({NAME}))[NAME]
    net.eval()
    assert got.shape == (5, 6, 4)
    for i, x in enumerate(pixels(images())):
        rng = torch.Generator().manual_seed(seed_of(images()[i]))
        for s in range(6):
            channels = torch.rand(6, 1, 1, generator=rng) >= 0.3
            with torch.no_grad():
                neck = net.neck(net.two(net.one(x[None]) * channels / 0.7))
                units = torch.rand(8, generator=rng) >= 0.5
                expected = net.head(neck * units / 0.5)[0]
            torch.testing.assert_close(got[i, s], expected.float(), rtol=1e-5, atol=1e-5)


def test_an_image_has_its_own_noise_whatever_is_beside_it() -> None:
    reader = encoder(tiny())
    x = images(34)
    whole = reader.encode(x, frozenset({NAME}))[NAME]
    other = reader.encode(torch.cat([images(3, seed=9), x[33:], x[:1]]), frozenset({NAME}))[NAME]
    torch.testing.assert_close(other[3], whole[33], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(other[4], whole[0], rtol=1e-5, atol=1e-5)
    assert float((whole[0] - whole[1]).abs().max()) > 0
    more = reader.encode(x[:2], frozenset({"mc_dropout.logits:passes=9"}))["mc_dropout.logits:passes=9"]
    torch.testing.assert_close(more[:, :6], whole[:2], rtol=1e-5, atol=1e-5)


def test_grey_and_grey_repeated_have_one_seed() -> None:
    grey = images(2, channels=1)
    assert seed_of(grey[0]) == seed_of(grey[0].expand(3, -1, -1))
    assert seed_of(grey[0]) != seed_of(grey[1])
    assert 0 <= seed_of(grey[0]) < 2**63


@pytest.mark.parametrize("kind", [nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout])
@pytest.mark.parametrize("p", [0.2, 0.5])
def test_mean_and_spread_are_those_of_the_part_in_training(kind: type[nn.Dropout], p: float) -> None:
    part, rng = kind(p), torch.Generator().manual_seed(1)
    values = torch.randn(40, 50, 6, 6, generator=rng)
    got = dropped(part, values, [torch.Generator().manual_seed(i) for i in range(40)])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = part.train()(values)
    assert float(got.mean()) == pytest.approx(float(theirs.mean()), abs=0.05)
    assert float(got.std()) == pytest.approx(float(theirs.std()), rel=0.05)
    if kind in (nn.Dropout2d, nn.FeatureAlphaDropout):
        assert bool((got.flatten(2).std(dim=2) == 0).any())
    gone = got == got.flatten().mode().values
    assert float(gone.double().mean()) == pytest.approx(p, abs=0.03)


def test_alpha_dropout_sets_the_floor_of_selu() -> None:
    floor = torch.nn.functional.selu(torch.tensor(-1e9, dtype=torch.float64))
    assert float(floor) == pytest.approx(SELU_FLOOR, rel=1e-9)


@pytest.mark.parametrize("kind", [nn.Dropout, nn.AlphaDropout])
def test_all_dropped_is_zero(kind: type[nn.Dropout]) -> None:
    assert torch.equal(dropped(kind(1.0), torch.ones(1, 4), [torch.Generator()]), torch.zeros(1, 4))


def test_a_network_without_dropout_does_not_offer_it() -> None:
    net = tiny()
    net.drop, net.drop2d = nn.Dropout(0.0), nn.Identity()  # type: ignore[assignment]
    assert "mc_dropout.logits" not in encoder(net).provides
    assert "mc_dropout.logits" in encoder(tiny()).provides


def test_another_rate_is_another_network() -> None:
    net = tiny()
    before = encoder(net).sha256
    net.drop.p = 0.2
    assert encoder(net).sha256 != before


class Wrapped(nn.Module):
    """A network with a further dropout part, run in some way."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.net, self.further, self.how = tiny(), nn.Dropout(0.5), how
        self.net.drop, self.net.drop2d = nn.Identity(), nn.Identity()  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "turned":
            x = self.further(x.transpose(0, 1)).transpose(0, 1)
        out: Tensor = self.net(x)
        return out


def test_dropout_that_cannot_be_used_is_named_before_any_image_is_read() -> None:
    with pytest.raises(ConfigError, match=r"none of the dropout parts of classifier runs.*test_time_augmentation"):
        ClassifierEncoder(Wrapped("never"), spec=SPEC).ready(frozenset({NAME}))
    with pytest.raises(ConfigError, match=r"'further' of classifier gives \(3, 1, 16, 16\) for 1 images: its first axis must be the batch"):
        ClassifierEncoder(Wrapped("turned"), spec=SPEC).ready(frozenset({NAME}))


def test_a_part_that_runs_twice_draws_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop, self.head = nn.Dropout(0.5), nn.Linear(3 * 256, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.drop(self.drop(x.flatten(1))))
            return out

    net = Twice()
    got = ClassifierEncoder(net, spec=SPEC).encode(images(1), frozenset({"mc_dropout.logits:passes=1"}))["mc_dropout.logits:passes=1"]
    rng = torch.Generator().manual_seed(seed_of(images(1)[0]))
    masks = [torch.rand(768, generator=rng) >= 0.5 for _ in range(2)]
    with torch.no_grad():
        expected = net.head(pixels(images(1)).float().flatten(1) * masks[0] * masks[1] * 4)
    torch.testing.assert_close(got[:, 0], expected, rtol=1e-5, atol=1e-5)
