"""Four views of a variational autoencoder as one statistic."""

from dataclasses import dataclass
from typing import ClassVar

from offmap.score.fusion import Fusion, Reduce


@dataclass(frozen=True, kw_only=True)
class GenerativeFusion(Fusion):
    """Error of reconstruction, states of code and likelihood, likelihood ratio and gradient of the bound, fused as by ``fusion``.

    The four are ``reconstruction`` (1 - SSIM), ``dose`` (bound, divergence, fit and length of the code: each too high or too low),
    ``complexity`` (the ratio of the model's likelihood and that of a general compressor) and ``gradient_norm``. With ``fisher`` the number
    is ``-ln p`` in nats, >= 0, of ``T = -2 sum ln p_j`` ranked among unseen in-distribution images: about 0.7 for a typical image, 3 where
    one usual image in twenty is as odd. What each part contributes, its own ``-ln p_j``, is shown with the score.

    Needs a variational autoencoder (``train:vae``). Costs of fit and score are those of the parts together, 2F+1B and a PNG encoder; the
    state is theirs and a few numbers for each held-out image.

    Fails where most of the parts are blind or turned round. Two of the four are one-sided errors, which say of a simple, smooth image
    that it is usual; ``dose`` and ``complexity`` are there to outvote them.

    Args:
        methods: names of two or more detectors. ``likelihood_ratio`` needs a background model as well (``background = true``).
        reduce: ``mean``, ``max``, ``logsumexp`` or ``fisher``.
        settings: changes of the parts' defaults, such as ``dose.samples=4``.
    """

    methods: tuple[str, ...] = ("reconstruction", "dose", "complexity", "gradient_norm")
    reduce: Reduce = "fisher"
    settings: tuple[str, ...] = ("reconstruction.measure=ssim",)

    passes: ClassVar[str] = "2F+1B"
    reference: ClassVar[str] = (
        "Fisher, Statistical Methods for Research Workers, 1925 (the statistic); the four parts are those of reconstruction, dose, "
        "complexity and gradient_norm, their fusion is the project's own"
    )
