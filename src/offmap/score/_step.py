"""What methods share that read signals of an input moved towards its predicted class."""

import math

from offmap.core.errors import ConfigError


def check_step(epsilon: float, temperature: float, who: str) -> None:
    """Raises:
    ConfigError: a length below 0, or a temperature that is not above 0.
    """
    if not (epsilon >= 0 and math.isfinite(epsilon)):
        raise ConfigError(f"{who}: epsilon = {epsilon} must be at least 0 and finite")
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ConfigError(f"{who}: temperature = {temperature} must be greater than 0 and finite")
