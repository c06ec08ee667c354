"""The default: each layer against scikit-learn, the standardisation and reductions against numpy, the map against planted shifts."""

import itertools
from typing import get_args

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize
from torch import Tensor

from offmap.core.errors import ConfigError, SignalError
from offmap.score._layers import Scale, drops
from offmap.score._reductions import REDUCTIONS, Parts, Reduction, terms
from offmap.score.multilayer_mahalanobis import MultilayerMahalanobis

Signals = dict[str, Tensor]
WIDTHS = {"stem": 6, "middle": 10, "deep": 14}


def draw(count: int, seed: int, *, shift: dict[str, float] | None = None, side: int = 0) -> Signals:
    """Pooled features of three layers; maps of a fixed scene plus noise where ``side`` is given."""
    generator, fixed = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(77)
    signals = {}
    for layer, width in WIDTHS.items():
        mix = torch.randn(width, width, generator=fixed, dtype=torch.float64)
        rows = torch.randn(count, width, generator=generator, dtype=torch.float64) @ mix + 2.0 + (shift or {}).get(layer, 0.0)
        signals[f"features.{layer}"] = rows
        if side:
            scene = torch.randn(width, side, side, generator=fixed, dtype=torch.float64)
            signals[f"feature_map.{layer}"] = 3 * scene + 0.3 * torch.randn(
                count, width, side, side, generator=generator, dtype=torch.float64
            )
    return {**signals, "features.last": signals["features.deep"]}


def log_distances(fit: Signals, rows: Signals, *, unit: bool) -> np.ndarray:
    """Columns of log squared distances, by scikit-learn."""
    columns = []
    for layer in WIDTHS:
        a, b = (s[f"features.{layer}"].numpy() for s in (fit, rows))
        a, b = (normalize(a), normalize(b)) if unit else (a, b)
        mean, deviation = a.mean(axis=0), a.std(axis=0, ddof=1)
        estimate = LedoitWolf().fit((a - mean) / deviation)
        columns.append(np.log(estimate.mahalanobis((b - mean) / deviation)))
    return np.stack(columns, axis=1)


def standard(values: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    return (values - held_out.mean(axis=0)) / held_out.std(axis=0, ddof=1)


def parts_of(signals: Signals, size: int = 50) -> list[Signals]:
    count = len(signals["features.last"])
    return [{k: v[i : i + size] for k, v in signals.items()} for i in range(0, count, size)]


FIT, HELD, TEST = draw(160, 1), draw(60, 2), draw(40, 3)


@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("reduction", ["logsumexp", "mean", "max", "mean_deep"])
def test_it_equals_scikit_learn_and_numpy(unit: bool, reduction: Reduction) -> None:
    held, test = (log_distances(FIT, s, unit=unit) for s in (HELD, TEST))
    z_held, z_test = standard(held, held), standard(test, held)
    makers = {
        "logsumexp": [lambda z: np.log(np.exp(z).sum(1))],
        "mean": [lambda z: z.mean(1)],
        "max": [lambda z: z.max(1)],
        "mean_deep": [lambda z: z.mean(1), lambda z: z[:, -1]],
    }
    expected = sum(standard(term(z_test), term(z_held)) for term in makers[reduction])
    detector = MultilayerMahalanobis(normalise=unit, reduction=reduction, skip=0, conditional=False, scale="dimension")
    got = detector.fit(parts_of(FIT), held_out=parts_of(HELD)).score(TEST)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_with_neighbours_it_adds_the_standardised_log_distance() -> None:
    held, test = (log_distances(FIT, s, unit=True) for s in (HELD, TEST))
    index = NearestNeighbors(n_neighbors=5).fit(normalize(FIT["features.deep"].numpy()))
    near = [np.log(index.kneighbors(normalize(s["features.deep"].numpy()))[0][:, -1]) for s in (HELD, TEST)]
    means = [standard(v, held).mean(1) for v in (held, test)]
    expected = standard(means[1], means[0]) + standard(near[1], near[0])
    detector = MultilayerMahalanobis(reduction="mean_knn", skip=0, conditional=False, scale="dimension")
    got = detector.fit(parts_of(FIT), held_out=parts_of(HELD)).score(TEST)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-4, atol=1e-4)


def test_every_reduction_is_in_the_table() -> None:
    assert set(get_args(Reduction)) == set(REDUCTIONS)


def test_without_held_out_every_fourth_image_is_kept_apart() -> None:
    fourth = torch.arange(160) % 4 == 3
    fit, held = ({k: v[m] for k, v in FIT.items()} for m in (~fourth, fourth))
    expected = MultilayerMahalanobis().fit([fit], held_out=[held]).score(TEST)
    torch.testing.assert_close(MultilayerMahalanobis().fit(parts_of(FIT, 37)).score(TEST), expected, rtol=1e-5, atol=1e-6)


def test_unseen_images_score_about_zero_in_standard_deviations() -> None:
    scores = MultilayerMahalanobis().fit(parts_of(FIT), held_out=parts_of(HELD)).score(draw(400, 9))
    assert abs(float(scores.mean())) < 0.5
    assert 0.6 < float(scores.std()) < 1.6


def test_layers_are_found_by_name_whatever_their_order() -> None:
    fitted = MultilayerMahalanobis().fit(parts_of(FIT), held_out=parts_of(HELD))
    assert torch.equal(fitted.score(dict(reversed(TEST.items()))), fitted.score(TEST))


def test_named_layers_only_are_needed() -> None:
    detector = MultilayerMahalanobis(layers=("stem", "deep"))
    assert detector.needs == {"features.stem", "features.deep"}
    fitted = detector.fit(parts_of(FIT), held_out=parts_of(HELD))
    bare = {k: v for k, v in TEST.items() if k != "features.middle"}
    assert torch.equal(fitted.score(bare), fitted.score(TEST))


def test_the_shallowest_layers_are_left_out_where_none_is_named() -> None:
    for skip, layers in ((1, ("middle", "deep")), (2, ("deep",)), (9, ("deep",))):
        skipped = MultilayerMahalanobis(skip=skip, conditional=False).fit(parts_of(FIT), held_out=parts_of(HELD))
        named = MultilayerMahalanobis(layers=layers, conditional=False).fit(parts_of(FIT), held_out=parts_of(HELD))
        torch.testing.assert_close(skipped.score(TEST), named.score(TEST))
    with pytest.raises(ConfigError, match="skip = -1"):
        MultilayerMahalanobis(skip=-1)


def test_a_layer_that_is_gone_is_named() -> None:
    fitted = MultilayerMahalanobis().fit(parts_of(FIT), held_out=parts_of(HELD))
    with pytest.raises(SignalError, match=r"fitted on features\.middle"):
        fitted.score({k: v for k, v in TEST.items() if k != "features.middle"})


def test_known_failure_of_the_mean_other_layers_dilute_a_shift_in_one() -> None:
    odd = draw(60, 4, shift={"middle": -2.0})
    mean, most = (
        MultilayerMahalanobis(reduction=r, conditional=False).fit(parts_of(FIT), held_out=parts_of(HELD)) for r in ("mean", "max")
    )

    def area(scores: Tensor, usual: Tensor) -> float:
        return float((scores[:, None] > usual[None]).double().mean())

    usual = draw(200, 5)
    assert area(most.score(odd), most.score(usual)) > area(mean.score(odd), mean.score(usual)) > 0.6


@pytest.mark.parametrize("held", [0, 1])
def test_too_few_held_out_images_are_refused(held: int) -> None:
    few = [{k: v[:held] for k, v in HELD.items()}]
    with pytest.raises(SignalError, match="no images" if held == 0 else "1 held-out images and needs at least 2"):
        MultilayerMahalanobis().fit(parts_of(FIT), held_out=few)


def test_seven_images_are_too_few_without_held_out() -> None:
    with pytest.raises(SignalError, match="at least 8 images"):
        MultilayerMahalanobis().fit([{k: v[:7] for k, v in FIT.items()}])


def test_a_layer_that_never_varies_is_named() -> None:
    dead = [{**b, "features.middle": torch.ones_like(b["features.middle"])} for b in parts_of(FIT)]
    with pytest.raises(SignalError, match=r"features\.middle does not vary"):
        MultilayerMahalanobis().fit(dead)


def test_the_map_shows_where_and_scores_need_no_maps() -> None:
    fitted = MultilayerMahalanobis().fit(parts_of(draw(80, 1, side=6)), held_out=parts_of(draw(40, 2, side=6)))
    usual, odd = draw(10, 3, side=6), draw(10, 3, side=6)
    odd["feature_map.middle"][:, :, 4, 1] += 6.0
    maps = fitted.map(odd)
    assert tuple(maps.shape) == (10, 6, 6)
    assert maps.flatten(1).argmax(dim=1).tolist() == [4 * 6 + 1] * 10
    assert abs(float(fitted.map(usual).mean())) < 0.2
    assert torch.equal(fitted.score({k: v for k, v in odd.items() if not k.startswith("feature_map")}), fitted.score(usual))


@pytest.mark.parametrize("unit", [True, False])
def test_the_map_equals_the_formula(unit: bool) -> None:
    fit, held, test = draw(50, 1, side=3), draw(30, 2, side=3), draw(5, 3, side=3)
    layer = "stem"
    a, b, c = (s[f"feature_map.{layer}"].movedim(1, -1).reshape(-1, 9, WIDTHS[layer]).numpy() for s in (fit, held, test))
    a, b, c = (x / np.linalg.norm(x, axis=2, keepdims=True) if unit else x for x in (a, b, c))
    mean, deviation = a.mean(axis=0), a.reshape(-1, WIDTHS[layer]).std(axis=0, ddof=1)
    residuals = ((a - mean) / deviation).reshape(-1, WIDTHS[layer])
    free, d = len(residuals) - 9, WIDTHS[layer]
    s = residuals.T @ residuals / free
    square, trace = np.trace(s @ s), np.trace(s)
    rho = min(1.0, ((1 - 2 / d) * square + trace**2) / ((free + 1 - 2 / d) * (square - trace**2 / d)))
    precision = np.linalg.inv((1 - rho) * s + rho * trace / d * np.eye(d))
    logs = [np.log(np.einsum("npd,de,npe->np", r, precision, r)) for r in ((x - mean) / deviation for x in (b, c))]
    centre = 0.5 * logs[0].mean(axis=0) + 0.5 * logs[0].mean()
    spread = np.sqrt(0.5 * logs[0].var(axis=0) + 0.5 * ((logs[0] - centre) ** 2).mean())
    detector = MultilayerMahalanobis(layers=(layer,), normalise=unit)
    got = detector.fit(parts_of(fit), held_out=parts_of(held)).map(test)
    np.testing.assert_allclose(got.reshape(5, 9).numpy(), (logs[1] - centre) / spread, rtol=1e-4, atol=1e-4)


def test_maps_of_unequal_size_meet_on_the_finest_grid_of_at_most_forty() -> None:
    def sized(count: int, seed: int) -> Signals:
        signals, generator = draw(count, seed), torch.Generator().manual_seed(seed)
        for layer, side in (("stem", 80), ("middle", 20), ("deep", 5)):
            signals[f"feature_map.{layer}"] = torch.randn(count, 4, side, side, generator=generator)
        return signals

    fitted = MultilayerMahalanobis(skip=0).fit([sized(12, 1)], held_out=[sized(6, 2)])
    assert tuple(fitted.map(sized(2, 3)).shape) == (2, 40, 40)


def test_volumes_have_maps_too() -> None:
    def volumes(count: int, seed: int) -> Signals:
        maps = torch.randn(count, 5, 4, 6, 6, generator=torch.Generator().manual_seed(seed))
        return {**draw(count, seed), "feature_map.deep": maps}

    fitted = MultilayerMahalanobis().fit([volumes(20, 1)], held_out=[volumes(8, 2)])
    assert tuple(fitted.map(volumes(3, 3)).shape) == (3, 4, 6, 6)


@pytest.mark.parametrize("maps", [True, False])
def test_a_state_without_maps_says_so(maps: bool) -> None:
    fitted = MultilayerMahalanobis(maps=maps).fit(parts_of(FIT), held_out=parts_of(HELD))
    with pytest.raises(ConfigError, match="fitted without feature maps"):
        fitted.map(draw(2, 3, side=3))


def test_the_state_for_a_small_encoder_stays_below_twenty_megabytes() -> None:
    def wide(count: int, seed: int) -> Signals:
        generator, signals = torch.Generator().manual_seed(seed), {}
        for i, (channels, side) in enumerate(((24, 80), (40, 40), (80, 20), (160, 10), (256, 5))):
            maps = torch.rand(count, channels, side, side, generator=generator)
            pooled = torch.cat([maps.mean(dim=(2, 3)), maps.flatten(2).std(dim=2)], dim=1)
            signals |= {f"feature_map.{i}": maps, f"features.{i}": pooled}
        return signals

    state = MultilayerMahalanobis().fit([wide(8, 1)], held_out=[wide(4, 2)]).state
    assert sum(tensor.nbytes for tensor in state.values()) < 20e6


@pytest.mark.parametrize(
    "wrong", [{"reduction": "median"}, {"shrinkage": "none"}, {"k": 0}, {"k": 9, "max_bank": 8}, {"choose": "best"}, {"scale": "none"}]
)
def test_parameters_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        MultilayerMahalanobis.from_params(wrong)


def conditional_distances(fit: Signals, rows: Signals, *, scale: str) -> np.ndarray:
    """Log squared distance of each layer given those before it, from block formulas of the joint Gaussian; no Cholesky factor."""
    blocks = [(normalize(fit[f"features.{layer}"].numpy()), normalize(rows[f"features.{layer}"].numpy())) for layer in WIDTHS]
    scaled = []
    for a, b in blocks:
        deviation = a.std(axis=0, ddof=1)
        by = deviation if scale == "dimension" else np.sqrt((deviation**2).mean())
        scaled.append(((a - a.mean(axis=0)) / by, (b - a.mean(axis=0)) / by))
    estimate = LedoitWolf(assume_centered=True).fit(np.concatenate([a for a, _ in scaled], axis=1)).covariance_
    x = np.concatenate([b for _, b in scaled], axis=1)
    columns, start = [], 0
    for width in WIDTHS.values():
        old, new = slice(0, start), slice(start, start + width)
        regression = estimate[new, old] @ np.linalg.inv(estimate[old, old]) if start else np.zeros((width, 0))
        left = estimate[new, new] - regression @ estimate[old, new]
        residual = x[:, new] - x[:, old] @ regression.T
        columns.append(np.log(np.einsum("nd,de,ne->n", residual, np.linalg.inv(left), residual)))
        start += width
    return np.stack(columns, axis=1)


@pytest.mark.parametrize("scale", ["dimension", "layer"])
@pytest.mark.parametrize("skip", [0, 1])
def test_conditional_layers_equal_the_block_formula(scale: Scale, skip: int) -> None:
    held, test = (conditional_distances(FIT, s, scale=scale)[:, skip:] for s in (HELD, TEST))
    z_held, z_test = standard(held, held), standard(test, held)
    expected = standard(z_test.mean(1), z_held.mean(1))
    detector = MultilayerMahalanobis(conditional=True, scale=scale, skip=skip, reduction="mean")
    got = detector.fit(parts_of(FIT), held_out=parts_of(HELD)).score(TEST)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_layers_by_themselves_scaled_as_a_whole_equal_scikit_learn() -> None:
    columns = []
    for rows in (HELD, TEST):
        fits, given = ([normalize(s[f"features.{layer}"].numpy()) for layer in WIDTHS] for s in (FIT, rows))
        columns.append(np.stack([np.log(LedoitWolf().fit(a).mahalanobis(b)) for a, b in zip(fits, given, strict=True)], axis=1))
    z_held, z_test = (standard(c, columns[0]) for c in columns)
    detector = MultilayerMahalanobis(conditional=False, scale="layer", skip=0, reduction="mean")
    got = detector.fit(parts_of(FIT), held_out=parts_of(HELD)).score(TEST)
    np.testing.assert_allclose(got.numpy(), standard(z_test.mean(1), z_held.mean(1)), rtol=1e-4, atol=1e-5)


def test_what_a_shallow_layer_explains_is_not_counted_again_in_a_deep_one() -> None:
    """A deep layer that copies the shallow one, plus a little noise: its own distance rises with the copy, the conditional one does not."""

    def copied(count: int, seed: int, shift: float = 0.0) -> Signals:
        generator = torch.Generator().manual_seed(seed)
        shallow = torch.randn(count, 6, generator=generator, dtype=torch.float64) + shift
        deep = torch.cat([shallow, shallow], dim=1) + 0.3 * torch.randn(count, 12, generator=generator, dtype=torch.float64)
        return {"features.a": shallow, "features.b": deep, "features.last": deep}

    def lift(*, conditional: bool) -> float:
        detector = MultilayerMahalanobis(conditional=conditional, normalise=False, skip=1, reduction="mean")
        fitted = detector.fit([copied(400, 1)], held_out=[copied(200, 2)])
        return float(fitted.score(copied(200, 3, shift=1.0)).mean())

    assert lift(conditional=False) > 1.0
    assert abs(lift(conditional=True)) < 0.5


def test_fisher_equals_counted_p_values() -> None:
    held, test = (log_distances(FIT, s, unit=True) for s in (HELD, TEST))
    z_held, z_test = standard(held, held), standard(test, held)
    upper = np.sort(z_held, axis=0)[-6:]
    excess = (upper - upper[0]).sum(0) / 5
    counted = [[(1 + (z_held[:, j] >= v).sum()) / (len(z_held) + 1) for j, v in enumerate(row)] for row in z_test]
    beyond = np.clip(z_test - z_held.max(0), 0, None) / excess
    statistic = (-np.log(counted) + beyond).sum(1)
    own = -np.log([[(z_held[:, j] >= v).sum() / len(z_held) for j, v in enumerate(row)] for row in z_held]).sum(1)
    detector = MultilayerMahalanobis(reduction="fisher", skip=0, conditional=False, scale="dimension")
    got = detector.fit(parts_of(FIT), held_out=parts_of(HELD)).score(TEST)
    np.testing.assert_allclose(got.numpy(), standard(statistic, own), rtol=1e-4, atol=1e-5)


def test_tails_are_asked_for() -> None:
    with pytest.raises(ConfigError, match="fisher needs the tails"):
        terms("fisher", Parts(torch.zeros(2, 3, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)))


def test_layers_with_a_drop_of_entropy_are_chosen() -> None:
    """The middle layer has two free directions out of ten, so its entropy per dimension is below that of the layer before it."""

    def bound(signals: Signals) -> Signals:
        rows = signals["features.middle"][:, :2]
        mixed = torch.cat([rows] * 5, dim=1) + 0.05 * signals["features.middle"]
        return {**signals, "features.middle": mixed}

    fit, held, test = ([bound(b) for b in parts_of(s)] for s in (FIT, HELD, TEST))
    density = {}
    for layer in WIDTHS:
        rows = normalize(torch.cat([b[f"features.{layer}"] for b in fit]).numpy())
        estimate = LedoitWolf().fit((rows - rows.mean(0)) / rows.std(0, ddof=1)).covariance_
        deviation = np.sqrt(np.diag(estimate))
        density[layer] = np.linalg.slogdet(estimate / np.outer(deviation, deviation))[1] / (2 * len(estimate))
    names = list(WIDTHS)
    expected = tuple(b for a, b in itertools.pairwise(names) if density[b] < density[a])
    assert expected == ("middle",)
    for conditional in (False, True):
        chosen = MultilayerMahalanobis(choose="entropy", conditional=conditional).fit(fit, held_out=held)
        assert chosen.state["parts.mean"].shape == (2,)
        if not conditional:
            named = MultilayerMahalanobis(layers=("middle",), conditional=False).fit(fit, held_out=held)
            torch.testing.assert_close(chosen.score(test[0]), named.score(test[0]))


def test_without_a_drop_of_entropy_the_deepest_layer_is_chosen() -> None:
    assert drops({"a": -1.0, "b": -0.5, "c": -0.2}) == ("c",)
    assert drops({"a": -0.1, "b": -0.5, "c": -0.2, "d": -0.3}) == ("b", "d")
    assert drops({"a": -0.1}) == ("a",)


def test_a_conditional_gate_names_a_layer_of_another_width() -> None:
    fitted = MultilayerMahalanobis(conditional=True).fit(parts_of(FIT), held_out=parts_of(HELD))
    with pytest.raises(SignalError, match=r"features\.stem of shape"):
        fitted.score({**TEST, "features.stem": TEST["features.stem"][:, :4]})
