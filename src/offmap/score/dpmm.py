"""Dirichlet-process mixture: angle of every patch to the most similar of a few centres of in-distribution patches."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from offmap.core.detector import Localiser, State
from offmap.core.errors import ConfigError, NotAvailableError, SignalError
from offmap.core.linalg import unit_norm
from offmap.core.types import Signals
from offmap.score._layers import patterns
from offmap.score._patches import PatchReader, check_share, fine_layer, mean_of_top

LEAST = 1.0
"""Patches that must belong to a centre, in expectation, for it to be kept."""


@dataclass(frozen=True, kw_only=True)
class DPMM(Localiser):
    """Dirichlet-process mixture: mean over the oddest 1 % of the patches of ``1 - max_k cos(x, mu_k)``, in [0, 2].

    The centres ``mu_k`` are the means of a mixture of Gaussians with diagonal covariances under a Dirichlet-process prior, fitted
    by variational inference to patches of length one; the prior decides how many of ``components`` are used. The map holds the same at
    each position. As ``anomaly_dino``, with centres in place of a bank.

    Fitting draws ``pool`` patches and costs ``pool * components * C`` for each of at most ``rounds``; scoring costs
    ``components * C`` for each position, 100 times less than a bank of 10,000; the state is ``components * C`` numbers in float32.

    Fails when parts are usual and only their place is odd. In-distribution patches of a rare kind lie far from every centre, where a
    bank would hold some of them.

    Args:
        layers: layers to use, their maps stacked on the finest grid; none named: the deepest with 10 or more positions a side.
        components: centres at most.
        concentration: of the Dirichlet process; higher uses more of them. Not given: one in ``components``.
        pool: patches to fit on; a uniform sample of all.
        rounds: of variational inference at most.
        top: share of the positions whose mean is the image's score, at least one of them.
    """

    layers: tuple[str, ...] = ()
    components: int = 100
    concentration: float | None = None
    pool: int = 10_000
    rounds: int = 100
    top: float = 0.01

    reference: ClassVar[str] = (
        "Schulthess et al., Anomaly Detection by Clustering DINO Embeddings using a Dirichlet Process Mixture, MICCAI 2025, "
        "arXiv 2509.19997"
    )

    def __post_init__(self) -> None:
        check_share(self.top, "dpmm")
        if not 1 <= self.components <= 10_000 or not self.components <= self.pool <= 1_000_000 or self.rounds < 1:
            raise ConfigError(
                f"dpmm: components = {self.components} must lie in 1..10000, pool = {self.pool} from there to 1000000, "
                f"rounds = {self.rounds} be at least 1"
            )
        if self.concentration is not None and not 0 < self.concentration < float("inf"):
            raise ConfigError(f"dpmm: concentration = {self.concentration} must be above 0")

    @property
    def needs(self) -> frozenset[str]:
        return patterns("feature_map", self.layers)

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        first = next(iter(batches))
        reader = PatchReader.of(first, fine_layer(first, self.layers, "dpmm"), smooth=False, who="dpmm")
        rows = unit_norm(reader.sample(batches, self.pool, generator))
        return {"centres": self._centres(rows, generator), **reader.tensors()}

    def _centres(self, rows: Float[Tensor, "m c"], generator: torch.Generator) -> Float[Tensor, "k c"]:
        try:
            from sklearn.mixture import BayesianGaussianMixture
        except ImportError as error:
            raise NotAvailableError("dpmm needs scikit-learn: pip install scikit-learn") from error
        different = len(torch.unique(rows, dim=0))
        if different < 2:
            raise SignalError(f"dpmm: the {len(rows)} patches are all the same: at least two different images are needed")
        model = BayesianGaussianMixture(
            n_components=min(self.components, different),
            covariance_type="diag",
            weight_concentration_prior_type="dirichlet_process",
            weight_concentration_prior=self.concentration,
            reg_covar=1e-6,
            max_iter=self.rounds,
            random_state=int(torch.randint(2**31 - 1, (), generator=generator, device=generator.device)),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit(rows.double().cpu().numpy())
        means, shares = torch.from_numpy(model.means_), torch.from_numpy(model.weights_)
        used = shares * len(rows) >= min(LEAST, float(shares.max()) * len(rows))
        return unit_norm(means[used]).to(rows)

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        return mean_of_top(self.raw_map(state, signals), self.top)

    def raw_map(self, state: State, signals: Signals) -> Float[Tensor, "n *s"]:
        rows = unit_norm(PatchReader.kept(state, smooth=False, who="dpmm").rows(signals))
        return (1 - (rows @ state["centres"].T).amax(dim=-1)).clamp_min(0)
