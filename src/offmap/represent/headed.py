"""What signals of further passes are made from: a network with a head, and one chunk of images on its way through it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offmap.core.errors import ConfigError
from offmap.represent.trace import Call, Trace, watched

PENULTIMATE = "penultimate"
"""Layer name of the head's input."""


@dataclass(frozen=True, eq=False)
class Headed:
    """A network whose last linear layer gives logits.

    Args:
        name: of the encoder, for messages.
        module: the user's own, run in eval mode.
        head: dotted name of the linear layer that gives the logits.
        classes: K.
        parts: dotted names of the layers that are read.
        maps: those of them that give ``(N, C, h, w)``, from shallow to deep.
        std: by which the pixels were divided, per channel of the input.
    """

    name: str
    module: nn.Module
    head: str
    classes: int
    parts: tuple[str, ...]
    maps: tuple[str, ...]
    std: tuple[float, ...]

    def two_or_more(self, what: str) -> None:
        """Raises:
        ConfigError: there is one logit, whose softmax is 1 for every image.
        """
        if self.classes < 2:
            raise ConfigError(
                f"{what} needs two logits or more, {self.name} has one; energy, max_logit and the feature methods work with one"
            )


class Run:
    """One chunk of images; the ordinary pass is made once, when first asked for.

    Args:
        net: the network, in eval mode by now.
        images: as prepared, in [0, 1].
        pixels: what the network sees: normalised, with its channels and type.
        gradients: the ordinary pass keeps what gradients need.
    """

    def __init__(self, net: Headed, images: Float[Tensor, "n c h w"], pixels: Float[Tensor, "n d h w"], *, gradients: bool = False) -> None:
        self.net = net
        self.images = images
        self.gradients = gradients
        self.pixels = pixels.detach().clone().requires_grad_() if gradients else pixels

    @cached_property
    def plain(self) -> Trace:
        """The ordinary pass: what the layers and the head got and gave."""
        try:
            return watched(self.net.module, frozenset(self.net.parts) | {self.net.head}, self.pixels.clone())
        except RuntimeError as error:
            raise _without_gradients(self.net.name, error) if self.gradients else error from None

    @property
    def logits(self) -> Float[Tensor, "n k"]:
        """Of the ordinary pass, part of the graph where gradients are kept."""
        return self.plain.calls[self.net.head].gave

    def gradient(self, total: Float[Tensor, ""], of: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Of a sum over the images; in eval mode no image's term depends on another image. The module's ``.grad`` are not touched.

        Raises:
            ConfigError: the network gives none.
        """
        try:
            return torch.autograd.grad(total, list(of), retain_graph=True)
        except RuntimeError as error:
            raise _without_gradients(self.net.name, error) from error

    def again(self, pixels: Float[Tensor, "n d h w"]) -> Call:
        """What the head got and gave in one more pass, without gradients."""
        with torch.no_grad():
            return watched(self.net.module, frozenset({self.net.head}), pixels.detach().clone()).calls[self.net.head]


@dataclass(frozen=True)
class Family:
    """Signals of one kind.

    Args:
        provided: base names that a network gives.
        signals: those asked for, by their full names, of one run.
        gradients: the ordinary pass must keep what gradients need.
    """

    provided: Callable[[Headed], frozenset[str]]
    signals: Callable[[Run, Sequence[str]], Mapping[str, Tensor]]
    gradients: bool = False


def _without_gradients(name: str, error: RuntimeError) -> Exception:
    if isinstance(error, torch.OutOfMemoryError):
        return error
    return ConfigError(
        f"{name} gives no gradients ({str(error).splitlines()[0][:200]}); odin, mahalanobis_odin, adascale_a, adascale_l, nac need them: "
        "give the Python module itself instead of an exported program, with a forward pass that neither detaches nor runs under "
        "torch.no_grad(); or choose methods without gradients, such as energy, rankfeat or knn"
    )
