"""The text half of an image and text model of `transformers`: prompts to embeddings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offmap.core.errors import ConfigError
from offmap.represent.hub import HubEncoder
from offmap.represent.hub_files import find_folder, read_files
from offmap.represent.hub_model import build
from offmap.represent.layers import normalise

VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model")
"""One of these is there where a folder has a tokenizer; without any, transformers makes one that knows no word."""


def embedded(encoder: HubEncoder, prompts: Sequence[str]) -> Float[Tensor, "k d"]:
    """Embeddings of prompts by the model that the encoder is the vision half of, read again from its folder.

    Raises:
        ConfigError: no tokenizer, a prompt that is too long, or a model whose image embedding is not what the encoder gives.
        NotAvailableError: the folder is gone, or transformers is not installed.
    """
    folder = find_folder(encoder.name.removeprefix("hub:"))
    model: Any = build(read_files(folder), encoder.name, whole=True)
    _agree(encoder, model)
    words: Any = model.config.text_config
    tokens = _tokens(folder, prompts, int(words.max_position_embeddings))
    if int(tokens["input_ids"].max()) >= words.vocab_size:
        raise ConfigError(f"{folder}: its tokenizer knows more words than the model's {words.vocab_size}; it belongs to another model")
    with torch.no_grad():
        texts = _pooled(model.get_text_features(**tokens))
    if not bool(torch.isfinite(texts).all()):
        raise ConfigError(f"{encoder.name}: embeddings of the prompts are not finite")
    return texts.float()


def _tokens(folder: Path, prompts: Sequence[str], longest: int) -> dict[str, Tensor]:
    """Padded to the length that the model was trained with.

    Raises:
        ConfigError: no tokenizer, or a prompt that is too long.
    """
    from transformers import AutoTokenizer

    advice = "copy tokenizer.json and tokenizer_config.json of the model's page into it, or give text = a file of text features"
    if not any((folder / name).is_file() for name in VOCABULARIES):
        raise ConfigError(f"{folder} has no tokenizer (none of {', '.join(VOCABULARIES)}): {advice}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise ConfigError(f"{folder} has no tokenizer that transformers can read ({type(error).__name__}): {advice}") from error
    for prompt in prompts:
        length = len(tokenizer(prompt)["input_ids"])
        if length > longest or not prompt.strip():
            raise ConfigError(f"text {prompt[:60]!r} is {length} tokens long; 1 to {longest} are read")
    return dict(tokenizer(list(prompts), padding="max_length", max_length=longest, truncation=True, return_tensors="pt"))


def _agree(encoder: HubEncoder, model: nn.Module) -> None:
    """The encoder's image embedding must be the model's own, on one random image."""
    side = encoder.input.size
    image = torch.rand(1, 1, side, side, generator=torch.Generator().manual_seed(0))
    pixels = normalise(image, encoder.input).expand(-1, encoder.input.channels, -1, -1).contiguous()
    whole: Any = model
    with torch.no_grad():
        expected = _pooled(whole.get_image_features(pixel_values=pixels))
    found = encoder.to("cpu").encode(image, frozenset({"image_embedding"}))["image_embedding"]
    if found.shape != expected.shape or not torch.allclose(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max())):
        raise ConfigError(
            f"{encoder.name}: its image embedding is not what get_image_features of the whole model gives; its weights are incomplete, "
            "or this kind of model is not supported"
        )


def _pooled(output: Any) -> Tensor:
    """Embeddings (N, D) of what a model's ``get_..._features`` gives in this or that version of transformers."""
    pooled: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return pooled
