"""Images changed on purpose so that a classifier errs, for testing detectors: FGSM and PGD in the largest norm."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from offmap.core.encoder import Encoder
from offmap.core.errors import ConfigError, SignalError
from offmap.represent.ensemble import EnsembleEncoder
from offmap.represent.multi_exit import WithExits
from offmap.represent.stochastic import seed_of
from offmap.represent.text import WithText
from offmap.represent.trained import TrainedEncoder

KINDS = ("fgsm", "pgd")
CHUNK = 8
"""Images a pass: bounds the memory of what gradients need."""


@runtime_checkable
class Differentiable(Protocol):
    """An encoder that hands out logits which gradients can be taken of."""

    def logits_of(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Of prepared images, in evaluation mode; part of their graph where the caller has gradients on."""
        ...


def attacked(
    encoder: Encoder,
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, " _"] | None = None,
    *,
    kind: str = "pgd",
    epsilon: float = 4 / 255,
    steps: int = 10,
    step: float | None = None,
    seed: int = 0,
) -> Float[Tensor, "n c h w"]:
    """Images at most ``epsilon`` away in every pixel, and in [0, 1], on which the cross-entropy of the classifier is larger.

    ``fgsm`` (Goodfellow, Shlens & Szegedy, ICLR 2015, arXiv:1412.6572): ``x + epsilon sign(grad)``, one step. ``pgd`` (Madry et al.,
    ICLR 2018, arXiv:1706.06083): a random start within epsilon, drawn from the image's own pixels, then ``steps`` of size ``step``, each
    projected back; the last one is given. Cost: one or ``steps`` forward and backward passes an image.

    It attacks the classifier alone: it does not know of any detector and does not try to pass one. A detector that finds these images
    may still miss those of an attacker who aims at both. Values stay float32: saved in 8 bits an image changes again.

    Args:
        encoder: a classifier (a module, a program that has gradients, a hub model with a head), with exits or not, or an ensemble, of
            which the mean probability is attacked.
        images: prepared, in [0, 1], before the network's own normalisation. Grey images stay grey.
        labels: true classes, 0 ... K-1; the classifier's own answers when None.
        epsilon: largest change of a pixel, in [0, 1].
        steps: of ``pgd``, 1 or more.
        step: of ``pgd``, above 0; ``2.5 epsilon / steps`` when None, so that the ball can be crossed.
        seed: of the random starts, beside the pixels.

    Raises:
        ConfigError: the encoder is no classifier or gives no gradients, has one logit, or an argument is out of range.
        SignalError: images outside [0, 1], labels that are no classes, or logits or gradients that are not finite.
    """
    size = 2.5 * epsilon / max(steps, 1) if step is None else step
    if kind not in KINDS or not 0 <= epsilon <= 1 or steps < 1 or not (size > 0 or epsilon == 0):
        raise ConfigError(
            f"attack: kind = {kind!r} must be one of {', '.join(KINDS)}, epsilon = {epsilon} in [0, 1], steps = {steps} 1 or more, "
            f"step = {step} greater than 0"
        )
    if not bool(((images >= 0) & (images <= 1)).all()):
        raise SignalError("attack: images must lie in [0, 1], as they are before the network's own normalisation")
    models = answering(encoder)
    with torch.inference_mode(False):
        parts = []
        for i, chunk in enumerate(images.split(CHUNK)):
            x = chunk.detach().clone()
            aims = _aims(models, x, None if labels is None else labels[i * CHUNK : i * CHUNK + len(x)], encoder.name)
            parts.append(_one_step(models, x, aims, epsilon) if kind == "fgsm" else _walk(models, x, aims, epsilon, steps, size, seed))
        return torch.cat(parts) if parts else images.clone()


def answering(encoder: Encoder) -> tuple[Differentiable, ...]:
    """The classifiers inside an encoder: one, or the members of an ensemble.

    Raises:
        ConfigError: there is none.
    """
    while isinstance(encoder, WithExits | WithText | TrainedEncoder):
        encoder = encoder.inner if isinstance(encoder, TrainedEncoder) else encoder.base
    members: Sequence[Encoder] = encoder.members if isinstance(encoder, EnsembleEncoder) else (encoder,)
    found = tuple(member for member in members if isinstance(member, Differentiable) and "logits" in member.provides)
    if len(found) < len(members):
        raise ConfigError(
            f"{encoder.name} gives no logits, so there is no answer to attack: give a classifier with a head, or put one on the encoder "
            "with offmap.represent.probe.probed"
        )
    return found


def log_probabilities(models: Sequence[Differentiable], images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
    """Of one classifier, or of the mean of several."""
    found = torch.stack([model.logits_of(images).log_softmax(dim=1) for model in models])
    return found[0] if len(models) == 1 else found.logsumexp(dim=0) - torch.tensor(float(len(models))).log().to(found)


def _aims(models: Sequence[Differentiable], images: Tensor, labels: Tensor | None, name: str) -> Int[Tensor, " n"]:
    with torch.no_grad():
        logs = log_probabilities(models, images)
    if logs.shape[1] < 2:
        raise ConfigError(f"{name} has one logit, whose probability is 1 for every image: an attack needs two or more")
    if not bool(torch.isfinite(logs).all()):
        bad = torch.nonzero(~torch.isfinite(logs).all(dim=1)).flatten().tolist()
        raise SignalError(f"{name} gives logits that are not finite in rows {bad[:10]}: there is nothing to attack")
    if labels is None:
        return logs.argmax(dim=1)
    if labels.shape != images.shape[:1] or not bool(((labels >= 0) & (labels < logs.shape[1])).all()):
        raise SignalError(f"labels of shape {tuple(labels.shape)} must be one for each image, 0 ... {logs.shape[1] - 1}")
    return labels.to(logs.device)


def _slope(models: Sequence[Differentiable], images: Tensor, aims: Tensor) -> Float[Tensor, "n c h w"]:
    """Sign of the gradient of each image's cross-entropy."""
    x = images.detach().clone().requires_grad_()
    try:
        with torch.enable_grad():
            loss = functional.nll_loss(log_probabilities(models, x), aims, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, x)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ConfigError(
            f"the classifier gives no gradients ({str(error).splitlines()[0][:200]}): give the Python module itself instead of an exported "
            "program, with a forward pass that neither detaches nor runs under torch.no_grad()"
        ) from error
    if not bool(torch.isfinite(gradient).all()):
        raise SignalError("the gradient of the classifier is not finite")
    return gradient.sign()


def _one_step(models: Sequence[Differentiable], images: Tensor, aims: Tensor, epsilon: float) -> Tensor:
    return _projected(images + epsilon * _slope(models, images, aims), images, epsilon)


def _walk(models: Sequence[Differentiable], images: Tensor, aims: Tensor, epsilon: float, steps: int, step: float, seed: int) -> Tensor:
    starts = [torch.rand(image.shape, generator=torch.Generator().manual_seed(seed_of(image) ^ seed)) for image in images]
    x = _projected(images + epsilon * (2 * torch.stack(starts).to(images) - 1), images, epsilon)
    for _ in range(steps):
        x = _projected(x + step * _slope(models, x, aims), images, epsilon)
    return x


def _projected(x: Tensor, centre: Tensor, epsilon: float) -> Tensor:
    return torch.minimum(torch.maximum(x, centre - epsilon), centre + epsilon).clamp(0, 1)
