"""Four views of a variational autoencoder as one statistic."""

from dataclasses import dataclass
from typing import ClassVar

from offmap.score.fusion import Fusion, Reduce


@dataclass(frozen=True, kw_only=True)
class GenerativeFusion(Fusion):
    """Error of reconstruction, distance in the latent space, likelihood ratio and gradient of the bound, fused as by ``fusion``.

    With ``fisher`` the number is ``-ln p`` in nats, >= 0, of ``T = -2 sum ln p_j`` ranked among unseen in-distribution images: about 0.7
    for a typical image, 3 where one usual image in twenty is as odd. What each part contributes, its own ``-ln p_j``, is shown with the
    score.

    Needs a variational autoencoder with a background model (``train:vae`` with ``background = true``). Costs of fit and score are those
    of the parts together, 3F+1B; the state is theirs and a few numbers for each held-out image.

    Fails where most of the parts are blind or turned round: three of the four say of a simple, smooth image that it is usual.

    Args:
        methods: names of two or more detectors, each with its defaults.
        reduce: ``mean``, ``max``, ``logsumexp`` or ``fisher``.
        settings: changes of the parts' defaults, such as ``latent_distance.k=10``.
    """

    methods: tuple[str, ...] = ("reconstruction", "latent_distance", "likelihood_ratio", "gradient_norm")
    reduce: Reduce = "fisher"

    passes: ClassVar[str] = "3F+1B"
    reference: ClassVar[str] = (
        "Fisher, Statistical Methods for Research Workers, 1925 (the statistic); the four parts are those of reconstruction, "
        "latent_distance, likelihood_ratio and gradient_norm, their fusion is the project's own"
    )
