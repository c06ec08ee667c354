"""What a `transformers` model folder holds, read without running anything: two JSON files and safetensors."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from offmap.core.encoder import Input
from offmap.core.errors import ConfigError, NotAvailableError

PATTERNS = (
    *("config.json", "preprocessor_config.json", "processor_config.json", "model*.safetensors", "model.safetensors.index.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "vocab.txt", "merges.txt", "spiece.model"),
)
"""Files fetched from the model hub; never code, never a pickle."""

DROPPED = ("auto_map", "attn_implementation", "_attn_implementation", "_attn_implementation_internal", "_name_or_path", "custom_pipelines")
"""Configuration keys that choose code or name a place."""


@dataclass(frozen=True, slots=True)
class Files:
    """A model folder in memory.

    Args:
        config: ``config.json`` without the keys that choose code.
        processor: ``preprocessor_config.json``; empty where there is none.
        tensors: all weights by name, in the types of the file.
    """

    config: Mapping[str, Any]
    processor: Mapping[str, Any]
    tensors: Mapping[str, Tensor] = field(repr=False)


def find_folder(name: str) -> Path:
    """The local folder of a model: the folder itself, else the local copy of a hub name, else downloaded.

    Raises:
        NotAvailableError: neither a folder, nor a local copy, nor reachable.
    """
    if Path(name).is_dir():
        return Path(name)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise NotAvailableError(f"hub encoder {name!r}: there is no such folder")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise NotAvailableError("hub encoders need transformers: pip install 'offmap[hub]'") from error
    try:
        folder = Path(snapshot_download(name, allow_patterns=list(PATTERNS), local_files_only=True))
        if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
            return folder
    except (OSError, ValueError):
        pass
    try:
        return Path(snapshot_download(name, allow_patterns=list(PATTERNS)))
    except Exception as error:
        raise NotAvailableError(
            f"hub encoder {name!r} is no local folder, has no local copy, and cannot be downloaded ({type(error).__name__}): "
            "download it elsewhere and pass its folder"
        ) from error


def read_files(folder: Path) -> Files:
    """Read a model folder.

    Raises:
        ConfigError: no ``config.json``, no safetensors, damaged files, or a quantised model.
    """
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{folder} has no config.json: it is no folder of a transformers model")
    config = _json(folder / "config.json")
    if "quantization_config" in config:
        raise ConfigError(f"{folder} holds a quantised model; use its float16 or float32 release")
    processor: dict[str, Any] = {}
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            found = _json(folder / name)
            processor = found.get("image_processor", found)
            break
    return Files(_without(config, DROPPED), processor, _tensors(folder))


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is no readable JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} must hold an object, not a {type(value).__name__}")
    return value


def _without(config: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {k: _without(v, keys) if isinstance(v, dict) else v for k, v in config.items() if k not in keys}


def _tensors(folder: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(_json(index).get("weight_map", {}).values()))
    elif (folder / "model.safetensors").is_file():
        names = ["model.safetensors"]
    else:
        names = sorted(p.name for p in folder.glob("*.safetensors"))
    if len(names) != 1 and not index.is_file():
        pickles = [p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth")]
        hint = f"; it holds {pickles[0]}: convert it with `offmap import-weights`" if pickles else ""
        raise ConfigError(f"{folder} must hold model.safetensors, it holds {', '.join(names) or 'no safetensors file'}{hint}")
    tensors: dict[str, Tensor] = {}
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise ConfigError(f"{index} names {name!r}, which is not a file of that folder")
        try:
            tensors |= load_file(folder / name)
        except (SafetensorError, OSError) as error:
            raise ConfigError(f"{folder / name} is no readable safetensors file: {error}") from error
    return tensors


def read_input(processor: Mapping[str, Any], who: str) -> Input:
    """Size, mean and standard deviation from a processor's configuration, for pixels in [0, 1].

    A processor computes ``(255 x * factor - offset - mean) / std``; what it does to geometry is left to ``prepare``.

    Raises:
        ConfigError: a value is missing or has no meaning here.
    """
    cropped = processor.get("do_center_crop") and processor.get("crop_size")
    size = processor.get("crop_size") if cropped else processor.get("size")
    sides = set(size.values()) if isinstance(size, dict) else {size}
    if isinstance(size, dict) and {"height", "width"} <= set(size):
        sides = {size["height"], size["width"]}
    side = sides.pop()
    if sides or not isinstance(side, int) or side < 1:
        raise ConfigError(
            f"{who}: preprocessor_config.json states no square input size (size = {size!r}): "
            "copy the file of the model's page into the folder, or pass input="
        )
    try:
        factor = 255.0 * float(processor.get("rescale_factor", 1 / 255)) if processor.get("do_rescale", True) else 255.0
        offset = 1.0 if processor.get("rescale_offset", False) else 0.0
        plain = not processor.get("do_normalize", True)
        mean = [0.0] * 3 if plain else [float(m) for m in processor["image_mean"]]
        std = [1.0] * 3 if plain else [float(s) for s in processor["image_std"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{who}: preprocessor_config.json lacks or garbles {error}") from error
    if len(mean) not in (1, 3) or len(mean) != len(std) or min(std) <= 0 or factor <= 0:
        raise ConfigError(
            f"{who}: preprocessor_config.json: image_mean = {mean}, image_std = {std}, rescale factor {factor / 255:.6g} make no sense"
        )
    return Input(side, len(mean), tuple((m + offset) / factor for m in mean), tuple(s / factor for s in std))
