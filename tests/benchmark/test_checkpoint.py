"""Random weights through safetensors into networks of known names."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from offmap.benchmark.checkpoint import NETWORKS, network, open_classifier, read_classifier
from offmap.benchmark.suite import Classifier
from offmap.core.errors import ConfigError, NotAvailableError
from offmap.represent.import_weights import import_weights

pytest.importorskip("monai", reason="MONAI is not installed")


def random_weights(name: str, classes: int, channels: int = 3) -> dict[str, Tensor]:
    """Weights of a network with statistics of batch normalisation that are not 0 and 1."""
    rng = torch.Generator().manual_seed(0)
    state = network(name, classes, channels=channels).state_dict()
    return {
        k: (0.02 * torch.randn(v.shape, generator=rng) + (1.0 if k.endswith("var") else 0.0)) if v.is_floating_point() else v
        for k, v in state.items()
    }


def wanted(name: str = "resnet18", classes: int = 3, **more: object) -> Classifier:
    return Classifier(name, "w.safetensors", classes, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", list(NETWORKS))
def test_weights_come_back_as_they_were(tmp_path: Path, name: str) -> None:
    weights = random_weights(name, 3, channels=1)
    save_file(weights, tmp_path / "w.safetensors")
    module = read_classifier(wanted(name), tmp_path)
    assert not module.training
    for key, value in module.state_dict().items():
        torch.testing.assert_close(value, weights[key])
    axes = NETWORKS[name][0]
    with torch.no_grad():
        assert module(torch.rand(2, 1, *[32] * axes)).shape == (2, 3)


def test_the_usual_names_and_strides(tmp_path: Path) -> None:
    """A network of 18 layers as torchvision and OpenOOD have it: names of tensors, and a map of 7 x 7 for 224 pixels."""
    state = network("resnet18", 7, channels=3).state_dict()
    known = {"conv1.weight": (64, 3, 7, 7), "layer2.0.downsample.0.weight": (128, 64, 1, 1), "fc.weight": (7, 512), "fc.bias": (7,)}
    assert {key: tuple(state[key].shape) for key in known} == known
    assert len(state) == 122
    assert len(network("resnet50", 3, channels=3).state_dict()) == 320
    assert not [key for key in state if "downsample.0.bias" in key]
    seen: list[tuple[int, ...]] = []
    module = network("resnet18", 7, channels=3).eval()
    module.get_submodule("layer4").register_forward_hook(lambda _module, _given, gave: seen.append(tuple(gave.shape)))
    with torch.no_grad():
        module(torch.rand(1, 3, 224, 224))
    assert seen == [(1, 512, 7, 7)]


def test_a_published_file_is_converted_first(tmp_path: Path) -> None:
    weights = random_weights("resnet18", 3)
    torch.save({"state_dict": {f"module.{k}": v for k, v in weights.items()}}, tmp_path / "published.pth")
    with pytest.raises(ConfigError, match=r"offmap import-weights .*published\.pth --out .*published\.safetensors"):
        read_classifier(Classifier("resnet18", "published.pth", 3), tmp_path)
    with pytest.raises(NotAvailableError, match=r"w\.safetensors is not there; convert the published file"):
        read_classifier(wanted(), tmp_path)
    import_weights(tmp_path / "published.pth", tmp_path / "w.safetensors")
    torch.testing.assert_close(read_classifier(wanted(), tmp_path).get_parameter("fc.weight"), weights["fc.weight"], check_stride=False)


def test_counters_may_be_absent_and_parallel_prefixes_too(tmp_path: Path) -> None:
    weights = {f"module.{k}": v for k, v in random_weights("resnet18", 3).items() if not k.endswith("num_batches_tracked")}
    save_file(weights, tmp_path / "w.safetensors")
    assert read_classifier(wanted(), tmp_path).get_parameter("fc.bias").shape == (3,)


def test_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    weights = random_weights("resnet18", 3)
    weights["head.weight"] = weights.pop("fc.weight")
    weights["fc.bias"] = torch.zeros(5)
    weights["bn1.weight"] = torch.full((64,), float("nan"))
    save_file(weights, tmp_path / "w.safetensors")
    with pytest.raises(ConfigError) as caught:
        read_classifier(wanted(), tmp_path)
    said = str(caught.value)
    assert "1 missing: fc.weight" in said
    assert "1 foreign: head.weight" in said
    assert "1 of another shape: fc.bias (5,), not (3,)" in said
    assert "1 not finite: bn1.weight" in said


def test_another_network_is_refused_with_a_few_names(tmp_path: Path) -> None:
    save_file(random_weights("resnet50", 3), tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match=r"foreign: layer1\.0\.bn3.* and \d+ more"):
        read_classifier(wanted("resnet18"), tmp_path)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (wanted("resnet5"), "no network 'resnet5'; did you mean 'resnet50'"),
        (wanted(classes=1), "classes = 1"),
        (wanted(mean=(0.5,), std=(0.2,)), "3 numbers each"),
        (wanted(mean=(0.5, 0.5, 0.5), std=(0.2, 0.0, 0.2)), "std above 0"),
    ],
)
def test_a_classifier_that_makes_no_sense_is_refused(tmp_path: Path, asked: Classifier, says: str) -> None:
    save_file(random_weights("resnet18", 3), tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match=says):
        open_classifier(asked, tmp_path)


def test_a_broken_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_classifier(wanted(), tmp_path)


def test_an_encoder_gives_the_logits_of_the_network(tmp_path: Path) -> None:
    save_file(random_weights("resnet18", 3), tmp_path / "w.safetensors")
    asked = wanted(size=(48, 64), mean=(0.7, 0.5, 0.75), std=(0.2, 0.2, 0.1))
    encoder = open_classifier(asked, tmp_path)
    assert encoder.input.size == 48
    assert encoder.layers[-1] == "penultimate"
    images = torch.rand(4, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    signals = encoder.encode(images, frozenset({"logits", "head.weight", "head.bias", "features.penultimate"}))
    module = read_classifier(asked, tmp_path)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (asked.mean, asked.std))
    with torch.no_grad():
        expected = module((images - mean) / std)
    torch.testing.assert_close(signals["logits"], expected, rtol=1e-4, atol=1e-5)
    own = signals["features.penultimate"] @ signals["head.weight"].T + signals["head.bias"]
    torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-5)


def test_volumes_have_no_encoder_yet(tmp_path: Path) -> None:
    save_file(random_weights("resnet18_3d", 2, channels=1), tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match="resnet18_3d sees volumes"):
        open_classifier(wanted("resnet18_3d", 2), tmp_path)
