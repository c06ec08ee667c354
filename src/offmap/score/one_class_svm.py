"""One-class support vector machine."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from offmap.core.detector import State
from offmap.core.errors import ConfigError, NotAvailableError, SignalError
from offmap.core.types import Signals
from offmap.score._bank import chunks, sampled
from offmap.score._layer import LayerDetector
from offmap.score._subspace import principal_axes


@dataclass(frozen=True, kw_only=True)
class OneClassSVM(LayerDetector):
    """One-class SVM with a Gaussian kernel, ``rho - sum_i a_i exp(-gamma |x - x_i|^2)``: 0 at the boundary, positive outside.

    The boundary leaves about a share ``nu`` of the in-distribution images outside. It is fitted by scikit-learn; its arrays become
    tensors and are scored in torch, equal to ``-decision_function``.

    Fitting costs about ``M^2 d`` for M images (and one eigenvalue problem for d components), scoring ``V d`` an image for V support
    vectors, between ``nu M`` and M; the state is ``V (d + 1) + d D`` numbers.

    Fails far out: beyond a few widths of the kernel the sum vanishes, so all far images have one score, ``rho``, and cannot be
    told apart; and where the shift lies outside the components.

    Args:
        layer: name of the layer; ``last`` is the encoder's deepest.
        nu: share of images left outside at most, and of support vectors at least, in (0, 1].
        gamma: inverse squared width of the kernel; not given: ``1 / (d Var)``, the mean variance of a component.
        components: principal components to work on, where the layer is wider; 0 for the features as they are.
        max_bank: images to fit on; a uniform sample of more.
    """

    nu: float = 0.05
    gamma: float | None = None
    components: int = 64
    max_bank: int = 5000

    reference: ClassVar[str] = (
        "Schoelkopf et al., Estimating the Support of a High-Dimensional Distribution, Neural Computation 13 (2001), "
        "doi 10.1162/089976601750264965, eq. 3.10"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.nu <= 1:
            raise ConfigError(f"one_class_svm: nu = {self.nu} must lie in (0, 1]")
        if self.gamma is not None and not self.gamma > 0:
            raise ConfigError(f"one_class_svm: gamma = {self.gamma} must be positive")
        for name, low in (("components", 0), ("max_bank", 2)):
            if getattr(self, name) < low:
                raise ConfigError(f"one_class_svm: {name} = {getattr(self, name)} must be at least {low}")

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        bank = sampled(batches, self.rows, self.max_bank, generator)
        mean, _, basis = principal_axes(bank, bank.shape[1])
        if 0 < self.components < bank.shape[1]:
            basis = basis[:, : self.components]
        else:
            basis = torch.eye(bank.shape[1], dtype=bank.dtype, device=bank.device)
        rows = (bank - mean) @ basis
        variance = float(rows.var(dim=0, unbiased=False).mean())
        if not variance * rows.shape[1] > 1e-24 * float(bank.square().sum(dim=1).mean()):
            raise SignalError(f"one_class_svm: the {len(bank)} images do not vary: at least two different images are needed")
        gamma = self.gamma or 1 / (rows.shape[1] * variance)
        return {"mean": mean, "basis": basis, "gamma": mean.new_tensor(gamma), **_fitted(rows, self.nu, gamma)}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        rows = (self.rows(signals, len(state["mean"])) - state["mean"]) @ state["basis"]
        vectors = state["vectors"]
        weighted = []
        for part in chunks(rows, len(vectors)):
            squared = part.square().sum(dim=1, keepdim=True) + vectors.square().sum(dim=1) - 2 * part @ vectors.T
            weighted.append(torch.exp(-state["gamma"] * squared.clamp_min(0)) @ state["weights"])
        return state["rho"] - torch.cat(weighted)


def _fitted(rows: Float64[Tensor, "n d"], nu: float, gamma: float) -> dict[str, Tensor]:
    """Support vectors, their weights and the offset, from scikit-learn."""
    try:
        from sklearn.svm import OneClassSVM as Machine
    except ImportError as error:
        raise NotAvailableError("one_class_svm needs scikit-learn: pip install scikit-learn") from error
    machine = Machine(kernel="rbf", nu=nu, gamma=gamma).fit(rows.cpu().numpy())
    arrays = {"vectors": machine.support_vectors_, "weights": machine.dual_coef_[0], "rho": -machine.intercept_[0]}
    return {name: torch.as_tensor(array, dtype=rows.dtype, device=rows.device) for name, array in arrays.items()}
