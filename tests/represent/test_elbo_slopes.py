"""How a VAE's bound changes: against finite differences, brute force and naive loops in float64."""

import copy
import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from offmap.core.errors import ConfigError
from offmap.core.signals import named
from offmap.represent import elbo_slopes
from offmap.represent.autoencoder import AutoencoderEncoder
from offmap.represent.elbo_slopes import alignments, decoder_weights, elbo_regret, input_gradient, smoothed
from offmap.represent.likelihood import elbo_parts, quantised
from offmap.represent.nets.autoencoder import VAE, AutoencoderShape, autoencoder, bounded

pytest.importorskip("monai", reason="needs the extra [generative]")


def model(channels: int = 1, sides: tuple[int, ...] = (10, 13)) -> VAE:
    """With sides that differ and are no multiple of the stride."""
    net = autoencoder(AutoencoderShape("vae", channels, sides, (8, 16), 3), generator=torch.Generator().manual_seed(1)).eval()
    assert isinstance(net, VAE)
    return net.requires_grad_(False)


class Exact(VAE):
    """The same networks without roundings to float32."""

    def _decoded(self, code: Tensor) -> Tensor:
        inner = self.net.decode(self.spread(code).unflatten(1, (self.shape.widths[-1], *self.grid)))
        return inner[(..., *(slice(0, n) for n in self.shape.sides))]

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        flat = self._flat(x)
        return self.heads[0](flat), 2 * bounded(self.heads[1](flat))

    def code(self, x: Tensor) -> Tensor:
        return self.encode(x)[0]


def exactly(net: VAE) -> VAE:
    exact = copy.deepcopy(net).double()
    exact.__class__ = Exact
    return exact


def images(count: int = 4, channels: int = 1, sides: tuple[int, ...] = (10, 13)) -> Tensor:
    smooth = torch.rand(count, channels, *sides, generator=torch.Generator().manual_seed(2))
    return 0.3 + 0.4 * smooth


def test_the_gradient_is_the_slope_of_the_bound_by_finite_differences() -> None:
    """Of the bound of the mean of the posterior, continued between the levels, in float64."""
    net = exactly(model())
    x = quantised(images(2).double())
    step = 1e-5

    def bound(values: Tensor) -> Tensor:
        mean, log_variance = net.encode(values)
        return elbo_slopes._bound(net, values, mean, log_variance, noise)

    noise = elbo_slopes.codes_of(x, 1, 3)
    found = input_gradient(net, x)
    for i, j in ((0, 0), (4, 7), (9, 12)):
        more, less = x.clone(), x.clone()
        more[:, :, i, j] += step
        less[:, :, i, j] -= step
        slope = -(bound(more) - bound(less)) / (2 * step)
        torch.testing.assert_close(found[:, 0, i, j], slope, rtol=1e-3, atol=1e-2)


def test_the_norm_is_the_root_mean_square_and_takes_the_settings_of_a_diffusion_model() -> None:
    net, x = model(3), images(3, 3)
    name = named("input_gradient.norm", {"levels": 3, "low": 0.1, "high": 1.0})
    found = AutoencoderEncoder(net).encode(x, frozenset({name}))[name]
    expected = [float(g.double().square().mean().sqrt()) for g in input_gradient(net, x)]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4)


class Line(Exact):
    """A decoder of one number: the image moves along a line."""

    def decode(self, code: Tensor) -> Tensor:
        pattern = torch.linspace(-0.1, 0.1, math.prod(self.shape.sides)).to(code).view(1, 1, *self.shape.sides)
        return 0.5 + code.view(-1, 1, 1, 1) * pattern


def test_the_regret_is_what_the_best_of_all_posteriors_gains() -> None:
    """A code of one number and a decoder that is a line: every mean and variance on a grid, on the same codes, in float64."""
    net = autoencoder(AutoencoderShape("vae", 1, (6, 6), (8,), 1), generator=torch.Generator().manual_seed(1)).eval()
    net.__class__ = Line
    x = quantised(images(3, sides=(6, 6)))
    found = elbo_regret(net, x, {"steps": 300, "rate": 0.03, "samples": 8}, "r").double()
    exact, seen, noise = copy.deepcopy(net).double(), x.double(), elbo_slopes.codes_of(x, 308, 1).double()[:, :8]
    before = elbo_slopes._bound(exact, seen, *exact.encode(seen), noise).detach()
    means, variances = torch.linspace(-4, 4, 81).double(), torch.linspace(-4, 1, 26).double()
    grid = torch.cartesian_prod(means, variances)
    best = []
    for image, drawn in zip(seen, noise, strict=True):
        many = [part.expand(len(grid), *part.shape) for part in (image, drawn)]
        best.append(elbo_slopes._bound(exact, many[0], grid[:, :1], grid[:, 1:], many[1]).max())
    most = torch.stack(best) - before
    assert bool((most > 0.05).all())
    torch.testing.assert_close(found, most, rtol=0.05, atol=0.05)
    short = elbo_regret(net, x, {"steps": 1, "rate": 1e-6, "samples": 8}, "r")
    assert bool((short >= 0).all())
    assert bool((short.double() < found).all())


def test_a_regret_changes_nothing_of_the_model_and_does_not_depend_on_the_batch() -> None:
    net, x = model(), images(5)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    name = named("elbo.regret", {"steps": 5, "rate": 0.1, "samples": 2})
    encoder = AutoencoderEncoder(net)
    whole = encoder.encode(x, frozenset({name}))[name]
    torch.testing.assert_close(encoder.encode(x[3:4], frozenset({name}))[name], whole[3:4], rtol=1e-3, atol=1e-2)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_the_map_is_gradient_times_error_smoothed() -> None:
    net, x = model(), images(2)
    for deviation in (0.0, 1.5):
        name = named("elbo_gradient.map", {"smoothing": deviation})
        found = AutoencoderEncoder(net).encode(x, frozenset({name}))[name]
        plain = (input_gradient(net, x).abs() * (x - net(x).images).abs()).double().numpy()
        reach = 3 * deviation
        expected = gaussian_filter(plain, (0, 0, deviation, deviation), mode="nearest", radius=round(reach)) if deviation else plain
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-3, atol=1e-4 * plain.max())


def test_smoothing_keeps_a_flat_map_and_works_in_three_axes() -> None:
    flat = torch.full((1, 1, 5, 6, 7), 0.3)
    torch.testing.assert_close(smoothed(flat, 2.0), flat)


def test_alignments_are_cosines_of_gradients_one_image_at_a_time() -> None:
    net, x = model(), images(10)
    usual = {
        name: torch.randn(value.shape, generator=torch.Generator().manual_seed(i))
        for i, (name, value) in enumerate(decoder_weights(net).items())
    }
    found = alignments(net, x, usual)
    exact = exactly(net).requires_grad_()
    for row, image in zip(found.tolist(), x.double(), strict=True):
        exact.zero_grad()
        with torch.no_grad():
            code = exact.code(image[None])
        (exact.decode(code)[0] - image).square().mean().backward()
        for cosine, (name, weight) in zip(row, decoder_weights(exact).items(), strict=True):
            one, other = weight.grad.flatten(), usual[name].double().flatten()
            assert cosine == pytest.approx(float(one @ other / (one.norm() * other.norm())), abs=1e-4)


def test_an_image_like_the_usual_gradient_is_aligned_with_it() -> None:
    net, x = model(), images(1)
    net.requires_grad_()
    with torch.no_grad():
        code = net.code(x)
    (net.decode(code) - x).square().mean().backward()
    usual = {name: value.grad.clone() for name, value in decoder_weights(net).items()}
    torch.testing.assert_close(alignments(net.requires_grad_(False), x, usual), torch.ones(1, len(usual)), rtol=1e-4, atol=1e-4)
    assert float(alignments(net, x, {k: torch.zeros_like(v) for k, v in usual.items()}).abs().max()) == 0


@pytest.mark.parametrize(
    "name",
    ["elbo.regret:steps=0", "elbo.regret:rate=2", "elbo.regret:samples=0", "elbo_gradient.map:smoothing=-1", "elbo.regret:pace=3"],
)
def test_settings_out_of_range_are_refused(name: str) -> None:
    encoder = AutoencoderEncoder(model())
    with pytest.raises(ConfigError, match=name.partition(":")[0]):
        encoder.encode(images(), frozenset({name}))


def test_a_network_without_a_likelihood_does_not_offer_them() -> None:
    encoder = AutoencoderEncoder(autoencoder(AutoencoderShape("ae", 1, (8, 8), (8,), 3)))
    assert not {"elbo.regret", "input_gradient.norm", "elbo_gradient.map"} & encoder.provides
    with pytest.raises(ConfigError, match="kind ae"):
        encoder.ready(frozenset({"elbo.regret"}))


def test_the_bound_before_refitting_is_that_of_elbo_parts() -> None:
    net, x = model(), images()
    parts = elbo_parts(net, x, {"samples": 3}, "elbo.parts").double()
    noise = elbo_slopes.codes_of(quantised(x), 3, 3)
    found = elbo_slopes._bound(net, quantised(x), *net.encode(quantised(x)), noise)
    torch.testing.assert_close(found, parts[:, 0] - parts[:, 1], rtol=1e-5, atol=1e-2)
    assert math.isfinite(float(found.sum()))
