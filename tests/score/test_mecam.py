"""MECAM against its formula written out pixel by pixel in float64, its known values, and the traps that it has."""

import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from tests.represent.tiny import Passes, Tiny, encoder, images, pixels, tiny
from torch import Tensor, nn

from offmap.core.encoder import Input
from offmap.core.errors import ConfigError, SignalError
from offmap.represent.classifier import ClassifierEncoder
from offmap.represent.masking import FILLS as DRAWN
from offmap.represent.multi_exit import Exits, WithExits
from offmap.score.mecam import FILLS, MECAM

CLASSES = 3


def exits_of(classes: int = CLASSES, *, size: float = 1.0, seed: int = 5) -> Exits:
    """Random exits on the two stages of the tiny network."""
    rng = torch.Generator().manual_seed(seed)
    weights = tuple(size * torch.randn(classes, width, generator=rng) for width in (6, 8))
    return Exits(("one", "two"), weights, tuple(size * torch.randn(classes, generator=rng) for _ in range(2)))


def certain(exits: Exits, bias: float = 1000.0) -> Exits:
    """Exits that see class 1 everywhere, with a softmax of just 1."""
    one = torch.zeros(exits.classes)
    one[1] = bias
    return Exits(exits.layers, tuple(torch.zeros_like(w) for w in exits.weights), (one, one))


def scored(detector: MECAM, reader: WithExits, x: Tensor) -> Tensor:
    signals = reader.encode(x, detector.needs)
    return detector.fit([signals]).score(signals)


def bilinear(maps: np.ndarray, size: int) -> np.ndarray:
    """Of one class map, by hand: centres of cells, constant beyond the outermost."""
    out = np.zeros((size, size))
    for i, j in itertools.product(range(size), repeat=2):
        near = []
        for at, cells in ((i, maps.shape[0]), (j, maps.shape[1])):
            place = max(0.0, (at + 0.5) * cells / size - 0.5)
            low = math.floor(place)
            near.append((low, min(low + 1, cells - 1), place - low))
        (a, b, s), (c, d, t) = near
        out[i, j] = (1 - s) * ((1 - t) * maps[a, c] + t * maps[a, d]) + s * ((1 - t) * maps[b, c] + t * maps[b, d])
    return out


def softmax(values: np.ndarray) -> np.ndarray:
    e = np.exp(values - values.max(axis=0))
    return np.asarray(e / e.sum(axis=0))


def stages_of(net: Tiny, x: Tensor) -> list[np.ndarray]:
    """Maps of one image in [0, 1]."""
    with torch.no_grad():
        one = net.one(pixels(x[None]))
        return [one[0].numpy(), net.two(one)[0].numpy()]


def evidence(net: Tiny, exits: Exits, x: Tensor, which: tuple[int, ...], per_exit: bool) -> tuple[np.ndarray, np.ndarray]:
    """M of one image, and the shares of the exits."""
    maps = stages_of(net, x)
    seen = [
        np.einsum("kc,cij->kij", w.double().numpy(), m) + b.double().numpy()[:, None, None]
        for m, w, b in zip(maps, exits.weights, exits.biases, strict=True)
    ]
    logits = [m.mean(axis=(1, 2)) for m in seen]
    sure = np.array([softmax(logits[e]).max() for e in which])
    shares, total = sure / sure.sum(), np.zeros((16, 16))
    for share, e in zip(shares, which, strict=True):
        chosen = logits[e].argmax() if per_exit else logits[-1].argmax()
        total += share * softmax(np.stack([bilinear(m, 16) for m in seen[e]]))[chosen]
    return np.clip(total, 0, 1), shares


def change(net: Tiny, exits: Exits, x: Tensor, which: tuple[int, ...] = (0, 1), *, per_exit: bool = False, fill: str = "zero") -> float:
    """Section by section: features of the image and of the masked one, mean of squared differences."""
    mask = torch.from_numpy(evidence(net, exits, x, which, per_exit)[0])
    shown = x.double() * (1 - mask)
    if fill == "mean":
        shown = shown + x.double().mean(dim=(1, 2))[:, None, None] * mask
    before, after = stages_of(net, x)[-1].mean(axis=(1, 2)), stages_of(net, shown)[-1].mean(axis=(1, 2))
    return float(((before - after) ** 2).mean())


@pytest.mark.parametrize("which", [(), (1,), (2,)])
@pytest.mark.parametrize("target", ["last", "per_exit"])
@pytest.mark.parametrize("fill", ["zero", "mean"])
def test_the_score_is_the_formula(which: tuple[int, ...], target: str, fill: str) -> None:
    net, x = tiny(), images(4)
    detector = MECAM(exits=which, target=target, fill=fill)  # type: ignore[arg-type]
    found = scored(detector, WithExits(encoder(net), exits_of()), x)
    net.eval()
    places = tuple(e - 1 for e in which) or (0, 1)
    expected = [-change(net, exits_of(), one, places, per_exit=target == "per_exit", fill=fill) for one in x]
    assert found.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-7)
    assert max(found.tolist()) < -1e-5


def test_the_map_is_the_evidence_and_its_weights_are_shares() -> None:
    net, x, detector = tiny(), images(3), MECAM()
    signals = WithExits(encoder(net), exits_of()).encode(x, detector.needs | detector.map_needs)
    maps = detector.fit([signals]).map(signals)
    net.eval()
    for one, got in zip(x, maps, strict=True):
        mask, shares = evidence(net, exits_of(), one, (0, 1), False)
        assert shares.sum() == pytest.approx(1)
        np.testing.assert_allclose(got, mask, atol=1e-6)


def test_one_exit_gives_the_plain_class_activation_map() -> None:
    """With one exit its share is 1: M is the softmax of its class maps, whatever its confidence."""
    net, exits, x, detector = tiny(), exits_of(), images(1), MECAM(exits=(2,))
    found = WithExits(encoder(net), exits).encode(x, detector.map_needs)[detector.evidence]
    alone = WithExits(encoder(net), Exits(("two",), exits.weights[1:], exits.biases[1:]))
    torch.testing.assert_close(found, alone.encode(x, frozenset({MECAM().evidence}))[MECAM().evidence])
    net.eval()
    maps = np.einsum("kc,cij->kij", exits.weights[1].double().numpy(), stages_of(net, x[0])[1])
    maps += exits.biases[1].double().numpy()[:, None, None]
    expected = softmax(np.stack([bilinear(m, 16) for m in maps]))[maps.mean(axis=(1, 2)).argmax()]
    np.testing.assert_allclose(found[0, 0], expected, atol=1e-6)


@pytest.mark.parametrize("which", [(), (1,), (2,)])
def test_evidence_everywhere_is_a_black_image(which: tuple[int, ...]) -> None:
    """The shares of every subset sum to 1: exits that are certain everywhere hide just the whole image."""
    x, reader, detector = images(3), WithExits(encoder(tiny()), certain(exits_of())), MECAM(exits=which)
    signals = reader.encode(x, detector.needs | detector.map_needs)
    torch.testing.assert_close(signals[detector.evidence], torch.ones(3, 1, 16, 16))
    black = reader.base.encode(torch.zeros(3, 3, 16, 16), frozenset({"feature_map.two"}))["feature_map.two"].mean(dim=(2, 3))
    expected = -(signals["mecam.features"] - black).square().mean(dim=1)
    torch.testing.assert_close(detector.fit([signals]).score(signals), expected, rtol=1e-5, atol=1e-7)


def test_no_evidence_changes_nothing() -> None:
    """Undecided exits, their floor of 1/K taken off."""
    undecided = certain(exits_of(), bias=0.0)
    for detector in (MECAM(above_chance=True, distance=d) for d in ("mse", "cosine", "relative")):
        assert scored(detector, WithExits(encoder(tiny()), undecided), images(3)).tolist() == pytest.approx([0, 0, 0], abs=1e-9)


@pytest.mark.parametrize("classes", [2, 3, 8])
def test_trap_undecided_exits_dim_the_image_as_a_whole(classes: int) -> None:
    """The floor of 1/K: with two classes half of the light is gone, though no exit has seen anything."""
    undecided = certain(exits_of(classes), bias=0.0)
    reader, x = WithExits(encoder(tiny()), undecided), images(2)
    mask = reader.encode(x, MECAM().map_needs)[MECAM().evidence]
    torch.testing.assert_close(mask, torch.full((2, 1, 16, 16), 1 / classes))
    dimmed = reader.base.encode(x * (1 - 1 / classes), frozenset({"feature_map.two"}))["feature_map.two"].mean(dim=(2, 3))
    plain = reader.encode(x, frozenset({"mecam.features"}))["mecam.features"]
    torch.testing.assert_close(scored(MECAM(), reader, x), -(plain - dimmed).square().mean(dim=1), rtol=1e-4, atol=1e-7)


def test_trap_the_mean_square_grows_with_the_features_and_the_relative_change_does_not() -> None:
    name = MECAM().masked
    before = torch.rand(5, 8, generator=torch.Generator().manual_seed(0)) + 0.1
    after = before.flip(0)
    small, large = ({"mecam.features": s * before, name: s * after} for s in (1.0, 10.0))
    for distance, factor in (("mse", 100.0), ("relative", 1.0), ("cosine", 1.0)):
        fitted = MECAM(distance=distance).fit([small])  # type: ignore[arg-type]
        torch.testing.assert_close(fitted.score(large), factor * fitted.score(small), rtol=1e-4, atol=1e-6)
    expected = -(before - after).square().sum(dim=1) / before.square().sum(dim=1)
    torch.testing.assert_close(MECAM(distance="relative").fit([small]).score(small), expected)
    cosine = torch.nn.functional.cosine_similarity(before.double(), after.double()).float() - 1
    torch.testing.assert_close(MECAM(distance="cosine").fit([small]).score(small), cosine)


class DiscFinder(nn.Module):
    """By hand: one channel, where 8 x 8 pixels are brighter than 0.5 on average; evidence for a disc is in proportion to it."""

    def __init__(self) -> None:
        super().__init__()
        self.bright = nn.Sequential(nn.AvgPool2d(8), nn.Threshold(0.5, 0.0))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.bright(x)
        return out


def finder() -> WithExits:
    weight, bias = torch.tensor([[0.0], [40.0]]), torch.tensor([0.0, -4.0])
    spec = Input(64, 1, (0.0,), (1.0,))
    return WithExits(ClassifierEncoder(DiscFinder(), spec=spec, layers=["bright"]), Exits(("bright",), (weight,), (bias,)))


def discs(count: int = 12) -> Tensor:
    rng, at = torch.Generator().manual_seed(4), torch.linspace(-1, 1, 64)
    centres = 0.8 * torch.rand(count, 2, generator=rng) - 0.4
    far = ((at[None, :, None] - centres[:, 0, None, None]).square() + (at - centres[:, 1, None, None]).square()).sqrt()
    return (0.1 + 0.8 * (far < 0.45).float() + 0.02 * torch.randn(count, 64, 64, generator=rng)).clamp(0, 1)[:, None]


def test_discs_score_lower_than_texture_by_a_classifier_of_discs() -> None:
    texture = 0.7 * torch.rand(12, 1, 64, 64, generator=torch.Generator().manual_seed(6))
    for detector in (MECAM(), MECAM(fill="mean"), MECAM(fill="blur"), MECAM(above_chance=True)):
        usual, odd = (scored(detector, finder(), x) for x in (discs(), texture))
        assert float(usual.max()) < float(odd.min())


class Sighted(nn.Module):
    """By hand: where 8 x 8 pixels are brighter than 0.5 on average, and how bright they are."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(8)
        self.both = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        seen = self.pool(x)
        out: Tensor = self.both(torch.cat([nn.functional.threshold(seen, 0.5, 0.0), seen], dim=1))
        return out


@pytest.mark.parametrize(("classes", "above_chance", "area"), [(2, False, 0.0), (2, True, 1.0), (8, False, 1.0), (8, True, 1.0)])
def test_trap_two_classes_turn_the_order_round_and_above_chance_repairs_it(classes: int, above_chance: bool, area: float) -> None:
    """Exits that are sure of discs and undecided elsewhere: with two classes, grey texture loses half of its light and looks more usual
    than a small disc; with eight it loses an eighth."""
    weight, bias = torch.zeros(classes, 2), torch.zeros(classes)
    weight[1, 0] = 40.0
    net = ClassifierEncoder(Sighted(), spec=Input(64, 1, (0.0,), (1.0,)), layers=["both"])
    reader, at = WithExits(net, Exits(("both",), (weight,), (bias,))), torch.linspace(-1, 1, 64)
    rng = torch.Generator().manual_seed(3)
    centres = 1.2 * torch.rand(12, 2, generator=rng) - 0.6
    far = ((at[None, :, None] - centres[:, 0, None, None]).square() + (at - centres[:, 1, None, None]).square()).sqrt()
    usual = (0.1 + 0.8 * (far < 0.3).float())[:, None]
    odd = 0.35 + 0.15 * torch.rand(12, 1, 64, 64, generator=rng)
    detector = MECAM(above_chance=above_chance)
    scores = torch.cat([scored(detector, reader, x) for x in (usual, odd)])
    assert roc_auc_score([0] * 12 + [1] * 12, scores.numpy()) == area


def test_known_failure_an_image_that_is_evidence_everywhere_looks_most_usual() -> None:
    white = torch.full((1, 1, 64, 64), 0.95)
    assert float(scored(MECAM(), finder(), white)) < float(scored(MECAM(), finder(), discs()).min())


def test_trap_hidden_means_black_before_the_network_normalises() -> None:
    """A black image stays what it is, since nothing can be taken from it; a z-scored zero would be grey."""
    reader = WithExits(encoder(tiny()), exits_of())
    assert scored(MECAM(), reader, torch.zeros(2, 3, 16, 16)).tolist() == [0.0, 0.0]


def test_trap_batch_normalisation_is_in_eval_mode_in_both_passes() -> None:
    training, evaluating = tiny(), tiny().eval()
    one, other = (scored(MECAM(), WithExits(encoder(net), exits_of()), images(6)) for net in (training, evaluating))
    assert torch.equal(one, other)
    assert training.training


def test_an_image_scores_as_in_any_batch() -> None:
    reader, x = WithExits(encoder(tiny()), exits_of()), images(35)
    whole = scored(MECAM(), reader, x)
    for i in (0, 15, 16, 34):
        assert float(scored(MECAM(), reader, x[i : i + 1])) == pytest.approx(float(whole[i]), rel=1e-5)
    order = torch.randperm(35, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(scored(MECAM(), reader, x[order]), whole[order], rtol=1e-5, atol=1e-8)


def test_it_costs_two_passes_shared_with_all_other_signals() -> None:
    net = tiny()
    reader, count = WithExits(encoder(net), exits_of()), Passes(net)
    for needs, passes in (
        (MECAM().needs, 2),
        (MECAM().needs | MECAM().map_needs | {"logits", "features.one", "feature_map.last"}, 2),
        (MECAM().needs | MECAM(distance="cosine").needs | MECAM(exits=(1, 2)).needs, 2),
        (MECAM().needs | MECAM(fill="blur").needs | MECAM(exits=(1,)).needs, 4),
        (MECAM().map_needs | {"mecam.features"}, 1),
    ):
        count.taken()
        reader.encode(images(20), needs)
        assert count.taken() == 20 * passes, needs


def test_fills_are_numbered_alike_where_they_are_asked_for_and_drawn() -> None:
    assert FILLS == DRAWN


@pytest.mark.parametrize(
    ("key", "value"), [("exits", (0,)), ("exits", (1, 1)), ("exits", (10,)), ("target", "all"), ("fill", "noise"), ("distance", "l1")]
)
def test_a_parameter_out_of_range_is_refused(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{key}.* = "):
        MECAM.from_params({key: value})


def test_two_sided_is_the_distance_to_the_usual_change_in_deviations() -> None:
    rng, detector = np.random.default_rng(0), MECAM(two_sided=True)
    before, after = rng.normal(size=(2, 50, 6))
    logs = np.log(((before - after) ** 2).mean(axis=1))
    batches = [
        {"mecam.features": torch.tensor(before[i : i + 20]), detector.masked: torch.tensor(after[i : i + 20])} for i in range(0, 50, 20)
    ]
    fitted = detector.fit(batches)
    expected = np.abs(logs - logs.mean()) / logs.std(ddof=1)
    np.testing.assert_allclose(torch.cat([fitted.score(batch) for batch in batches]), expected, rtol=1e-5)
    with pytest.raises(SignalError, match="the change of the 1 images does not vary"):
        detector.fit([{k: v[:1] for k, v in batches[0].items()}])


def test_two_sided_finds_what_is_evidence_everywhere_and_what_is_nowhere() -> None:
    reader, detector = finder(), MECAM(two_sided=True)
    usual, white, black = (
        reader.encode(x, detector.needs) for x in (discs(40), torch.full((1, 1, 64, 64), 0.95), torch.zeros(1, 1, 64, 64))
    )
    fitted = detector.fit([usual])
    assert float(fitted.score(usual).max()) < min(float(fitted.score(white)), float(fitted.score(black)))


def test_other_widths_and_no_map_are_refused() -> None:
    name = MECAM().masked
    both = {"mecam.features": torch.zeros(3, 4), name: torch.zeros(3, 4)}
    fitted = MECAM().fit([both])
    with pytest.raises(SignalError, match=r"different widths \[4, 5\]"):
        MECAM().fit([{**both, name: torch.zeros(3, 5)}])
    with pytest.raises(SignalError, match=r"must be \(N, 4, as when it was fitted\)"):
        fitted.score({"mecam.features": torch.zeros(3, 6), name: torch.zeros(3, 6)})
    with pytest.raises(SignalError, match=r"must be \(N, 1, H, W\)"):
        fitted.map({MECAM().evidence: torch.zeros(3, 2, 4, 4)})
