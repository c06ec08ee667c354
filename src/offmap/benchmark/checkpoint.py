"""A published classifier: its weights, converted to safetensors, in a network of a known name.

No file chooses the code that runs: the network is named in the suite, the weights fill it or are refused.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from offmap.benchmark.suite import Classifier
from offmap.core.component import nearest
from offmap.core.encoder import Encoder, Input
from offmap.core.errors import ConfigError, NotAvailableError
from offmap.represent.device import resolve_device

LISTED = 6
"""Tensors that a message names of each kind."""


def _resnet(name: str, axes: int) -> Callable[[int, int], nn.Module]:
    def build(channels: int, classes: int) -> nn.Module:
        try:
            from monai.networks.nets import resnet
        except ImportError as error:
            raise NotAvailableError(f"the network {name!r} needs MONAI: pip install 'offmap[train]'") from error
        made: nn.Module = getattr(resnet, name)(
            spatial_dims=axes,
            n_input_channels=channels,
            num_classes=classes,
            conv1_t_size=7,
            conv1_t_stride=2,
            shortcut_type="B",
            bias_downsample=False,
        )
        return made

    return build


NETWORKS: Mapping[str, tuple[int, Callable[[int, int], nn.Module]]] = MappingProxyType(
    {
        "resnet18": (2, _resnet("resnet18", 2)),
        "resnet34": (2, _resnet("resnet34", 2)),
        "resnet50": (2, _resnet("resnet50", 2)),
        "resnet18_3d": (3, _resnet("resnet18", 3)),
        "resnet50_3d": (3, _resnet("resnet50", 3)),
    }
)
"""Axes of the images and the network, by name. The residual networks have the tensors of the usual ImageNet ones (``conv1``,
``layer1.0.conv1``, ``fc``) and their strides; the 3-D ones the same with three axes."""


def network(name: str, classes: int, *, channels: int) -> nn.Module:
    """A network with random weights.

    Raises:
        ConfigError: unknown name, or fewer than two classes.
        NotAvailableError: MONAI is needed and not installed.
    """
    if name not in NETWORKS:
        raise ConfigError(f"there is no network {name!r}{nearest(name, list(NETWORKS))}. There are: {', '.join(NETWORKS)}")
    if classes < 2:
        raise ConfigError(f"classes = {classes} of the classifier {name}: 2 or more are needed")
    return NETWORKS[name][1](channels, classes)


def read_classifier(asked: Classifier, folder: Path) -> nn.Module:
    """The network of a suite's classifier with its weights, in eval mode.

    Args:
        asked: what the suite says.
        folder: of the suite.

    Raises:
        NotAvailableError: the file of weights is not there; says how to convert it.
        ConfigError: no safetensors, or tensors that are missing, foreign, of another shape or not finite; names them.
    """
    path = folder / asked.weights
    weights = _tensors(path)
    first = weights.get("conv1.weight")
    channels = int(first.shape[1]) if first is not None and first.ndim > 1 else len(asked.mean) or 3
    made = network(asked.network, asked.classes, channels=channels)
    _fits(made.state_dict(), weights, f"{path} as {asked.network} with {asked.classes} classes")
    made.load_state_dict(weights, strict=False)
    return made.eval().requires_grad_(False)


def open_classifier(asked: Classifier, folder: Path, *, device: str = "cpu") -> Encoder:
    """The classifier as an encoder: features of its layers, logits and head.

    Networks of offmap see squares: of a size of two numbers the smaller one is taken.

    Raises:
        NotAvailableError, ConfigError: as ``read_classifier``; also for volumes, which no classifier encoder takes yet.
    """
    from offmap.represent.classifier import ClassifierEncoder

    made = read_classifier(asked, folder)
    axes = NETWORKS[asked.network][0]
    if axes != 2:
        raise ConfigError(
            f"{asked.network} sees volumes; encoders of classifiers take images (N, C, H, W) only: "
            "score its volumes with --encoder builtin, or take the module of read_classifier"
        )
    first = made.get_parameter("conv1.weight")
    channels = int(first.shape[1])
    if channels not in (1, 3):
        raise ConfigError(f"{asked.weights} takes {channels} channels; offmap gives 1 or 3")
    mean, std = asked.mean or (0.0,) * channels, asked.std or (1.0,) * channels
    if len(mean) != channels or len(std) != channels or min(std) <= 0:
        raise ConfigError(f"mean = {list(mean)}, std = {list(std)} of the classifier: {channels} numbers each, std above 0")
    spec = Input(min(asked.size) if asked.size else 224, channels, mean, std)
    return ClassifierEncoder(made, f"classifier:{asked.weights}", spec=spec, device=resolve_device(device))


def _tensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path.suffix != ".safetensors":
        raise ConfigError(
            f"{path} is no safetensors file; convert it: offmap import-weights {path} --out {path.with_suffix('.safetensors')}"
        )
    if not path.is_file():
        raise NotAvailableError(f"{path} is not there; convert the published file: offmap import-weights FILE.pth --out {path}")
    try:
        found: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    return {name.removeprefix("module."): value for name, value in found.items()}


def _fits(known: Mapping[str, Tensor], given: Mapping[str, Tensor], what: str) -> None:
    """Refuse weights that do not fill the network exactly; counters of batch normalisation may be absent.

    Raises:
        ConfigError: names the tensors.
    """
    needed = [name for name in known if not name.endswith(".num_batches_tracked")]
    lists: dict[str, list[Any]] = {
        "missing": [name for name in needed if name not in given],
        "foreign": [name for name in given if name not in known],
        "of another shape": [
            f"{name} {tuple(given[name].shape)}, not {tuple(known[name].shape)}"
            for name in known
            if name in given and given[name].shape != known[name].shape
        ],
        "not finite": [n for n, v in given.items() if n in known and v.is_floating_point() and not bool(v.isfinite().all())],
    }
    told = [f"{len(names)} {kind}: {_some(names)}" for kind, names in lists.items() if names]
    if told:
        raise ConfigError(f"the weights {what} do not fit; {'; '.join(told)}")


def _some(names: list[Any]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
