"""How much heads that the data allow disagree: mutual information of the answer and the last layer."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float64
from torch import Tensor

from offmap.score._laplace import LastLayerLaplace
from offmap.score._many import disagreement


@dataclass(frozen=True, kw_only=True)
class LaplaceMutualInformation(LastLayerLaplace):
    """Last-layer Laplace, mutual information: ``H(mean_s p_s) - mean_s H(p_s)`` in nats, in [0, log K], over heads drawn.

    What the heads disagree about, that is what more data would settle; 0 where all give one answer, however undecided. Taken as the
    mean of ``KL(p_s || mean p)``, which is the same number without cancellation. The heads are those of ``laplace_entropy``.

    Costs and state as ``laplace_entropy``.

    Fails where the features do not move. Its size depends on the prior precision and on the number of images in the fit part, its order
    much less. With few samples it comes out too small for distant images. A head with one logit is refused.

    Args:
        samples: heads drawn, 2 to 1000.
        precision: prior precision of all weights and biases, in (0, inf); that of the largest evidence when None.
    """

    reference: ClassVar[str] = (
        "MacKay, The Evidence Framework Applied to Classification Networks, Neural Computation 1992; Daxberger et al., Laplace Redux, "
        "NeurIPS 2021, arXiv 2106.14806; mutual information after Houlsby et al. 2011, arXiv 1112.5745"
    )

    def of_samples(self, log_p: Float64[Tensor, "n s k"]) -> Float64[Tensor, " n"]:
        return disagreement(log_p)
