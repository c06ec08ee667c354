"""Entropy of the mean softmax over views of the image that keep its label."""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from jaxtyping import Float64
from torch import Tensor

from offmap.core.errors import ConfigError
from offmap.core.signals import named
from offmap.score._many import ManyLogits, disagreement, entropy, log_mean

Measure = Literal["entropy", "mutual_information"]


@dataclass(frozen=True, kw_only=True)
class TTA(ManyLogits):
    """Test-time augmentation: entropy of the softmax averaged over 8 views, ``H(mean_v p_v)`` in nats, in [0, log K].

    The views are fixed: the image, flipped left-right, shifted by 4 % of its side to the left, right, up and down, and 5 % smaller
    and larger, its border continued. With ``upside_down`` also flipped up-down and turned by half. With ``mutual_information`` the
    number is ``H(mean_v p_v) - mean_v H(p_v)``: what the views disagree about.

    Nothing to fit; scoring costs one forward pass a view, the first of which is the ordinary one; the state is two numbers.

    Fails as ``entropy`` does on images that the network is sure of in all views. Views that the network was not trained to take
    alike (left-right flips where the side matters, a grid of cells upside down) make in-distribution images look odd.

    Args:
        measure: ``entropy`` of the mean, or ``mutual_information``.
        upside_down: two more views, for images without a top, such as histology.
    """

    measure: Measure = "entropy"
    upside_down: bool = False

    passes: ClassVar[str] = "8F"
    reference: ClassVar[str] = (
        "Ayhan & Berens, Test-time Data Augmentation for Estimation of Heteroscedastic Aleatoric Uncertainty, MIDL 2018; "
        "Wang et al., Neurocomputing 2019, arXiv 1807.07356"
    )

    def __post_init__(self) -> None:
        if self.measure not in get_args(Measure):
            raise ConfigError(f"{self.method()}: measure = {self.measure!r} must be one of {', '.join(get_args(Measure))}")

    @property
    def signal(self) -> str:
        return named("tta.logits", {"upside_down": self.upside_down})

    def of_passes(self, log_p: Float64[Tensor, "n s k"]) -> Float64[Tensor, " n"]:
        return entropy(log_mean(log_p)) if self.measure == "entropy" else disagreement(log_p)
