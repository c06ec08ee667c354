"""Which device a network runs on."""

import torch

from offmap.core.errors import ConfigError, NotAvailableError


def resolve_device(name: str) -> torch.device:
    """The device of a name: ``auto`` takes CUDA, then MPS, then the CPU.

    Args:
        name: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.

    Raises:
        ConfigError: no such kind of device.
        NotAvailableError: this machine, or this build of torch, has no such device.
    """
    present = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    if name == "auto":
        return torch.device(next(kind for kind, count in present.items() if count))
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in present:
        raise ConfigError(f"device {name!r} is unknown; use auto, cpu, cuda, cuda:1 or mps")
    if (device.index or 0) >= present[device.type]:
        found = ", ".join(kind for kind, count in present.items() if count)
        raise NotAvailableError(f"device {name!r} is not there (torch {torch.__version__} finds: {found}); use --device auto")
    return device
