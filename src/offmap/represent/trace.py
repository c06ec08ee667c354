"""One watched pass through a foreign module: which part gives what, and where its head is."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from offmap.core.component import nearest
from offmap.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Call:
    """What went into a part and came out."""

    given: Tensor
    gave: Tensor


@dataclass(frozen=True, slots=True)
class Trace:
    """One pass.

    Args:
        calls: parts by dotted name that ran exactly once with a tensor in and a tensor out, in the order in which they ended.
        output: of the whole module.
        pixels: what went in.
    """

    calls: Mapping[str, Call]
    output: Tensor
    pixels: Tensor


@contextmanager
def evaluating(module: nn.Module, *, gradients: bool = False) -> Iterator[None]:
    """Eval mode, without gradients unless asked for; every part's own mode is put back afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.inference_mode(False), torch.set_grad_enabled(gradients):
            yield
    finally:
        for part, training in modes:
            part.training = training


def watched(module: nn.Module, names: frozenset[str] | None, pixels: Tensor) -> Trace:
    """Run a module that is in eval mode and keep what the named parts (all when None) got and gave.

    Raises:
        ConfigError: the module returns something else than one tensor.
    """
    calls: dict[str, Call] = {}
    again: set[str] = set()
    hooks = []
    for name, part in module.named_modules():
        if name and (names is None or name in names):

            def keep(_: nn.Module, given: tuple[object, ...], gave: object, name: str = name) -> None:
                if name in calls:
                    again.add(name)
                elif given and isinstance(given[0], Tensor) and isinstance(gave, Tensor):
                    calls[name] = Call(given[0], gave)

            hooks.append(part.register_forward_hook(keep))
    try:
        output = module(pixels)
    finally:
        for hook in hooks:
            hook.remove()
    if not isinstance(output, Tensor):
        raise ConfigError(
            f"the classifier returned {_what(output)}; offmap needs one tensor, logits (N, K) or features: "
            "wrap the module so that its forward returns that tensor"
        )
    return Trace({name: call for name, call in calls.items() if name not in again}, output, pixels)


def _what(output: object) -> str:
    if isinstance(output, Mapping):
        return f"a {type(output).__name__} with the keys {', '.join(map(str, output))}"
    if isinstance(output, (tuple, list)):
        return f"a {type(output).__name__} of {len(output)} ({', '.join(type(o).__name__ for o in output)})"
    return f"a {type(output).__name__}"


def linear_parts(module: nn.Module, trace: Trace) -> list[str]:
    """Names of the parts that are one linear layer on ``(N, D)``, in the order in which they ran.

    Decided by what they do, since a `torch.export` program has no ``nn.Linear`` any more.
    """
    return [name for name, call in trace.calls.items() if _is_linear(module.get_submodule(name), call)]


def _is_linear(part: nn.Module, call: Call) -> bool:
    weight, bias = getattr(part, "weight", None), getattr(part, "bias", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2 or call.given.ndim != 2 or call.given.shape[1] != weight.shape[1]:
        return False
    expected = functional.linear(call.given, weight, bias)
    return expected.shape == call.gave.shape and torch.allclose(expected, call.gave, rtol=1e-4, atol=1e-5)


def find_head(module: nn.Module, trace: Trace, asked: str | None) -> str | None:
    """Name of the linear layer that gives the logits: the one asked for, else the last one whose output has the shape of the module's.

    Raises:
        ConfigError: no linear layer has the name asked for.
    """
    linear = linear_parts(module, trace)
    if asked is not None:
        if asked not in linear:
            raise ConfigError(
                f"head = {asked!r} is no linear layer that runs once on (N, D); "
                f"there are: {', '.join(linear) or 'none'}{nearest(asked, linear)}"
            )
        return asked
    return next((n for n in reversed(linear) if trace.calls[n].gave.shape == trace.output.shape), None)


def stages(trace: Trace) -> tuple[str, ...]:
    """The part that ends last at each map size, from shallow to deep; sizes of one position and of the input are left out."""
    ends: dict[tuple[int, ...], str] = {}
    for name, call in trace.calls.items():
        size = tuple(call.gave.shape[2:])
        if call.gave.ndim == 4 and min(size) > 1 and size != tuple(trace.pixels.shape[2:]):
            ends[size] = name
    return tuple(n for n in trace.calls if n in ends.values())
