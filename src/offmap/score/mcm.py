"""Maximum concept matching: does any of the texts fit the image."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from offmap.core.detector import Detector, State
from offmap.core.errors import ConfigError, SignalError
from offmap.core.linalg import unit_norm
from offmap.core.types import Signals
from offmap.score._layer import rows_of


@dataclass(frozen=True, kw_only=True)
class MCM(Detector):
    """MCM, ``1 - max_k softmax(cos(f, t) / temperature)_k``: how little one of K texts stands out as what the image shows, in (0, 1).

    f is the image's embedding, ``t_k`` that of the k-th text ("a chest x-ray"), both of an image and text model. The softmax is over
    plain cosines, not multiplied by the model's own scale of about 100; the paper's ``- max`` and this number differ by one only. At
    temperature 1 cosines lie close together, so scores are near ``1 - 1/K`` and differ little; their order is what counts.

    Nothing is learnt from the images; the texts are kept. Scoring costs ``K D`` an image; the state is ``K D`` numbers.

    Fails when the texts leave out a kind of image that is in-distribution, when they are all alike, and on images that the model
    was never taught to name; it tells near images of the same name not apart at all. One text has no rival and is refused.

    Args:
        temperature: of the softmax, > 0.
    """

    temperature: float = 1.0

    reference: ClassVar[str] = (
        "Ming et al., Delving into Out-of-Distribution Detection with Vision-Language Representations, NeurIPS 2022, arXiv 2211.13445"
    )

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ConfigError(f"mcm: temperature = {self.temperature} must be positive")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"image_embedding"})

    @property
    def fit_needs(self) -> frozenset[str]:
        return self.needs | {"text.embedding"}

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        widths = {rows_of(batch, "image_embedding", "mcm").shape[1] for batch in batches}
        texts = next(iter(batches))["text.embedding"]
        if texts.ndim != 2 or {texts.shape[1]} != widths:
            raise SignalError(
                f"mcm: text.embedding of shape {tuple(texts.shape)} must be (K, D) with the D of image_embedding, {sorted(widths)}"
            )
        if len(texts) < 2:
            raise SignalError("mcm needs two texts or more: with one the softmax is 1 for every image. Name what else an image might show")
        if not bool(torch.isfinite(texts).all()):
            raise SignalError("mcm: text.embedding is not finite")
        return {"texts": unit_norm(texts.double())}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        texts = state["texts"]
        cosines = unit_norm(rows_of(signals, "image_embedding", "mcm", texts.shape[1])) @ texts.T / self.temperature
        top, which = cosines.max(dim=1, keepdim=True)
        rest = (cosines - top).exp().scatter(1, which, 0.0).sum(dim=1)
        return rest / (1 + rest)
