"""Weights of a gate or a folder go into the network that they belong to, or are refused by name."""

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from offmap.core.errors import BundleError

N = TypeVar("N", bound=nn.Module)


def filled(net: N, weights: Mapping[str, Tensor], what: str) -> N:
    """The network with these weights.

    Args:
        what: the network in words, for messages.

    Raises:
        BundleError: tensors are missing, foreign or of another shape.
    """
    known = net.state_dict()
    wrong = sorted(set(known) ^ set(weights)) or sorted(n for n in known if known[n].shape != weights[n].shape)
    if wrong:
        raise BundleError(
            f"the weights of the {what} do not fit its description: {', '.join(wrong[:4])} missing, foreign or of another shape"
        )
    net.load_state_dict(dict(weights))
    return net


def require_finite(weights: Mapping[str, Tensor], what: str) -> None:
    """Refuse weights that no training can have given.

    Raises:
        BundleError: values that are not finite.
    """
    bad = [name for name, value in weights.items() if value.is_floating_point() and not bool(torch.isfinite(value).all())]
    if bad:
        raise BundleError(f"the weights of the {what} are not finite: {', '.join(bad[:4])}")
