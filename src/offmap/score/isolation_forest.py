"""Isolation forest: how few random cuts set an image apart."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from offmap.core.detector import State
from offmap.core.errors import ConfigError, NotAvailableError
from offmap.core.linalg import principal
from offmap.core.moments import Moments
from offmap.core.neighbours import Reservoir
from offmap.core.types import Signals
from offmap.score._layer import LayerDetector


@dataclass(frozen=True, kw_only=True)
class IsolationForest(LayerDetector):
    """Isolation forest, ``2^(-E[depth] / c(max_samples))``, in (0, 1): about 0.5 for a typical image, towards 1 for an odd one.

    The depth is the number of random axis-parallel cuts until an image stands alone. The forest is grown by scikit-learn;
    its arrays become tensors and are walked in torch, equal to ``-score_samples``.

    Fitting costs ``trees * max_samples * log(max_samples)`` (and one eigenvalue problem for ``components``), scoring
    ``trees * log2(max_samples)`` steps an image; the state is at most ``10 * trees * max_samples`` numbers.

    Fails when dimensions are usual one by one and only their combination is odd, and when the shift is hidden in few of
    many dimensions, since cuts are drawn at random.

    Args:
        layer: name of the layer; ``last`` is the encoder's deepest.
        trees: number of trees.
        max_samples: images that each tree sees; fewer if there are fewer.
        components: principal components to grow the trees on, where the layer is wider; 0 for the features as they are.
        max_bank: images to draw from; a uniform sample of more.
    """

    trees: int = 100
    max_samples: int = 256
    components: int = 64
    max_bank: int = 50_000

    reference: ClassVar[str] = "Liu, Ting & Zhou, Isolation Forest, ICDM 2008, doi 10.1109/ICDM.2008.17, eq. 2"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, low in (("trees", 1), ("max_samples", 2), ("components", 0), ("max_bank", 2)):
            if getattr(self, name) < low:
                raise ConfigError(f"isolation_forest: {name} = {getattr(self, name)} must be at least {low}")

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        parts = (self.rows(batch) for batch in batches)
        first = next(parts)
        sample = reduce(lambda kept, rows: kept.add(rows, generator), parts, Reservoir.empty(self.max_bank, first).add(first, generator))
        axes = self._axes(sample.rows)
        seed = int(torch.randint(2**31 - 1, (), generator=generator, device=generator.device))
        rows = sample.rows if axes is None else (sample.rows - axes["mean"]) @ axes["basis"]
        grown = _grown(rows.float().cpu().numpy(), self.trees, self.max_samples, seed)
        return {**(axes or {}), **{name: tensor.to(rows.device) for name, tensor in grown.items()}}

    def _axes(self, rows: Float[Tensor, "n d"]) -> dict[str, Tensor] | None:
        """Mean and principal components, None where the features are taken as they are."""
        if not 0 < self.components < rows.shape[1]:
            return None
        moments = Moments.of(rows)
        return {"mean": moments.mean, "basis": principal(moments.scatter)[1][:, : self.components]}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        projected = "basis" in state
        rows = self.rows(signals, len(state["mean"]) if projected else int(state["width"])).to(state["threshold"])
        if projected:
            rows = (rows - state["mean"]) @ state["basis"]
        return _walked(rows.float(), state)


def _grown(rows: "np.ndarray[Any, np.dtype[np.float32]]", trees: int, max_samples: int, seed: int) -> dict[str, Tensor]:
    """Arrays of a fitted forest, (trees, nodes), padded with leaves."""
    try:
        from sklearn.ensemble import IsolationForest as Forest
    except ImportError as error:
        raise NotAvailableError("isolation_forest needs scikit-learn: pip install scikit-learn") from error
    used = min(max_samples, len(rows))
    grown = [e.tree_ for e in Forest(n_estimators=trees, max_samples=used, random_state=seed).fit(rows).estimators_]
    nodes = max(tree.node_count for tree in grown)
    left, right, feature = (np.zeros((trees, nodes), np.int32) for _ in range(3))
    threshold, path = np.zeros((trees, nodes)), np.zeros((trees, nodes))
    for i, tree in enumerate(grown):
        n, inner = tree.node_count, tree.children_left >= 0
        own = np.arange(n)
        left[i, :n], right[i, :n] = np.where(inner, tree.children_left, own), np.where(inner, tree.children_right, own)
        feature[i, :n], threshold[i, :n] = np.where(inner, tree.feature, 0), np.where(inner, tree.threshold, 0.0)
        path[i, :n] = tree.compute_node_depths() - 1 + _unsuccessful_search(tree.n_node_samples)
    single = {"usual": _unsuccessful_search(np.array([used])), "depth": np.array(max(t.max_depth for t in grown))}
    whole = {**single, "width": np.array(rows.shape[1])}
    arrays = {"left": left, "right": right, "feature": feature, "threshold": threshold, "path": path, **whole}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _unsuccessful_search(count: "np.ndarray[Any, np.dtype[Any]]") -> "np.ndarray[Any, np.dtype[np.float64]]":
    """Mean path length c(n) of an unsuccessful search in a binary tree of n leaves (the paper's eq. 1)."""
    n = count.astype(np.float64)
    many: np.ndarray[Any, np.dtype[np.float64]] = 2 * (np.log(np.maximum(n, 2) - 1) + np.euler_gamma) - 2 * (n - 1) / np.maximum(n, 1)
    return np.asarray(np.where(n > 2, many, n == 2), dtype=np.float64)


def _walked(rows: Float[Tensor, "n d"], state: State) -> Float[Tensor, " n"]:
    """Scores from every row's mean depth over all trees."""
    left, right, feature = (state[name].long() for name in ("left", "right", "feature"))
    tree = torch.arange(len(left), device=left.device)
    node = torch.zeros(len(rows), len(left), dtype=torch.int64, device=left.device)
    for _ in range(int(state["depth"])):
        below = rows.gather(1, feature[tree, node]).double() <= state["threshold"][tree, node]
        node = torch.where(below, left[tree, node], right[tree, node])
    usual = state["usual"]
    depth = state["path"][tree, node].mean(dim=1)
    return torch.exp2(-torch.where(usual > 0, depth / usual.clamp_min(1e-12), torch.ones_like(depth)))
