"""The bound on the log-likelihood that a variational autoencoder gives, from its parts."""

from jaxtyping import Float64
from torch import Tensor

from offmap.core.errors import ConfigError, SignalError
from offmap.core.signals import named
from offmap.core.types import Signals


def parts_name(samples: int, base: str = "elbo.parts") -> str:
    """Name of the signal with its setting."""
    return named(base, {"samples": samples})


def check_samples(method: str, samples: int) -> None:
    """Refuse a number that no network takes.

    Raises:
        ConfigError: not between 0 and 1,000.
    """
    if not 0 <= samples <= 1000:
        raise ConfigError(f"{method}: samples = {samples} must lie between 0 (the mean of the posterior) and 1000")


def parts_of(signals: Signals, name: str, method: str) -> Float64[Tensor, "n 3"]:
    """``E_q log p(x|z)``, ``KL(q|p)``, and the number of pixel values.

    Raises:
        SignalError: of another shape.
    """
    found = signals[name].double()
    if found.ndim != 2 or found.shape[1] != 3:
        raise SignalError(f"{method}: {name} of shape {tuple(found.shape)} must be (N, 3)")
    return found


def bound_of(signals: Signals, name: str, method: str) -> Float64[Tensor, " n"]:
    """``E_q log p(x|z) - KL(q|p)`` in nats, at most ``log p(x)``.

    Raises:
        SignalError: as ``parts_of``.
    """
    found = parts_of(signals, name, method)
    return found[:, 0] - found[:, 1]
