"""KLIP with a diffusion model that offmap trained: the gate keeps operator, sampler and prior."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from offmap.core import registry
from offmap.core.component import Component
from offmap.core.encoder import Encoder
from offmap.core.errors import BundleError, ConfigError
from offmap.represent.diffusion import DiffusionEncoder
from offmap.represent.klip import KlipEncoder
from offmap.represent.nets.unet import EDMDenoiser
from offmap.represent.operators.parse import parse
from offmap.represent.posterior.contract import Sampler
from offmap.represent.posterior.edm import EDM
from offmap.represent.posterior.sampling import Precision
from offmap.represent.trained import TrainedEncoder

STAGE = "represent.posterior"
METHOD = "method"
USUAL = EDM()


@dataclass(frozen=True)
class Klip(Component):
    """How images are measured and reconstructed; the encoder is then a diffusion model, ``train:diffusion`` or ``diffusion:DIR``.

    Args:
        operator: what is measured, with its noise level: ``ct:views=24,noise=0.01``; ``identity`` for plain images.
        cell: side of a cell in pixels, the smallest block that can be chosen later; divides the image's side.
        windows: equal parts of the sampler's steps; the smallest window of time that can be chosen later.
        modality: DICOM modality of the prior's images, where their files do not say it; an operator of another one is refused.
        explained: how far what is left of a measurement may lie below the least and above the largest of the gate's in-distribution
            images, as factors; outside it is ``not_assessed``: another noise level, other units, other angles.
        precision: of the network's passes while sampling, ``float32`` or ``bfloat16``: faster where the processor or card has it in
            hardware, with a score that differs by less than a hundredth.
        sampler: the table ``[klip.sampler]``: ``method`` and its settings.
    """

    operator: str = "identity:noise=0.1"
    cell: int = 4
    windows: int = 20
    modality: str = ""
    explained: tuple[float, ...] = (0.7, 1.3)
    precision: Precision = "float32"
    sampler: Sampler = USUAL

    def __post_init__(self) -> None:
        parse(self.operator)
        if self.cell < 1 or self.windows < 1:
            raise ConfigError(f"[klip] cell = {self.cell} and windows = {self.windows} must be at least 1")
        if len(self.explained) != 2 or not 0 <= self.explained[0] < self.explained[1]:
            raise ConfigError(f"[klip] explained = {list(self.explained)} must be two factors, 0 <= least < largest")

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> "Klip":
        """Build from the tables ``[klip]`` and ``[klip.sampler]``.

        Raises:
            ConfigError: unknown sampler or key, or a bad value.
        """
        given = dict(table)
        sampler = given.pop("sampler", {})
        if not isinstance(sampler, Mapping):
            raise ConfigError(f'[klip] sampler = {sampler!r} must be a table: [klip.sampler] with method = "edm" and its settings')
        settings = {key: value for key, value in sampler.items() if key != METHOD}
        made = sampler_of(sampler).from_params(settings, where="klip.sampler")
        return replace(cls.from_params(given, where="klip"), sampler=made)

    def to_table(self) -> dict[str, Any]:
        """The inverse of ``from_table``; JSON values."""
        return {**self.params(), "sampler": {METHOD: self.sampler.method(), **self.sampler.params()}}


def sampler_of(table: Mapping[str, Any]) -> type[Sampler]:
    """The class of the sampler that a table ``[klip.sampler]`` names.

    Raises:
        ConfigError: no such sampler.
    """
    known = registry.load_all(STAGE, Sampler)
    name = str(table.get(METHOD, "edm"))
    if name not in known:
        raise ConfigError(f"[klip.sampler] method = {name!r} is unknown; there are: {', '.join(known)}")
    return known[name]


class PriorKlipEncoder(KlipEncoder):
    """KLIP on a diffusion encoder, whose weights are kept in the gate with it.

    Args:
        base: ``DiffusionEncoder``, or a ``TrainedEncoder`` of one.
        choice: operator, sampler, cells.

    Raises:
        ConfigError: the base is no diffusion model, or the parts do not fit each other.
    """

    def __init__(self, base: Encoder, choice: Klip, *, device: torch.device | str = "cpu") -> None:
        self.base, self.choice = base, choice
        super().__init__(
            denoiser_of(base),
            choice.operator,
            choice.sampler,
            size=base.input.size,
            channels=base.input.channels,
            cell=choice.cell,
            windows=choice.windows,
            modality=choice.modality,
            precision=choice.precision,
            identity=base.sha256,
            device=device,
        )
        self.name = f"{self.name} on {base.name}"

    def to(self, device: torch.device | str) -> "PriorKlipEncoder":
        """The same encoder on another device."""
        return self if torch.device(device) == self._device else PriorKlipEncoder(self.base.to(device), self.choice, device=device)

    def state(self) -> dict[str, Tensor] | None:
        """Weights of the prior."""
        return self.base.state()

    def config(self) -> dict[str, Any]:
        """As of ``KlipEncoder``, with the prior's own configuration and the recipe's table."""
        return {**super().config(), "kind": KIND, "choice": self.choice.to_table(), "base": self.base.config()}

    @classmethod
    def rebuilt(cls, config: Mapping[str, Any], base: Encoder, *, device: torch.device | str = "cpu") -> "PriorKlipEncoder":
        """From what ``config`` gave, and its base.

        Raises:
            BundleError: damaged, or not what the gate was fitted with.
        """
        try:
            found = cls(base, Klip.from_table(config["choice"]), device=device)
        except (KeyError, TypeError, ConfigError) as error:
            raise BundleError(f"the gate's KLIP encoder cannot be built again: {error}") from error
        if found.sha256 != config.get("sha256"):
            raise BundleError(f"the gate's KLIP encoder has SHA-256 {found.sha256}, it was fitted with {config.get('sha256')}")
        return found


KIND = "klip_prior"
"""Of its configuration in a gate."""


def denoiser_of(encoder: Encoder) -> EDMDenoiser:
    """``D(x, sigma)`` of a diffusion encoder.

    Raises:
        ConfigError: it is none.
    """
    inner = encoder.inner if isinstance(encoder, TrainedEncoder) else encoder
    if not isinstance(inner, DiffusionEncoder):
        raise ConfigError(
            f"[klip] needs a diffusion model, the encoder is {encoder.name}: --encoder diffusion:DIR (a folder of one, or a gate that "
            "keeps one), or train:diffusion"
        )
    return inner.denoiser
