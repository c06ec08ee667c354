"""Gradients of a network's weights, summed while it is trained."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from offmap.represent.train.parallel import Crew


class SummedGradients(nn.Module):
    """Sums the gradients of some weights over all steps, as buffers, so that they are saved, averaged and kept with the weights.

    Args:
        weights: leaves whose gradients are summed; each by its name, in which ``/`` stands for ``.``.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, weight in weights.items():
            key = name.replace(".", "/")
            self.register_buffer(key, torch.zeros_like(weight))
            weight.register_post_accumulate_grad_hook(self._adder(key))

    def _adder(self, key: str) -> Callable[[Tensor], None]:
        def add(weight: Tensor) -> None:
            if weight.grad is not None:
                self.get_buffer(key).add_(Crew.present().shared(weight.grad))

        return add
