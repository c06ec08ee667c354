"""Batch norms of a training in several processes: mean and variance of the whole batch, not of one process's part of it."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offmap.represent.train.parallel import Crew


def share_norms(net: nn.Module) -> None:
    """Let all batch norms of a network see the whole batch; alone, nothing changes."""
    if Crew.present().size > 1:
        for module in net.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
                module.__class__ = SharedNorm  # type: ignore[assignment]


class SharedNorm(nn.modules.batchnorm._BatchNorm):
    """A batch norm in training mode over equal parts of a batch in several processes; otherwise like any other."""

    def _check_input_dim(self, x: Tensor) -> None:
        return

    def forward(self, x: Float[Tensor, "n c *s"]) -> Float[Tensor, "n c *s"]:
        """``(x - mean) / sqrt(variance + eps)``, scaled and shifted."""
        crew = Crew.present()
        if not self.training or crew.size == 1:
            plain: Tensor = super().forward(x)
            return plain
        axes, wide = [0, *range(2, x.ndim)], x.float()
        mean = _mean(wide.mean(dim=axes, keepdim=True))
        away = wide - mean
        variance = _mean(away.square().mean(dim=axes, keepdim=True))
        self._follow(mean.detach().flatten(), variance.detach().flatten(), crew.size * x.numel() // x.shape[1])
        found = away * (variance + self.eps).rsqrt()
        if self.affine:
            shape = (1, -1, *[1] * (x.ndim - 2))
            found = found * self.weight.view(shape) + self.bias.view(shape)
        like: Tensor = found.to(x.dtype)
        return like

    def _follow(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Move the running statistics, the variance without bias."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance * (count / max(1, count - 1)), share)


class _Mean(torch.autograd.Function):
    """Mean over processes, of values and of gradients."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return Crew.present().shared(value)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return Crew.present().shared(slope)


def _mean(value: Tensor) -> Tensor:
    found: Tensor = _Mean.apply(value)  # type: ignore[no-untyped-call]
    return found
