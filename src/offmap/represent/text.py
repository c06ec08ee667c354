"""Embeddings of texts beside those of images, for methods that ask whether a text fits an image."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from offmap.core.encoder import Encoder
from offmap.core.errors import ConfigError, NotAvailableError
from offmap.core.types import Signals
from offmap.represent.digest import tensors_sha256
from offmap.represent.layers import wanted

IMAGE, TEXT = "image_embedding", "text.embedding"
LAST = "features.last"
KEY = "embedding"
"""Name of the array in a file of text features; a file with one array may call it as it likes."""


class WithText(Encoder):
    """Any encoder that gives ``image_embedding (N, D)`` and the static ``text.embedding (K, D)``.

    Of an image and text model of `transformers`, ``image_embedding`` is the projected one that its texts are compared with; of any
    other encoder it is ``features.last``. A gate keeps the texts in the state of the methods that read them, and their words and
    digest here; an encoder built again from a gate therefore gives ``image_embedding`` only.

    Args:
        base: the encoder of images.
        texts: one row a text; None when built again.
        record: what ``config`` keeps: ``texts`` (words or file name) and ``digest``.
    """

    def __init__(self, base: Encoder, texts: Float[Tensor, "k d"] | None, record: Mapping[str, Any]) -> None:
        self.base = base
        self.name, self.layers, self.input, self.sha256 = base.name, base.layers, base.input, base.sha256
        self.class_names = base.class_names
        self.provides = base.provides | {IMAGE} | ({TEXT} if texts is not None else set())
        self._texts = texts
        self._record = {"texts": record["texts"], "digest": record["digest"]}
        self._source = embedding_of(base)

    @property
    def classes(self) -> int:
        """Number of the base encoder's logits."""
        return self.base.classes

    def encode(self, images: Float[Tensor, "n c *s"], needs: frozenset[str]) -> Signals:
        """As ``Encoder.encode``."""
        asked = needs - {IMAGE, TEXT} | ({self._source} if IMAGE in needs else frozenset())
        signals = dict(self.base.encode(images, asked))
        if IMAGE in needs and self._source != IMAGE:
            signals[IMAGE] = signals[self._source]
            if self._source not in wanted(needs, self.base.provides, self.layers):
                del signals[self._source]
        if TEXT in needs and self._texts is not None:
            signals[TEXT] = self._texts.to(images.device)
        return signals

    def to(self, device: torch.device | str) -> "WithText":
        """The same encoder on another device."""
        return WithText(self.base.to(device), self._texts, self._record)

    def state(self) -> dict[str, Tensor] | None:
        """Weights of the base encoder."""
        return self.base.state()

    def config(self) -> dict[str, Any]:
        """Words or file name, digest of the embeddings, and the base encoder."""
        return {"kind": "text", "name": self.name, "sha256": self.sha256, **self._record, "base": self.base.config()}


def with_text(base: Encoder, text: str | Sequence[str]) -> Encoder:
    """The encoder with texts, or itself where there are none.

    Args:
        text: prompts, read by the encoder's own text model, or a ``.safetensors`` or ``.npz`` file of text features (K, D).

    Raises:
        ConfigError: the encoder has no text model, the file makes no sense, or texts and images are not of one width.
        NotAvailableError: no such file, or a package is missing.
    """
    if not text:
        return base
    if isinstance(text, str):
        texts, words = read_texts(Path(text)), Path(text).name
        return _checked(base, texts, {"texts": words, "digest": tensors_sha256({KEY: texts})})
    from offmap.represent.hub import HubEncoder
    from offmap.represent.hub_text import embedded

    if not isinstance(base, HubEncoder) or IMAGE not in base.provides:
        raise ConfigError(
            f"text = {list(text)}: {base.name} has no text model to read it. Use an image and text model such as CLIP or SigLIP "
            "(hub:NAME_OR_DIR), or give text = a .safetensors or .npz file of text features as wide as the encoder's last layer"
        )
    texts = embedded(base, tuple(text))
    return _checked(base, texts, {"texts": list(text), "digest": tensors_sha256({KEY: texts})})


def embedding_of(encoder: Encoder) -> str:
    """The signal that stands for the whole image."""
    return IMAGE if IMAGE in encoder.provides else LAST


def read_texts(path: Path) -> Float[Tensor, "k d"]:
    """Text features from a file, float32.

    Raises:
        NotAvailableError: no such file.
        ConfigError: another format, no or several arrays, another shape, or values that are not finite.
    """
    if not path.is_file():
        raise NotAvailableError(f"text = {str(path)!r}: there is no such file; a list of prompts is written in brackets")
    arrays = _arrays(path)
    if KEY not in arrays and len(arrays) != 1:
        raise ConfigError(f"{path} holds {', '.join(sorted(arrays)) or 'nothing'}; one array, or one named {KEY!r}, is expected")
    values = arrays[KEY] if KEY in arrays else next(iter(arrays.values()))
    if values.ndim != 2 or 0 in values.shape or not values.is_floating_point() or not bool(torch.isfinite(values).all()):
        raise ConfigError(f"{path}: text features of shape {tuple(values.shape)} and type {values.dtype} must be (K, D), real and finite")
    return values.float()


def _arrays(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                return {name: torch.from_numpy(np.asarray(file[name])) for name in file.files}
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{path} is no readable {path.suffix} file: {type(error).__name__} {error}") from error
    raise ConfigError(f"text = {str(path)!r} must be a .safetensors or .npz file, or a list of prompts")


def _checked(base: Encoder, texts: Float[Tensor, "k d"], record: Mapping[str, Any]) -> WithText:
    """Refuse texts that cannot be compared with the images; one image is encoded to see."""
    source, side = embedding_of(base), base.input.size
    width = base.to("cpu").encode(torch.zeros(1, base.input.channels, side, side), frozenset({source}))[source].shape[1]
    if texts.shape[1] != width:
        raise ConfigError(
            f"text features are {texts.shape[1]} numbers wide, {source} of {base.name} is {width}: "
            "both must come from one image and text model"
        )
    return WithText(base, texts, record)
