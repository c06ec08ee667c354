"""Signals made by code: what an encoder with a head would give for images of three classes, and for odd ones."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from offmap.core.linalg import unit_norm
from offmap.core.types import Signals


@runtime_checkable
class World(Protocol):
    """Where the conformance suite takes its signals from; bring your own where a method reads others than ``FakeEncoder`` gives."""

    def signals(self, count: int, *, ood: bool, generator: torch.Generator) -> Signals:
        """Signals of ``count`` images with ``label``; out-of-distribution ones where ``ood``; a planted shift must be plain."""
        ...


LAYERS = ("shallow", "middle", "deep")


@dataclass(frozen=True, kw_only=True)
class FakeEncoder:
    """A mixture of three classes seen by three layers, their maps, and a head whose logits fit the features.

    In-distribution images lie near their class mean, along few directions of variation, with little noise. Odd ones have no
    class, and lie outside these directions; in the maps they do so in the first quarter of the positions only.

    Signals of further passes carry their base names (``odin.logits``, ``mc_dropout.logits``); in them odd images move more.

    Gives ``image (N,1,8,8)``, ``features.<layer> (N,D)`` and ``feature_map.<layer> (N,D,s,s)`` for ``shallow``, ``middle`` and
    ``deep`` with the alias ``last``, ``features.penultimate (N,D)`` without negatives, ``logits (N,3)``, ``head.weight``,
    ``head.bias``, ``label``; ``image_embedding (N,D)`` near the rows of ``text.embedding (3,D)``; ``proxy_features.<layer>`` of the same
    images half mixed with odd ones; ``odin.logits``, ``odin.features``, ``adascale.features``, ``nac.<layer>`` and
    ``nac.penultimate``, ``rankfeat.logits.last`` and ``.last_but_one``, ``mc_dropout.logits (N,6,3)``, ``tta.logits (N,8,3)``,
    ``ensemble.logits (N,5,3)``; ``mecam.features`` and ``mecam.masked_features (N,D)``, ``mecam.map (N,1,8,8)``; of a
    diffusion model ``msma.norms (N,10)``, ``diffpath.moments (N,6)``, ``scoped.ratios (N,2)``, ``multi_noise.errors (N,5)``,
    ``eigenscore.values`` and ``gepc.errors (N,3)``, ``lmd.errors`` and ``input_gradient.norm (N,)``, ``gepc.map`` and
    ``lmd.map (N,1,8,8)``, ``projection.regrets (N,3)``; ``student.score (N,)`` and ``student.map (N,1,8,8)``; of an autoencoder
    ``reconstruction.<measure> (N,)`` with maps ``(N,1,8,8)``, three layers for the measure ``perceptual``, ``latent.code (N,6)``,
    ``elbo.parts`` and ``elbo.background (N,3)``, ``elbo.members (N,5)``, ``elbo.regret (N,)``, ``elbo_gradient.map (N,1,8,8)``,
    ``gradcon.alignment (N,4)``, ``complexity.bits (N,)``; of an adversarial model ``gan.errors (N,2)``, ``gan.latent_error (N,)``,
    ``gan.map (N,1,8,8)``; of networks on feature maps ``feature_flow.map``, ``invad.map``, ``rd4ad.map`` and ``simplenet.map
    (N,1,8,8)``; ``klip.map`` and ``klip.relative.map (N,20,8,8)``, ``klip.foreground (N,8,8)``; of a synthetic-anomaly network
    ``synthetic.top (N,)``, ``synthetic.map (N,1,8,8)``, ``synthetic.features (N,D)``.

    Args:
        width: D of every layer.
        side: s of the shallow map; the deeper ones have half of it.
        seed: of the directions; images are drawn from the generator.
        dtype: of the signals.
    """

    width: int = 24
    side: int = 8
    seed: int = 7
    dtype: torch.dtype = torch.float32

    def signals(self, count: int, *, ood: bool, generator: torch.Generator) -> Signals:
        """Signals of ``count`` images."""
        labels = torch.arange(count) % 3
        spread = torch.randn(count, 2, dtype=torch.float64, generator=generator)
        out: dict[str, Tensor] = {}
        for i, layer in enumerate(LAYERS):
            out[f"features.{layer}"] = self._rows(i, labels, spread, ood=ood, generator=generator)
            everywhere = self._rows(i, labels, spread, ood=False, generator=generator)
            out[f"feature_map.{layer}"] = self._maps(i, everywhere, ood=ood, generator=generator)
        rectified = self._parts()
        out["features.last"], out["feature_map.last"] = out["features.deep"], out["feature_map.deep"]
        out["features.penultimate"] = self._mixed(rectified, labels, spread, ood=ood, generator=generator).clamp_min(0)
        out["head.weight"], out["head.bias"] = 1.5 * rectified[:3], torch.tensor([0.1, 0.0, -0.1], dtype=torch.float64)
        out["logits"] = out["features.penultimate"] @ out["head.weight"].T + out["head.bias"]
        noise = torch.randn(count, 1, 8, 8, dtype=torch.float64, generator=generator)
        out["image"] = (0.5 + 0.05 * noise + (0.3 if ood else 0.0)).clamp(0, 1)
        out |= _further(out, ood=ood, generator=generator)
        out |= _denoised(count, ood=ood, generator=generator)
        out |= _restored(count, ood=ood, generator=generator)
        out |= self._beside(out, labels, spread, ood=ood, generator=generator)
        out |= _found(out["features.deep"], ood=ood, generator=generator)
        return {**{name: value.to(self.dtype) for name, value in out.items()}, "label": labels}

    def _beside(
        self, given: Signals, labels: Int64[Tensor, " n"], spread: Float64[Tensor, "n 2"], *, ood: bool, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Signals of an image and text model, and of images that were mixed with others."""
        embedding = self._rows(len(LAYERS), labels, spread, ood=ood, generator=generator)
        out = {"image_embedding": embedding, "text.embedding": self._axes(len(LAYERS))[:3]}
        for i, layer in enumerate(LAYERS):
            odd = self._rows(i, labels, spread, ood=True, generator=generator)
            out[f"proxy_features.{layer}"] = 0.5 * given[f"features.{layer}"] + 0.5 * odd
        return {**out, "proxy_features.last": out["proxy_features.deep"]}

    def _axes(self, layer: int) -> Float64[Tensor, "6 d"]:
        """Three class directions, two of variation, one that only odd images have; at right angles where there is room."""
        generator = torch.Generator().manual_seed(self.seed + layer)
        drawn = torch.randn(self.width, max(6, self.width), dtype=torch.float64, generator=generator)
        if self.width >= 6:
            basis: Tensor = torch.linalg.qr(drawn).Q
            return basis[:, :6].T.contiguous()
        return unit_norm(drawn[:, :6].T)

    def _parts(self) -> Float64[Tensor, "6 d"]:
        """As ``_axes`` for the penultimate features, which pass a rectifier: each lies on dimensions of its own, without negatives."""
        share = torch.arange(self.width) % 6 == torch.arange(6)[:, None]
        return unit_norm(share.double()) if self.width >= 6 else self._axes(len(LAYERS) - 1).abs()

    def _rows(
        self, layer: int, labels: Int64[Tensor, " n"], spread: Float64[Tensor, "n 2"], *, ood: bool, generator: torch.Generator
    ) -> Float64[Tensor, "n d"]:
        return self._mixed(self._axes(layer), labels, spread, ood=ood, generator=generator)

    def _mixed(
        self,
        axes: Float64[Tensor, "6 d"],
        labels: Int64[Tensor, " n"],
        spread: Float64[Tensor, "n 2"],
        *,
        ood: bool,
        generator: torch.Generator,
    ) -> Float64[Tensor, "n d"]:
        noise = 0.2 * torch.randn(len(labels), self.width, dtype=torch.float64, generator=generator)
        middle = axes[:3].mean(dim=0) + 8.0 * axes[5]
        return (middle if ood else 4.0 * axes[labels]) + spread @ axes[3:5] + noise

    def _maps(self, layer: int, rows: Float64[Tensor, "n d"], *, ood: bool, generator: torch.Generator) -> Float64[Tensor, "n d s s"]:
        side = max(1, self.side // (1 if layer == 0 else 2))
        noise = 0.2 * torch.randn(len(rows), self.width, side, side, dtype=torch.float64, generator=generator)
        maps = rows[:, :, None, None] + noise
        if ood:
            corner = max(1, side // 2)
            maps[:, :, :corner, :corner] += 8.0 * self._axes(layer)[5][:, None, None]
        return maps


def _further(signals: Signals, *, ood: bool, generator: torch.Generator) -> dict[str, Tensor]:
    """Signals of further passes under their base names: a step sharpens what has a class, a small change moves what has none."""
    features, logits, weight = signals["features.penultimate"], signals["logits"], signals["head.weight"]
    top = weight[logits.argmax(dim=1)]
    out = {"odin.features": features + (0.05 if ood else 0.2) * top}
    out["odin.logits"] = out["odin.features"] @ weight.T + signals["head.bias"]
    noise = torch.randn(features.shape, dtype=torch.float64, generator=generator)
    out["adascale.features"] = (features + (1.5 if ood else 0.1) * noise).clamp_min(0)
    for layer in (*LAYERS, "penultimate"):
        out[f"nac.{layer}"] = 0.02 * signals[f"features.{layer}"]
    for layer, share in (("last", 0.8), ("last_but_one", 0.7)):
        out[f"rankfeat.logits.{layer}"] = share * logits
    out |= _masked(features, ood=ood, generator=generator)
    out |= _pulled(len(features), ood=ood, generator=generator)
    for name, count in (("mc_dropout.logits", 6), ("tta.logits", 8), ("ensemble.logits", 5)):
        drawn = torch.randn(len(logits), count, logits.shape[1], dtype=torch.float64, generator=generator)
        out[name] = logits[:, None] + (3.0 if ood else 0.3) * drawn
    return out


def _masked(features: Float64[Tensor, "n d"], *, ood: bool, generator: torch.Generator) -> dict[str, Tensor]:
    """Features before and after hiding what the classifier looks at: the class itself, or, of odd images, little, in one corner."""
    drawn = torch.rand(len(features), 1, 8, 8, dtype=torch.float64, generator=generator)
    shown = 0.3 + 0.1 * drawn
    kept = (0.98 if ood else 0.3) + 0.02 * drawn.flatten(1).mean(dim=1, keepdim=True)
    if ood:
        shown[:, :, :4, :4] += 0.3
    return {"mecam.features": features, "mecam.masked_features": kept * features, "mecam.map": shown}


def _pulled(count: int, *, ood: bool, generator: torch.Generator) -> dict[str, Tensor]:
    """Squared pulls of a measurement on a prior in 20 windows of time: more in one corner of odd images."""
    drawn = torch.randn(count, 20, 8, 8, dtype=torch.float64, generator=generator)
    pulls = 1.0 + 0.1 * drawn.square()
    if ood:
        pulls[:, :, :4, :4] += 1.0
    return {"klip.map": pulls, "klip.relative.map": 2.0 * pulls, "klip.foreground": torch.ones(count, 8, 8, dtype=torch.float64)}


def _found(features: Float64[Tensor, "n d"], *, ood: bool, generator: torch.Generator) -> dict[str, Tensor]:
    """Signals of a network that finds what was put into images: something in one corner of odd ones."""
    shown = 0.1 + 0.05 * torch.rand(len(features), 1, 8, 8, dtype=torch.float64, generator=generator)
    if ood:
        shown[:, :, :4, :4] += 0.5
    return {"synthetic.map": shown, "synthetic.top": shown.flatten(1).amax(dim=1), "synthetic.features": features}


def _denoised(count: int, *, ood: bool, generator: torch.Generator) -> dict[str, Tensor]:
    """Signals of a diffusion model, which denoises odd images worse, mostly in one corner."""
    ease = 0.05 * torch.randn(count, 1, dtype=torch.float64, generator=generator)
    out: dict[str, Tensor] = {}
    for name, width, usual, odd in (
        ("msma.norms", 10, 1.0, 1.3),
        ("diffpath.moments", 6, 0.5, 0.8),
        ("scoped.ratios", 2, -1.0, -1.5),
        ("multi_noise.errors", 5, 0.1, 0.4),
        ("eigenscore.values", 3, 2.0, 2.5),
        ("gan.errors", 2, 0.1, 0.4),
        ("gan.latent_error", 1, 0.2, 0.5),
        ("gepc.errors", 3, 0.2, 0.5),
        ("lmd.errors", 1, 0.3, 0.6),
        ("projection.regrets", 3, 0.05, 0.3),
        ("student.score", 1, 0.5, 1.5),
        ("input_gradient.norm", 1, 0.7, 1.2),
    ):
        drawn = 0.03 * torch.randn(count, width, dtype=torch.float64, generator=generator)
        out[name] = (odd if ood else usual) + ease + drawn if width > 1 else ((odd if ood else usual) + ease + drawn)[:, 0]
    for name in ("gan.map", "gepc.map", "lmd.map", "student.map", "feature_flow.map", "invad.map", "rd4ad.map", "simplenet.map"):
        out[name] = 0.2 + 0.05 * torch.rand(count, 1, 8, 8, dtype=torch.float64, generator=generator)
        if ood:
            out[name][:, :, :4, :4] += 0.5
    return out


def _restored(count: int, *, ood: bool, generator: torch.Generator) -> dict[str, Tensor]:
    """Signals of an autoencoder, which restores odd images worse, mostly in one corner, and finds them less probable than complex."""
    out: dict[str, Tensor] = {}
    for measure in ("l1", "l2", "ssim", "ssim_contrast", "normalised", "perceptual"):
        maps = 0.1 + 0.02 * torch.rand(count, 3 if measure == "perceptual" else 1, 8, 8, dtype=torch.float64, generator=generator)
        if ood:
            maps[:, :, :4, :4] += 0.3
        out[f"reconstruction.{measure}.map"] = maps
        means = maps.flatten(2).mean(dim=2)
        out[f"reconstruction.{measure}"] = means if measure == "perceptual" else means[:, 0]
    out["latent.code"] = torch.randn(count, 6, dtype=torch.float64, generator=generator) + (4.0 if ood else 0.0)
    drawn = torch.randn(count, 3, dtype=torch.float64, generator=generator)
    likely = (-300.0 if ood else -200.0) + 5.0 * drawn[:, 0]
    out["elbo.parts"] = torch.stack([likely, 12.0 + drawn[:, 1], torch.full_like(likely, 64.0)], dim=1)
    out["complexity.bits"] = 280.0 + 5.0 * drawn[:, 2]
    return out | _likely(out["elbo.parts"], ood=ood, generator=generator)


def _likely(parts: Float64[Tensor, "n 3"], *, ood: bool, generator: torch.Generator) -> dict[str, Tensor]:
    """Of models beside a VAE, and of its gradients: a background model likes odd images as much as usual ones, members disagree on them."""
    count = len(parts)
    drawn = torch.randn(count, 9, dtype=torch.float64, generator=generator)
    background = parts.clone()
    background[:, 0] = -220.0 + 5.0 * drawn[:, 0]
    spread = (3.0 if ood else 1.0) * torch.randn(count, 5, dtype=torch.float64, generator=generator)
    maps = 0.2 + 0.05 * torch.rand(count, 1, 8, 8, dtype=torch.float64, generator=generator)
    if ood:
        maps[:, :, :4, :4] += 0.5
    return {
        "elbo.background": background,
        "elbo.members": (parts[:, 0] - parts[:, 1])[:, None] + spread,
        "elbo.regret": (20.0 if ood else 5.0) + drawn[:, 1].abs(),
        "elbo_gradient.map": maps,
        "gradcon.alignment": (0.0 if ood else 0.5) + 0.05 * drawn[:, 2:6],
    }
