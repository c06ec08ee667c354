"""A variational autoencoder with what its training left beside it: a background model, further members, gradients of the decoder."""

import json
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from offmap.core.encoder import Encoder
from offmap.core.errors import BundleError, ConfigError
from offmap.core.signals import base_of, settings_of
from offmap.core.types import Signals
from offmap.represent.autoencoder import AutoencoderEncoder
from offmap.represent.digest import tensors_sha256
from offmap.represent.elbo_slopes import alignments, decoder_weights
from offmap.represent.layers import normalise
from offmap.represent.likelihood import ELBO
from offmap.represent.nets.autoencoder import VAE
from offmap.represent.train.checkpoint import under

BACKGROUND, MEMBERS, ALIGNMENT = "elbo.background", "elbo.members", "gradcon.alignment"
PREFIXES = {BACKGROUND: "background", MEMBERS: "member", ALIGNMENT: "gradient"}


class WithCompanions(Encoder):
    """The signals of a VAE, and those that take further models.

    ``elbo.background:samples=1 (N, 3)``: as ``elbo.parts``, of the model that was trained on corrupted images;
    ``elbo.members:samples=1 (N, K)``: the bound in nats of each of K models, its own first; ``gradcon.alignment (N, L)``: cosines of the
    gradients of the decoder's layers with those of the training. Each is given where its companion is there.

    Args:
        own: of a VAE.
        background: of another VAE of the same kind.
        others: further members.
        gradients: of the decoder's weights by their names, summed over the training; only their direction counts.

    Raises:
        ConfigError: networks that are no VAEs, or that see other images.
        BundleError: gradients of other weights, or that are not finite.
    """

    reentrant: ClassVar[bool] = True

    def __init__(
        self,
        own: AutoencoderEncoder,
        *,
        background: AutoencoderEncoder | None = None,
        others: Sequence[AutoencoderEncoder] = (),
        gradients: Mapping[str, Tensor] | None = None,
    ) -> None:
        models = [own, *([] if background is None else [background]), *others]
        if any(not isinstance(one.model, VAE) or one.input != own.input for one in models):
            raise ConfigError("a background model and further members go with a VAE, and must be VAEs for the same images")
        self._own, self._background, self._others, self._gradients = own, background, tuple(others), dict(gradients or {})
        if gradients is not None:
            _check(self._gradients, decoder_weights(_vae(own)))
        there = {BACKGROUND: background is not None, MEMBERS: bool(others), ALIGNMENT: gradients is not None}
        self._further = frozenset(name for name, found in there.items() if found)
        self.name, self.layers, self.input = own.name, own.layers, own.input
        self.provides = own.provides | self._further
        self.sha256 = tensors_sha256(self.state(), note=own.sha256)

    @property
    def model(self) -> VAE:
        """Its own, without companions."""
        return _vae(self._own)

    def ready(self, needs: frozenset[str]) -> None:
        """As ``Encoder.ready``."""
        self._own.ready(needs)
        for name in needs:
            if base_of(name) in (BACKGROUND, MEMBERS):
                settings_of(name, ELBO)

    def encode(self, images: Float[Tensor, "n c *s"], needs: frozenset[str]) -> Signals:
        """As ``Encoder.encode``."""
        signals = dict(self._own.encode(images, needs))
        wanted = {need for need in needs if base_of(need) in self._further}
        wanted |= {base for base in self._further for need in needs if "*" in need and fnmatchcase(base, need)}
        for name in sorted(wanted):
            signals[name] = self._made(images, name)
        return signals

    def _made(self, images: Tensor, name: str) -> Tensor:
        base = base_of(name)
        if base == ALIGNMENT:
            return alignments(self.model, normalise(images, self._own.input), self._gradients)
        asked = f"elbo.parts{name.removeprefix(base)}"
        models = [self._background] if base == BACKGROUND else [self._own, *self._others]
        found = [one.encode(images, frozenset({asked}))[asked] for one in models if one is not None]
        return found[0] if base == BACKGROUND else torch.stack([parts[:, 0] - parts[:, 1] for parts in found], dim=1)

    def to(self, device: torch.device | str) -> "WithCompanions":
        """The same encoder on another device."""
        return WithCompanions(
            self._own.to(device),
            background=None if self._background is None else self._background.to(device),
            others=[one.to(device) for one in self._others],
            gradients={name: value.to(device) for name, value in self._gradients.items()} or None,
        )

    def state(self) -> dict[str, Tensor]:
        """Weights of its own under their names, those of the companions under ``background.``, ``member.<k>.`` and ``gradient.``."""
        state = self._own.state()
        if self._background is not None:
            state |= {f"background.{name}": value for name, value in self._background.state().items()}
        for k, one in enumerate(self._others):
            state |= {f"member.{k}.{name}": value for name, value in one.state().items()}
        return state | {f"gradient.{name.replace('.', '/')}": value for name, value in self._gradients.items()}

    def config(self) -> dict[str, Any]:
        """That of its own network; the companions are known by their weights."""
        return {**self._own.config(), "sha256": self.sha256}

    @classmethod
    def rebuilt(cls, config: Mapping[str, Any], state: Mapping[str, Tensor], *, device: torch.device | str = "cpu") -> Encoder:
        """From what ``config`` and ``state`` gave; without companions, the bare encoder of the network.

        Raises:
            ConfigError: the configuration makes no sense.
            BundleError: weights that do not fit it or are not finite.
            NotAvailableError: MONAI is missing.
        """
        apart = {prefix: under(prefix, state) for prefix in PREFIXES.values()}
        bare = {name: value for name, value in state.items() if not name.startswith(tuple(f"{p}." for p in PREFIXES.values()))}
        own = AutoencoderEncoder.rebuilt(config, bare, device=device)
        if not any(apart.values()):
            return own
        count = len({name.partition(".")[0] for name in apart["member"]})
        return cls(
            own,
            background=AutoencoderEncoder.rebuilt(config, apart["background"], device=device) if apart["background"] else None,
            others=[AutoencoderEncoder.rebuilt(config, under(str(k), apart["member"]), device=device) for k in range(count)],
            gradients={name.replace("/", "."): value.to(device) for name, value in apart["gradient"].items()} or None,
        )


def _vae(encoder: AutoencoderEncoder) -> VAE:
    if not isinstance(encoder.model, VAE):
        raise ConfigError(f"{encoder.name} is no VAE")
    return encoder.model


def _check(gradients: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    wrong = sorted(set(gradients) ^ set(weights)) or sorted(n for n in weights if gradients[n].shape != weights[n].shape)
    if wrong:
        raise BundleError(f"the gradients kept with the autoencoder do not fit its decoder: {json.dumps(wrong[:4])}")
    bad = [name for name, value in gradients.items() if not bool(torch.isfinite(value).all())]
    if bad:
        raise BundleError(f"the gradients kept with the autoencoder are not finite: {', '.join(bad[:4])}")
