"""A Gaussian mixture on a few numbers of each image, fitted by scikit-learn and scored without it."""

import warnings
from collections.abc import Mapping
from math import log, pi
from typing import Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from offmap.core.errors import NotAvailableError
from offmap.score._noise_levels import spread_of

Covariance = Literal["full", "diag"]

EACH = 10
"""Images for each component that is tried."""


def fit_mixture(
    rows: Float64[Tensor, "n d"], *, most: int, covariance: Covariance, floor: float, generator: torch.Generator
) -> dict[str, Tensor]:
    """Means, factors and log weights of the mixture of standardised rows whose Bayesian information criterion is least.

    Args:
        most: components that are tried; one for every ten rows at most.
        floor: added to the variances of each component, in squared deviations of the whole.
    """
    try:
        from sklearn.mixture import GaussianMixture
    except ImportError as error:
        raise NotAvailableError("a Gaussian mixture needs scikit-learn: pip install scikit-learn") from error
    mean, scale = rows.mean(dim=0), spread_of(rows)
    x = ((rows - mean) / scale).cpu().numpy()
    seed = int(torch.randint(2**31 - 1, (), generator=generator, device=generator.device))
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for count in range(1, max(1, min(most, len(x) // EACH)) + 1):
            model = GaussianMixture(count, covariance_type=covariance, reg_covar=floor, n_init=3, max_iter=500, random_state=seed)
            found.append(model.fit(x))
    best = min(found, key=lambda model: float(model.bic(x)))
    spreads = torch.as_tensor(best.covariances_, dtype=torch.float64)
    factors = torch.linalg.cholesky(spreads if covariance == "full" else torch.diag_embed(spreads))
    arrays = {
        "means": torch.as_tensor(best.means_),
        "factors": factors,
        "log_weights": torch.as_tensor(best.weights_).clamp_min(1e-300).log(),
    }
    return {"mean": mean, "scale": scale, **{name: value.to(mean) for name, value in arrays.items()}}


def mixture_surprise(state: Mapping[str, Tensor], rows: Float64[Tensor, "n d"]) -> Float64[Tensor, " n"]:
    """``-log sum_k w_k N(z | m_k, L_k L_k^T)`` of standardised rows z, in nats."""
    z = (rows.to(state["mean"]) - state["mean"]) / state["scale"]
    offsets = (z[:, None] - state["means"]).permute(1, 2, 0)
    squares = torch.linalg.solve_triangular(state["factors"], offsets, upper=False).square().sum(dim=1).T
    sizes = state["factors"].diagonal(dim1=1, dim2=2).log().sum(dim=1)
    return 0.5 * z.shape[1] * log(2 * pi) - torch.logsumexp(state["log_weights"] - sizes - 0.5 * squares, dim=1)
