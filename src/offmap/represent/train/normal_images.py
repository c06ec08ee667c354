"""What every training on normal images asks of them, and how it divides them."""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from offmap.core.errors import DataError

LEAST, FEW = 16, 200
"""Images below which a training is refused, and below which its result carries a note."""


def require_usable(images: Float[Tensor, "n c *s"], what: str) -> None:
    """Refuse images that cannot be trained on.

    Args:
        what: is trained, in words: ``a diffusion model``.

    Raises:
        DataError: fewer than 16, or some that are not finite (rows named).
    """
    if len(images) < LEAST:
        raise DataError(f"{len(images)} images to train {what} on: {LEAST} are the least, {FEW} or more are meant")
    require_finite(images, "training")


def require_finite(images: Float[Tensor, "n c *s"], which: str) -> None:
    """Refuse images with values that are no numbers.

    Raises:
        DataError: naming the rows.
    """
    good = torch.isfinite(images).flatten(1).all(dim=1)
    if not bool(good.all()):
        raise DataError(f"{which} images are not finite in rows {torch.nonzero(~good).flatten().tolist()[:8]}: leave them out")


def divided(
    images: Float[Tensor, "n c *s"], share: float, seed: int, rows: Int64[Tensor, " m"] | None
) -> tuple[Float[Tensor, "k c *s"], Float[Tensor, "m c *s"], Bool[Tensor, " n"]]:
    """Images that train, images that judge checkpoints, and which are the former; in float32.

    Args:
        share: is held out, four images at least, where no rows are given.
        rows: that judge and train nothing.

    Raises:
        DataError: all training images have one value.
    """
    if rows is None:
        rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[: max(4, round(share * len(images)))]
    own = torch.ones(len(images), dtype=torch.bool)
    own[rows] = False
    train = images[own].float()
    if float(train.std(correction=0)) < 1e-4:
        raise DataError("the training images all have one value everywhere: there is nothing to learn")
    return train, images[rows].float(), own


def notes_on(count: int, what: str) -> list[str]:
    """What a person should know of so few images; nothing of 200 or more."""
    return [] if count >= FEW else [f"{count} training images are few: the {what} may know them by heart"]
