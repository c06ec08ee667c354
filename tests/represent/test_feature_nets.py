"""Networks on feature maps against closed forms and their formulas, and the encoder that adds their map to a frozen one."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from torch import Tensor, nn
from torch.nn import functional

from offmap.core.errors import BundleError, ConfigError, SignalError
from offmap.represent.encoder import BuiltinEncoder
from offmap.represent.feature_nets import WithFeatureNet, read_layers_of, shapes_of
from offmap.represent.nets.discriminator import Discriminator
from offmap.represent.nets.distillation import Student
from offmap.represent.nets.feature_denoiser import FeatureDenoiser, kept_signal
from offmap.represent.nets.feature_flow import PositionFlow
from offmap.represent.nets.feature_net import Stack

SHAPES = ((3, 6, 6), (4, 3, 3))
CPU = torch.device("cpu")


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def maps(count: int = 5, seed: int = 1) -> list[Tensor]:
    mix = torch.randn(7, 7, generator=rng(9))
    rows = torch.randn(count, 6, 6, 7, generator=rng(seed)) @ mix + 2.0
    fine = rows.permute(0, 3, 1, 2)
    return [fine[:, :3].contiguous(), functional.avg_pool2d(fine[:, 3:], 2)]


def stacked(given: list[Tensor]) -> np.ndarray:
    coarse = functional.interpolate(given[1], size=(6, 6), mode="bilinear", align_corners=False)
    return torch.cat([given[0], coarse], dim=1).permute(0, 2, 3, 1).double().numpy()


def oas_covariance(rows: np.ndarray) -> np.ndarray:
    """Chen et al. 2010, eq. 23, on the covariance with N - 1."""
    count, width = rows.shape
    cov = np.cov(rows.T)
    trace, square, free = np.trace(cov), np.trace(cov @ cov), count - 1
    weight = min(1.0, ((1 - 2 / width) * square + trace**2) / ((free + 1 - 2 / width) * (square - trace**2 / width)))
    return (1 - weight) * cov + weight * trace / width * np.eye(width)


def disturbed(net: nn.Module, size: float = 0.3) -> None:
    """All weights moved, so that no part is switched off."""
    draws = rng(5)
    for parameter in net.parameters():
        parameter.data += size * torch.randn(parameter.shape, generator=draws).to(parameter)


def flow() -> PositionFlow:
    net = PositionFlow(SHAPES, blocks=3, hidden=8, rng=rng())
    net.adapt([maps(30)])
    return net.eval()


def test_before_the_first_step_the_flow_is_one_gaussian() -> None:
    net, fit, seen = flow(), maps(30), maps(4, seed=2)
    rows = stacked(fit).reshape(-1, 7)
    known = multivariate_normal(rows.mean(axis=0), oas_covariance(rows))
    with torch.no_grad():
        np.testing.assert_allclose(net.oddness(seen).numpy(), -known.logpdf(stacked(seen)), rtol=1e-4)


def test_the_flows_density_is_exact_by_a_numerical_determinant() -> None:
    net = PositionFlow(((5, 1, 1),), blocks=3, hidden=8, rng=rng()).double()
    net.stack.adapt([[torch.randn(50, 5, 1, 1, generator=rng(3)).double()]])
    disturbed(net)
    net.eval()
    net.stack.joined = lambda given: given[0]  # type: ignore[method-assign]
    x = torch.randn(5, dtype=torch.float64, generator=rng(4))
    jacobian = torch.autograd.functional.jacobian(lambda v: net.latent([v.view(1, 5, 1, 1)])[0].flatten(), x)
    with torch.no_grad():
        z, volume = net.latent([x.view(1, 5, 1, 1)])
        got = net.oddness([x.view(1, 5, 1, 1)])
    assert float(volume) == pytest.approx(float(torch.linalg.slogdet(jacobian)[1]), abs=1e-9)
    expected = 0.5 * float(z.square().sum()) + 2.5 * math.log(2 * math.pi) - float(volume)
    assert float(got) == pytest.approx(expected)


def test_the_flow_knows_the_place_once_it_was_moved() -> None:
    net = flow()
    same = [torch.ones(1, 3, 6, 6), torch.ones(1, 4, 3, 3)]
    with torch.no_grad():
        assert float(net.oddness(same).std()) < 1e-4
        disturbed(net)
        assert float(net.oddness(same).std()) > 1e-2


def test_the_students_map_is_the_sum_of_one_minus_cosines() -> None:
    net, seen = Student(SHAPES, width=8, rng=rng()).eval(), maps(3)
    with torch.no_grad():
        got, drawn = net.oddness(seen).numpy(), net.drawn(seen)
        loss, means = float(net.loss(seen, rng())), [float(p.mean()) for p in net.distances(seen)]
    assert [tuple(d.shape) for d in drawn] == [tuple(m.shape) for m in seen]
    parts = []
    for own, other in zip(seen, drawn, strict=True):
        a, b = own.double(), other.double()
        cosine = (a * b).sum(dim=1) / (a.square().sum(dim=1) * b.square().sum(dim=1)).sqrt()
        parts.append(functional.interpolate(1 - cosine[:, None], size=(6, 6), mode="bilinear", align_corners=False)[:, 0])
    np.testing.assert_allclose(got, (parts[0] + parts[1]).numpy(), rtol=1e-4, atol=1e-6)
    assert loss == pytest.approx(sum(means), rel=1e-5)


def test_the_discriminators_loss_is_the_paper_s_hinge() -> None:
    net = Discriminator(SHAPES, hidden=8, noise=0.3, margin=0.5, rng=rng())
    net.adapt([maps(30)])
    net.eval()
    seen = maps(2, seed=3)
    with torch.no_grad():
        own = net.adaptor(net.stack(seen))
        usual, odd = net.judge(own), net.judge(own + 0.3 * torch.randn(own.shape, generator=rng(7)))
        expected = np.maximum(0, 0.5 - usual.numpy()).mean() + np.maximum(0, 0.5 + odd.numpy()).mean()
        assert float(net.loss(seen, rng(7))) == pytest.approx(expected, rel=1e-5)
        np.testing.assert_allclose(net.oddness(seen).numpy(), -usual[:, 0].numpy(), rtol=1e-5)


def test_inversion_in_three_steps_is_the_formula_written_out() -> None:
    net = FeatureDenoiser(SHAPES, width=8, depth=1, steps=3, rng=rng()).double().eval()
    disturbed(net)
    assert net.steps == [333, 666, 999]
    keep = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    np.testing.assert_allclose(kept_signal().numpy(), keep, rtol=1e-12)
    x = torch.randn(2, 7, 6, 6, dtype=torch.float64, generator=rng(1))
    with torch.no_grad():
        got, now, before = net.inverted(x, net.steps), x, 1.0
        for step in (333, 666, 999):
            seen = net.noise(now, torch.full((2,), step))
            origin = (now - math.sqrt(1 - before) * seen) / math.sqrt(before)
            now, before = math.sqrt(keep[step]) * origin + math.sqrt(1 - keep[step]) * seen, keep[step]
    torch.testing.assert_close(got, now, rtol=1e-5, atol=1e-5)


def test_with_the_best_denoiser_of_white_features_inversion_keeps_their_length() -> None:
    """A closed form: for data N(0, I) the noise seen in x is sqrt(1 - a) x, and the flow of probability stands still."""
    net = FeatureDenoiser(SHAPES, width=8, depth=1, steps=3, rng=rng()).eval()
    x = torch.randn(3, 7, 6, 6, generator=rng(1))
    with torch.no_grad():
        torch.testing.assert_close(net.noise(x, torch.tensor([0, 500, 999])), (1 - net.signal[[0, 500, 999]]).sqrt().view(3, 1, 1, 1) * x)
        many = net.inverted(x, list(range(3, 1000, 4)))
    ratio = many.norm(dim=1) / x.norm(dim=1)
    assert float((ratio - 1).abs().max()) < 0.05


def test_a_stack_is_standardised_over_batches_of_any_size() -> None:
    fit = maps(30)
    one, parts = Stack(SHAPES, whiten=True), Stack(SHAPES, whiten=True)
    one.adapt([fit])
    parts.adapt([[m[:7] for m in fit], [m[7:] for m in fit]])
    torch.testing.assert_close(one(fit), parts(fit), rtol=1e-4, atol=1e-4)
    plain = Stack(SHAPES)
    plain.adapt([fit])
    rows = stacked(fit).reshape(-1, 7)
    scale = np.sqrt(np.diag(oas_covariance(rows)))
    np.testing.assert_allclose(
        plain(fit).permute(0, 2, 3, 1).reshape(-1, 7).numpy(), (rows - rows.mean(axis=0)) / scale, rtol=1e-3, atol=1e-4
    )


@pytest.fixture(scope="module")
def wrapped() -> WithFeatureNet:
    base = BuiltinEncoder.shipped(size=64)
    layers = read_layers_of(base, (), 2)
    net = Student(shapes_of(base, layers, CPU), width=8, rng=rng())
    return WithFeatureNet(base, layers, net, "rd4ad.map")


def test_the_bases_signals_stay_as_they_are(wrapped: WithFeatureNet) -> None:
    images = torch.rand(5, 1, 64, 64, generator=rng())
    names = frozenset({"features.*", "feature_map.last", "rd4ad.map"})
    signals, plain = wrapped.encode(images, names), wrapped.base.encode(images, names - {"rd4ad.map"})
    assert set(signals) == {*plain, "rd4ad.map"}
    for name, value in plain.items():
        torch.testing.assert_close(signals[name], value)
    assert tuple(signals["rd4ad.map"].shape) == (5, 1, 8, 8)
    alone = torch.cat([wrapped.encode(images[i : i + 1], names)["rd4ad.map"] for i in range(5)])
    torch.testing.assert_close(signals["rd4ad.map"], alone, rtol=1e-4, atol=1e-5)
    assert set(wrapped.encode(images, frozenset({"features.last"}))) == {"features.last"}
    assert wrapped.provides == wrapped.base.provides | {"rd4ad.map"}


def test_odd_sizes_and_colour_are_taken(wrapped: WithFeatureNet) -> None:
    for shape in ((1, 3, 64, 64), (2, 1, 75, 48)):
        found = wrapped.encode(torch.rand(shape, generator=rng()), frozenset({"rd4ad.map"}))["rd4ad.map"]
        assert bool(torch.isfinite(found).all())
        assert len(found) == shape[0]
    with pytest.raises(SignalError, match="smaller than the 32 pixels"):
        wrapped.encode(torch.rand(1, 1, 20, 20), frozenset({"rd4ad.map"}))


def test_layers_are_those_before_the_deepest_unless_named() -> None:
    base = BuiltinEncoder.shipped(size=64)
    assert read_layers_of(base, (), 3) == ("stages.0", "stages.1", "stages.2")
    assert read_layers_of(base, ("stages.3", "stem"), 3) == ("stem", "stages.3")
    few = BuiltinEncoder.shipped(size=64, layers=["stages.1"])
    assert read_layers_of(few, (), 3) == ("stages.1",)
    with pytest.raises(ConfigError, match=r"no map of stages\.9"):
        read_layers_of(base, ("stages.9",), 3)


def test_weights_that_are_not_finite_and_maps_of_another_width_are_refused(wrapped: WithFeatureNet) -> None:
    broken = Student(SHAPES, width=8, rng=rng())
    broken.leave[0].weight.data[0] = math.nan
    with pytest.raises(BundleError, match=r"leave\.0\.weight"):
        WithFeatureNet(wrapped.base, ("stages.0", "stages.1"), broken, "rd4ad.map")
    other = WithFeatureNet(wrapped.base, ("stages.0", "stages.1"), Student(SHAPES, width=8, rng=rng()), "rd4ad.map")
    with pytest.raises(SignalError, match=r"rd4ad\.map cannot be made of feature_map\.stages\.0 \(40, 16, 16\)"):
        other.encode(torch.rand(1, 1, 64, 64), frozenset({"rd4ad.map"}))
