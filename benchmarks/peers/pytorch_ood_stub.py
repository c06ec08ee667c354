"""Opens pytorch-ood where torchvision cannot be loaded: empty modules stand in for it, which no comparison here needs.

pip install --no-deps --target /tmp/peer pytorch-ood==0.4.0, then PYTHONPATH=/tmp/peer
"""

import importlib
import sys
from types import ModuleType
from typing import Any

STUBBED = ("", ".datasets", ".datasets.utils", ".transforms", ".transforms.functional", ".models", ".models.resnet")


class Stub(ModuleType):
    """A module in which every name is an empty class."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = type(name, (), {})
        setattr(self, name, made)
        return made


def detectors() -> Any:
    """The module ``pytorch_ood.detector``.

    Raises:
        ImportError: pytorch-ood is not installed.
    """
    for name in STUBBED:
        full = f"torchvision{name}"
        parent, _, last = full.rpartition(".")
        module = sys.modules.setdefault(full, Stub(full))
        if parent:
            setattr(sys.modules[parent], last, module)
    return importlib.import_module("pytorch_ood.detector")
