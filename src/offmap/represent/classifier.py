"""The user's own network: a module given as a Python object, or a `torch.export` program file that the user trusts."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offmap.core.encoder import Encoder, Input
from offmap.core.errors import ConfigError
from offmap.core.signals import base_of
from offmap.core.types import Signals
from offmap.represent.class_names import checked, names_of
from offmap.represent.digest import tensors_sha256
from offmap.represent.further import asked, further, provided
from offmap.represent.headed import PENULTIMATE, Family, Headed, Run
from offmap.represent.layers import chosen, joined, map_signals, normalise, spatial_stats, wanted
from offmap.represent.program import open_program
from offmap.represent.stochastic import dropouts
from offmap.represent.trace import Trace, evaluating, find_head, stages, watched

CHUNK, GRADIENT_CHUNK = 32, 8
"""Images a pass, and a pass that keeps what gradients need: bounds the memory of the maps."""


class ClassifierEncoder(Encoder):
    """Signals of a network that somebody else trained, read through forward hooks.

    ``features.penultimate`` (the input of the head) is the last layer; before it come the parts that end last at each map size
    (``layer1`` to ``layer4`` of a ResNet), or those named. A part that gives ``(N, C, h, w)`` gives ``feature_map.<name>`` and its
    mean and deviation, one that gives tokens ``(N, T, C)`` their mean and deviation, one that gives ``(N, D)`` itself.
    The head gives ``logits``, ``head.weight`` and ``head.bias``. Without a head there are features only, with the module's own
    output as the layer ``output``. The module runs in eval mode without gradients, and gets its modes back after each pass.

    With a head, signals that cost more than the ordinary pass are made when asked for: ``odin.logits``, ``odin.features``,
    ``adascale.features``, ``nac.<layer>``, ``rankfeat.logits.<layer>`` (``last``, ``last_but_one``), ``tta.logits``, and, where there are
    dropout parts, ``mc_dropout.logits``; all but ``nac`` take settings, ``odin.logits:epsilon=0.0014,temperature=1000``. Gradients
    are on inside only, and no parameter gets a ``.grad``.

    Args:
        module: takes ``(N, C, size, size)``, returns one tensor.
        name: ``classifier`` or ``classifier:FILE``.
        layers: dotted names of parts, as ``module.named_modules()`` gives them; the ends of the stages when empty.
        head: dotted name of the linear layer that gives the logits; found when None.
        spec: what the module was trained to see. When None: 224 pixels, the channels of its first convolution,
            mean and deviation of ImageNet for three channels and 0.5 for one.
        sha256: digest to record; that of the weights and the tree of parts, with their dropout rates, when empty.
        class_names: what the logits stand for, in their order; as the module's ``classes`` or its ``config`` says when empty.

    Raises:
        ConfigError: unknown layer or head, names that are not one a logit, an output that is no tensor, a module that is not
            deterministic, cannot take the input, or answers for an image by what is beside it.
    """

    def __init__(
        self,
        module: nn.Module,
        name: str = "classifier",
        *,
        layers: Sequence[str] = (),
        head: str | None = None,
        spec: Input | None = None,
        device: torch.device | str = "cpu",
        sha256: str = "",
        class_names: Sequence[str] = (),
    ) -> None:
        if isinstance(module, torch.jit.ScriptModule):
            raise ConfigError("TorchScript modules take no hooks: pass the Python module itself, or a torch.export program")
        self.name = name
        self.input = default_input(module) if spec is None else spec
        self.sha256 = sha256 or tensors_sha256(module.state_dict(), note=_tree(module))
        self._module = _on(module, torch.device(device))
        trace = self._dry_run()
        self._head = find_head(self._module, trace, head)
        parts = chosen([n for n in layers if n != PENULTIMATE], tuple(trace.calls), name) if layers else stages(trace)
        self._classes = trace.calls[self._head].gave.shape[1] if self._head else 0
        self.class_names = checked(class_names or names_of(module), self._classes, name) if self._head else ()
        self._parts = {n: trace.calls[n].gave.ndim for n in parts}
        self._check_parts()
        last = PENULTIMATE if self._head else "output" if not self._parts or trace.output.ndim == 2 else ""
        self.layers = (*parts, last) if last else parts
        net = self._headed()
        self._more = frozenset() if net is None else provided(net)
        self.provides = self._provided()

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        trust: bool = False,
        layers: Sequence[str] = (),
        head: str | None = None,
        spec: Input | None = None,
        device: torch.device | str = "cpu",
    ) -> "ClassifierEncoder":
        """Open a `torch.export` program.

        Args:
            trust: the user knows that the file is a program and lets it run.

        Raises:
            ConfigError: not trusted, no such program (TorchScript, bare weights), or as the class.
            NotAvailableError: there is no such file.
        """
        program = open_program(path, trust=trust, device=device)
        return cls(
            program.module,
            f"classifier:{path}",
            layers=layers or program.layers,
            head=head,
            spec=spec if spec is not None else program.input,
            device=device,
            sha256=program.sha256,
            class_names=program.class_names,
        )

    def _dry_run(self) -> Trace:
        """Passes over two random images, one of them dark: what the parts give, whether twice, and whether for one image alone."""
        size, rng = self.input.size, torch.Generator().manual_seed(0)
        noise = torch.rand(2, self.input.channels, size, size, generator=rng)
        pixels = self._pixels(noise * torch.tensor([1.0, 0.3])[:, None, None, None])
        try:
            with evaluating(self._module):
                traces = [watched(self._module, None, pixels) for _ in range(2)]
                alone = watched(self._module, frozenset(), pixels[:1]).output
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise ConfigError(
                f"{self.name} cannot take a batch of shape {tuple(pixels.shape)}, or one image of it: {str(error)[:400]}"
            ) from error
        if not torch.allclose(traces[0].output, traces[1].output, rtol=1e-4, atol=1e-5):
            raise ConfigError(
                f"{self.name} gives different outputs for the same images: was it exported in training mode, with dropout on?"
            )
        beside = traces[0].output[:1]
        if not torch.allclose(alone, beside, rtol=1e-3, atol=1e-3 * float(beside.abs().amax()) + 1e-5):
            raise ConfigError(
                f"{self.name} answers otherwise for an image alone than for the same image beside another: is a batch normalisation in "
                "training mode (exported so, switched on in forward, or without running statistics)? Each image is scored by itself"
            )
        return traces[0]

    def _check_parts(self) -> None:
        for name, ndim in self._parts.items():
            if ndim not in (2, 3, 4):
                raise ConfigError(f"layer {name!r} of {self.name} gives {ndim} axes; (N, D), (N, T, C) or (N, C, h, w) expected")

    def _provided(self) -> frozenset[str]:
        maps = [n for n, ndim in self._parts.items() if ndim == 4]
        names = {"image", "features.last", *(f"features.{n}" for n in self.layers), *(f"feature_map.{n}" for n in maps)}
        names |= {"feature_map.last"} if maps else set()
        return frozenset(names | self._more | ({"logits", "head.weight", "head.bias"} if self._head else set()))

    @property
    def classes(self) -> int:
        """Number of logits, 0 without a head."""
        return self._classes

    def _headed(self) -> Headed | None:
        if self._head is None:
            return None
        maps = tuple(n for n, ndim in self._parts.items() if ndim == 4)
        return Headed(self.name, self._module, self._head, self._classes, tuple(self._parts), maps, self.input.std)

    def ready(self, needs: frozenset[str]) -> None:
        """As ``Encoder.ready``: makes signals of further passes of one random image.

        Raises:
            ConfigError: the network gives no gradients, or its dropout does not run.
        """
        names, size = self._further(needs | wanted(needs, self.provides, self.layers)), self.input.size
        if names:
            noise = torch.rand(1, self.input.channels, size, size, generator=torch.Generator().manual_seed(0))
            self.encode(noise.to(next(self._module.parameters(), noise).device), names)

    def _further(self, names: frozenset[str]) -> frozenset[str]:
        """Those that are signals of further passes."""
        return frozenset(name for name in names if base_of(name) in self._more)

    def _pixels(self, images: Tensor) -> Tensor:
        first = next(self._module.parameters(), torch.empty(0))
        pixels = normalise(images.to(first.device), self.input).expand(-1, self.input.channels, *images.shape[2:])
        return pixels.to(first.dtype).contiguous()

    def encode(self, images: Float[Tensor, "n c h w"], needs: frozenset[str]) -> Signals:
        """As ``Encoder.encode``.

        Raises:
            SignalError: neither 1 nor 3 channels.
        """
        want = wanted(needs, self.provides, self.layers)
        signals = {"image": images} if "image" in want else {}
        if self._head is not None:
            head = self._module.get_submodule(self._head)
            weight, bias = head.get_parameter("weight").detach().float(), getattr(head, "bias", None)
            given = {"head.weight": weight, "head.bias": weight.new_zeros(len(weight)) if bias is None else bias.detach().float()}
            signals |= {k: v for k, v in given.items() if k in want}
        net = self._headed()
        more = {} if net is None else asked(net, self._further(needs | want))
        ordinary = want - {"image", "head.weight", "head.bias"} - self._more
        if not ordinary and not more:
            return signals
        chunk = GRADIENT_CHUNK if any(family.gradients for family in more) else CHUNK
        return signals | joined([self._signals(part, ordinary, net, more) for part in images.split(chunk)])

    def _signals(self, images: Tensor, want: frozenset[str], net: Headed | None, more: Mapping[Family, Sequence[str]]) -> dict[str, Tensor]:
        gradients = any(family.gradients for family in more)
        with evaluating(self._module, gradients=gradients):
            if net is None:
                return self._ordinary(watched(self._module, frozenset(self._parts), self._pixels(images)), want)
            run = Run(net, images, self._pixels(images), gradients=gradients)
            signals = self._ordinary(run.plain, want) if want else {}
            return {k: v.detach() if v.requires_grad else v for k, v in {**signals, **further(run, more)}.items()}

    def _ordinary(self, trace: Trace, want: frozenset[str]) -> dict[str, Tensor]:
        """Signals of the ordinary pass."""
        gave = {n: trace.calls[n].gave.float() for n in self._parts}
        maps = {n: v for n, v in gave.items() if v.ndim == 4}
        signals = map_signals(maps, want - {"features.last"}, next(reversed(maps), ""))
        vectors = {n: spatial_stats(v.transpose(1, 2)) if v.ndim == 3 else v for n, v in gave.items() if v.ndim < 4}
        if self._head:
            vectors[PENULTIMATE] = trace.calls[self._head].given.float()
            signals |= {"logits": trace.calls[self._head].gave.float()} if "logits" in want else {}
        elif self.layers[-1] == "output":
            vectors["output"] = trace.output.float() if trace.output.ndim == 2 else spatial_stats(trace.output.float())
        named = signals | {f"features.{n}": v for n, v in vectors.items() if f"features.{n}" in want}
        if "features.last" in want:
            last = self.layers[-1]
            named["features.last"] = vectors[last] if last in vectors else spatial_stats(maps[last])
        return named

    def logits_of(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits of prepared images, part of their graph where the caller has gradients on.

        Raises:
            ConfigError: there is no head.
            SignalError: neither 1 nor 3 channels.
        """
        if self._head is None:
            raise ConfigError(f"{self.name} has no head that gives logits")
        with evaluating(self._module, gradients=torch.is_grad_enabled()):
            return watched(self._module, frozenset({self._head}), self._pixels(images)).calls[self._head].gave

    def to(self, device: torch.device | str) -> "ClassifierEncoder":
        """The same encoder on another device; the user's module stays where it is."""
        other = copy.copy(self)
        other._module = _on(self._module, torch.device(device))
        return other

    def state(self) -> None:
        """None: the module is given again when a gate is loaded."""
        return

    def config(self) -> dict[str, Any]:
        """Layers, head, input and digest."""
        return {
            "kind": "classifier",
            "name": self.name,
            "sha256": self.sha256,
            "layers": list(self._parts),
            "head": self._head,
            "input": self.input.to_json(),
            **({"class_names": list(self.class_names)} if self.class_names else {}),
        }


def _on(module: nn.Module, device: torch.device) -> nn.Module:
    here = next((t.device for t in (*module.parameters(), *module.buffers())), device)
    return module if here.type == device.type and device.index in (None, here.index) else copy.deepcopy(module).to(device)


def _tree(module: nn.Module) -> str:
    rates = {name: f" p={part.p}" for name, part in dropouts(module)}
    return "\n".join(f"{name} {type(part).__name__}{rates.get(name, '')}" for name, part in module.named_modules())


def default_input(module: nn.Module) -> Input:
    """224 pixels; ImageNet's mean and deviation for a first convolution of three channels, 0.5 for one of one.

    Raises:
        ConfigError: the first convolution takes another number of channels.
    """
    channels = next((m.in_channels for m in module.modules() if isinstance(m, nn.Conv2d)), 3)
    known: Mapping[int, Input] = {1: Input(224, 1, (0.5,), (0.5,)), 3: Input(224, 3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))}
    if channels not in known:
        raise ConfigError(f"the classifier's first convolution takes {channels} channels; offmap gives 1 or 3")
    return known[channels]
