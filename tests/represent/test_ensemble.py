"""Ensembles: logits of each member as the member alone gives them, what comes from the first, and what is refused."""

from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from tests.represent.tiny import SPEC, Passes, encoder, images, pixels, tiny
from torch import nn

from offmap.core.encoder import Input
from offmap.core.errors import BundleError, ConfigError
from offmap.represent.class_names import names_of
from offmap.represent.classifier import ClassifierEncoder
from offmap.represent.ensemble import EnsembleEncoder
from offmap.represent.open import open_encoder, rebuild

NAME = "ensemble.logits"
ASKED = frozenset({NAME})


def three() -> list[nn.Module]:
    return [tiny(seed=seed) for seed in (1, 2, 3)]


def test_logits_are_those_of_each_network() -> None:
    nets = three()
    got = EnsembleEncoder([encoder(net) for net in nets]).encode(images(), ASKED)[NAME]
    assert got.shape == (5, 3, 4)
    for s, net in enumerate(nets):
        with torch.no_grad():
            torch.testing.assert_close(got[:, s], net.eval()(pixels(images())).float(), rtol=1e-5, atol=1e-5)


def test_the_rest_comes_from_the_first_and_the_others_run_only_when_asked() -> None:
    nets = three()
    one, all_three = encoder(nets[0]), EnsembleEncoder([encoder(net) for net in nets])
    assert all_three.provides == one.provides | {NAME}
    assert (all_three.layers, all_three.input) == (one.layers, one.input)
    counts = [Passes(net) for net in nets]
    asked = frozenset({"features.*", "logits", "head.weight", "tta.logits"})
    got, expected = all_three.encode(images(), asked), one.encode(images(), asked)
    assert set(got) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value)
    assert [c.taken() for c in counts][1:] == [0, 0]
    all_three.encode(images(), ASKED | {"features.last", "logits"})
    assert [c.taken() for c in counts] == [5, 5, 5]


def test_each_member_normalises_in_its_own_way() -> None:
    net, other = tiny(seed=1), tiny(seed=2)
    spec = Input(SPEC.size, 3, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    got = EnsembleEncoder([encoder(net), ClassifierEncoder(other, spec=spec)]).encode(images(), ASKED)[NAME]
    with torch.no_grad():
        torch.testing.assert_close(got[:, 1], other.eval()(images().double()).float(), rtol=1e-5, atol=1e-5)


def test_a_gate_builds_it_again_and_knows_its_members() -> None:
    nets = three()
    made = open_encoder(nets, input=SPEC, layers=["two"])
    assert isinstance(made, EnsembleEncoder)
    assert made.layers == ("two", "penultimate")
    again = rebuild(made.config(), made.state(), given=nets)
    torch.testing.assert_close(again.encode(images(), ASKED)[NAME], made.encode(images(), ASKED)[NAME], rtol=0, atol=0)
    assert (again.sha256, again.provides) == (made.sha256, made.provides)
    digests = [member["sha256"] for member in made.config()["members"]]
    assert len(set(digests)) == 3
    for given in (None, nets[0], nets[:2], "builtin"):
        with pytest.raises(BundleError, match="give its 3 networks again, in the same order"):
            rebuild(made.config(), None, given=given)
    with pytest.raises(BundleError, match="member 2 of the ensemble: encoder classifier has SHA-256"):
        rebuild(made.config(), None, given=[nets[0], nets[2], nets[1]])
    with pytest.raises(BundleError, match="encoder ensemble was given, the gate was fitted on classifier"):
        rebuild(encoder(nets[0]).config(), None, given=nets)


def test_members_that_do_not_belong_together_are_refused() -> None:
    first = encoder(tiny(seed=1))
    with pytest.raises(ConfigError, match="an ensemble of 1: between 2 and 100"):
        EnsembleEncoder([first])
    with pytest.raises(ConfigError, match=r"member 2 of the ensemble \(classifier\) has 3 classes, the first has 4"):
        EnsembleEncoder([first, encoder(tiny(3, seed=2))])
    with pytest.raises(ConfigError, match="members 1 and 3 of the ensemble are the same network"):
        EnsembleEncoder([first, encoder(tiny(seed=2)), encoder(tiny(seed=1))])
    with pytest.raises(ConfigError, match="takes 32 pixels, the first 16"):
        EnsembleEncoder([first, ClassifierEncoder(tiny(seed=2), spec=replace(SPEC, size=32))])
    headless = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).double()
    with pytest.raises(ConfigError, match=r"member 2 .* has no head"):
        EnsembleEncoder([first, ClassifierEncoder(headless, spec=SPEC)])
    with pytest.raises(ConfigError, match="member 2 of the ensemble is builtin; classifiers are needed"):
        open_encoder([tiny(), "builtin"], input=None)


def test_it_moves_with_its_members() -> None:
    made = EnsembleEncoder([encoder(net) for net in three()])
    torch.testing.assert_close(made.to("cpu").encode(images(), ASKED)[NAME], made.encode(images(), ASKED)[NAME])


def named_net(seed: int, *names: str) -> nn.Module:
    net = tiny(3, seed=seed)
    net.classes = list(names)  # type: ignore[assignment]
    return net


def test_names_of_classes_tell_their_order() -> None:
    first, alike = encoder(named_net(1, "glioma", "none", "other")), encoder(named_net(2, "glioma", "none", "other"))
    assert first.class_names == ("glioma", "none", "other")
    assert EnsembleEncoder([first, alike]).config()["members"][1]["class_names"] == ["glioma", "none", "other"]
    EnsembleEncoder([encoder(tiny(3, seed=4)), first])
    turned = encoder(named_net(3, "none", "glioma", "other"))
    with pytest.raises(ConfigError, match=r"member 2 .* in another order, none, glioma, other, than the first member, glioma, none, other"):
        EnsembleEncoder([first, turned])
    with pytest.raises(ConfigError, match=r"member 3 .* in another order"):
        EnsembleEncoder([encoder(tiny(3, seed=4)), first, turned])
    with pytest.raises(ConfigError, match="answers cat, dog, cow, the first member glioma, none, other"):
        EnsembleEncoder([first, encoder(named_net(3, "cat", "dog", "cow"))])
    for names in (("one", "two"), ("one", "one", "two")):
        with pytest.raises(ConfigError, match=f"names {len(names)} classes .* and gives 3 logits"):
            encoder(named_net(1, *names))


def test_names_come_from_attributes_or_the_configuration_and_from_nothing_else() -> None:
    class Config:
        id2label: ClassVar[dict[int | str, str]] = {1: "b", 0: "a"}

    net = nn.Module()
    assert names_of(net) == ()
    net.config = Config()  # type: ignore[assignment]
    assert names_of(net) == ("a", "b")
    Config.id2label = {"0": "LABEL_0", "1": "LABEL_1"}
    assert names_of(net) == ()
    net.class_names = ["c", "d"]  # type: ignore[assignment]
    assert names_of(net) == ("c", "d")
    net.classes = 2  # type: ignore[assignment]
    assert names_of(net) == ("c", "d")
