"""InvAD: how far the features are from usual noise after a diffusion model was run upward."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from offmap.score._one_map import MapDetector


@dataclass(frozen=True, kw_only=True)
class InvAD(MapDetector):
    """InvAD: ``(max - min) + sum`` over the positions of ``|z_T|``, what DDIM inversion makes of a frozen network's features, >= 0.

    A diffusion model of in-distribution features brings them in three steps to the noise from which it would draw them; usual features
    become usual noise. The map holds ``|z_T|`` over the channels at each position, near the root of their number where all is usual.

    Needs a network that is trained for the gate: ``[encoder] spec = "train:invad"``. Nothing is fitted; scoring takes one pass of the
    frozen network and three of a small denoiser; the state is empty.

    Fails where an odd image becomes noise that is too weak: only strong noise counts. Sums over other numbers of positions do not compare.
    """

    passes: ClassVar[str] = "1F+3F"
    reference: ClassVar[str] = (
        "Sakai et al., InvAD: Inversion-based Reconstruction-Free Anomaly Detection with Diffusion Models, CVPR 2026, arXiv 2504.05662"
    )

    def of_image(self, maps: Float[Tensor, "n p"]) -> Float[Tensor, " n"]:
        return maps.amax(dim=1) - maps.amin(dim=1) + maps.sum(dim=1)
