"""An adversarial model as an encoder: how well it makes an image again, and where not."""

import json
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from offmap.core.encoder import Encoder, Input
from offmap.core.errors import ConfigError
from offmap.core.types import Signals
from offmap.represent.digest import tensors_sha256
from offmap.represent.filled import filled, require_finite
from offmap.represent.layers import joined, normalise
from offmap.represent.nets.gan import AdversarialModel, GANShape, code_loss

CHUNK = 32
"""Images at a time."""

ERRORS, LATENT, MAP = "gan.errors", "gan.latent_error", "gan.map"


class GANEncoder(Encoder):
    """A generator of normal images with an encoder into its codes.

    ``gan.errors (N, 2)``: mean squares of ``x - G(E(x))`` and of the same difference in the critic's features; ``gan.latent_error (N,)``:
    mean square of ``E(x) - E(G(E(x)))``; ``gan.map (N, 1, *S)``: ``|x - G(E(x))|``, mean over channels. Pixels are in [-1, 1].

    Grey images are repeated for a colour model, colour ones become luma for a grey one. Images must have the model's size, to which the
    gate's preparation brings them.

    Args:
        model: trained.
        name: for messages.

    Raises:
        BundleError: weights that are not finite.
    """

    reentrant: ClassVar[bool] = True

    def __init__(self, model: AdversarialModel, *, name: str = "gan", device: torch.device | str = "cpu") -> None:
        self._model = model.to(device).eval().requires_grad_(False)
        shape = model.shape
        self.name, self.layers = name, ()
        self.provides = frozenset({ERRORS, LATENT, MAP, "image"})
        self.input = Input(shape.size, shape.channels, (0.5,) * shape.channels, (0.5,) * shape.channels, shape.axes)
        weights = self.state()
        require_finite(weights, "adversarial model")
        self.sha256 = tensors_sha256(weights, note=json.dumps(shape.to_json(), sort_keys=True))

    def encode(self, images: Float[Tensor, "n c *s"], needs: frozenset[str]) -> Signals:
        """As ``Encoder.encode``.

        Raises:
            SignalError: images of another size than the model's, or neither 1 nor 3 channels.
        """
        signals: dict[str, Tensor] = {"image": images} if "image" in needs else {}
        asked = needs & {ERRORS, LATENT, MAP}
        if not asked:
            return signals
        clean = normalise(images, self.input)
        self._model.check(clean)
        with torch.no_grad():
            return signals | joined([self._part(part, asked) for part in clean.split(CHUNK)])

    def _part(self, x: Float[Tensor, "n c *s"], asked: frozenset[str]) -> dict[str, Tensor]:
        back, pixels, features = code_loss(self._model, x, 1.0 if ERRORS in asked else 0.0)
        out = {}
        if ERRORS in asked:
            out[ERRORS] = torch.stack([pixels, features], dim=1)
        if LATENT in asked:
            out[LATENT] = (self._model.encoder(x) - self._model.encoder(back)).square().mean(dim=1)
        if MAP in asked:
            out[MAP] = (x - back).abs().mean(dim=1, keepdim=True)
        return out

    def to(self, device: torch.device | str) -> "GANEncoder":
        """The same encoder on another device."""
        return self.rebuilt(self.config(), self.state(), name=self.name, device=device)

    def state(self) -> dict[str, Tensor]:
        """Weights in float32."""
        return {name: value.detach() for name, value in self._model.state_dict().items()}

    def config(self) -> dict[str, Any]:
        """Architecture."""
        return {"kind": "gan", "name": self.name, "sha256": self.sha256, "net": self._model.shape.to_json()}

    @classmethod
    def rebuilt(
        cls, config: Mapping[str, Any], state: Mapping[str, Tensor], *, name: str = "gan", device: torch.device | str = "cpu"
    ) -> "GANEncoder":
        """From what ``config`` and ``state`` gave.

        Raises:
            ConfigError: the configuration makes no sense.
            BundleError: weights that do not fit it or are not finite.
        """
        if not isinstance(config.get("net"), Mapping):
            raise ConfigError("the description of the adversarial model has no table net")
        model = AdversarialModel(GANShape.from_json(config["net"]))
        return cls(filled(model, state, "adversarial model"), name=name, device=device)
