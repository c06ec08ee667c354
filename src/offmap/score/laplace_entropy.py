"""Entropy of the mean softmax over heads that the data allow: a Laplace approximation of the last layer."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float64
from torch import Tensor

from offmap.score._laplace import LastLayerLaplace
from offmap.score._many import entropy, log_mean


@dataclass(frozen=True, kw_only=True)
class LaplaceEntropy(LastLayerLaplace):
    """Last-layer Laplace, predictive entropy: ``H(mean_s p_s)`` in nats, in [0, log K], over heads drawn from a Gaussian about the head.

    The Gaussian's precision is the curvature of the cross-entropy on the in-distribution images, as a Kronecker product of classes and
    inputs, plus a prior precision. Along directions that those images filled the head is certain; along others it is not, and there the
    answer tends to "any class". The closer the prior precision to infinity, the closer the number to that of ``entropy``.

    No labels, no training, no further pass: the network is as it is. The images of the fit part stand for those that the network was
    trained on; fewer of them make the head less certain. The noise is drawn once while fitting and is the same for all images, so that
    the score moves smoothly from one image to the next; the draws come in pairs of opposite sign.

    Fitting costs ``N (D^2 + K^2) + D^3 + K^3`` in one pass with ``D^2 + K^2`` numbers of memory, scoring ``D^2 + K D + samples K^2`` an
    image; the state is ``D^2 + 2 K D + K^2 + samples K`` numbers.

    Fails where the features do not move, as of a texture that the network has learnt to ignore: the head alone is in doubt, not what
    lies before it. Along a direction known to the head, sureness far away has a limit below 1 but need not vanish: logits and their
    deviation grow alike. The Kronecker product takes the doubt about classes and the features as independent; where images of long
    features are the sure ones, which is usual, the head comes out somewhat surer than with the full curvature. A head with one logit
    is refused.

    Args:
        samples: heads drawn, 2 to 1000.
        precision: prior precision of all weights and biases, in (0, inf); that of the largest evidence when None.
    """

    reference: ClassVar[str] = (
        "MacKay, The Evidence Framework Applied to Classification Networks, Neural Computation 1992; Kristiadi, Hein & Hennig, Being "
        "Bayesian, Even Just a Bit, Fixes Overconfidence in ReLU Networks, ICML 2020, arXiv 2002.10118; Daxberger et al., Laplace Redux, "
        "NeurIPS 2021, arXiv 2106.14806"
    )

    def of_samples(self, log_p: Float64[Tensor, "n s k"]) -> Float64[Tensor, " n"]:
        return entropy(log_mean(log_p))
