"""Tiny image and text models with random weights and a tokenizer of a dozen words, saved as folders."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

WORDS = ("[PAD]", "[BOS]", "[EOS]", "[UNK]", "a", "chest", "brain", "x-ray", "slice", "of", "photo", "skin")
BLOCKS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
TEXTS = BLOCKS | IDS | {"vocab_size": len(WORDS), "max_position_embeddings": 10}
VISION = BLOCKS | {"image_size": 32, "patch_size": 8}
PROCESSOR = {"size": {"height": 32, "width": 32}, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.25, 0.3]}


def model(kind: str, seed: int = 0) -> Any:
    """A CLIP (embeddings of 12) or a SigLIP (of 16)."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    if kind == "clip":
        made = transformers.CLIPModel(transformers.CLIPConfig(text_config=TEXTS, vision_config=VISION, projection_dim=12))
    else:
        made = transformers.SiglipModel(transformers.SiglipConfig(text_config=TEXTS | {"projection_size": 16}, vision_config=VISION))
    for parameter in made.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape)
    return made.eval()


def tokenizer() -> Any:
    """One word, one token, between a first and a last one."""
    transformers, tokenizers = pytest.importorskip("transformers"), pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token=WORDS[3]))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    words.post_processor = tokenizers.processors.TemplateProcessing(single="[BOS] $A [EOS]", special_tokens=[("[BOS]", 1), ("[EOS]", 2)])
    special = {"pad_token": "[PAD]", "bos_token": "[BOS]", "eos_token": "[EOS]", "unk_token": "[UNK]"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, **special)


def saved(kind: str, folder: Path, *, seed: int = 0, words: bool = True) -> Path:
    """The model's folder."""
    model(kind, seed).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    if words:
        tokenizer().save_pretrained(folder)
    return folder
