"""How a synthetic-anomaly network is judged without labels: on a task that it was not trained on, or (transductively) by AUCp."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from offmap.core.linalg import Whitener, shrunk
from offmap.core.moments import Moments
from offmap.represent.nets.synthetic_anomaly import Seen, SyntheticAnomalyNet
from offmap.represent.synthetic_anomaly import laid_out, top_share
from offmap.represent.train.planted import CHUNK, area_of
from offmap.simulate.tasks import Task

MOST: Mapping[int, int] = {2: 256, 3: 32}
"""Images in a trial at most, by their axes of space."""

FEWEST: Mapping[int, int] = {2: 48, 3: 16}
"""Altered images in a trial at least; with fewer held-out images each is altered several times."""

SHARE = 0.01
"""Of the pixels that make an image's score, as of the detector by default."""


@dataclass(frozen=True, eq=False)
class HeldOutTask:
    """Does the network find what a task did that it never saw, in images that it never saw?

    With a map, the mean of two AUROCs: of images (their most suspicious pixels, unaltered against altered), and of pixels in altered
    images (outside against inside the mask). Without one, the AUROC of the distance of features to those of unaltered training images.

    Args:
        normal: held-out images, in [0, 1].
        odd: altered ones.
        masks: where.
        labels: how much.
        usual: unaltered training images.
    """

    normal: Float[Tensor, "n c *s"]
    odd: Float[Tensor, "m c *s"]
    masks: Float[Tensor, "m 1 *s"]
    labels: Float[Tensor, "m 1 *s"]
    usual: Float[Tensor, "k c *s"]

    @classmethod
    def of(cls, task: Task, held_out: Float[Tensor, "n c *s"], usual: Float[Tensor, "k c *s"], seed: int) -> "HeldOutTask":
        """Alter the held-out images.

        Args:
            held_out: two or more; the first 256 are taken, of volumes the first 32.
            usual: training images; as many are taken.
        """
        rng = np.random.default_rng(seed)
        axes = held_out.ndim - 2
        normal = held_out[: MOST[axes]].cpu().float().contiguous()
        images = list(normal.numpy())
        rounds = -(-FEWEST[axes] // len(images))
        found = [task.alter([images[i], images[i - 1 - (r % (len(images) - 1))]], rng) for r in range(rounds) for i in range(len(images))]
        masks, labels = (np.stack([getattr(one, name) for one in found])[:, None].astype(np.float32) for name in ("mask", "labels"))
        odd = torch.from_numpy(np.stack([one.pixels for one in found]))
        return cls(normal, odd, torch.from_numpy(masks), torch.from_numpy(labels), usual[: MOST[axes]].cpu().float())

    def area(self, net: SyntheticAnomalyNet, device: torch.device) -> float:
        """AUROC of a network in eval mode, higher = better."""
        if net.shape.objective == "class":
            return _by_features(net, self.usual, self.normal, self.odd, device)
        own, other = (maps_of(net, images, device) for images in (self.normal, self.odd))
        inside = self.masks > 0
        pixels = area_of(other[~inside], other[inside]) if bool(inside.any()) and not bool(inside.all()) else 0.5
        return 0.5 * area_of(top_share(own, SHARE), top_share(other, SHARE)) + 0.5 * pixels


@dataclass(frozen=True, eq=False)
class AUCp:
    """AUROC of the training images against unlabelled ones, among which some are odd.

    Transductive: the unlabelled images take part in the choice, so that numbers on these images are no numbers on unseen ones.

    Args:
        usual: training images, in [0, 1].
        unlabelled: images of which some are odd; nobody says which.

    Source: IEEE Transactions on Medical Imaging 2026 (AUCp); the definition as its code gives it.
    """

    usual: Float[Tensor, "k c *s"]
    unlabelled: Float[Tensor, "m c *s"]

    def area(self, net: SyntheticAnomalyNet, device: torch.device) -> float:
        """AUROC of a network in eval mode, higher = better."""
        usual = self.usual[: MOST[self.usual.ndim - 2]]
        if net.shape.objective == "class":
            return _by_features(net, usual, usual, self.unlabelled, device)
        own, other = (top_share(maps_of(net, images, device), SHARE) for images in (usual, self.unlabelled))
        return area_of(own, other)


Judge = HeldOutTask | AUCp
"""Gives a checkpoint a number, higher = better."""


def maps_of(net: SyntheticAnomalyNet, images: Float[Tensor, "n c *s"], device: torch.device) -> Float[Tensor, "n 1 *s"]:
    """Expected labels of images in [0, 1].

    Raises:
        ValueError: the network has no map.
    """
    maps = [seen.map for seen in _seen(net, images, device)]
    return torch.cat([part.float().sigmoid().cpu() for part in maps if part is not None])


def _seen(net: SyntheticAnomalyNet, images: Tensor, device: torch.device) -> Sequence[Seen]:
    with torch.no_grad():
        return [net(laid_out(2 * part.to(device) - 1)) for part in images.split(CHUNK[images.ndim - 2])]


def _by_features(net: SyntheticAnomalyNet, usual: Tensor, own: Tensor, other: Tensor, device: torch.device) -> float:
    rows = [torch.cat([seen.features.double().cpu() for seen in _seen(net, images, device)]) for images in (usual, own, other)]
    total = Moments.of(rows[0])
    level = float(total.mean.square().sum())
    whitener = Whitener.of(total.mean, shrunk(total.scatter, total.quartic, count=total.count, level=level, kind="ledoit_wolf"))
    return area_of(whitener.squared(rows[1]), whitener.squared(rows[2]))
