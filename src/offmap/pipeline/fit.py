"""From a folder of in-distribution images to a calibrated gate."""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

import offmap
from offmap.core.encoder import Encoder
from offmap.core.errors import ConfigError
from offmap.core.types import Source
from offmap.explain.neighbours import Neighbours
from offmap.pipeline import recipe as recipes
from offmap.pipeline.card import out_of_reach
from offmap.pipeline.collect import Collected, codes, collect, facts, read_labels, require, warnings
from offmap.pipeline.gate import Gate, cores
from offmap.pipeline.inputs import PathLike, images, is_array, paths
from offmap.pipeline.learn import MAP_ROWS, SMALLEST, divide, fit_scorer, wanted
from offmap.pipeline.recipe import Recipe
from offmap.pipeline.store import SignalStore
from offmap.pipeline.stream import Progress, Stream
from offmap.represent.device import resolve_device
from offmap.represent.open import Given, open_encoder
from offmap.represent.patches import Patches
from offmap.represent.proxy import with_proxies, without_proxies
from offmap.represent.slices import SliceWise


def fit(
    train: Any,
    *,
    recipe: str = recipes.STANDARD,
    settings: Mapping[str, str] | None = None,
    encoder: Given | None = None,
    layers: Sequence[str] = (),
    labels: PathLike | None = None,
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
    progress: Progress | None = None,
    use_cache: bool = True,
) -> Gate:
    """Fit and calibrate a gate on in-distribution images.

    Args:
        train: paths, folders, globs, manifests, or an array (then with ``axes``).
        recipe: name of a shipped recipe, or a ``.toml`` file.
        settings: changes of the recipe, ``{"score.standard.reduction": "max"}``.
        encoder: ``builtin``, ``hub:NAME_OR_DIR``, ``classifier:FILE``, a ``torch.nn.Module``, a list of classifiers (an
            ensemble), or an open ``Encoder``; default the recipe's.
        layers: names of the encoder's layers to use.
        labels: CSV with the columns ``path`` and ``label``, for methods that use classes.
        alpha: share of in-distribution images that may be flagged; ``reject`` at a tenth of it.
        volumes: one item per DICOM series or NIfTI file instead of one per slice.
        keep_neighbours: keep features and thumbnails of the images in the gate, to show the nearest ones (thumbnails are patient images).
        limit: fit on a random choice of so many images.
        seed: of every random choice.
        device: ``auto``, ``cpu``, ``cuda``, ``mps``.
        jobs: decode workers; default the number of cores, 0 = in this process.
        trust_classifier: allow ``classifier:FILE`` to run the program in that file.
        axes, spacing: of an array, see ``Gate.score``.
        progress: called with events such as ``{"event": "fit_read", "done": 64, "total": 600}``.

    Raises:
        ConfigError: recipe, encoder and options do not fit each other; found before any file is read.
        DataError: too few usable images.
    """
    if limit is not None and limit < SMALLEST:
        raise ConfigError(f"limit = {limit}: a gate needs at least {SMALLEST} images, and 200 to reach every verdict")
    spec = encoder if isinstance(encoder, str) else None
    plan = recipes.with_choices(recipes.read(recipe, settings), encoder=spec, layers=layers, alpha=alpha)
    where = resolve_device(device)
    network = _encoder(plan, encoder, where, volumes=volumes, trust=trust_classifier)
    scores, maps = wanted(plan, network)
    known_labels = read_labels(labels) if labels is not None else {}
    stream = Stream(
        network,
        plan.preparation(network.input.size),
        scores | ({"features.last"} if keep_neighbours else set()),
        jobs=cores() if jobs is None else jobs,
        form_seed=seed if plan.forms.random else None,
        picture=keep_neighbours,
        fingerprint=True,
        volumes=volumes,
        use_cache=use_cache,
        device=where,
    )
    data = Collected()
    with SignalStore(network.layers, map_rows=None if any(n.startswith("feature_map") for n in scores) else MAP_ROWS) as store:
        found, skipped = _read(train, stream, maps, store, data, known_labels, limit, seed, axes, spacing, progress)
        require(data, SMALLEST)
        return _finish(plan, stream, store, data, found, skipped, seed, volumes, keep_neighbours, progress)


def _encoder(plan: Recipe, given: Given | None, device: torch.device, *, volumes: bool, trust: bool) -> Encoder:
    chosen = plan.encoder.spec if given is None or isinstance(given, str) else given
    own = plan.encoder
    network = open_encoder(chosen, layers=own.layers, device=str(device), trust_classifier=trust, text=own.text, exits=own.exits)
    if volumes:
        network = SliceWise(network) if plan.encoder.volumes == "slices" else Patches(network)
    asked: frozenset[str] = frozenset()
    return with_proxies(network, asked.union(*(d.fit_needs for d in plan.parts.values())), plan.encoder.proxies)


def _read(
    train: Any,
    stream: Stream,
    maps: frozenset[str],
    store: SignalStore,
    data: Collected,
    labels: Mapping[str, str],
    limit: int | None,
    seed: int,
    axes: str,
    spacing: Sequence[float] | None,
    progress: Progress | None,
) -> tuple[int, int]:
    """Fill the store; feature maps are read for the first images only, so that the rest can come from the cache."""
    with_maps = replace(stream, needs=stream.needs | maps)
    if is_array(train):
        collect(
            with_maps.over_images(images(train, axes=axes, spacing=spacing)),
            store,
            data,
            limit=limit,
            labels=labels,
            total=None,
            progress=progress,
        )
        return data.n + len(data.dropped), 0
    found = paths(train, volumes=stream.volumes)
    order = np.random.default_rng(seed).permutation(len(found.sources))
    shuffled: list[Source] = [found.sources[i] for i in order]
    first = MAP_ROWS if maps else 0
    for part, sources in ((with_maps, shuffled[:first]), (stream, shuffled[first:])):
        if sources and (limit is None or data.n < limit):
            collect(part.over(sources), store, data, limit=limit, labels=labels, total=len(shuffled), progress=progress)
    return data.n + len(data.dropped), found.skipped


def _finish(
    plan: Recipe,
    stream: Stream,
    store: SignalStore,
    data: Collected,
    found: int,
    skipped: int,
    seed: int,
    volumes: bool,
    keep_neighbours: bool,
    progress: Progress | None,
) -> Gate:
    copies = data.copies()
    label_names: list[str] = []
    if any(data.labels):
        values, label_names = codes(data.labels)
        store.add("label", values)
    if progress is not None:
        progress({"event": "fit", "done": 0, "total": 1})
    division = divide(plan.calibrate, data.kept, copies, seed)
    scorer = fit_scorer(plan, store, division, seed=seed, device=stream.device)
    known = {
        "data": facts(data, copies, found, skipped),
        "warnings": warnings(data, copies) + out_of_reach(scorer.ranks.n, plan.decide),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "version": offmap.__version__,
        "seed": seed,
        "volumes": volumes,
        "labels": label_names,
        "parts": [[len(p.fit), len(p.held_out), len(p.calibrate)] for p in division],
    }
    if progress is not None:
        progress({"event": "fit", "done": 1, "total": 1})
    neighbours = None
    if keep_neighbours:
        features = torch.from_numpy(store.vector("features.last"))
        neighbours = Neighbours.fit(features, data.pictures, generator=torch.Generator().manual_seed(seed))
    return Gate(plan, without_proxies(stream.encoder), stream.preparation, scorer, known, neighbours, stream.device)
