"""What methods that read the classifier's last layer share."""

from collections.abc import Iterable

import torch
from jaxtyping import Float64
from torch import Tensor

from offmap.core.errors import SignalError
from offmap.core.types import Signals
from offmap.score._layer import rows_of

PENULTIMATE = "features.penultimate"
"""The input of the head."""

HEAD = frozenset({"head.weight", "head.bias"})

Head = tuple[Float64[Tensor, "k d"], Float64[Tensor, " k"]]
"""Weight and bias in float64."""


def head_of(batch: Signals, width: int, who: str) -> Head:
    """The head that fits penultimate features of ``width`` numbers.

    Raises:
        SignalError: weight and bias are not (K, width) and (K,), or not finite.
    """
    weight, bias = batch["head.weight"], batch["head.bias"]
    if weight.ndim != 2 or weight.shape[1] != width or tuple(bias.shape) != (weight.shape[0],):
        raise SignalError(
            f"{who}: head.weight {tuple(weight.shape)} and head.bias {tuple(bias.shape)} do not fit {PENULTIMATE} of width {width}: "
            "(K, D) and (K,) expected"
        )
    if not bool(torch.isfinite(weight).all() and torch.isfinite(bias).all()):
        raise SignalError(f"{who}: head.weight or head.bias is not finite")
    return weight.double(), bias.double()


def two_or_more(classes: int, who: str, instead: str = "max_logit and energy work with one") -> None:
    """Raises:
    SignalError: there is one logit only.
    """
    if classes < 2:
        raise SignalError(f"{who} needs two logits or more, there is one; {instead}")


def common_widths(batches: Iterable[Signals], who: str) -> tuple[int, int]:
    """Width of the penultimate features and number of logits, from a look at all batches.

    Raises:
        SignalError: batches differ.
    """
    found = {tuple(rows_of(batch, name, who).shape[1] for name in (PENULTIMATE, "logits")) for batch in batches}
    if len(found) != 1:
        raise SignalError(f"{who}: batches have {PENULTIMATE} and logits of different widths {sorted(found)}")
    width, classes = found.pop()
    return width, classes


def mean_of(batches: Iterable[Signals], who: str) -> Float64[Tensor, " d"]:
    """Mean of the penultimate features."""
    count, total = 0, torch.zeros((), dtype=torch.float64)
    for batch in batches:
        rows = rows_of(batch, PENULTIMATE, who, len(total) if count else None)
        count, total = count + len(rows), total.to(rows.device) + rows.sum(dim=0)
    return total / count
