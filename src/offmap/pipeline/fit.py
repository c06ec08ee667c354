"""From a folder of in-distribution images to a calibrated gate."""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import offmap
from offmap.core.encoder import Encoder
from offmap.core.errors import ConfigError
from offmap.core.signals import is_map
from offmap.core.trainer import Sheet, Trainer
from offmap.core.types import NotAssessed, Source
from offmap.explain.neighbours import Neighbours
from offmap.pipeline import recipe as recipes
from offmap.pipeline.card import out_of_reach
from offmap.pipeline.cascading import cost
from offmap.pipeline.collect import Collected, Shelf, codes, collect, facts, require, warnings
from offmap.pipeline.dressed import dressed, measurable, ranges, watched
from offmap.pipeline.gate import Gate, cores
from offmap.pipeline.inputs import PathLike, images, is_array, paths
from offmap.pipeline.labels import Labels, table_of
from offmap.pipeline.learn import MAP_ROWS, SMALLEST, divide, fit_scorer, wanted
from offmap.pipeline.recipe import Recipe
from offmap.pipeline.resumable import Checkpoints
from offmap.pipeline.saved import kept_weights
from offmap.pipeline.store import SignalStore
from offmap.pipeline.stream import Progress, Stream
from offmap.pipeline.training import Pixels, fill, require_in_step, require_room, shares
from offmap.pipeline.training import train as train_network
from offmap.report.fitting import FitPage
from offmap.represent.device import resolve_device
from offmap.represent.klip import KlipEncoder
from offmap.represent.open import Given, open_encoder
from offmap.represent.pair import Pair
from offmap.represent.patches import Patches
from offmap.represent.proxy import without_proxies
from offmap.represent.slices import SliceWise
from offmap.represent.train.parallel import Crew
from offmap.represent.trained import TrainedEncoder


def fit(
    train: Any,
    *,
    recipe: str = recipes.STANDARD,
    settings: Mapping[str, str] | None = None,
    cascade: Sequence[str] = (),
    encoder: Given | None = None,
    layers: Sequence[str] = (),
    labels: Labels = None,
    alpha: float | None = None,
    volumes: bool = False,
    keep_neighbours: bool = False,
    limit: int | None = None,
    seed: int = 0,
    device: str = "auto",
    jobs: int | None = None,
    trust_classifier: bool = False,
    axes: str = "",
    spacing: Sequence[float] | None = None,
    report: PathLike | None = None,
    training: PathLike | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    use_cache: bool = True,
) -> Gate:
    """Fit and calibrate a gate on in-distribution images.

    Args:
        train: paths, folders, globs, manifests, or an array (then with ``axes``).
        recipe: name of a shipped recipe, or a ``.toml`` file.
        settings: changes of the recipe, ``{"score.standard.reduction": "max"}``.
        cascade: what runs first, and what runs only where that is undecided: two recipes, such as ``("standard", "diffusion")``, or
            two detectors that read the encoder of ``recipe``.
        encoder: ``builtin``, ``hub:NAME_OR_DIR``, ``classifier:FILE``, a ``torch.nn.Module``, a list of classifiers (an
            ensemble), or an open ``Encoder``; default the recipe's.
        layers: names of the encoder's layers to use.
        labels: CSV with the columns ``path`` and ``label``, for methods that use classes and recipes that train a classifier; of an array,
            one name or number for each image.
        alpha: share of in-distribution images that may be flagged; ``reject`` at a tenth of it.
        volumes: one item per DICOM series or NIfTI file instead of one per slice; a recipe that trains a network trains one of three axes
            of space, with the changes of its table ``[volumes]``.
        keep_neighbours: keep features and thumbnails of the images in the gate, to show the nearest ones (thumbnails are patient images).
        limit: fit on a random choice of so many images.
        seed: of every random choice.
        device: ``auto``, ``cpu``, ``cuda``, ``mps``.
        jobs: decode workers; default the number of cores, 0 = in this process.
        trust_classifier: allow ``classifier:FILE`` to run the program in that file.
        axes, spacing: of an array, see ``Gate.score``.
        report: folder for the page ``index.html``: curves while a network is trained, then the gate's card, and pictures by which to
            judge the training. Some of them are training images; the gate itself keeps none.
        training: folder for the checkpoints of a recipe that trains a network; it may be deleted when the gate is saved. Nothing is
            written where there is none.
        resume: go on with the training in that folder, if there is one, instead of starting it over; with the same images, recipe and
            seed the gate is that of one sitting.
        progress: called with events such as ``{"event": "fit_read", "done": 64, "total": 600}``.

    Raises:
        ConfigError: recipe, encoder and options do not fit each other, found before any file is read; or the training in the folder
            is another one.
        DataError: too few usable images.
        ShareDoneError: among processes that train together (inside ``joined``), in all but the first, when the training is over; not
            caught, it ends the process quietly.
    """
    if limit is not None and limit < SMALLEST:
        raise ConfigError(f"limit = {limit}: a gate needs at least {SMALLEST} images, and 200 to reach every verdict")
    plan = _plan(recipe, settings or {}, encoder, layers, alpha, volumes, cascade)
    place = _place(plan, training, resume)
    where = resolve_device(device)
    network = _encoder(plan, encoder, where, volumes=volumes, trust=trust_classifier)
    scores, maps = wanted(plan, network)
    known_labels = table_of(labels, train, axes)
    stream = Stream(
        network,
        plan.preparation(network.input.size, network.input.axes),
        scores | watched(network) | ({"features.last"} if keep_neighbours else set()),
        jobs=max(1, cores() // Crew.present().size) if jobs is None else jobs,
        form_seed=seed if plan.forms.random else None,
        picture=keep_neighbours,
        fingerprint=True,
        volumes=volumes,
        use_cache=use_cache,
        device=where,
        modalities=measurable(network),
    )
    if place is not None and progress is not None:
        place.warn(progress)
    data = Collected()
    rows = None if any(is_map(name) for name in scores) else MAP_ROWS
    with SignalStore(network.layers, map_rows=rows) as store, FitPage(None if report is None else Path(report), plan.name) as page:
        progress = page.watching(progress)
        if not plan.trains:
            found, skipped = read_images(train, stream, maps, store, data, known_labels, limit, seed, axes, spacing, progress)
            require(data, SMALLEST, known_labels)
            material = Material(data, data, found, skipped)
        else:
            pixels = Pixels()
            reader = replace(stream, needs=frozenset({"image"}))
            found, skipped = read_images(train, reader, frozenset(), pixels, data, known_labels, limit, seed, axes, spacing, progress)
            require(data, SMALLEST, known_labels)
            stream, material = _train(plan, stream, maps, store, pixels, Material(data, data, found, skipped), seed, place, progress)
        gate = finish(plan, stream, store, material, seed, volumes, keep_neighbours, progress)
        page.close(gate.card, gate.histogram(), [(sheet.picture, sheet.caption) for sheet in material.sheets if not sheet.made_up])
        return gate


@dataclass(frozen=True, eq=False)
class Material:
    """What was read.

    Args:
        data: all usable images.
        used: those of them that are in the store.
        found, skipped: items, and files that were passed over.
        training: facts of the network's training, for the card; empty where it was there already.
        warnings: of the training.
        sheets: pictures of the training, those among them that a gate does not keep.
    """

    data: Collected
    used: Collected
    found: int
    skipped: int
    training: Mapping[str, Any] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    sheets: Sequence[Sheet] = ()


def _plan(
    name: str,
    settings: Mapping[str, str],
    encoder: Given | None,
    layers: Sequence[str],
    alpha: float | None,
    volumes: bool,
    cascade: Sequence[str],
) -> Recipe:
    """The recipe with all choices, which go together."""
    spec = encoder if isinstance(encoder, str) else None
    plan = recipes.with_choices(recipes.read(name, settings, cascade=cascade, volumes=volumes), encoder=spec, layers=layers, alpha=alpha)
    if encoder is not None and not isinstance(encoder, str):
        plan = recipes.without_training(plan)
    if isinstance(encoder, KlipEncoder):
        plan = replace(plan, klip=None)
    _check(plan, settings, volumes)
    plan = replace(plan, train=plan.train.over_volumes()) if volumes and plan.train is not None else plan
    require_in_step(plan.name, _trainers(plan))
    return plan


def _check(plan: Recipe, settings: Mapping[str, str], volumes: bool) -> None:
    """Choices that do not go together."""
    own = plan.encoder
    if plan.klip is not None and volumes:
        raise ConfigError("--volumes does not go with [klip], which measures single images")
    if plan.second is not None and volumes:
        raise ConfigError("--volumes does not go with [second]: a second network sees images only")
    idle = [key for key in settings if key.startswith("train.")] if plan.train is None else []
    if idle:
        raise ConfigError(f"--set {idle[0]} changes nothing: the encoder that was given is trained already")
    given = [name for name in ("layers", "text", "exits") if getattr(own, name)] if plan.train is not None else []
    if plan.train is not None and given:
        raise ConfigError(f"[encoder] {given[0]} does not go with [encoder] spec = {own.spec!r}, which trains a network on images")


def _place(plan: Recipe, training: PathLike | None, resume: bool) -> Checkpoints | None:
    if resume and (training is None or not plan.trains):
        what = f"recipe {plan.name!r} trains no network" if training is not None else "no folder is given for its checkpoints"
        raise ConfigError(f"there is no training to resume: {what}")
    if training is None or not plan.trains:
        return None
    return Checkpoints.of(training, [trainer.method() for trainer in _trainers(plan)], resume=resume)


def _encoder(plan: Recipe, given: Given | None, device: torch.device, *, volumes: bool, trust: bool) -> Encoder:
    if plan.train is not None:
        return dressed(plan, _with_second(plan, TrainedEncoder(plan.train, device=device), device), device)
    chosen = plan.encoder.spec if given is None or isinstance(given, str) else given
    own = plan.encoder
    network = open_encoder(chosen, layers=own.layers, device=str(device), trust_classifier=trust, text=own.text, exits=own.exits)
    if network.input.axes == 3 and not volumes:
        raise ConfigError(f"encoder {network.name} was trained on volumes, not on images: give --volumes")
    if volumes and network.input.axes == 2:
        if not network.layers:
            raise ConfigError(
                f"--volumes does not go with {network.name}, a model of images of two axes without features of slices: leave --volumes "
                "out, and each slice is an item; or train a model of volumes, such as --recipe diffusion --volumes"
            )
        network = SliceWise(network) if plan.encoder.volumes == "slices" else Patches(network)
    return dressed(plan, _with_second(plan, network, device), device)


def _with_second(plan: Recipe, first: Encoder, device: torch.device) -> Encoder:
    if plan.second is None:
        return first
    if plan.second_train is not None:
        return Pair(first, TrainedEncoder(plan.second_train, device=device))
    second = open_encoder(plan.second.spec, device=str(device))
    if not kept_weights(second):
        raise ConfigError(f"[second] {second.name} cannot be kept in a gate (its weights are a program or too large): name another network")
    return Pair(first, second)


def _train(
    plan: Recipe,
    stream: Stream,
    maps: frozenset[str],
    store: SignalStore,
    pixels: Pixels,
    read: Material,
    seed: int,
    place: Checkpoints | None,
    progress: Progress | None,
) -> tuple[Stream, Material]:
    """The stream with the trained network; the store holds the images that did not train it."""
    data, where = read.data, stream.device
    trainers = _trainers(plan)
    if not trainers:
        raise ConfigError(f"recipe {plan.name} trains no network")
    parts = shares(max(trainers, key=lambda trainer: (trainer.labelled, trainer.share)), data, data.copies(), seed)
    folders = [None] * len(trainers) if place is None else place.opened(where)
    made = [
        train_network(trainer, pixels, data, parts, seed=seed, device=where, folder=folder, progress=progress)
        for trainer, folder in zip(trainers, folders, strict=True)
    ]
    Crew.present().leave(where)
    stream = replace(stream, encoder=dressed(plan, _trained(plan, stream.encoder, [network for network, *_ in made]), where))
    kept, refused = fill(store, stream.encoder, pixels, parts.gate, stream.needs, maps, device=where, progress=progress)
    data.dropped.extend(NotAssessed(data.kept[row].item, reason) for row, reason in refused.items())
    facts = {**made[0][1], **({"second": made[1][1]} if len(made) > 1 else {})}
    words, sheets = [word for *_, some, _ in made for word in some], [sheet for *_, some in made for sheet in some]
    return stream, replace(read, used=data.of(kept), training=facts, warnings=words, sheets=sheets)


def _trainers(plan: Recipe) -> list[Trainer]:
    return [trainer for trainer in (plan.train, plan.second_train) if trainer is not None]


def _trained(plan: Recipe, untrained: Encoder, networks: Sequence[Encoder]) -> Encoder:
    """The network, or two of which one at least was trained."""
    if plan.second is None:
        return networks[0]
    whole = without_proxies(untrained)
    if not isinstance(whole, Pair):
        raise ConfigError(f"recipe {plan.name} has two networks, the encoder has one")
    return Pair(whole.first if plan.train is None else networks[0], whole.second if plan.second_train is None else networks[-1])


def read_images(
    train: Any,
    stream: Stream,
    maps: frozenset[str],
    store: Shelf,
    data: Collected,
    labels: Mapping[str, str],
    limit: int | None,
    seed: int,
    axes: str,
    spacing: Sequence[float] | None,
    progress: Progress | None,
) -> tuple[int, int]:
    """Fill the store and what is remembered of the images; gives their number and that of files that were passed over.

    Feature maps are read for the first images only, so that the rest can come from the cache.
    """
    with_maps = replace(stream, needs=stream.needs | maps)
    if is_array(train):
        collect(
            with_maps.over_images(images(train, axes=axes, spacing=spacing, shuffle=None if limit is None else seed)),
            store,
            data,
            limit=limit,
            labels=labels,
            total=None,
            progress=progress,
        )
        return data.n + len(data.dropped), 0
    found = paths(train, volumes=stream.volumes)
    if isinstance(store, Pixels):
        require_room(min(len(found.sources), limit or len(found.sources)), stream.encoder.input)
    order = np.random.default_rng(seed).permutation(len(found.sources))
    shuffled: list[Source] = [found.sources[i] for i in order]
    first = MAP_ROWS if maps else 0
    for part, sources in ((with_maps, shuffled[:first]), (stream, shuffled[first:])):
        if sources and (limit is None or data.n < limit):
            collect(part.over(sources), store, data, limit=limit, labels=labels, total=len(shuffled), progress=progress)
    return data.n + len(data.dropped), found.skipped


def finish(
    plan: Recipe,
    stream: Stream,
    store: SignalStore,
    read: Material,
    seed: int,
    volumes: bool,
    keep_neighbours: bool,
    progress: Progress | None,
) -> Gate:
    """Divide, fit and calibrate on the signals of the store."""
    data, used = read.data, read.used
    copies = data.copies()
    label_names: list[str] = []
    if any(data.labels):
        _, label_names = codes(data.labels)
        store.add("label", np.array([label_names.index(label) for label in used.labels], dtype=np.int64))
    if progress is not None:
        progress({"event": "fit", "done": 0, "total": 1})
    division = divide(plan.calibrate, used.kept, used.copies() if used is not data else copies, seed)
    scorer = fit_scorer(plan, store, division, seed=seed, device=stream.device)
    known = {
        "data": facts(data, copies, read.found, read.skipped),
        "warnings": [*read.warnings, *warnings(data, copies), *out_of_reach(scorer.ranks.n, plan.decide)],
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "version": offmap.__version__,
        "seed": seed,
        "volumes": volumes,
        "labels": label_names,
        "parts": [[len(p.fit), len(p.held_out), len(p.calibrate)] for p in division],
        **({"training": dict(read.training)} if read.training else {}),
        **ranges(store),
        **({"cascade": cost(stream.encoder, scorer, store, division, stream.device)} if scorer.ensemble.cascade else {}),
    }
    if progress is not None:
        progress({"event": "fit", "done": 1, "total": 1})
    neighbours = None
    if keep_neighbours:
        features = torch.from_numpy(store.vector("features.last"))
        neighbours = Neighbours.fit(features, used.pictures, generator=torch.Generator().manual_seed(seed))
    return Gate(plan, without_proxies(stream.encoder), stream.preparation, scorer, known, neighbours, stream.device)
