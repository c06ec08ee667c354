"""Training of what stands beside a variational autoencoder: a background model, further members, gradients of the decoder."""

from dataclasses import dataclass, replace
from pathlib import Path

from jaxtyping import Float, Int64
from torch import Tensor

from offmap.core.errors import ConfigError
from offmap.represent.train.judged import Watch
from offmap.represent.train.objectives import VAEPlan
from offmap.represent.train.reconstruction import TrainedAutoencoder, train_reconstruction

ANY = 0.49
"""Margin with which the latest checkpoint is kept: a background model is not there to see anomalies."""


@dataclass(frozen=True)
class Beside:
    """Which models are trained beside a VAE, each as long as it.

    Args:
        background: a model of the same images with random pixels, for ``likelihood_ratio``.
        corruption: share of its pixel values that are replaced by random ones, anew each step.
        members: models in all that differ in their random numbers, for ``waic``; 1 for none beside the first.
    """

    background: bool = False
    corruption: float = 0.2
    members: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.corruption < 1 or not 1 <= self.members <= 100:
            raise ConfigError(f"corruption = {self.corruption} must lie between 0 and 1, members = {self.members} in 1..100")


def train_beside(
    images: Float[Tensor, "n c *s"],
    plan: VAEPlan,
    beside: Beside,
    *,
    out: Path | None = None,
    seed: int = 0,
    device: str = "cpu",
    resume: bool = False,
    held_out: Int64[Tensor, " m"] | None = None,
    progress: Watch | None = None,
) -> dict[str, Tensor]:
    """Weights of all companions as ``background.<name>`` and ``member.<k>.<name>``.

    Args:
        images, plan, seed, device, resume, held_out, progress: as ``train_reconstruction`` for the VAE itself; members take the seeds
            that follow.
        out: folder of the VAE; each companion has one in it.

    Raises:
        DataError, ConfigError, NotAvailableError: as ``train_reconstruction``.
    """
    plain = replace(plan, gradients=False)
    asked = {"background": (replace(plain, mutation=beside.corruption, margin=ANY), seed)} if beside.background else {}
    asked |= {f"member.{k}": (plain, seed + 1 + k) for k in range(beside.members - 1)}
    state: dict[str, Tensor] = {}
    for name, (own, number) in asked.items():
        folder = None if out is None else out / name
        found: TrainedAutoencoder = train_reconstruction(
            images, own, out=folder, seed=number, device=device, resume=resume, held_out=held_out, progress=progress
        )
        state |= {f"{name}.{key}": value.detach().cpu() for key, value in found.net.state_dict().items()}
    return state
