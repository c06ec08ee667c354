"""Centre and spread that a few odd scores do not move."""

import torch
from jaxtyping import Float
from torch import Tensor

from offmap.core.errors import SignalError

MAD_TO_SD = 1.4826
"""Median absolute deviation to standard deviation of a normal law."""


def centre_and_spread(scores: Float[Tensor, " n"]) -> tuple[float, float]:
    """Median and 1.4826 MAD; the standard deviation where more than half of the scores are equal, 1 where all are.

    Raises:
        SignalError: no score, or not finite.
    """
    values = finite(scores, "scores").double()
    if len(values) == 0:
        raise SignalError("there are no scores to standardise on: give more in-distribution images")
    centre = float(torch.quantile(values, 0.5))
    spread = MAD_TO_SD * float(torch.quantile((values - centre).abs(), 0.5))
    if spread == 0:
        spread = float(values.std(correction=0))
    return centre, spread if spread > 0 else 1.0


def finite(scores: Float[Tensor, "*k m"], what: str) -> Float[Tensor, "*k m"]:
    """The same on the CPU as float32, refused where a value is not finite.

    Raises:
        SignalError: naming the columns (images) that are not finite.
    """
    values = scores.detach().to("cpu", torch.float32)
    good = torch.isfinite(values) if values.ndim == 1 else torch.isfinite(values).flatten(0, -2).all(dim=0)
    bad = torch.nonzero(~good).flatten().tolist()
    if bad:
        listed = ", ".join(map(str, bad[:8])) + (", ..." if len(bad) > 8 else "")
        raise SignalError(f"{what} of shape {tuple(scores.shape)} are not finite in float32 for the images [{listed}]")
    return values
