"""Signals of how a variational autoencoder's bound changes with the image, with the posterior, and with the decoder's weights.

All noise of an image is drawn from its own pixels.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn
from torch.nn import functional

from offmap.core.errors import ConfigError
from offmap.core.signals import Scalar
from offmap.represent.likelihood import codes_of, divergence, log_likelihood, quantised
from offmap.represent.nets.autoencoder import VAE
from offmap.represent.noised import mean_over

Images = Float[Tensor, "n c *s"]

REGRET: Mapping[str, Scalar] = {"steps": 100, "rate": 0.03, "samples": 8}
GRADIENT: Mapping[str, Scalar] = {"levels": 3, "low": 0.1, "high": 1.0}
"""Of ``input_gradient.norm``, for models with levels of noise; an autoencoder has none, and gives one number whatever they are."""
GRADIENT_MAP: Mapping[str, Scalar] = {"smoothing": 2.0}

TOGETHER = 8
"""Images whose gradients of all weights are in memory at a time."""


def elbo_regret(model: VAE, images: Images, settings: Mapping[str, Scalar], name: str) -> Float[Tensor, " n"]:
    """``max_q ELBO(x; q) - ELBO(x; q_encoder)`` in nats, >= 0: Adam on mean and log variance of each image's posterior.

    Each step draws one code; before and after, the bound is the mean over the same ``samples`` codes. Where it did not rise, 0.

    Raises:
        ConfigError: settings out of range.
    """
    steps, rate, samples = int(settings["steps"]), float(settings["rate"]), int(settings["samples"])
    if not 1 <= steps <= 10_000 or not 0 < rate <= 1 or not 1 <= samples <= 1000:
        raise ConfigError(f"signal {name!r}: steps = {steps} (1 to 10000), rate = {rate} (0, 1], samples = {samples} (1 to 1000)")
    x = quantised(images)
    with torch.no_grad():
        start = model.encode(x)
        noise = codes_of(x, samples + steps, model.shape.latent)
        before = _bound(model, x, *start, noise[:, :samples])
    mean, log_variance = (part.clone().requires_grad_() for part in start)
    optimiser = torch.optim.Adam([mean, log_variance], lr=rate)
    with torch.enable_grad():
        for step in range(steps):
            loss = -_bound(model, x, mean, log_variance, noise[:, samples + step, None]).sum()
            mean.grad, log_variance.grad = torch.autograd.grad(loss, (mean, log_variance))
            optimiser.step()
    with torch.no_grad():
        after = _bound(model, x, mean.detach(), log_variance.detach(), noise[:, :samples])
    return (after - before).clamp_min(0).float()


def input_gradient(model: VAE, images: Images) -> Images:
    """``d(-ELBO)/dx`` of one code, in nats for pixels in [0, 1]; of the image at its 256 levels, between which the bound is continued."""
    with torch.enable_grad():
        x = quantised(images.detach()).requires_grad_()
        mean, log_variance = model.encode(x)
        loss = -_bound(model, x, mean, log_variance, codes_of(x.detach(), 1, model.shape.latent)).sum()
        found: Tensor = torch.autograd.grad(loss, x)[0]
    return found


def input_gradient_norm(model: VAE, images: Images, settings: Mapping[str, Scalar], name: str) -> Float[Tensor, " n"]:
    """``|d(-ELBO)/dx| / sqrt(d)``: root mean square over the d pixel values; one pass forward and one back."""
    return mean_over(input_gradient(model, images).square()).sqrt().float()


def elbo_gradient_map(model: VAE, images: Images, settings: Mapping[str, Scalar], name: str) -> Float[Tensor, "n 1 *s"]:
    """``|d ELBO/dx| |x - y|``, y the reconstruction, mean over channels, smoothed by a Gaussian of deviation ``smoothing`` in pixels.

    Raises:
        ConfigError: a deviation below 0 or above 100.
    """
    deviation = float(settings["smoothing"])
    if not 0 <= deviation <= 100:
        raise ConfigError(f"signal {name!r}: smoothing = {deviation} must lie between 0 and 100")
    steep = input_gradient(model, images).abs()
    with torch.no_grad():
        product = (steep * (images - model(images).images).abs()).mean(dim=1, keepdim=True)
    return smoothed(product, deviation)


def smoothed(maps: Float[Tensor, "n 1 *s"], deviation: float) -> Float[Tensor, "n 1 *s"]:
    """Gaussian of that deviation in pixels along each axis, cut at three deviations; beyond the border the map goes on."""
    if deviation == 0:
        return maps
    reach = max(1, round(3 * deviation))
    places = torch.arange(-reach, reach + 1, dtype=maps.dtype, device=maps.device)
    kernel = torch.exp(-0.5 * (places / deviation).square())
    kernel = kernel / kernel.sum()
    for axis in range(2, maps.ndim):
        rows = maps.movedim(axis, -1)
        flat = functional.pad(rows.reshape(-1, 1, rows.shape[-1]), (reach, reach), mode="replicate")
        maps = functional.conv1d(flat, kernel.view(1, 1, -1)).reshape(rows.shape).movedim(-1, axis)
    return maps


class Decoder(nn.Module):
    """What makes an image of a code, as a module of its own: its weights are those whose gradients are compared.

    Args:
        model: whose decoder it is.
    """

    def __init__(self, model: VAE) -> None:
        super().__init__()
        self.model = model

    def forward(self, code: Float[Tensor, "n l"]) -> Images:
        """As ``VAE.decode``."""
        return self.model.decode(code)


def decoder_weights(model: VAE) -> dict[str, Tensor]:
    """Weights of the decoder's layers by name: its convolutions and the dense layer after the code; no biases, no norms."""
    parts = {name: value for name, value in model.named_parameters() if name.startswith(("net.decode.", "spread."))}
    return {name: value for name, value in parts.items() if value.ndim > 1}


def alignments(model: VAE, images: Images, usual: Mapping[str, Tensor]) -> Float[Tensor, "n layers"]:
    """Cosine of the gradient of the image's squared error with a usual one, of each layer of the decoder; 0 where either is 0.

    Args:
        model: in eval mode.
        images: in [0, 1].
        usual: a gradient for each of ``decoder_weights``, of any size.
    """
    decoder, weights = Decoder(model), {f"model.{name}": value.detach() for name, value in decoder_weights(model).items()}
    with torch.no_grad():
        codes = model.code(images)

    def error(values: dict[str, Tensor], code: Tensor, image: Tensor) -> Tensor:
        found: Tensor = torch.func.functional_call(decoder, values, (code[None],))
        return (found[0] - image).square().mean()

    slopes = torch.func.vmap(torch.func.grad(error), in_dims=(None, 0, 0))
    parts = []
    for code, image in zip(codes.split(TOGETHER), images.split(TOGETHER), strict=True):
        found = slopes(weights, code, image)
        cosines = [_cosine(found[f"model.{name}"], usual[name].to(images)) for name in decoder_weights(model)]
        parts.append(torch.stack(cosines, dim=1))
    return torch.cat(parts).float()


def _cosine(each: Float[Tensor, "n *w"], usual: Float[Tensor, "*w"]) -> Float64[Tensor, " n"]:
    rows, one = each.double().flatten(1), usual.double().flatten()
    cosine: Tensor = (rows @ one) / (rows.norm(dim=1) * one.norm()).clamp_min(1e-300)
    return cosine


def _bound(model: VAE, x: Images, mean: Tensor, log_variance: Tensor, noise: Float[Tensor, "n k l"]) -> Float64[Tensor, " n"]:
    """Evidence bound in nats, mean over the codes ``mean + deviation * noise``."""
    spread = (0.5 * log_variance).exp()
    fits = [log_likelihood(x, model.decode(mean + spread * noise[:, k]), model.deviation) for k in range(noise.shape[1])]
    return torch.stack(fits).mean(dim=0) - divergence(mean, log_variance)
