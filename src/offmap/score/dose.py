"""How rare several statistics of a variational autoencoder are, each by a density of its own."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from offmap.core.detector import Detector, State
from offmap.core.errors import ConfigError, SignalError
from offmap.core.types import Signals
from offmap.score._bank import sampled
from offmap.score._bound import check_samples, parts_name, parts_of
from offmap.score._density import surprises
from offmap.score._noise_levels import ENOUGH, MAX_BANK, spread_of


@dataclass(frozen=True, kw_only=True)
class DoSE(Detector):
    """Density of states: ``-sum_j log p_j(T_j(x))`` of ``T = (log p(x), KL(q|p), E_q log p(x|z), |z|)``, z the mean of the posterior.

    ``log p(x)`` is the evidence bound. Each density is a Gaussian kernel density of the standardised statistic of in-distribution images
    that the model has not seen. The number is in nats and may be negative; a statistic that is too small counts like one that is too large,
    which repairs the paradox of likelihoods.

    Needs a variational autoencoder of the in-distribution images. Scoring takes the pass of a bound; the statistics are those of
    ``held_out`` alone where it has 30 images or more; the state is at most 40,000 numbers.

    Fails for odd images whose statistics are usual one by one, and counts what ``log p(x)`` and its two parts share twice.

    Args:
        samples: codes drawn from the posterior of each image for the bound, 0 for its mean alone.
        bandwidth: of the kernels, in deviations of a statistic; not given: Scott's ``M^(-1/5)`` for M images.
    """

    samples: int = 1
    bandwidth: float | None = None

    reference: ClassVar[str] = (
        "Morningstar et al., Density of States Estimation for Out-of-Distribution Detection, AISTATS 2021, arXiv 2006.09273"
    )

    def __post_init__(self) -> None:
        check_samples(self.method(), self.samples)
        if self.bandwidth is not None and not 0 < self.bandwidth < float("inf"):
            raise ConfigError(f"dose: bandwidth = {self.bandwidth} must be positive")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({parts_name(self.samples), "latent.code"})

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        rows = sampled(batches, self._statistics, MAX_BANK, generator)
        own = rows[:0] if held_out is None else sampled(held_out, self._statistics, MAX_BANK, generator).to(rows)
        rows = own if len(own) >= ENOUGH else torch.cat([rows, own]) if len(own) else rows
        if len(rows) < 2 or bool((rows == rows[0]).all()):
            raise SignalError(f"dose: the {len(rows)} images do not differ: at least two different images are needed")
        width = self.bandwidth or len(rows) ** (-1 / 5)
        mean, scale = rows.mean(dim=0), spread_of(rows)
        return {"mean": mean, "scale": scale, "bank": (rows - mean) / scale, "bandwidth": rows.new_tensor(width)}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        z = (self._statistics(signals).to(state["mean"]) - state["mean"]) / state["scale"]
        return surprises(z, state["bank"], state["bandwidth"]).sum(dim=1)

    def _statistics(self, signals: Signals) -> Float64[Tensor, "n 4"]:
        parts, code = parts_of(signals, parts_name(self.samples), self.method()), signals["latent.code"].double()
        fit, divergence = parts[:, 0], parts[:, 1]
        return torch.stack([fit - divergence, divergence, fit, code.flatten(1).norm(dim=1)], dim=1)
