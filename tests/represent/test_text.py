"""Text and image embeddings against the whole model of transformers, tiny and random, and text features from files."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.represent.text_models import model, saved, tokenizer
from torch import Tensor

from offmap.core.errors import BundleError, ConfigError, NotAvailableError
from offmap.represent.encoder import BuiltinEncoder
from offmap.represent.hub import HubEncoder
from offmap.represent.open import open_encoder, rebuild
from offmap.represent.text import WithText, read_texts, with_text

PROMPTS = ("a chest x-ray", "a photo of a brain slice", "skin")
BOTH = frozenset({"image_embedding", "text.embedding"})
KINDS = pytest.mark.parametrize("kind", ["clip", "siglip"])


def images(count: int = 3) -> Tensor:
    return torch.rand(count, 1, 32, 32, generator=torch.Generator().manual_seed(0))


def pixels(x: Tensor) -> Tensor:
    mean, std = torch.tensor([0.5, 0.4, 0.3])[:, None, None], torch.tensor([0.2, 0.25, 0.3])[:, None, None]
    return (x.expand(-1, 3, -1, -1) - mean) / std


@KINDS
def test_embeddings_equal_those_of_the_whole_model(kind: str, tmp_path: Path) -> None:
    encoder = open_encoder(f"hub:{saved(kind, tmp_path)}", text=PROMPTS)
    signals = encoder.encode(images(), BOTH | {"features.last"})
    whole = model(kind)
    tokens = tokenizer()(list(PROMPTS), padding="max_length", max_length=10, return_tensors="pt")
    tokens = {name: tokens[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        shown = whole.get_image_features(pixel_values=pixels(images())).pooler_output
        said = whole.get_text_features(**tokens).pooler_output
        every = whole(pixel_values=pixels(images()), **tokens)
    torch.testing.assert_close(signals["image_embedding"], shown)
    torch.testing.assert_close(signals["text.embedding"], said)
    torch.testing.assert_close(torch.nn.functional.normalize(signals["image_embedding"]), every.image_embeds)
    assert set(signals) == BOTH | {"features.last"}
    assert signals["features.last"].shape == (3, 32)


@KINDS
def test_one_image_gives_what_it_gives_in_its_batch(kind: str, tmp_path: Path) -> None:
    encoder = open_encoder(f"hub:{saved(kind, tmp_path)}")
    whole = encoder.encode(images(11), BOTH)["image_embedding"]
    torch.testing.assert_close(encoder.encode(images(11)[10:], BOTH)["image_embedding"], whole[10:], rtol=0, atol=1e-5)
    torch.testing.assert_close(encoder.to("cpu").encode(images(11), BOTH)["image_embedding"], whole)


@KINDS
def test_it_is_built_again_with_its_words_and_without_the_folder(kind: str, tmp_path: Path) -> None:
    encoder = open_encoder(f"hub:{saved(kind, tmp_path)}", text=PROMPTS)
    again = rebuild(json.loads(json.dumps(encoder.config())), encoder.state())
    assert again.config() == encoder.config()
    assert again.config()["texts"] == list(PROMPTS)
    assert "text.embedding" not in again.provides
    assert torch.equal(again.encode(images(), BOTH)["image_embedding"], encoder.encode(images(), BOTH)["image_embedding"])
    given = rebuild(encoder.config(), None, given=f"hub:{tmp_path}")
    assert given.config() == encoder.config()
    with pytest.raises(BundleError, match="lacks 'digest'"):
        rebuild({k: v for k, v in encoder.config().items() if k != "digest"}, encoder.state())


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
def test_text_features_from_a_file_go_with_any_encoder(ending: str, tmp_path: Path) -> None:
    base = BuiltinEncoder.shipped(size=32)
    width = base.encode(images(1), frozenset({"features.last"}))["features.last"].shape[1]
    texts = torch.randn(4, width, generator=torch.Generator().manual_seed(2))
    file = tmp_path / f"texts.{ending}"
    if ending == "npz":
        np.savez(file, embedding=texts.double().numpy(), other=np.zeros(3))
    else:
        save_file({"anything": texts}, file)
    encoder = open_encoder("builtin", text=str(file))
    signals = encoder.encode(images(), BOTH)
    assert set(signals) == BOTH
    torch.testing.assert_close(signals["text.embedding"], texts)
    torch.testing.assert_close(signals["image_embedding"], base.encode(images(), frozenset({"features.last"}))["features.last"])
    assert encoder.config()["texts"] == file.name
    assert set(encoder.encode(images(), frozenset({"features.*"}))) == set(base.encode(images(), frozenset({"features.*"})))


def test_a_file_goes_with_an_image_and_text_model_too(tmp_path: Path) -> None:
    save_file({"embedding": torch.ones(2, 12)}, tmp_path / "texts.safetensors")
    folder = saved("clip", tmp_path / "model", words=False)
    signals = open_encoder(f"hub:{folder}", text=str(tmp_path / "texts.safetensors")).encode(images(), BOTH)
    assert (signals["text.embedding"].shape, signals["image_embedding"].shape) == ((2, 12), (3, 12))


def test_texts_that_do_not_fit_the_images_are_refused(tmp_path: Path) -> None:
    save_file({"embedding": torch.ones(2, 5)}, tmp_path / "narrow.safetensors")
    with pytest.raises(ConfigError, match=r"text features are 5 numbers wide, features\.last of builtin is"):
        open_encoder("builtin", text=str(tmp_path / "narrow.safetensors"))
    with pytest.raises(ConfigError, match=r"5 numbers wide, image_embedding of hub:.* is 12"):
        open_encoder(f"hub:{saved('clip', tmp_path / 'model')}", text=str(tmp_path / "narrow.safetensors"))


def test_prompts_need_a_text_model_and_its_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="builtin has no text model"):
        open_encoder("builtin", text=["a chest x-ray"])
    folder = saved("clip", tmp_path / "bare", words=False)
    with pytest.raises(ConfigError, match="has no tokenizer"):
        open_encoder(f"hub:{folder}", text=["a chest x-ray"])
    whole = saved("clip", tmp_path / "whole")
    with pytest.raises(ConfigError, match=r"is 13 tokens long; 1 to 10 are read"):
        open_encoder(f"hub:{whole}", text=["a chest x-ray", " ".join(["brain"] * 11)])
    with pytest.raises(ConfigError, match="tokens long"):
        open_encoder(f"hub:{whole}", text=[" "])


def test_weights_of_another_half_are_refused(tmp_path: Path) -> None:
    folder = saved("clip", tmp_path)
    encoder = HubEncoder.open(str(folder))
    weights = load_file(folder / "model.safetensors")
    weights["visual_projection.weight"] = weights["visual_projection.weight"] + 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match="is not what get_image_features"):
        with_text(encoder, PROMPTS)


def test_files_that_make_no_sense_are_named(tmp_path: Path) -> None:
    with pytest.raises(NotAvailableError, match="no such file; a list of prompts"):
        open_encoder("builtin", text="a chest x-ray")
    (tmp_path / "words.txt").write_text("a")
    (tmp_path / "broken.safetensors").write_text("a")
    np.savez(tmp_path / "two.npz", a=np.ones((2, 3)), b=np.ones((2, 3)))
    np.savez(tmp_path / "flat.npz", a=np.ones(3))
    np.savez(tmp_path / "nan.npz", a=np.full((2, 3), np.nan))
    np.savez(tmp_path / "object.npz", a=np.array([{}]))
    for name, message in (
        ("words.txt", "must be a .safetensors or .npz file"),
        ("broken.safetensors", "no readable .safetensors"),
        ("two.npz", "holds a, b; one array"),
        ("flat.npz", r"shape \(3,\)"),
        ("nan.npz", "finite"),
        ("object.npz", "no readable .npz"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_texts(tmp_path / name)


def test_nothing_is_wrapped_without_texts() -> None:
    base = BuiltinEncoder.shipped(size=32)
    assert with_text(base, ()) is with_text(base, "") is base
    assert "image_embedding" in WithText(base, None, {"texts": [], "digest": ""}).provides


def test_no_torchvision_is_asked_for(tmp_path: Path) -> None:
    folder = saved("clip", tmp_path)
    code = f"""
import sys
sys.modules["torchvision"] = None
import torch
from offmap.represent.open import open_encoder
encoder = open_encoder("hub:{folder}", text=["a chest x-ray", "skin"])
print(sorted(encoder.encode(torch.rand(1, 1, 32, 32), frozenset({{"image_embedding", "text.embedding"}}))))
print(sys.modules["torchvision"], any(m.startswith("torchvision.") for m in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["['image_embedding', 'text.embedding']", "None False"]
