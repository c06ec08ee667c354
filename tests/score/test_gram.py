"""Gram matrices against a naive formula with whole matrices in numpy."""

import numpy as np
import pytest
import torch
from torch import Tensor

from offmap.core.errors import ConfigError, SignalError
from offmap.score.gram import Gram, correlations

Signals = dict[str, Tensor]


def draw(count: int, seed: int, *, mixed: bool = False, gain: float = 1.0) -> Signals:
    """Maps of two layers; the channels of a pair rise together, or, where ``mixed``, those of different pairs."""
    generator = torch.Generator().manual_seed(seed)
    out: Signals = {}
    for layer, side in (("stem", 6), ("deep", 3)):
        base = torch.randn(count, 2, side, side, generator=generator, dtype=torch.float64)
        order = [0, 1, 0, 1] if mixed else [0, 0, 1, 1]
        noise = 0.1 * torch.randn(count, 4, side, side, generator=generator, dtype=torch.float64)
        sign = torch.tensor([1.0, 1.0, 1.0, -1.0], dtype=torch.float64)[:, None, None]
        out[f"feature_map.{layer}"] = gain * (sign * base[:, order] + noise + 0.2)
    out["feature_map.last"] = out["feature_map.deep"]
    out["logits"] = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    return out


def naive(maps: np.ndarray, powers: int) -> np.ndarray:
    """(N, P, C) with the whole Gram matrix of every image."""
    out = np.zeros((len(maps), powers, maps.shape[1]))
    for n, image in enumerate(maps):
        flat = image.reshape(len(image), -1)
        for p in range(1, powers + 1):
            sums = ((flat**p) @ (flat**p).T).sum(axis=1)
            out[n, p - 1] = np.sign(sums) * np.abs(sums) ** (1 / p)
    return out


def deviation(values: np.ndarray, low: np.ndarray, high: np.ndarray) -> float:
    def size(bound: np.ndarray) -> np.ndarray:
        return np.maximum(np.abs(bound), 0.01 * np.abs(bound).mean(axis=1, keepdims=True))

    return float((np.maximum(low - values, 0) / size(low) + np.maximum(values - high, 0) / size(high)).sum())


FIT, HELD, TEST = draw(60, 1), draw(40, 2), draw(30, 3)


@pytest.mark.parametrize("per_class", [False, True])
def test_it_equals_the_formula(per_class: bool) -> None:
    expected = np.zeros(30)
    classes = [s["logits"].numpy().argmax(axis=1) if per_class else np.zeros(len(s["logits"]), int) for s in (FIT, HELD, TEST)]
    for layer in ("stem", "deep"):
        fit, held, test = (naive(s[f"feature_map.{layer}"].numpy(), 5) for s in (FIT, HELD, TEST))
        low, high = ({c: f(fit[classes[0] == c], axis=0) for c in set(classes[0])} for f in (np.min, np.max))
        scale = np.mean([deviation(v, low[c], high[c]) for v, c in zip(held, classes[1], strict=True)])
        expected += np.array([deviation(v, low[c], high[c]) for v, c in zip(test, classes[2], strict=True)]) / scale
    got = Gram(per_class=per_class).fit([FIT], held_out=[HELD]).score(TEST)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-4, atol=1e-6)


def test_batches_merge() -> None:
    cut = [{k: v[i : i + 13] for k, v in FIT.items()} for i in range(0, 60, 13)]
    torch.testing.assert_close(Gram().fit(cut, held_out=[HELD]).score(TEST), Gram().fit([FIT], held_out=[HELD]).score(TEST))


def test_three_spatial_axes() -> None:
    maps = torch.randn(3, 4, 2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(correlations(maps, 3).numpy(), naive(maps.numpy(), 3), rtol=1e-9)


def test_channels_that_go_together_otherwise_are_seen_although_each_alone_is_usual() -> None:
    fitted = Gram().fit([FIT], held_out=[HELD])
    usual, odd = fitted.score(TEST), fitted.score(draw(30, 4, mixed=True))
    assert float((odd[:, None] > usual[None]).double().mean()) > 0.9


def test_a_class_never_predicted_has_the_range_of_all_images() -> None:
    never = {**FIT, "logits": FIT["logits"] - torch.tensor([0.0, 0.0, 1e6])}
    fitted = Gram(per_class=True).fit([never], held_out=[{**HELD, "logits": never["logits"][:40]}])
    low = fitted.state["layer.00.stem.low"]
    torch.testing.assert_close(low[2], low[:2].amin(dim=0))
    assert bool(torch.isfinite(fitted.score(TEST)).all())


def test_trap_the_range_widens_with_the_number_of_images() -> None:
    odd = draw(30, 5, gain=1.15)
    deviations = []
    for count in (20, 2000):
        fitted = Gram().fit([draw(count, 6)], held_out=[HELD])
        deviations.append(float((fitted.score(odd) == 0).double().mean()))
    assert deviations[1] > deviations[0]


def test_dead_channels_stay_harmless() -> None:
    def dead(signals: Signals) -> Signals:
        out = {k: v.clone() for k, v in signals.items()}
        for name in ("feature_map.stem", "feature_map.deep", "feature_map.last"):
            out[name][:, 0] = 0.0
        return out

    fitted = Gram().fit([dead(FIT)], held_out=[dead(HELD)])
    touched = dead(TEST)
    touched["feature_map.stem"][:, 0] = 1e-4
    torch.testing.assert_close(fitted.score(touched), fitted.score(dead(TEST)), rtol=0.1, atol=2.0)


def test_no_held_out_image_and_other_channels_are_refused() -> None:
    with pytest.raises(SignalError, match="held_out"):
        Gram().fit([{k: v[:3] for k, v in FIT.items()}])
    fitted = Gram(layers=("stem",)).fit([FIT])
    with pytest.raises(SignalError, match="stem has 2 channels, 4 when"):
        fitted.score({"feature_map.stem": TEST["feature_map.stem"][:, :2]})


@pytest.mark.parametrize("powers", [0, 11])
def test_parameters_out_of_range_are_refused(powers: int) -> None:
    with pytest.raises(ConfigError):
        Gram.from_params({"powers": powers})
