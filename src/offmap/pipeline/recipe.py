"""A recipe: which encoder, steps, detectors and thresholds make a gate. TOML in, frozen dataclasses out."""

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NoReturn

from offmap.calibrate.cascade import Cascade
from offmap.core import registry
from offmap.core.component import Component, from_text, nearest
from offmap.core.detector import Detector
from offmap.core.errors import ConfigError
from offmap.core.trainer import Trainer
from offmap.decide.verdict import Thresholds
from offmap.pipeline.cascading import merged
from offmap.prepare.preparation import Preparation, Step
from offmap.represent.klip_prior import Klip, sampler_of
from offmap.represent.trained import PREFIX as TRAIN
from offmap.represent.trained import trainer_of

STANDARD = "standard"
VOLUMES = "volumes"
"""Table of what a recipe changes with ``--volumes``: ``[volumes.train] size = 32``."""
_STAGES = ("encoder", "train", "klip", "second", "prepare", "forms", "score", "cascade", "calibrate", "decide", "evidence")


@dataclass(frozen=True)
class EncoderChoice(Component):
    """Which encoder, and which of its layers.

    Args:
        spec: ``builtin``, ``hub:NAME_OR_DIR``, ``classifier:FILE``, ``diffusion:DIR``, or ``train:NAME``: a network that is trained for
            this gate, with the settings of the table ``[train]``.
        layers: names of layers; empty = the encoder's own choice.
        volumes: how an encoder of images sees a volume: ``slices`` (every slice, pooled) or ``patches`` (3-D patches); a network that
            was trained on volumes sees it as it is.
        text: what an image might show, for ``mcm``: prompts for the encoder's own text model (CLIP, SigLIP), or a ``.safetensors`` or
            ``.npz`` file of text features.
        proxies: for methods that fit on a stand-in for a shift (``mfs_knn``): names of phantom families or corruptions that images are
            mixed with; empty = the families that are no medical images.
        exits: for ``mecam``: a file of `offmap add-exits`, trained on this encoder; empty = none.
    """

    spec: str = "builtin"
    layers: tuple[str, ...] = ()
    volumes: Literal["slices", "patches"] = "slices"
    text: tuple[str, ...] | str = ()
    proxies: tuple[str, ...] = ()
    exits: str = ""


@dataclass(frozen=True)
class Second(Component):
    """A second network, whose signals only some parts of the score read: the expensive one of a cascade.

    Args:
        spec: ``diffusion:DIR``, ``hub:NAME_OR_DIR``, or ``train:NAME`` with the settings of the table ``[second.train]``.
    """

    spec: str = ""


@dataclass(frozen=True)
class Forms(Component):
    """Random file forms while fitting.

    Args:
        random: give each in-distribution image one random file form, so that how a file was saved is not content.
    """

    random: bool = True


@dataclass(frozen=True)
class Division(Component):
    """How in-distribution images are divided.

    Args:
        kind: ``split`` (fit, held-out and calibration part), ``cross`` (K folds, every image calibrates) or ``auto``
            (split when its calibration part has at least 199 images, so that ``reject`` is within reach).
        folds: K of ``cross``, 2 to 20.
        held_out: share that standardises.
        calibrate: share that calibrates, of ``split``.
    """

    kind: Literal["auto", "split", "cross"] = "auto"
    folds: int = 5
    held_out: float = 0.2
    calibrate: float = 0.2

    def __post_init__(self) -> None:
        if not 2 <= self.folds <= 20:
            raise ConfigError(f"[calibrate] folds = {self.folds} must lie in 2..20")
        for name in ("held_out", "calibrate"):
            if not 0.05 <= getattr(self, name) <= 0.45:
                raise ConfigError(f"[calibrate] {name} = {getattr(self, name)} must lie in 0.05..0.45")


@dataclass(frozen=True)
class Recipe:
    """Everything chosen before an image is read.

    Args:
        prepare: tables of steps in order; the word ``encoder`` as a size stands for the encoder's input.
        parts: detectors by their name in the recipe.
        evidence: why these detectors, as `offmap recommend` found it; kept in the gate and changes nothing.
        train: how the encoder is trained; None where it is there already.
        klip: how images are measured and reconstructed with the encoder, a diffusion model; None where they are not.
        second: a second network; None with one.
        second_train: how that is trained; None where it is there already.
        cascade: of two parts, which runs first; None where all run on every image.
    """

    name: str
    encoder: EncoderChoice
    prepare: tuple[tuple[str, Mapping[str, Any]], ...]
    forms: Forms
    parts: Mapping[str, Detector]
    calibrate: Division
    decide: Thresholds
    evidence: Mapping[str, Any] = field(default_factory=dict)
    train: Trainer | None = None
    klip: Klip | None = None
    second: Second | None = None
    second_train: Trainer | None = None
    cascade: Cascade | None = None

    @property
    def trains(self) -> bool:
        """Whether a network is trained for the gate."""
        return self.train is not None or self.second_train is not None

    def preparation(self, size: int, axes: int = 2) -> Preparation:
        """The steps for an encoder whose input is ``size`` pixels wide, and with three axes as deep where no depth is said.

        Raises:
            ConfigError: unknown step or parameter, with the nearest name.
        """
        deep = {"depth": size} if axes == 3 else {}
        tables = [
            {"method": name, **(deep if name == "resize" else {}), **{k: size if v == "encoder" else v for k, v in table.items()}}
            for name, table in self.prepare
        ]
        return Preparation.from_json(tables, where="prepare")

    def to_json(self) -> dict[str, Any]:
        """The resolved recipe, for the manifest and the card."""
        return {
            "name": self.name,
            "encoder": self.encoder.params(),
            **({"train": self.train.params()} if self.train is not None else {}),
            **({"klip": self.klip.to_table()} if self.klip is not None else {}),
            **({"second": self._second()} if self.second is not None else {}),
            "prepare": [{"method": name, **table} for name, table in self.prepare],
            "forms": self.forms.params(),
            "score": {name: {"method": d.method(), **d.params()} for name, d in self.parts.items()},
            **({"cascade": self.cascade.params()} if self.cascade is not None else {}),
            "calibrate": self.calibrate.params(),
            "decide": self.decide.params(),
            **({"evidence": dict(self.evidence)} if self.evidence else {}),
        }

    def _second(self) -> dict[str, Any]:
        train = {} if self.second_train is None else {"train": self.second_train.params()}
        return {**({} if self.second is None else self.second.params()), **train}


def read(name: str = STANDARD, settings: Mapping[str, str] | None = None, *, cascade: Sequence[str] = (), volumes: bool = False) -> Recipe:
    """A recipe by name or TOML file, with ``--set`` changes.

    Args:
        name: a shipped recipe (see ``shipped``) or the path of a ``.toml`` file.
        settings: ``{"score.knn.k": "5"}``, parsed by the field's type.
        cascade: what runs first, and what runs where that is undecided: two recipes of one part, or detectors that read the encoder of
            ``name``; see ``offmap.pipeline.cascading``.
        volumes: make the changes of the recipe's table ``[volumes]``, before those of ``settings``.

    Raises:
        ConfigError: no such recipe, TOML that does not parse, unknown table or key (with the nearest name), bad value.
    """
    tables = merged(_tables, name, cascade) if cascade else _tables(name)
    changes = tables.pop(VOLUMES, {})
    if not isinstance(changes, Mapping):
        raise ConfigError(f"recipe {name}: [{VOLUMES}] must be a table of what --volumes changes, such as [{VOLUMES}.train]")
    if volumes:
        tables = _changed(tables, {key: value for key, value in changes.items() if key != "score" or not cascade})
    for key, text in (settings or {}).items():
        _apply(tables, key, text)
    return _build("-".join(Path(one).stem for one in cascade) or Path(name).stem, tables)


def from_json(tables: Mapping[str, Any]) -> Recipe:
    """The inverse of ``Recipe.to_json``.

    Raises:
        ConfigError: unknown table, method or parameter.
    """
    stages = {key: value for key, value in tables.items() if key not in ("name", "prepare")}
    prepare = {str(i): table for i, table in enumerate(tables["prepare"])}
    return _build(str(tables["name"]), {**stages, "prepare": prepare})


def shipped() -> tuple[str, ...]:
    """Names of the recipes inside the package."""
    folder = resources.files("offmap.pipeline") / "recipes"
    return tuple(sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml")))


def with_choices(recipe: Recipe, *, encoder: str | None, layers: Sequence[str], alpha: float | None) -> Recipe:
    """The recipe with what the command line said last."""
    choice, train = recipe.encoder, recipe.train
    if encoder not in (None, choice.spec):
        choice, train = replace(choice, spec=encoder), _train(encoder, {})
    if layers:
        choice = replace(choice, layers=tuple(layers))
    decide = replace(recipe.decide, alpha=alpha) if alpha is not None else recipe.decide
    return replace(recipe, encoder=choice, decide=decide, train=train)


def without_training(recipe: Recipe) -> Recipe:
    """The recipe for a network that is given as an object."""
    return recipe if recipe.train is None else replace(recipe, encoder=replace(recipe.encoder, spec=EncoderChoice.spec), train=None)


def _changed(table: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A table with other values, inside its tables too."""
    inner = {k: _changed(table.get(k, {}), v) if isinstance(v, Mapping) else v for k, v in changes.items()}
    return {**table, **inner}


def _tables(name: str) -> dict[str, Any]:
    try:
        if name.endswith(".toml"):
            return tomllib.loads(Path(name).read_text(encoding="utf-8"))
        if name not in shipped():
            raise ConfigError(
                f"there is no recipe {name!r}{nearest(name, list(shipped()))}. Shipped: {', '.join(shipped())}; or give a .toml file"
            )
        return tomllib.loads((resources.files("offmap.pipeline") / "recipes" / f"{name}.toml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe {name}: cannot be read ({type(error).__name__}); check the path") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"recipe {name} is not valid TOML: {error}") from None


def _apply(tables: dict[str, Any], key: str, text: str) -> None:
    *path, field = key.split(".")
    if not path:
        raise ConfigError(f"--set {key}={text}: the key needs a table, as in score.standard.reduction=max")
    table = tables
    for depth, part in enumerate(path):
        inner = path[0] == "prepare" or path in (["klip", "sampler"], ["second", "train"])
        made = (depth == 0 and part in _STAGES) or (depth == 1 and inner)
        if part not in table and not made:
            raise ConfigError(f"--set {key}={text}: the recipe has no table {'.'.join(path[: depth + 1])}{nearest(part, list(table))}")
        table = table.setdefault(part, {})
    choice = "second" if path[0] == "second" else "encoder"
    spec = str(tables.get(choice, {}).get("spec", EncoderChoice.spec))
    table[field] = from_text(_owner(path, table, spec), field, text)


def _owner(path: Sequence[str], table: Mapping[str, Any], spec: str) -> type[Component]:
    if path[0] == "score" and len(path) == 2:
        return registry.load("score", table.get("method", path[1]), Detector)
    if path[0] == "prepare" and len(path) == 2:
        return registry.load("prepare", table.get("method", path[1]), Step)
    if path in (["train"], ["second", "train"]):
        return trainer_of(spec) or _nothing_to_train(spec)
    if path == ["klip", "sampler"]:
        return sampler_of(table)
    single = {
        "encoder": EncoderChoice,
        "klip": Klip,
        "second": Second,
        "forms": Forms,
        "cascade": Cascade,
        "calibrate": Division,
        "decide": Thresholds,
    }
    if path[0] not in single or len(path) != 1:
        raise ConfigError(f"--set {'.'.join(path)}: no such table{nearest(path[0], list(_STAGES))}")
    return single[path[0]]


def _build(name: str, tables: Mapping[str, Any]) -> Recipe:
    for key in tables:
        if key not in _STAGES:
            raise ConfigError(f"recipe {name} has no table [{key}]{nearest(key, list(_STAGES))}. It has: {', '.join(_STAGES)}")
    encoder = EncoderChoice.from_params(tables.get("encoder", {}), where="encoder")
    second, second_train = _second_of(tables.get("second", {}))
    parts = _parts(name, tables.get("score", {}))
    return Recipe(
        name=name,
        encoder=encoder,
        train=_train(encoder.spec, tables.get("train", {})),
        klip=Klip.from_table(tables["klip"]) if "klip" in tables else None,
        prepare=_steps(tables.get("prepare", {})),
        forms=Forms.from_params(tables.get("forms", {}), where="forms"),
        parts=parts,
        cascade=_cascade(tables["cascade"], parts) if "cascade" in tables else None,
        second=second,
        second_train=second_train,
        calibrate=Division.from_params(tables.get("calibrate", {}), where="calibrate"),
        decide=Thresholds.from_params(tables.get("decide", {}), where="decide"),
        evidence=_evidence(tables.get("evidence", {})),
    )


def _second_of(table: Mapping[str, Any]) -> tuple[Second | None, Trainer | None]:
    if not table:
        return None, None
    second = Second.from_params({k: v for k, v in table.items() if k != "train"}, where="second")
    if not second.spec:
        raise ConfigError('[second] needs spec = "train:NAME", "diffusion:DIR" or "hub:NAME_OR_DIR", the network of the expensive part')
    return second, _train(second.spec, table.get("train", {}))


def _cascade(table: Mapping[str, Any], parts: Mapping[str, Detector]) -> Cascade:
    found = Cascade.from_params(table, where="cascade")
    if {found.first, found.then} != set(parts):
        raise ConfigError(
            f"[cascade] goes from {found.first!r} to {found.then!r}; the recipe's parts are {', '.join(parts)}: two parts, both named, "
            "make a cascade"
        )
    return found


def _train(spec: str, table: Mapping[str, Any]) -> Trainer | None:
    trainer = trainer_of(spec)
    if trainer is None:
        return _nothing_to_train(spec) if table else None
    return trainer.from_params(table, where="train")


def _nothing_to_train(spec: str) -> NoReturn:
    raise ConfigError(
        f'[train] needs [encoder] spec = "{TRAIN}NAME", a network that is trained for the gate; the encoder is {spec}. '
        "The settings of a cascade's second network begin with second.train"
    )


def _evidence(table: Any) -> dict[str, Any]:
    """Short words, numbers and lists of them, as they go into the manifest."""
    if not isinstance(table, Mapping):
        raise ConfigError("[evidence] must be a table")
    for key, value in table.items():
        plain = all(
            isinstance(v, (str, int, float)) and len(str(v)) <= 500 for v in (value if isinstance(value, list | tuple) else [value])
        )
        if not (plain and re.fullmatch(r"[a-z0-9_]{1,40}", str(key))):
            raise ConfigError(f"[evidence] {key} must be a word, a number or a list of these (a date in quotes), of at most 500 characters")
    return {key: list(value) if isinstance(value, list | tuple) else value for key, value in table.items()}


def _steps(tables: Mapping[str, Mapping[str, Any]]) -> tuple[tuple[str, Mapping[str, Any]], ...]:
    return tuple((str(t.get("method", key)), {k: v for k, v in t.items() if k != "method"}) for key, t in tables.items())


def _parts(name: str, tables: Mapping[str, Mapping[str, Any]]) -> dict[str, Detector]:
    if not tables:
        raise ConfigError(f"recipe {name} scores nothing: add a table such as [score.knn]")
    for part in tables:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,39}", part):
            raise ConfigError(f"[score.{part}]: the name of a part is made of up to 40 letters, digits, '_' and '-'")
    return {
        part: registry.load("score", str(table.get("method", part)), Detector).from_params(
            {k: v for k, v in table.items() if k != "method"}, where=f"score.{part}"
        )
        for part, table in tables.items()
    }
