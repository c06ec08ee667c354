"""Encoders of transformers against the plain forward pass of the same model, tiny and random, and against the real MobileNetV2."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from offmap.core.encoder import Input
from offmap.core.errors import BundleError, ConfigError, NotAvailableError
from offmap.represent.hub import HubEncoder
from offmap.represent.hub_files import Files, read_files, read_input
from offmap.represent.open import open_encoder, rebuild

transformers = pytest.importorskip("transformers")
MOBILENET = Path(__file__).parents[3] / "shared" / "weights" / "mobilenet_v2_imagenet"
BLOCKS = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
SQUARE = BLOCKS | {"image_size": 32, "patch_size": 8}
STAGES = {"embedding_size": 8, "hidden_sizes": [8, 12, 16], "depths": [1, 1, 1], "layer_type": "basic"}
PROCESSOR = {"size": {"height": 32, "width": 32}, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.25, 0.3]}

MODELS: dict[str, tuple[Callable[[], Any], tuple[str, ...], int]] = {
    "dinov2": (
        lambda: transformers.Dinov2Model(transformers.Dinov2Config(**SQUARE)),
        ("layer.1", "layer.2", "layer.3", "final"),
        1,
    ),
    "dinov2_with_registers": (
        lambda: transformers.Dinov2WithRegistersModel(transformers.Dinov2WithRegistersConfig(**SQUARE, num_register_tokens=4)),
        ("layer.1", "layer.2", "layer.3", "final"),
        5,
    ),
    "dinov3": (
        lambda: transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**SQUARE, num_register_tokens=2)),
        ("layer.1", "layer.2", "layer.3", "final"),
        3,
    ),
    "vit": (
        lambda: transformers.ViTModel(transformers.ViTConfig(**SQUARE), add_pooling_layer=False),
        ("layer.1", "layer.2", "layer.3", "final"),
        1,
    ),
    "siglip": (
        lambda: transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**SQUARE)),
        ("layer.1", "layer.2", "layer.3", "final"),
        0,
    ),
    "resnet": (lambda: transformers.ResNetModel(transformers.ResNetConfig(**STAGES)), ("layer.1", "layer.2", "layer.3"), 0),
    "convnext": (
        lambda: transformers.ConvNextModel(transformers.ConvNextConfig(hidden_sizes=[8, 8, 12], depths=[1, 1, 1], num_stages=3)),
        ("layer.1", "layer.2", "layer.3"),
        0,
    ),
}


@pytest.fixture(autouse=True, scope="module")
def _quiet() -> None:
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()


def drawn(model: Any) -> Any:
    rng = torch.Generator().manual_seed(4)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=rng)
    return model.eval()


def saved(model: Any, folder: Path, processor: dict[str, Any] | None = None) -> Path:
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR if processor is None else processor))
    return folder


def images(n: int = 2) -> Tensor:
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(8))


def pixels(x: Tensor) -> Tensor:
    return (x - torch.tensor([0.5, 0.4, 0.3])[:, None, None]) / torch.tensor([0.2, 0.25, 0.3])[:, None, None]


@pytest.mark.parametrize("kind", MODELS)
def test_signals_equal_the_hidden_states_of_the_model(kind: str, tmp_path: Path) -> None:
    make, layers, prefix = MODELS[kind]
    model = drawn(make())
    encoder = HubEncoder.open(str(saved(model, tmp_path)))
    with torch.no_grad():
        output = model(pixel_values=pixels(images()), output_hidden_states=True)
    signals = encoder.encode(images(), encoder.provides)
    assert encoder.layers == layers
    for layer in layers:
        state = output.last_hidden_state if layer == "final" else output.hidden_states[int(layer.removeprefix("layer."))]
        maps = state if state.ndim == 4 else state[:, prefix:].reshape(2, 4, 4, -1).permute(0, 3, 1, 2)
        torch.testing.assert_close(signals[f"feature_map.{layer}"], maps)
        torch.testing.assert_close(signals[f"features.{layer}"], torch.cat([maps.mean(dim=(2, 3)), maps.std(dim=(2, 3))], dim=1))
    assert signals["features.last"] is signals[f"features.{layers[-1]}"]
    assert ("features.cls" in encoder.provides) == (prefix > 0)
    if prefix:
        torch.testing.assert_close(signals["features.cls"], output.last_hidden_state[:, 0])


@pytest.mark.parametrize("kind", MODELS)
def test_it_is_built_again_without_the_folder(kind: str, tmp_path: Path) -> None:
    encoder = open_encoder(f"hub:{saved(drawn(MODELS[kind][0]()), tmp_path)}", layers=["layer.2"])
    again = rebuild(json.loads(json.dumps(encoder.config())), encoder.state())
    assert again.provides == encoder.provides
    for name, value in encoder.encode(images(), encoder.provides).items():
        assert torch.equal(again.encode(images(), again.provides)[name], value)
    state = dict(encoder.state() or {})
    name = next(iter(state))
    with pytest.raises(BundleError, match="its scores would mean nothing"):
        rebuild(encoder.config(), state | {name: state[name] + 1})


@pytest.mark.parametrize(("kind", "options"), [("ViT", SQUARE), ("ResNet", STAGES)])
def test_a_classification_head_gives_logits(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    config = getattr(transformers, f"{kind}Config")(**options, num_labels=5)
    model = drawn(getattr(transformers, f"{kind}ForImageClassification")(config))
    encoder = HubEncoder.open(str(saved(model, tmp_path)))
    signals = encoder.encode(images(), encoder.provides)
    with torch.no_grad():
        torch.testing.assert_close(signals["logits"], model(pixel_values=pixels(images())).logits)
    torch.testing.assert_close(signals["features.penultimate"] @ signals["head.weight"].T + signals["head.bias"], signals["logits"])
    assert "features.penultimate" not in encoder.encode(images(), frozenset({"features.*"}))
    assert encoder.layers[-1] in ("final", "layer.3")


def test_the_vision_half_of_a_text_and_image_model(tmp_path: Path) -> None:
    words = BLOCKS | {"vocab_size": 50, "max_position_embeddings": 8, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    model = drawn(transformers.SiglipModel(transformers.SiglipConfig(text_config=words, vision_config=SQUARE)))
    encoder = HubEncoder.open(str(saved(model, tmp_path)))
    with torch.no_grad():
        expected = model.vision_model(pixel_values=pixels(images())).last_hidden_state
    found = encoder.encode(images(), frozenset({"feature_map.final"}))["feature_map.final"]
    torch.testing.assert_close(found.flatten(2).transpose(1, 2), expected)


def test_one_image_gives_what_it_gives_in_its_batch(tmp_path: Path) -> None:
    encoder = HubEncoder.open(str(saved(drawn(MODELS["dinov2"][0]()), tmp_path)))
    whole = encoder.encode(images(34), frozenset({"features.*"}))
    one = encoder.encode(images(34)[33:], frozenset({"features.*"}))
    for name, value in one.items():
        torch.testing.assert_close(value, whole[name][33:], rtol=0, atol=1e-5)


def test_the_input_is_that_of_the_processor() -> None:
    assert read_input(PROCESSOR, "x") == Input(32, 3, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    cropped = {"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": 224, "do_normalize": False}
    assert read_input(cropped, "x") == Input(224, 3, (0.0,) * 3, (1.0,) * 3)
    signed = {"size": 64, "rescale_factor": 1 / 127.5, "rescale_offset": True, "do_normalize": False}
    assert read_input(signed, "x") == Input(64, 3, (0.5,) * 3, (0.5,) * 3)
    raw = {"size": 64, "do_rescale": False, "image_mean": [127.5], "image_std": [51.0]}
    assert read_input(raw, "x") == Input(64, 1, (0.5,), (0.2,))
    for broken, message in (
        ({}, "no square input size"),
        ({"size": {"height": 3, "width": 4}}, "no square input size"),
        ({"size": 64}, "image_mean"),
        ({"size": 64, "image_mean": [0.5], "image_std": [0.0]}, "make no sense"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_input(broken, "x")


def test_folders_that_are_no_model_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        read_files(tmp_path)
    folder = saved(drawn(MODELS["resnet"][0]()), tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    with pytest.raises(ConfigError, match=r"no layer 'layer\.9'; it has: layer\.0, .*; did you mean"):
        HubEncoder.open(str(folder), layers=["layer.9"])
    name = next(n for n in weights if n.endswith("weight") and weights[n].ndim == 4)
    with pytest.raises(ConfigError, match="they would be random"):
        HubEncoder(Files(config, PROCESSOR, {k: v for k, v in weights.items() if k != name}), "hub:x")
    with pytest.raises(ConfigError, match="not finite"):
        HubEncoder(Files(config, PROCESSOR, weights | {name: weights[name] * torch.nan}), "hub:x")
    with pytest.raises(ConfigError, match="no kind of model"):
        HubEncoder(Files(config | {"model_type": "unheard"}, PROCESSOR, weights), "hub:x")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"no safetensors file; it holds pytorch_model\.bin: convert it with `offmap import-weights`"):
        HubEncoder.open(str(folder))
    (folder / "model.safetensors").write_bytes(b"pickle")
    with pytest.raises(ConfigError, match="no readable safetensors"):
        HubEncoder.open(str(folder))


def test_sharded_weights_are_put_together(tmp_path: Path) -> None:
    folder = saved(drawn(MODELS["resnet"][0]()), tmp_path)
    whole = HubEncoder.open(str(folder)).sha256
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    place = {n: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, n in enumerate(names)}
    for file in set(place.values()):
        save_file({n: weights[n] for n in names if place[n] == file}, folder / file)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": place}))
    assert HubEncoder.open(str(folder)).sha256 == whole
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../x.safetensors"}}))
    with pytest.raises(ConfigError, match="not a file of that folder"):
        read_files(folder)


def test_keys_that_choose_code_are_dropped(tmp_path: Path) -> None:
    folder = saved(drawn(MODELS["resnet"][0]()), tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "evil.Model"}, "_attn_implementation": "a/kernel"}))
    assert not {"auto_map", "_attn_implementation"} & set(read_files(folder).config)
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {}}))
    with pytest.raises(ConfigError, match="quantised"):
        read_files(folder)


def test_a_text_model_is_refused(tmp_path: Path) -> None:
    config = transformers.BertConfig(**BLOCKS, vocab_size=20)
    with pytest.raises(ConfigError, match="is a bert model, which reads input_ids, not images"):
        HubEncoder.open(str(saved(transformers.BertModel(config), tmp_path)))


def test_a_place_that_is_not_there() -> None:
    with pytest.raises(NotAvailableError, match="no such folder"):
        HubEncoder.open("./nowhere")


@pytest.mark.skipif(not MOBILENET.is_dir(), reason="the MobileNetV2 folder is not beside the repository")
def test_the_real_mobilenet_equals_its_plain_forward_pass() -> None:
    encoder = HubEncoder.open(str(MOBILENET))
    x = torch.rand(2, 1, 224, 224, generator=torch.Generator().manual_seed(1))
    signals = encoder.encode(x, encoder.provides)
    model = transformers.AutoModelForImageClassification.from_pretrained(MOBILENET, dtype=torch.float32).eval()
    with torch.no_grad():
        output = model(pixel_values=((x - 0.5) / 0.5).expand(-1, 3, -1, -1), output_hidden_states=True)
    assert encoder.layers == ("layer.1", "layer.3", "layer.6", "layer.10", "layer.13", "layer.15", "final")
    assert [signals[f"features.{n}"].shape[1] for n in encoder.layers] == [48, 64, 128, 192, 320, 640, 2560]
    torch.testing.assert_close(signals["logits"], output.logits)
    torch.testing.assert_close(signals["feature_map.layer.13"], output.hidden_states[13])
    torch.testing.assert_close(signals["features.final"][:, :1280], signals["features.penultimate"], rtol=1e-4, atol=1e-4)
    state = encoder.state() or {}
    assert {v.dtype for v in state.values() if v.is_floating_point()} == {torch.float16}
