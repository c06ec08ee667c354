"""Squared Mahalanobis distance to the nearest class mean."""

from dataclasses import dataclass
from typing import ClassVar

from offmap.score._gaussian import GaussianDetector


@dataclass(frozen=True, kw_only=True)
class Mahalanobis(GaussianDetector):
    """Squared Mahalanobis distance to the nearest class mean, ``min_c (h - mu_c)^T Sigma^-1 (h - mu_c)``.

    ``Sigma`` is the covariance within the classes, shrunk towards a multiple of the identity. Where fit batches carry
    ``label`` there is one mean for each class, otherwise one for all. The number is a squared distance in standard
    deviations: about D for an in-distribution image if features were Gaussian, 0 at a class mean, no upper end.

    Fitting costs ``N D^2`` (twice through the labels' batches for Ledoit-Wolf) and ``D^3 / 3``, scoring ``D^2 / 2 + K D``
    an image; the state is ``D^2 + (K + 1) D`` numbers.

    Fails when a class is not one blob: the mean of two modes is called most typical though no image lies there.
    Feature norms that differ between images add noise; ``mahalanobis_pp`` takes them off.

    Args:
        layer: name of the layer; ``last`` is the encoder's deepest.
        shrinkage: ``ledoit_wolf`` or ``oas``; both keep the covariance regular when there are fewer images than dimensions.
    """

    reference: ClassVar[str] = (
        "Lee et al., A Simple Unified Framework for Detecting Out-of-Distribution Samples, NeurIPS 2018, arXiv 1807.03888, eq. 2"
    )
