"""Names of signals with settings, and who answers them."""

import pytest
import torch

from offmap.core.detector import check, missing
from offmap.core.errors import ConfigError, SignalError
from offmap.core.signals import base_of, named, settings_of

DEFAULTS = {"epsilon": 0.0014, "temperature": 1000.0, "passes": 30, "flag": False}


def test_equal_settings_give_one_name() -> None:
    name = named("odin.logits", {"temperature": 1000.0, "epsilon": 0.0014})
    assert name == "odin.logits:epsilon=0.0014,temperature=1000"
    assert name == named("odin.logits", {"epsilon": 0.0014, "temperature": 1000})
    assert named("tta.logits", {"flag": True}) == "tta.logits:flag=true"
    assert named("nac.layer1.0", {}) == "nac.layer1.0"


@pytest.mark.parametrize("epsilon", [0.0, 1e-9, 0.1 + 0.2, 1 / 3, 123456789.0, 1e30])
def test_a_name_gives_its_settings_back_to_the_last_bit(epsilon: float) -> None:
    settings = {"epsilon": epsilon, "temperature": 7.5, "passes": 3, "flag": True}
    name = named("a.b", settings)
    assert base_of(name) == "a.b"
    assert settings_of(name, DEFAULTS) == settings


def test_what_a_name_does_not_say_is_the_default() -> None:
    assert settings_of("a.b", DEFAULTS) == DEFAULTS
    assert settings_of("a.b:passes=4", DEFAULTS) == {**DEFAULTS, "passes": 4}
    assert isinstance(settings_of("a.b:temperature=3", DEFAULTS)["temperature"], float)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.b:epsilom=1", "no setting 'epsilom'; did you mean 'epsilon'"),
        ("a.b:passes=2.5", "passes = 2.5 must be of type int"),
        ("a.b:flag=1", "flag = 1 must be of type bool"),
        ("a.b:epsilon=true", "epsilon = true must be of type float"),
        ("a.b:epsilon", "epsilon =  must be of type float"),
        ("a.b:epsilon=os", "epsilon = os must be"),
    ],
)
def test_a_setting_that_makes_no_sense_is_named(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings_of(name, DEFAULTS)


def test_an_encoder_answers_by_the_base_name_and_a_batch_by_the_exact_one() -> None:
    need = "odin.logits:epsilon=0.0014,temperature=1000"
    assert missing([need], ["odin.logits"]) == ()
    assert missing([need], ["odin.logits"], exact=True) == (need,)
    assert missing([need], ["odin.features", "logits"]) == (need,)
    batch = {"odin.logits:epsilon=0.0014,temperature=1": torch.zeros(2, 3), "odin.logits": torch.zeros(2, 3)}
    with pytest.raises(SignalError, match=r"needs the signals odin\.logits:epsilon=0\.0014,temperature=1000"):
        check(batch, [need], "odin")
    check({need: torch.zeros(2, 3)}, [need], "odin")
