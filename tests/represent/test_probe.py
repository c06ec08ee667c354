"""A head on an encoder: the same features, and logits that follow from them."""

import pytest
import torch

from offmap.core.errors import ConfigError
from offmap.represent.encoder import BuiltinEncoder
from offmap.represent.probe import probed, width
from offmap.represent.stochastic import seed_of

IMAGES = torch.rand(3, 1, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def encoder() -> BuiltinEncoder:
    return BuiltinEncoder.shipped(size=64)


def test_features_stay_and_logits_follow(encoder: BuiltinEncoder) -> None:
    weight, bias = torch.randn(4, width(encoder), generator=torch.Generator().manual_seed(0)), torch.arange(4.0)
    classifier = probed(encoder, weight, bias)
    found = classifier.encode(IMAGES, frozenset({"features.*", "features.penultimate", "logits", "head.weight", "head.bias"}))
    own = encoder.encode(IMAGES, frozenset({"features.*", "feature_map.last"}))
    mean = own["feature_map.last"].mean(dim=(2, 3))
    assert torch.allclose(found["features.penultimate"], mean, atol=1e-5)
    assert torch.allclose(found["logits"], mean @ weight.T + bias, atol=1e-4)
    assert torch.equal(found["head.weight"], weight)
    deepest = [name for name in found if name.startswith("features.") and found[name].shape == own["features.last"].shape]
    assert any(torch.allclose(found[name], own["features.last"], atol=1e-5) for name in deepest)


def test_every_layer_of_the_encoder_is_among_its_layers(encoder: BuiltinEncoder) -> None:
    classifier = probed(encoder, torch.zeros(2, width(encoder)), torch.zeros(2))
    found = classifier.encode(IMAGES, frozenset({"features.*"}))
    for layer, values in encoder.encode(IMAGES, frozenset({"features.*"})).items():
        assert any(v.shape == values.shape and torch.allclose(v, values, atol=1e-5) for v in found.values()), layer


def test_a_head_of_another_width_is_refused(encoder: BuiltinEncoder) -> None:
    with pytest.raises(ConfigError, match="a head of 7 features does not fit builtin"):
        probed(encoder, torch.zeros(2, 7), torch.zeros(2))


def test_a_classifier_has_no_backbone(encoder: BuiltinEncoder) -> None:
    classifier = probed(encoder, torch.zeros(2, width(encoder)), torch.zeros(2))
    with pytest.raises(ConfigError, match="has no backbone"):
        probed(classifier, torch.zeros(2, 7), torch.zeros(2))


def test_dropout_before_the_head_takes_one_pass_and_gives_the_masks_written_out(encoder: BuiltinEncoder) -> None:
    weight = torch.randn(4, width(encoder), generator=torch.Generator().manual_seed(0))
    classifier, passes = probed(encoder, weight, torch.zeros(4)), []
    hook = classifier._module.get_submodule("backbone").register_forward_hook(lambda *_: passes.append(1))
    found = classifier.encode(IMAGES, frozenset({"mc_dropout.logits:passes=5", "features.penultimate"}))
    hook.remove()
    assert len(passes) <= 2
    for i, image in enumerate(IMAGES):
        rng = torch.Generator().manual_seed(seed_of(image))
        for s in range(5):
            kept = found["features.penultimate"][i] * (torch.rand(width(encoder), generator=rng) >= 0.2) / 0.8
            torch.testing.assert_close(found["mc_dropout.logits:passes=5"][i, s], weight @ kept, rtol=1e-4, atol=1e-4)
