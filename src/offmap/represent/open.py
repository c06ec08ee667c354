"""Encoders by their name on the command line, and again from a gate."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from offmap.core.encoder import Encoder, Input
from offmap.core.errors import BundleError, ConfigError, OODError
from offmap.represent.device import resolve_device
from offmap.represent.encoder import BuiltinEncoder
from offmap.represent.exits_file import with_exits
from offmap.represent.multi_exit import PREFIX, Exits, WithExits
from offmap.represent.pair import Pair, parted_state
from offmap.represent.text import WithText, with_text
from offmap.represent.trained import PREFIX as TRAIN
from offmap.represent.trained import TrainedEncoder, named

if TYPE_CHECKING:
    from offmap.represent.autoencoder import AutoencoderEncoder
    from offmap.represent.diffusion import DiffusionEncoder
    from offmap.represent.synthetic_anomaly import SyntheticAnomalyEncoder

MODELS = ("autoencoder", "diffusion", "synthetic_anomaly")
"""Kinds of networks of images as a folder: ``<kind>:DIR``."""

Given = str | nn.Module | Encoder | Sequence[str | nn.Module]
"""An encoder by name, a classifier as a Python object, an encoder that is open, or a list of classifiers: an ensemble."""


def open_encoder(
    spec: Given,
    *,
    layers: Sequence[str] = (),
    device: str = "cpu",
    trust_classifier: bool = False,
    input: Input | None = None,
    head: str | None = None,
    text: str | Sequence[str] = (),
    exits: str = "",
) -> Encoder:
    """Open an encoder.

    Args:
        spec: ``builtin``, ``builtin:DIR`` (of `offmap train-encoder`), ``hub:NAME_OR_DIR``, ``classifier:FILE``, ``diffusion:DIR`` or
            ``autoencoder:DIR`` or ``synthetic_anomaly:DIR`` (of ``save`` of their encoders; or a gate that keeps a diffusion model), a
            module, a list of classifiers (an ensemble), or an encoder that is open already, such as one with exits, which is moved to
            the device and takes no further choices.
        layers: those to give; the encoder's default ones when empty; of an ensemble, the first member's.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        trust_classifier: lets a program file run.
        input: what the network wants to see, in place of what its files or defaults say; of ``builtin`` only the size can change.
        head: dotted name of a classifier's head; found when None.
        text: prompts or a file of text features, see ``with_text``; none when empty.
        exits: a file of exits, see ``exits_file``; none when empty.

    Raises:
        ConfigError: unknown kind, layer or head, or files that make no sense.
        NotAvailableError: a missing file, package or device.
    """
    encoder = _opened(spec, layers, device, trust_classifier, input, head)
    found = with_exits(with_text(encoder, text), exits)
    return found.to(resolve_device(device)) if exits else found


def _opened(spec: Given, layers: Sequence[str], device: str, trust_classifier: bool, input: Input | None, head: str | None) -> Encoder:
    place = resolve_device(device)
    if isinstance(spec, Encoder):
        if layers or input is not None or head is not None:
            raise ConfigError(f"{spec.name} is open already: choose its layers, input and head when it is opened")
        return spec.to(place)
    if isinstance(spec, nn.Module):
        return _classifier(spec, layers=layers, device=place, trust=trust_classifier, spec=input, head=head)
    if not isinstance(spec, str):
        return _ensemble(spec, layers, device, trust_classifier, input, head)
    kind, _, rest = spec.partition(":")
    if kind == "classifier" and rest:
        return _classifier(Path(rest), layers=layers, device=place, trust=trust_classifier, spec=input, head=head)
    if head is not None:
        raise ConfigError(f"head = {head!r} goes with a classifier, not with {spec}")
    if kind == "builtin" and bool(rest) == (":" in spec):
        return _builtin(rest, layers, input, place)
    if kind == "hub" and rest:
        from offmap.represent.hub import HubEncoder

        return HubEncoder.open(rest, layers=layers, spec=input, device=place)
    if kind in MODELS and rest:
        if layers or input is not None:
            raise ConfigError(f"{spec} is a model of images ({kind}), which has no layers to choose and the size it was trained at")
        return _diffusion(Path(rest), place) if kind == "diffusion" else _model(kind).from_folder(Path(rest), device=place)
    if spec.startswith(TRAIN) and rest:
        raise ConfigError(
            f"encoder {named(rest).method()!r} is trained while a gate is fitted (`offmap fit`); name a network that is there"
        )
    raise ConfigError(f"encoder {spec!r} is unknown; use builtin, hub:NAME_OR_DIR, classifier:FILE, {':DIR, '.join(MODELS)}:DIR")


def _model(kind: str) -> "type[AutoencoderEncoder] | type[DiffusionEncoder] | type[SyntheticAnomalyEncoder]":
    if kind == "diffusion":
        from offmap.represent.diffusion import DiffusionEncoder

        return DiffusionEncoder
    if kind == "synthetic_anomaly":
        from offmap.represent.synthetic_anomaly import SyntheticAnomalyEncoder

        return SyntheticAnomalyEncoder
    from offmap.represent.autoencoder import AutoencoderEncoder

    return AutoencoderEncoder


def _diffusion(folder: Path, device: torch.device) -> Encoder:
    """A folder of a diffusion model, or the one that a gate keeps."""
    from offmap.core import bundle
    from offmap.core.manifest import MANIFEST
    from offmap.represent.diffusion import DiffusionEncoder

    if not (folder / MANIFEST).is_file():
        return DiffusionEncoder.from_folder(folder, device=device)
    found = bundle.read(folder)
    config = found.manifest["stages"].get("encoder", {}).get("params", {})
    config = config.get("base", config)
    if config.get("kind") not in ("diffusion", "trained") or config.get("trainer", "diffusion") != "diffusion":
        raise ConfigError(f"the gate {folder} keeps no diffusion model: its encoder is {config.get('name')}")
    return rebuild(config, found.stages["encoder"] or None, device=str(device))


def _builtin(folder: str, layers: Sequence[str], spec: Input | None, device: torch.device) -> BuiltinEncoder:
    size = None if spec is None else spec.size
    if folder:
        encoder = BuiltinEncoder.from_folder(Path(folder), layers=layers, size=size, device=device)
    else:
        encoder = BuiltinEncoder.shipped(layers=layers, size=size, device=device)
    if spec is not None and spec != encoder.input:
        raise ConfigError(f"the built-in encoder was trained with {encoder.input}; only the size can change")
    return encoder


def _classifier(
    module: nn.Module | Path, *, layers: Sequence[str], device: torch.device, trust: bool, spec: Input | None, head: str | None
) -> Encoder:
    from offmap.represent.classifier import ClassifierEncoder

    if isinstance(module, Path):
        return ClassifierEncoder.open(module, trust=trust, layers=layers, head=head, spec=spec, device=device)
    return ClassifierEncoder(module, layers=layers, head=head, spec=spec, device=device)


def _ensemble(
    specs: Sequence[str | nn.Module], layers: Sequence[str], device: str, trust: bool, spec: Input | None, head: str | None
) -> Encoder:
    from offmap.represent.classifier import ClassifierEncoder
    from offmap.represent.ensemble import EnsembleEncoder

    members = []
    for i, one in enumerate(specs):
        member = _opened(one, () if i else layers, device, trust, spec, head)
        if not isinstance(member, ClassifierEncoder):
            raise ConfigError(f"member {i + 1} of the ensemble is {member.name}; classifiers are needed: modules or classifier:FILE")
        members.append(member)
    return EnsembleEncoder(members)


def rebuild(
    config: Mapping[str, Any],
    state: Mapping[str, Tensor] | None,
    *,
    given: Given | None = None,
    trust_classifier: bool = False,
    device: str = "cpu",
) -> Encoder:
    """Build the encoder of a gate again.

    Args:
        config, state: what ``Encoder.config`` and ``Encoder.state`` gave when the gate was written.
        given: the encoder as the user names it now; needed where the gate keeps no weights, checked against the gate otherwise.
        trust_classifier: lets a program file run; a gate alone never does.
        device: as in ``open_encoder``.

    Raises:
        BundleError: the configuration is damaged, weights are needed and not given, or the SHA-256 is not the recorded one.
        NotAvailableError: a missing file, package or device.
        ConfigError: a program file that is not trusted.
    """
    kind = config.get("kind")
    if kind in ("slices", "patches"):
        base = rebuild(config["base"], state, given=given, trust_classifier=trust_classifier, device=device)
        return _wrapped(config, base)
    if kind == "klip_prior":
        return _klip(config, state, given=given, device=device)
    if kind == "exits":
        return _with_exits(config, state or {}, given=given, trust_classifier=trust_classifier, device=device)
    if kind == "text":
        return _with_text(config, rebuild(config["base"], state, given=given, trust_classifier=trust_classifier, device=device))
    if kind == "pair":
        return _pair(config, state or {}, given, trust_classifier, device)
    if kind == "trained":
        return _own(config, state, given, device)
    if kind == "ensemble":
        return _members(config, given, trust_classifier, device)
    if kind not in ("builtin", "hub", "classifier", "klip", *MODELS):
        raise BundleError(
            f"the gate's encoder is of kind {kind!r}; builtin, hub, classifier, {', '.join(MODELS)}, klip or ensemble expected"
        )
    if given is None and (state is None or kind == "classifier"):
        raise BundleError(
            f"the gate holds no weights of its encoder {config.get('name')} (SHA-256 {config.get('sha256')}): give it again with "
            "--encoder (and --trust-classifier for a program file), or offmap.load(path, encoder=module)"
        )
    encoder = _given(config, given, trust_classifier, device) if given is not None else _kept(config, state or {}, device)
    if encoder.sha256 != config.get("sha256"):
        raise BundleError(
            f"encoder {encoder.name} has SHA-256 {encoder.sha256}, "
            f"the gate was fitted on {config.get('name')} with {config.get('sha256')}: its scores would mean nothing"
        )
    return encoder


def _klip(config: Mapping[str, Any], state: Mapping[str, Tensor] | None, *, given: Given | None, device: str) -> Encoder:
    """KLIP on the prior that the gate keeps, or that is given again."""
    from offmap.represent.klip_prior import PriorKlipEncoder

    bare = given.base if isinstance(given, PriorKlipEncoder) else given
    if not isinstance(config.get("base"), Mapping):
        raise BundleError("the gate's KLIP encoder lacks its prior")
    base = rebuild(config["base"], state, given=bare, device=device)
    return PriorKlipEncoder.rebuilt(config, base, device=resolve_device(device))


def _own(config: Mapping[str, Any], state: Mapping[str, Tensor] | None, given: Given | None, device: str) -> Encoder:
    if given is not None:
        raise BundleError(f"the gate keeps its network {config.get('name')}, which was trained for it: give no encoder")
    return TrainedEncoder.from_bundle(config, state or {}, device=resolve_device(device))


def _pair(config: Mapping[str, Any], state: Mapping[str, Tensor], given: Given | None, trust: bool, device: str) -> Encoder:
    """Two networks; an encoder that is given stands for the first, and only where the gate does not keep it."""
    weights = parted_state(state)
    try:
        first = rebuild(config["first"], weights[0] or None, given=given, trust_classifier=trust, device=device)
        found = Pair(first, rebuild(config["second"], weights[1] or None, device=device))
    except (KeyError, ConfigError) as error:
        raise BundleError(f"the gate's two networks cannot be built again: {type(error).__name__} {error}") from error
    if found.sha256 != config.get("sha256"):
        raise BundleError(f"the gate's two networks have SHA-256 {found.sha256}, its manifest says {config.get('sha256')}")
    return found


def _members(config: Mapping[str, Any], given: Given | None, trust: bool, device: str) -> Encoder:
    from offmap.represent.classifier import ClassifierEncoder
    from offmap.represent.ensemble import EnsembleEncoder

    known = config["members"]
    if given is None or isinstance(given, str | nn.Module | Encoder) or len(given) != len(known):
        raise BundleError(
            f"the gate was fitted on an {config.get('name')} and holds no weights: give its {len(known)} networks again, "
            "in the same order, with offmap.load(path, encoder=[one, two, ...])"
        )
    members = []
    for i, (one, recorded) in enumerate(zip(given, known, strict=True), 1):
        try:
            member = rebuild(recorded, None, given=one, trust_classifier=trust, device=device)
        except BundleError as error:
            raise BundleError(f"member {i} of the ensemble: {error}") from error
        if not isinstance(member, ClassifierEncoder):
            raise BundleError(f"member {i} of the gate's ensemble is of kind {recorded.get('kind')!r}; classifier expected")
        members.append(member)
    return EnsembleEncoder(members)


def _given(config: Mapping[str, Any], given: Given, trust: bool, device: str) -> Encoder:
    from offmap.represent.hub import input_from

    if isinstance(given, Encoder):
        return _open_already(config, given).to(resolve_device(device))
    names = "classifier" if isinstance(given, nn.Module) else "ensemble"
    kind = given.partition(":")[0] if isinstance(given, str) else names
    if kind != config["kind"]:
        raise BundleError(f"encoder {kind} was given, the gate was fitted on {config.get('name')}")
    if kind == "builtin":
        return _builtin_given(str(given), config, device)
    if kind in MODELS:
        return open_encoder(given, device=device)
    if isinstance(given, nn.Module):
        return _module_again(config, given, device)
    return open_encoder(
        given, layers=config["layers"], device=device, trust_classifier=trust, input=input_from(config["input"]), head=config.get("head")
    )


def _module_again(config: Mapping[str, Any], module: nn.Module, device: str) -> Encoder:
    """A bare module knows no names of its classes: the gate's are kept."""
    from offmap.represent.classifier import ClassifierEncoder
    from offmap.represent.hub import input_from

    names, place = config.get("class_names", ()), resolve_device(device)
    spec, head = input_from(config["input"]), config.get("head")
    return ClassifierEncoder(module, layers=config["layers"], head=head, spec=spec, device=place, class_names=names)


def _open_already(config: Mapping[str, Any], given: Encoder) -> Encoder:
    """The encoder itself, where it was opened as the gate's was; whether its weights are the same is asked later."""
    have, fitted = (json.loads(json.dumps(values)) for values in (given.config(), config))
    other = sorted(key for key in fitted if key not in ("name", "sha256") and have.get(key) != fitted[key])
    if other:
        raise BundleError(f"encoder {given.name} was opened with other values of {', '.join(other)} than the gate was fitted with")
    return given


def _builtin_given(given: str, config: Mapping[str, Any], device: str) -> Encoder:
    found = open_encoder(given, device=device)
    shape = replace(found.input, size=int(config["size"]))
    return open_encoder(given, layers=config["layers"], device=device, input=shape)


def _kept(config: Mapping[str, Any], state: Mapping[str, Tensor], device: str) -> Encoder:
    place = resolve_device(device)
    try:
        if config["kind"] == "builtin":
            return BuiltinEncoder.from_bundle(config, state, device=place)
        if config["kind"] in MODELS:
            return _model(config["kind"]).rebuilt(config, state, name=config["name"], device=place)
        from offmap.represent.hub import HubEncoder

        return HubEncoder.from_bundle(config, state, device=place)
    except (KeyError, TypeError, ConfigError) as error:
        text = str(error) if isinstance(error, OODError) else f"{type(error).__name__} {error}"
        raise BundleError(f"the gate's encoder cannot be built again: {text}") from error


def _with_exits(
    config: Mapping[str, Any], state: Mapping[str, Tensor], *, given: Given | None, trust_classifier: bool, device: str
) -> Encoder:
    """The exits of the gate on its base encoder; of an encoder given with exits, its base is used."""
    bare = given.base if isinstance(given, WithExits) else given
    rest = {name: value for name, value in state.items() if not name.startswith(PREFIX)}
    try:
        base = rebuild(config["base"], rest or None, given=bare, trust_classifier=trust_classifier, device=device)
        encoder = WithExits(base, Exits.from_tensors(config["exits"], state).to(resolve_device(device)))
    except KeyError as error:
        raise BundleError(f"the gate's encoder lacks {error} of its exits") from error
    if encoder.sha256 != config.get("sha256"):
        raise BundleError(f"the gate's exits have SHA-256 {encoder.sha256}, it was fitted with {config.get('sha256')}")
    return encoder


def _with_text(config: Mapping[str, Any], base: Encoder) -> Encoder:
    try:
        return WithText(base, None, config)
    except KeyError as error:
        raise BundleError(f"the gate's encoder lacks {error} of its texts") from error


def _wrapped(config: Mapping[str, Any], base: Encoder) -> Encoder:
    from offmap.represent.patches import Cut, Patches
    from offmap.represent.slices import SliceWise

    try:
        return SliceWise(base, tuple(config["pool"])) if config["kind"] == "slices" else Patches(base, Cut(**config["cut"]))
    except (KeyError, TypeError, ConfigError) as error:
        raise BundleError(f"the gate's encoder of volumes cannot be built again: {error}") from error
