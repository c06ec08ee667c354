"""Exits on a frozen network: trained against an independent optimiser, kept, given again, refused; and what they show."""

import json
from pathlib import Path

import pytest
import torch
from tests.represent.tiny import Passes, encoder, images, tiny
from torch import Tensor, nn

from offmap.core.encoder import Encoder, Input
from offmap.core.errors import BundleError, ConfigError, SignalError
from offmap.represent.classifier import ClassifierEncoder
from offmap.represent.encoder import BuiltinEncoder
from offmap.represent.masking import blurred, filled, look_of, probability
from offmap.represent.multi_exit import Exits, WithExits, train_exits
from offmap.represent.open import open_encoder, rebuild

MECAM = frozenset({"mecam.features", "mecam.masked_features", "mecam.map"})


def halves(count: int = 40, *, size: int = 64, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images with stripes along one of three directions, and which."""
    rng, labels = torch.Generator().manual_seed(seed), torch.arange(count) % 3
    at = torch.linspace(0, 6.28 * 6, size)
    fields = torch.stack([at[:, None].sin().expand(size, size), at.sin().expand(size, size), (at[:, None] + at).sin()])
    phase = 0.2 * torch.randn(count, 1, size, size, generator=rng)
    return (0.5 + 0.3 * fields[labels][:, None] + 0.2 * phase).clamp(0, 1), labels


def cut(pair: tuple[Tensor, Tensor], size: int = 13) -> list[tuple[Tensor, Tensor]]:
    return list(zip(pair[0].split(size), pair[1].split(size), strict=True))


def drawn(classes: int = 3, seed: int = 1) -> Exits:
    rng = torch.Generator().manual_seed(seed)
    return Exits(("one", "two"), tuple(torch.randn(classes, w, generator=rng) for w in (6, 8)), (torch.zeros(classes),) * 2)


def test_exits_find_the_classes_at_every_depth() -> None:
    reader = BuiltinEncoder.shipped(size=64)
    exits = train_exits(reader, cut(halves()))
    assert exits.layers == ("stages.0", "stages.1", "stages.2", "stages.3")
    x, labels = halves(seed=1)
    signals = reader.encode(x, frozenset({f"feature_map.{layer}" for layer in exits.layers}))
    for layer, weight, bias in zip(exits.layers, exits.weights, exits.biases, strict=True):
        logits = torch.einsum("kc,ncij->nkij", weight, signals[f"feature_map.{layer}"]) + bias[:, None, None]
        assert torch.equal(logits.mean(dim=(2, 3)).argmax(dim=1), labels), layer


def test_training_reaches_the_minimum_of_the_penalised_likelihood() -> None:
    """Gradient of ``sum_i w_i CE_i + |W|^2 / 2`` on standardised features, by autograd, is zero at what was found."""
    x, labels = images(30), torch.arange(30) % 4
    reader = encoder(tiny())
    exits = train_exits(reader, [(x, labels)], strength=0.5)
    rows = reader.encode(x, frozenset({"feature_map.two"}))["feature_map.two"].double().mean(dim=(2, 3))
    mean, spread = rows.mean(dim=0), rows.std(dim=0, correction=0)
    scaled, weight = (rows - mean) / spread, (exits.weights[1].double() * spread).requires_grad_()
    bias = (exits.biases[1].double() + exits.weights[1].double() @ mean).requires_grad_()
    balance = 30 / (4 * labels.bincount()).double()
    loss = nn.functional.cross_entropy(scaled @ weight.T + bias, labels, reduction="none") * balance[labels]
    (0.5 * loss.sum() + weight.square().sum() / 2).backward()
    assert weight.grad is not None
    assert bias.grad is not None
    assert float(weight.grad.abs().max()) < 1e-2
    assert float(bias.grad.abs().max()) < 1e-2


def test_training_repeats_itself_and_does_not_see_how_images_are_batched() -> None:
    reader = BuiltinEncoder.shipped(size=64)
    one, same, other = (train_exits(reader, cut(halves(), size)).tensors() for size in (13, 13, 40))
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert all(torch.allclose(one[k], other[k], rtol=1e-2, atol=1e-4) for k in one)


def test_two_classes_give_a_symmetric_pair_and_labels_may_be_any_numbers() -> None:
    x, labels = images(20), torch.tensor([-7, 300])[torch.arange(20) % 2]
    exits = train_exits(encoder(tiny()), [(x, labels)], layers=["two"])
    assert exits.layers == ("two",)
    assert torch.equal(exits.weights[0][0], -exits.weights[0][1])
    assert exits.classes == 2


def test_the_network_is_left_alone_and_its_signals_are_what_they_were() -> None:
    net = tiny()
    base = encoder(net)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    reader = WithExits(base, drawn())
    assert reader.provides == base.provides | MECAM
    needs = frozenset(base.provides)
    plain, both = base.encode(images(20), needs), reader.encode(images(20), needs | MECAM)
    assert set(both) == set(plain) | MECAM
    for name, value in plain.items():
        torch.testing.assert_close(both[name], value, rtol=1e-5, atol=1e-6, msg=name)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert net.training


def test_patterns_and_maps_that_nobody_asked_for() -> None:
    reader = WithExits(encoder(tiny()), drawn())
    assert set(reader.encode(images(2), frozenset({"mecam.features"}))) == {"mecam.features"}
    assert set(reader.encode(images(2), frozenset({"mecam.*", "feature_map.two"}))) == {*MECAM, "feature_map.two"}
    assert set(reader.encode(images(2), frozenset({"feature_map.*"}))) == {"feature_map.one", "feature_map.two", "feature_map.last"}


def test_a_network_that_the_exits_do_not_need_twice_runs_once() -> None:
    net = tiny()
    reader, count = WithExits(encoder(net), drawn()), Passes(net)
    reader.encode(images(3), frozenset({"logits", "mecam.map", "mecam.features"}))
    assert count.taken() == 3
    reader.encode(images(3), frozenset({"mecam.masked_features:exits=1", "mecam.masked_features:exits=12", "mecam.masked_features"}))
    assert count.taken() == 9


def test_a_transformer_gives_maps_of_its_patches(tmp_path: Path) -> None:
    from tests.represent.test_hub import MODELS, saved
    from tests.represent.test_hub import drawn as filled_in

    reader = open_encoder(f"hub:{saved(filled_in(MODELS['vit'][0]()), tmp_path)}")
    x = torch.rand(6, 3, reader.input.size, reader.input.size, generator=torch.Generator().manual_seed(0))
    exits = train_exits(reader, [(x, torch.arange(6) % 2)])
    signals = WithExits(reader, exits).encode(x, MECAM)
    assert exits.layers == reader.layers == ("layer.1", "layer.2", "layer.3", "final")
    assert signals["mecam.map"].shape == (6, 1, reader.input.size, reader.input.size)
    assert signals["mecam.masked_features"].shape == signals["mecam.features"].shape == (6, exits.weights[-1].shape[1])
    assert bool((signals["mecam.features"] != signals["mecam.masked_features"]).any())


def again(reader: Encoder, given: Encoder | nn.Module | str | None = None) -> Encoder:
    return rebuild(json.loads(json.dumps(reader.config())), reader.state(), given=given)


def test_they_come_back_from_a_gate() -> None:
    x = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    builtin = WithExits(BuiltinEncoder.shipped(size=64), train_exits(BuiltinEncoder.shipped(size=64), cut(halves())))
    net = tiny()
    own = WithExits(encoder(net), drawn())
    for reader, given, shown in ((builtin, None, x), (own, net, images(2)), (own, own, images(2)), (own, own.base, images(2))):
        found = again(reader, given)
        assert found.sha256 == reader.sha256
        expected = reader.encode(shown, MECAM)
        assert all(torch.equal(v, expected[k]) for k, v in found.encode(shown, MECAM).items())


def test_other_weights_and_lost_exits_are_refused() -> None:
    reader = WithExits(encoder(tiny()), drawn())
    with pytest.raises(BundleError, match="its scores would mean nothing"):
        again(reader, tiny(seed=4))
    with pytest.raises(BundleError, match="give it again with"):
        again(reader)
    with pytest.raises(BundleError, match="was opened with other values of input, layers"):
        again(reader, ClassifierEncoder(tiny(), spec=Input(32, 3, (0.0,) * 3, (1.0,) * 3), layers=["two"]))
    lost = {k: v for k, v in reader.state().items() if not k.endswith("1.bias")}
    with pytest.raises(BundleError, match=r"lacks 'mecam_exits\.1\.bias'"):
        rebuild(reader.config(), lost, given=encoder(tiny()))
    forged = {k: v + 1 for k, v in reader.state().items()}
    with pytest.raises(BundleError, match="the gate's exits have SHA-256"):
        rebuild(reader.config(), forged, given=tiny())
    assert WithExits(encoder(tiny()), drawn(seed=2)).sha256 != reader.sha256


def test_an_open_encoder_is_opened_as_it_is() -> None:
    reader = WithExits(encoder(tiny()), drawn())
    assert open_encoder(reader).sha256 == reader.sha256
    with pytest.raises(ConfigError, match="open already"):
        open_encoder(reader, layers=["one"])


def test_settings_that_make_no_sense_are_named() -> None:
    reader = WithExits(encoder(tiny()), drawn())
    for name, message in (
        ("mecam.map:exits=3", "exits = 3 must be digits from 1 to 2, each once"),
        ("mecam.map:exits=11", "each once"),
        ("mecam.map:exits=-1", "digits from 1 to 2"),
        ("mecam.map:fill=1", "no setting 'fill'"),
        ("mecam.masked_features:fill=3", r"fill = 3 must be 0 to 2 \(zero, mean, blur\)"),
        ("mecam.features:exits=1", "no setting 'exits'"),
    ):
        with pytest.raises(ConfigError, match=message):
            reader.ready(frozenset({name, "logits"}))
    reader.ready(frozenset({*MECAM, "logits", "mecam.map:exits=21"}))
    assert look_of("mecam.map:exits=21", 2) == look_of("mecam.map", 2)


def test_what_cannot_have_exits_says_so() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Linear(4, 3))
    bare = ClassifierEncoder(flat, spec=Input(8, 1, (0.5,), (0.5,)))
    with pytest.raises(ConfigError, match="gives no maps"):
        train_exits(bare, [(torch.rand(4, 1, 8, 8), torch.arange(4) % 2)])
    reader = encoder(tiny())
    for labels, message in (
        (torch.zeros(4, dtype=torch.int64), "two classes or more; the labels hold 1"),
        (torch.rand(4), "must be whole numbers"),
        (torch.arange(3), "one for each image"),
    ):
        with pytest.raises(ConfigError, match=message):
            train_exits(reader, [(images(4), labels)])
    with pytest.raises(ConfigError, match="the labels hold 0"):
        train_exits(reader, [])
    with pytest.raises(ConfigError, match="gives maps of one, two"):
        train_exits(reader, [(images(4), torch.arange(4))], layers=["three"])
    with pytest.raises(ConfigError, match="gives maps of one, two"):
        WithExits(reader, Exits(("three",), (torch.zeros(2, 8),), (torch.zeros(2),)))
    with pytest.raises(SignalError, match=r"must be \(N, 7, h, w\)"):
        WithExits(reader, Exits(("two",), (torch.zeros(2, 7),), (torch.zeros(2),))).encode(images(1), MECAM)
    with pytest.raises(ConfigError, match="K of 2 or more"):
        Exits(("two",), (torch.zeros(1, 8),), (torch.zeros(1),))
    with pytest.raises(ConfigError, match="not finite"):
        Exits(("two",), (torch.full((2, 8), float("nan")),), (torch.zeros(2),))


def test_a_probability_is_the_softmax_up_to_the_ends_of_the_range() -> None:
    rng = torch.Generator().manual_seed(0)
    chosen = torch.tensor([0, 2, 1])
    for size in (1.0, 20.0, 1e4):
        maps = size * torch.randn(3, 4, 5, 5, generator=rng)
        expected = maps.double().softmax(dim=1)[torch.arange(3), chosen]
        torch.testing.assert_close(probability(maps, chosen).double(), expected, rtol=1e-5, atol=1e-30)


def test_fills_put_in_as_much_as_is_taken_away() -> None:
    x, ones = images(2), torch.ones(2, 1, 16, 16)
    assert torch.equal(filled(x, 0 * ones, "zero"), x)
    assert torch.equal(filled(x, ones, "zero"), torch.zeros_like(x))
    torch.testing.assert_close(filled(x, ones, "mean"), x.mean(dim=(2, 3), keepdim=True).expand_as(x))
    torch.testing.assert_close(filled(x, ones, "blur"), blurred(x))
    torch.testing.assert_close(blurred(torch.full((1, 1, 16, 16), 0.3)), torch.full((1, 1, 16, 16), 0.3))
    point = torch.zeros(1, 1, 65, 65)
    point[0, 0, 32, 32] = 1
    spread = blurred(point)[0, 0]
    at = torch.arange(65) - 32.0
    assert float((spread.sum(dim=1) * at.square()).sum()) == pytest.approx((65 / 16) ** 2, rel=0.05)
    assert float(spread.sum()) == pytest.approx(1, abs=1e-5)
