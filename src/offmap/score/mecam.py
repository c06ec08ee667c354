"""How much the features change when the places that the classifier looks at are hidden."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn import functional

from offmap.core.detector import Localiser, State
from offmap.core.errors import ConfigError, SignalError
from offmap.core.signals import Scalar, named
from offmap.core.types import Signals
from offmap.score._layer import rows_of

Fill = Literal["zero", "mean", "blur"]
FILLS: tuple[Fill, ...] = ("zero", "mean", "blur")
"""By their numbers in the name of the signal."""

SMALLEST = 1e-12
"""Change below which the logarithm stays as it is: rounding of features in single precision."""


@dataclass(frozen=True, kw_only=True)
class MECAM(Localiser):
    """MECAM: ``-d(v, v')``, at most 0; ``v`` are the deepest features of the image, ``v'`` those of ``x (1 - M)``; 0: nothing changed.

    ``M = sum_e w_e A_e`` in [0, 1]: ``A_e`` is the softmax over classes at each pixel of exit e's class map, bilinear at the image's
    size, for the class that the last exit finds likeliest; ``w_e`` is the exit's own top probability on the image as it is, as a share
    of all. ``d`` is the mean of squared differences. The paper's number is ``d``, higher = in-distribution: there the evidence has a
    place, and hiding it changes the features. The map is M: where the classifier looks, which is not where the image is odd.

    Needs a network with exits. Nothing to fit unless ``two_sided``; scoring costs two forward passes an image and no gradient, shared
    with other settings of ``distance`` and ``two_sided``; the state is one number, or three.

    Fails where an odd image makes the exits sure of a class everywhere, or is brighter than the usual ones: much light is hidden, its
    features change most, and it looks more usual than any, so that the order may be turned round as a whole. ``two_sided`` asks instead
    how far the change lies from the usual one, on a scale of logarithms. Fails with two classes: an undecided exit sees 1/2
    everywhere, so the image is dimmed as a whole and the score measures what brightness does; the floor is 1/K, and ``above_chance``
    takes it off. Zeros are black and a shift of their own, which ``fill`` avoids. The mean square grows with the length of the
    features, so images or networks with longer ones look less odd; ``relative`` does not. The authors' images from other kinds of
    examination say little of another scanner or hospital; their table was not available to compare with.

    Args:
        exits: exits that M is made of, counted from 1, the shallowest; all when empty. The class is the last exit's in any case.
        target: ``last``: the class of the last exit everywhere; ``per_exit``: each exit's own likeliest class.
        fill: what hidden places show: ``zero`` (black), ``mean`` of each channel, or the image itself under a ``blur``.
        distance: ``mse`` (mean over the features), ``cosine`` (1 - cosine), or ``relative`` (``|v - v'|^2 / |v|^2``).
        two_sided: ``|log d - mean| / deviation`` of the in-distribution images, in deviations, at least 0; not in the paper.
        above_chance: stretch probabilities p to ``max(0, (p - 1/K) / (1 - 1/K))`` before they hide anything; not in the paper.
    """

    exits: tuple[int, ...] = ()
    target: Literal["last", "per_exit"] = "last"
    fill: Fill = "zero"
    distance: Literal["mse", "cosine", "relative"] = "mse"
    two_sided: bool = False
    above_chance: bool = False

    passes: ClassVar[str] = "2F"
    reference: ClassVar[str] = (
        "Chen et al., Unsupervised Out-of-Distribution Detection in Medical Imaging Using Multi-Exit Class Activation Maps and Feature "
        "Masking, 2025, arXiv 2505.08604"
    )

    def __post_init__(self) -> None:
        if len(set(self.exits)) != len(self.exits) or not all(1 <= e <= 9 for e in self.exits):
            raise ConfigError(f"mecam: exits = {list(self.exits)} must be whole numbers from 1 to 9, each once")
        for key, known in (("target", ("last", "per_exit")), ("fill", FILLS), ("distance", ("mse", "cosine", "relative"))):
            if getattr(self, key) not in known:
                raise ConfigError(f"mecam: {key} = {getattr(self, key)!r} must be one of {', '.join(known)}")

    def _look(self) -> dict[str, Scalar]:
        digits = "".join(map(str, sorted(self.exits)))
        return {"exits": int(digits or 0), "own_class": self.target == "per_exit", "above_chance": self.above_chance}

    @property
    def masked(self) -> str:
        """Name of the signal of the second pass."""
        return named("mecam.masked_features", {**self._look(), "fill": FILLS.index(self.fill)})

    @property
    def evidence(self) -> str:
        """Name of the signal that is the map."""
        return named("mecam.map", self._look())

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"mecam.features", self.masked})

    @property
    def fit_uses(self) -> frozenset[str]:
        return frozenset({self.evidence})

    @property
    def map_needs(self) -> frozenset[str]:
        return frozenset({self.evidence})

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        widths = {rows_of(batch, name, self.method()).shape[1] for batch in batches for name in self.needs}
        if len(widths) != 1:
            raise SignalError(f"mecam: batches have features of different widths {sorted(widths)}")
        width = widths.pop()
        state = {"width": torch.tensor(width)}
        return {**state, **self._usual(batches, width)} if self.two_sided else state

    def _usual(self, batches: Iterable[Signals], width: int) -> dict[str, Tensor]:
        """Mean and deviation of the logarithm of the change."""
        logs = [_log(self._change(batch, width)) for batch in batches]
        count = sum(len(part) for part in logs)
        mean = torch.stack([part.sum() for part in logs]).sum() / count
        deviation = (torch.stack([(part - mean).square().sum() for part in logs]).sum() / max(count - 1, 1)).sqrt()
        if not float(deviation) > 0:
            raise SignalError(f"mecam: the change of the {count} images does not vary: at least two different images are needed")
        return {"mean": mean, "deviation": deviation}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        change = self._change(signals, int(state["width"]))
        return (_log(change) - state["mean"]).abs() / state["deviation"] if self.two_sided else -change

    def _change(self, signals: Signals, width: int) -> Float64[Tensor, " n"]:
        """Distance of the features before and after, at least 0."""
        before, after = (rows_of(signals, name, self.method(), width) for name in ("mecam.features", self.masked))
        if self.distance == "cosine":
            return (1 - functional.cosine_similarity(before, after, dim=1, eps=1e-12)).clamp_min(0)
        change = (before - after).square()
        if self.distance == "mse":
            return change.mean(dim=1)
        return change.sum(dim=1) / before.square().sum(dim=1).clamp_min(1e-24)

    def raw_map(self, state: State, signals: Signals) -> Float[Tensor, "n h w"]:
        shown = signals[self.evidence]
        if shown.ndim != 4 or shown.shape[1] != 1:
            raise SignalError(f"mecam: {self.evidence} of shape {tuple(shown.shape)} must be (N, 1, H, W)")
        return shown[:, 0]


def _log(change: Float64[Tensor, " n"]) -> Float64[Tensor, " n"]:
    return change.clamp_min(SMALLEST).log()
