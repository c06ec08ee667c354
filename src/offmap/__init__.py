"""offmap: is this medical image off the map that a model was trained on?

    gate = offmap.fit("train/")
    table = gate.score(["a.dcm", "b.png"])

Names are loaded on first use, so that ``import offmap`` is quick and does not import torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from offmap.pipeline.evaluate import evaluate
    from offmap.pipeline.fit import fit
    from offmap.pipeline.gate import Gate
    from offmap.pipeline.recommend import recommend
    from offmap.pipeline.saved import load

__version__ = "0.1.0"
_HOME = {"Gate": "gate", "evaluate": "evaluate", "fit": "fit", "load": "saved", "recommend": "recommend"}
__all__ = ["Gate", "__version__", "evaluate", "fit", "load", "recommend"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        import importlib

        return getattr(importlib.import_module(f"offmap.pipeline.{_HOME[name]}"), name)
    raise AttributeError(f"module 'offmap' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
