"""How rare a number is among those of in-distribution images, by a kernel density, for several numbers at once."""

from math import log, pi

import torch
from jaxtyping import Float64
from torch import Tensor

from offmap.score._bank import chunks


def surprises(z: Float64[Tensor, "n l"], bank: Float64[Tensor, "m l"], width: Float64[Tensor, ""]) -> Float64[Tensor, "n l"]:
    """``-log (1/M) sum_i N(z | b_i, width^2)`` of each column by itself, in nats."""
    return torch.cat([_of(part, bank, width) for part in chunks(z, bank.numel())])


def _of(z: Float64[Tensor, "n l"], bank: Float64[Tensor, "m l"], width: Float64[Tensor, ""]) -> Float64[Tensor, "n l"]:
    terms = -0.5 * ((z[:, None] - bank) / width).square()
    return width.log() + 0.5 * log(2 * pi) + log(len(bank)) - torch.logsumexp(terms, dim=1)
