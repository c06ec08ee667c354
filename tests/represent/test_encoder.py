"""The built-in encoder against a plain functional forward pass and float64 statistics."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from offmap.core.errors import BundleError, ConfigError, NotAvailableError, SignalError
from offmap.represent.encoder import BuiltinEncoder

ALL = frozenset({"features.*", "feature_map.*"})
STAGES = ((40, 1), (80, 2), (160, 2), (256, 1))


@pytest.fixture(scope="module")
def encoder() -> BuiltinEncoder:
    torch.set_num_threads(1)
    return BuiltinEncoder.shipped()


def images(n: int, channels: int, height: int, width: int) -> Tensor:
    return torch.rand(n, channels, height, width, generator=torch.Generator().manual_seed(3))


def plain(weights: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    """The model card's formula, written out in float64."""
    w = {k: v.double() for k, v in weights.items()}

    def conv(x: Tensor, name: str, stride: int, padding: int) -> Tensor:
        return functional.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], stride, padding)

    x = functional.relu(conv((x.double() - 0.5) / 0.25, "stem", 2, 1))
    maps = {"stem": x}
    for i, (_, blocks) in enumerate(STAGES):
        for j in range(blocks):
            name, stride = f"stages.{i}.{j}", 2 if j == 0 else 1
            short = conv(x, f"{name}.shortcut", stride, 0) if j == 0 else x
            x = functional.relu(conv(functional.relu(conv(x, f"{name}.conv1", stride, 1)), f"{name}.conv2", 1, 1) + short)
        maps[f"stages.{i}"] = x
    return maps


def test_maps_and_features_equal_the_formula_in_float64(encoder: BuiltinEncoder) -> None:
    x = images(2, 3, 96, 64)
    signals, oracle = encoder.encode(x, ALL), plain(encoder.state(), x)
    for layer in encoder.layers:
        maps = oracle[layer].numpy()
        pooled = np.concatenate([maps.mean(axis=(2, 3)), maps.std(axis=(2, 3), ddof=1)], axis=1)
        np.testing.assert_allclose(signals[f"feature_map.{layer}"].numpy(), maps, atol=2e-5)
        np.testing.assert_allclose(signals[f"features.{layer}"].numpy(), pooled, atol=2e-5)


def test_the_first_convolution_equals_a_sum_over_pixels(encoder: BuiltinEncoder) -> None:
    x = images(1, 3, 32, 32)
    weight, bias = encoder.state()["stem.weight"].double().numpy(), encoder.state()["stem.bias"].double().numpy()
    padded = np.pad((x[0].double().numpy() - 0.5) / 0.25, ((0, 0), (1, 1), (1, 1)))
    expected = np.empty((24, 16, 16))
    for i, j in itertools.product(range(16), range(16)):
        patch = padded[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
        expected[:, i, j] = np.maximum((weight * patch).sum(axis=(1, 2, 3)) + bias, 0)
    found = encoder.encode(x, frozenset({"feature_map.stem"}))["feature_map.stem"]
    np.testing.assert_allclose(found[0].numpy(), expected, atol=1e-5)


def test_layers_and_widths_are_those_of_the_model_card(encoder: BuiltinEncoder) -> None:
    assert encoder.layers == ("stem", "stages.0", "stages.1", "stages.2", "stages.3")
    signals = encoder.encode(images(1, 1, 160, 160), ALL)
    assert [signals[f"features.{n}"].shape[1] for n in encoder.layers] == [48, 80, 160, 320, 512]
    assert [signals[f"feature_map.{n}"].shape[2] for n in encoder.layers] == [80, 40, 20, 10, 5]
    assert encoder.input.size == 160
    assert torch.equal(signals["features.last"], signals["features.stages.3"])
    assert signals["feature_map.last"] is signals["feature_map.stages.3"]


def test_one_image_gives_what_it_gives_in_its_batch(encoder: BuiltinEncoder) -> None:
    x = images(19, 1, 64, 64)
    whole = encoder.encode(x, ALL)
    for i in (0, 15, 18):
        for name, value in encoder.encode(x[i : i + 1], ALL).items():
            torch.testing.assert_close(value[0], whole[name][i], rtol=0, atol=1e-5)


def test_grey_is_colour_with_equal_channels(encoder: BuiltinEncoder) -> None:
    x = images(2, 1, 48, 48)
    grey, colour = encoder.encode(x, ALL), encoder.encode(x.expand(-1, 3, -1, -1), ALL)
    assert all(torch.equal(grey[k], colour[k]) for k in grey)


def test_only_what_is_needed_is_given(encoder: BuiltinEncoder) -> None:
    x = images(2, 1, 32, 32)
    assert set(encoder.encode(x, frozenset({"features.stages.1", "image", "label"}))) == {"features.stages.1", "image"}
    assert set(encoder.encode(x, frozenset({"features.last"}))) == {"features.last"}
    assert encoder.encode(x, frozenset({"label"})) == {}
    assert encoder.encode(x[:0], frozenset({"features.last"}))["features.last"].shape == (0, 512)


def test_deviation_of_a_single_position_is_zero(encoder: BuiltinEncoder) -> None:
    deep = encoder.encode(images(1, 1, 32, 32), frozenset({"features.last"}))["features.last"]
    assert torch.isfinite(deep).all()
    assert torch.equal(deep[:, 256:], torch.zeros(1, 256))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")
def test_a_gpu_gives_what_the_cpu_gives(encoder: BuiltinEncoder) -> None:
    x = images(3, 1, 64, 64)
    moved = encoder.to("cuda").encode(x.to("cuda"), ALL)
    for name, value in encoder.encode(x, ALL).items():
        torch.testing.assert_close(moved[name].cpu(), value, rtol=1e-2, atol=1e-2)


def test_features_can_be_learned_on(encoder: BuiltinEncoder) -> None:
    features = encoder.encode(images(2, 1, 32, 32), frozenset({"features.last"}))["features.last"]
    weight = torch.zeros(512, requires_grad=True)
    (features @ weight).sum().backward()
    torch.testing.assert_close(weight.grad, features.sum(dim=0))


def test_images_that_cannot_be_seen_are_refused(encoder: BuiltinEncoder) -> None:
    with pytest.raises(SignalError, match=r"\(1, 1, 31, 64\) are smaller than the 32 pixels"):
        encoder.encode(images(1, 1, 31, 64), ALL)
    with pytest.raises(SignalError, match="1 or 3 channels"):
        encoder.encode(images(1, 2, 32, 32), ALL)


def test_unknown_layers_are_named_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no layer 'stage.3'; it has: stem, stages.0, .*; did you mean 'stages.3'\?"):
        BuiltinEncoder.shipped(layers=["stage.3"])
    with pytest.raises(ConfigError, match="input size 16 is smaller"):
        BuiltinEncoder.shipped(size=16)


def test_chosen_layers_come_from_shallow_to_deep() -> None:
    chosen = BuiltinEncoder.shipped(layers=["stages.1", "stem"])
    signals = chosen.encode(images(1, 1, 32, 32), frozenset({"features.*"}))
    assert chosen.layers == ("stem", "stages.1")
    assert signals["features.last"] is signals["features.stages.1"]


def test_it_is_built_again_from_config_and_state(encoder: BuiltinEncoder) -> None:
    again = BuiltinEncoder.from_bundle(json.loads(json.dumps(encoder.config())), encoder.state())
    x = images(1, 3, 40, 40)
    assert again.sha256 == encoder.sha256
    for name, value in encoder.encode(x, ALL).items():
        assert torch.equal(value, again.encode(x, ALL)[name])
    assert again.to("cpu").config() == encoder.config()


def test_weights_that_do_not_fit_are_refused(encoder: BuiltinEncoder, tmp_path: Path) -> None:
    weights, net = encoder.state(), encoder.config()["net"]
    with pytest.raises(BundleError, match=r"stem.bias missing"):
        BuiltinEncoder({k: v for k, v in weights.items() if k != "stem.bias"}, net)
    with pytest.raises(BundleError, match=r"not finite: stem.bias"):
        BuiltinEncoder(weights | {"stem.bias": torch.full((24,), torch.nan)}, net)
    with pytest.raises(ConfigError, match="width = 0 must be a whole number from 1 to 4096"):
        BuiltinEncoder(weights, net | {"stages": [{"width": 0, "blocks": 1, "stride": 2}]})
    with pytest.raises(NotAvailableError, match=r"must hold config\.json"):
        BuiltinEncoder.from_folder(tmp_path)


def test_a_trained_folder_is_read(encoder: BuiltinEncoder, tmp_path: Path) -> None:
    save_file(encoder.state(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(encoder.config()["net"]))
    found = BuiltinEncoder.from_folder(tmp_path)
    assert found.sha256 == encoder.sha256
    assert found.name == f"builtin:{tmp_path}"
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ConfigError, match="no readable encoder"):
        BuiltinEncoder.from_folder(tmp_path)
