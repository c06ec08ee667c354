"""ODIN's and AdaSCALE's inputs against autograd written out image by image, and against finite differences."""

from pathlib import Path

import pytest
import torch
from tests.represent.tiny import SPEC, Passes, Tiny, encoder, images, pixels, tiny
from torch import Tensor, nn

from offmap.core.errors import ConfigError
from offmap.core.signals import named
from offmap.represent.classifier import ClassifierEncoder
from offmap.represent.further import asked

ODIN = {"epsilon": 0.03, "temperature": 2.0}
ADASCALE = {"epsilon": 0.5, "share": 0.1}


def loss(net: Tiny, x: Tensor, temperature: float) -> Tensor:
    logits = net(x)[0] / temperature
    return torch.nn.functional.cross_entropy(logits[None], logits.argmax()[None])


def features_and_logits(net: Tiny, x: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        features = net.neck(net.two(net.one(x)))
        return features[0].float(), net.head(features)[0].float()


def test_odin_equals_one_step_written_out_image_by_image() -> None:
    net = tiny()
    names = [named("odin.logits", ODIN), named("odin.features", ODIN)]
    got = encoder(net).encode(images(11), frozenset(names))
    net.eval()
    for i, x in enumerate(pixels(images(11))):
        one = x[None].requires_grad_()
        (slope,) = torch.autograd.grad(loss(net, one, 2.0), one)
        moved = one.detach() - 0.03 * slope.sign() / torch.tensor(SPEC.std)[:, None, None]
        features, logits = features_and_logits(net, moved)
        torch.testing.assert_close(got[names[0]][i], logits, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(got[names[1]][i], features, rtol=1e-5, atol=1e-5)


def test_odin_steps_where_finite_differences_say() -> None:
    """The step is the sign of differences, in units of pixels of [0, 1]: divided by each channel's deviation."""
    net = tiny().eval()
    x = pixels(images(1))
    moved = x.clone()
    for at in torch.cartesian_prod(torch.arange(3), torch.arange(16), torch.arange(16)).tolist():
        shift = torch.zeros_like(x)
        shift[0][tuple(at)] = 1e-5
        with torch.no_grad():
            slope = loss(net, x + shift, 2.0) - loss(net, x - shift, 2.0)
        moved[0][tuple(at)] -= 0.03 / SPEC.std[at[0]] * slope.sign()
    name = named("odin.logits", ODIN)
    got = encoder(net).encode(images(1), frozenset({name}))[name][0]
    torch.testing.assert_close(got, features_and_logits(net, moved)[1], rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        assert float(loss(net, moved, 2.0)) < float(loss(net, x, 2.0))


def test_adascale_moves_the_least_important_values() -> None:
    net = tiny()
    name = named("adascale.features", ADASCALE)
    got = encoder(net).encode(images(11), frozenset({name}))[name]
    net.eval()
    for i, x in enumerate(pixels(images(11))):
        one = x[None].requires_grad_()
        (slope,) = torch.autograd.grad(net(one)[0].max(), one)
        flat = slope.flatten()
        least = flat.abs().argsort()[: round(0.1 * len(flat))]
        moved = one.detach().flatten().clone()
        moved[least] += 0.5 * flat[least].sign()
        torch.testing.assert_close(got[i], features_and_logits(net, moved.view(one.shape))[0], rtol=1e-5, atol=1e-5)


def test_passes_are_shared_and_the_ordinary_one_is_not_repeated() -> None:
    net = tiny()
    reader, count = encoder(net), Passes(net)
    odin = {named("odin.logits", ODIN), named("odin.features", ODIN)}
    for needs, passes in (
        ({"logits", "features.one"}, 1),
        ({named("odin.logits", ODIN)}, 2),
        ({"logits", "features.one", "features.penultimate", *odin}, 2),
        ({"logits", *odin, named("adascale.features", ADASCALE), "nac.one", "nac.two"}, 3),
        ({*odin, named("odin.logits", {"epsilon": 0.1, "temperature": 2})}, 3),
        ({"nac.one", "nac.penultimate", "logits"}, 1),
        ({"rankfeat.logits.last", "rankfeat.logits.two:steps=20", "rankfeat.logits.last_but_one:steps=20"}, 2),
        ({"mc_dropout.logits:passes=5", "mc_dropout.logits:passes=3"}, 5),
        ({"tta.logits:upside_down=false", "logits"}, 8),
        ({"tta.logits:upside_down=true"}, 10),
    ):
        count.taken()
        reader.encode(images(3), frozenset(needs))
        assert count.taken() == 3 * passes, needs


def test_the_module_is_left_alone() -> None:
    net = tiny()
    net.drop.eval()
    modes = [m.training for m in net.modules()]
    before = {k: v.clone() for k, v in net.state_dict().items()}
    state = torch.get_rng_state()
    reader = encoder(net)
    signals = reader.encode(images(), reader.provides)
    assert [m.training for m in net.modules()] == modes
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(v.requires_grad for v in signals.values())
    assert torch.is_grad_enabled()


def test_one_image_gives_what_it_gives_in_its_batch() -> None:
    reader = encoder(tiny())
    needs = frozenset(reader.provides)
    whole = reader.encode(images(35), needs)
    for i in (0, 8, 33):
        one = reader.encode(images(35)[i : i + 1], needs)
        for name, value in one.items():
            if not name.startswith("head."):
                torch.testing.assert_close(value, whole[name][i : i + 1], rtol=1e-5, atol=1e-5, msg=name)


def test_bare_names_mean_the_values_of_the_papers() -> None:
    reader = encoder(tiny())
    for base, name in (
        ("odin.logits", "odin.logits:epsilon=0.0014,temperature=1000"),
        ("adascale.features", "adascale.features:epsilon=0.5,share=0.05"),
        ("rankfeat.logits.two", "rankfeat.logits.two:steps=20"),
        ("mc_dropout.logits", "mc_dropout.logits:passes=30"),
        ("tta.logits", "tta.logits:upside_down=false"),
    ):
        signals = reader.encode(images(2), frozenset({base, name}))
        assert torch.equal(signals[base], signals[name])


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_come_where_the_caller_has_switched_them_off(mode: type) -> None:
    reader, name = encoder(tiny().requires_grad_(False)), named("odin.logits", ODIN)
    expected = reader.encode(images(), frozenset({name, "nac.one"}))
    with mode():
        got = reader.encode(images(), frozenset({name, "nac.one"}))
    assert all(torch.equal(got[k], expected[k]) for k in expected)


class Sealed(nn.Module):
    """A network whose forward pass runs without gradients."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


def test_a_network_without_gradients_says_so_and_gives_the_rest() -> None:
    reader = encoder_of_any(Sealed(tiny()))
    for name in ("odin.logits", "odin.features", "adascale.features", "nac.penultimate"):
        with pytest.raises(ConfigError, match=r"gives no gradients.*give the Python module itself.*such as energy"):
            reader.ready(frozenset({name}))
    reader.ready(frozenset({"logits", "rankfeat.logits.last", "tta.logits", "mc_dropout.logits:passes=2"}))
    assert not any(m._forward_hooks for m in reader._module.modules())


def encoder_of_any(net: nn.Module) -> ClassifierEncoder:
    return ClassifierEncoder(net, spec=SPEC)


class Clamping(nn.Module):
    """Cuts off its input first, in place or not."""

    def __init__(self, *, inplace: bool) -> None:
        super().__init__()
        self.net, self.inplace = tiny(), inplace

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x.clamp_(max=0.4) if self.inplace else x.clamp(max=0.4))
        return out


def test_an_exported_program_gives_what_its_module_gives(tmp_path: Path) -> None:
    net = tiny().float().eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    torch.export.save(torch.export.export(net, (torch.zeros(2, 3, 16, 16),), dynamic_shapes=({0: batch},)), tmp_path / "net.pt2")
    program = ClassifierEncoder.open(tmp_path / "net.pt2", trust=True, spec=SPEC, layers=["one", "two"])
    assert "mc_dropout.logits" not in program.provides
    needs = frozenset(n for n in program.provides if n.startswith(("odin", "adascale", "nac", "rankfeat", "tta")))
    expected = encoder(net).encode(images(), needs)
    assert len(needs) == 11
    for name, value in program.encode(images(), needs).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)


def test_a_network_that_writes_into_its_input_is_read_right() -> None:
    needs = frozenset({"logits", "odin.logits", "adascale.features", "rankfeat.logits.last", "tta.logits", "mc_dropout.logits:passes=2"})
    got, expected = (encoder_of_any(Clamping(inplace=way)).encode(images(), needs) for way in (True, False))
    for name in needs:
        assert torch.equal(got[name], expected[name]), name


def test_one_logit_and_settings_out_of_range_are_named() -> None:
    single = encoder(tiny(classes=1))
    for name in ("odin.logits", "nac.one"):
        with pytest.raises(ConfigError, match="needs two logits or more"):
            single.ready(frozenset({name}))
    single.ready(frozenset({"adascale.features", "rankfeat.logits.last", "tta.logits"}))
    reader = encoder(tiny())
    for name, message in (
        ("odin.logits:epsilon=-1", "epsilon must be at least 0"),
        ("odin.logits:temperature=0", "temperature greater than 0"),
        ("odin.logits:eps=0", "no setting 'eps'; did you mean 'epsilon'"),
        ("adascale.features:share=0", r"share in \(0, 1\]"),
        ("rankfeat.logits.one:steps=0", "steps must be at least 1"),
        ("mc_dropout.logits:passes=0", "passes must be at least 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            reader.encode(images(1), frozenset({name}))


def test_a_network_without_a_head_gives_none_of_them() -> None:
    net = tiny()
    body = encoder_of_any(nn.Sequential(net.one, net.two))
    assert not any(n.startswith(("odin", "adascale", "nac", "rankfeat", "mc_dropout", "tta")) for n in body.provides)


def test_layers_come_from_shallow_to_deep() -> None:
    reader = encoder(tiny())
    signals = reader.encode(images(1), frozenset({"nac.*"}))
    assert list(signals) == ["nac.one", "nac.two", "nac.penultimate"]
    net = reader._headed()
    assert net is not None
    assert [list(names) for names in asked(net, {"nac.two", "nac.one", "logits"}).values()] == [["nac.one", "nac.two"]]
