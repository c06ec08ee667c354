"""Signals of an input moved along its own gradient: ODIN and AdaSCALE."""

from collections.abc import Mapping, Sequence

from jaxtyping import Bool, Float
from torch import Tensor

from offmap.core.errors import ConfigError
from offmap.core.signals import Scalar, base_of, settings_of
from offmap.represent.headed import Family, Headed, Run

ODIN_DEFAULTS: Mapping[str, Scalar] = {"epsilon": 0.0014, "temperature": 1000.0}
ADASCALE_DEFAULTS: Mapping[str, Scalar] = {"epsilon": 0.5, "share": 0.05}


def odin_signals(run: Run, names: Sequence[str]) -> dict[str, Tensor]:
    """``odin.logits (N, K)`` and ``odin.features (N, D)``: of ``x - epsilon / std * sign(grad -log softmax(z / T)_top)``.

    ``x`` is normalised; the step is divided by the deviation of each channel, so ``epsilon`` is in units of pixels in [0, 1].
    Names with equal settings share one pass, all share one ordinary pass.

    Raises:
        ConfigError: one logit, no gradients, or settings out of range.
    """
    run.net.two_or_more("odin")
    calls: dict[tuple[float, float], tuple[Tensor, Tensor]] = {}
    out = {}
    for name in names:
        settings = settings_of(name, ODIN_DEFAULTS)
        epsilon, temperature = float(settings["epsilon"]), float(settings["temperature"])
        if not (epsilon >= 0 and temperature > 0):
            raise ConfigError(f"signal {name!r}: epsilon must be at least 0 and temperature greater than 0")
        if (epsilon, temperature) not in calls:
            call = run.again(_towards_top(run, epsilon, temperature))
            calls[epsilon, temperature] = call.gave, call.given
        logits, features = calls[epsilon, temperature]
        out[name] = (logits if base_of(name) == "odin.logits" else features).float()
    return out


def _towards_top(run: Run, epsilon: float, temperature: float) -> Float[Tensor, "n c h w"]:
    """The input after one step that makes the top class likelier."""
    likeliest = (run.logits.float() / temperature).log_softmax(dim=1).amax(dim=1)
    (gradient,) = run.gradient(-likeliest.sum(), [run.pixels])
    step = epsilon / gradient.new_tensor(run.net.std).view(1, -1, 1, 1)
    return run.pixels.detach() - step * gradient.sign()


def adascale_signals(run: Run, names: Sequence[str]) -> dict[str, Tensor]:
    """``adascale.features (N, D)``: of the input whose least important values are moved by ``epsilon * sign(grad z_top)``.

    Least important: the ``share`` of an image's values with the smallest ``|grad z_top|``, with all that tie with the last of
    them. ``epsilon`` is in units of the normalised input.

    Raises:
        ConfigError: no gradients, or settings out of range.
    """
    (gradient,) = run.gradient(run.logits.amax(dim=1).sum(), [run.pixels])
    out = {}
    for name in names:
        settings = settings_of(name, ADASCALE_DEFAULTS)
        epsilon, share = float(settings["epsilon"]), float(settings["share"])
        if not (epsilon >= 0 and 0 < share <= 1):
            raise ConfigError(f"signal {name!r}: epsilon must be at least 0 and share in (0, 1]")
        moved = run.pixels.detach() + epsilon * gradient.sign() * _least(gradient, share)
        out[name] = run.again(moved).given.float()
    return out


def _least(gradient: Float[Tensor, "n c h w"], share: float) -> Bool[Tensor, "n c h w"]:
    size = gradient.abs().flatten(1)
    limit = size.kthvalue(max(1, round(share * size.shape[1])), dim=1, keepdim=True).values
    return (size <= limit).view_as(gradient)


def _odin_provided(net: Headed) -> frozenset[str]:
    return frozenset({"odin.logits", "odin.features"})


def _adascale_provided(net: Headed) -> frozenset[str]:
    return frozenset({"adascale.features"})


ODIN = Family(_odin_provided, odin_signals, gradients=True)
ADASCALE = Family(_adascale_provided, adascale_signals, gradients=True)
