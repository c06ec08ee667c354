"""Block size and window of KLIP, chosen with artefacts that are drawn into in-distribution images, and a gate that has them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from offmap.calibrate.split import split
from offmap.core.component import nearest
from offmap.core.errors import ConfigError, DataError
from offmap.core.manifest import MANIFEST
from offmap.core.types import Signals
from offmap.pipeline import recipe as recipes
from offmap.pipeline import saved
from offmap.pipeline.cache import FeatureCache
from offmap.pipeline.collect import Collected, require
from offmap.pipeline.dressed import dressed, measurable, watched
from offmap.pipeline.fit import Material, finish, read_images
from offmap.pipeline.gate import Gate, cores
from offmap.pipeline.inputs import PathLike
from offmap.pipeline.learn import SMALLEST, wanted
from offmap.pipeline.recipe import Recipe
from offmap.pipeline.store import SignalStore
from offmap.pipeline.stream import Progress, Stream, chosen
from offmap.pipeline.training import Pixels, shares
from offmap.pipeline.tuned import Tuned, place_of
from offmap.report.card import MEASURED
from offmap.represent.device import resolve_device
from offmap.represent.klip import TOGETHER, KlipEncoder
from offmap.represent.layers import joined
from offmap.represent.open import open_encoder
from offmap.score._klip_surface import By, Rescored, Surface, rescore
from offmap.score.klip import FOREGROUND, KLIP, SIGNALS
from offmap.simulate.lesions import Planted, plant_lesion, plant_tumour
from offmap.simulate.tomographic import StarRanges, missing_wedge, star, streaks

LEAST = 8
"""Images that a choice is made with."""

Draw = Callable[..., Planted]
ARTEFACTS: Mapping[str, Draw] = {
    "star": star,
    "streaks": streaks,
    "missing_wedge": missing_wedge,
    "lesion": plant_lesion,
    "tumour": plant_tumour,
}
"""What can be drawn, by name."""


def tune(
    given: PathLike,
    train: Any,
    *,
    settings: Mapping[str, str] | None = None,
    artefact: str = "star",
    contrast: tuple[float, float] | None = None,
    count: int = 40,
    by: By = "both",
    encoder: str | None = None,
    seed: int = 0,
    device: str = "auto",
    jobs: int | None = None,
    axes: str = "",
    progress: Progress | None = None,
    use_cache: bool = True,
) -> Tuned:
    """Choose the block and the window of KLIP on in-distribution images alone.

    An artefact is drawn into each of some images, its mask is exact; each image is sampled twice, without and with it, and the same
    samples are scored for every block and window. Two thirds of the images choose, the others say what the choice is worth. The gate is
    then fitted and calibrated on the images that took no part.

    Args:
        given: a gate with a KLIP encoder, a gate that keeps a diffusion model, or the folder of one.
        train: in-distribution images, as of ``offmap.fit``. Of a gate that trained its own model give the same images (those that
            trained the model are then left out), or images that it never saw.
        settings: changes of the recipe klip, where ``given`` is a diffusion model.
        artefact: ``star``, ``streaks``, ``missing_wedge``, ``lesion`` or ``tumour``.
        contrast: from and to, of a star's brightness; its own range if not given.
        count: images that get an artefact, at most half of them all.
        by: what is to be large: the AUROC of ``images``, of ``blocks`` inside them, or the mean of ``both``.
        encoder: the prior again, where the gate does not keep it.
        seed, device, jobs, axes, progress, use_cache: as of ``offmap.fit``.

    Raises:
        ConfigError: no KLIP in the gate, unknown artefact, or settings of a gate that is fitted already.
        DataError: too few images.
    """
    draw = _draw(artefact, contrast)
    plan, network, old = _opened(Path(given), settings or {}, encoder, resolve_device(device))
    part = next((name for name, detector in plan.parts.items() if isinstance(detector, KLIP)), "")
    before = plan.parts.get(part)
    if not isinstance(before, KLIP):
        raise ConfigError(f"{given}: the recipe {plan.name} has no part klip to tune ({', '.join(plan.parts)})")
    seed = old.facts["seed"] if old is not None else seed
    material = _read(plan, network, train, seed, resolve_device(device), jobs, axes, progress, use_cache)
    usable = _usable(plan, material, old, seed)
    some = _some(material.data, usable, count, seed)
    signals, rows = material.clean(usable, progress)
    rescored = _rescored(material, before, {int(r): {k: v[n] for k, v in signals.items()} for n, r in enumerate(rows)}, some, draw, seed)
    surface, at, told = _chosen(rescored, before, by, seed)
    after = replace(before, window=surface.shares(at[1]), cells=surface.cells[at[0]])
    facts = _evidence(after, network, artefact, rescored, by, told, material.data.digest())
    plan = replace(plan, parts={**plan.parts, part: after}, evidence=facts)
    rest = [n for n, row in enumerate(rows) if int(row) not in set(some.tolist())]
    gate = _gate(plan, material, chosen(signals, rest), rows[rest], old, seed, progress)
    words = {MEASURED[key]: _words(value) for key, value in facts.items() if key in MEASURED}
    return Tuned(gate, part, before, after, surface, at, by, *told, network.config()["cell"], words)


@dataclass(frozen=True, eq=False)
class _Material:
    """What was read: images in memory, and how they become signals."""

    stream: Stream
    data: Collected
    pixels: Pixels
    found: int
    skipped: int

    def clean(self, rows: np.ndarray, progress: Progress | None) -> tuple[dict[str, Tensor], np.ndarray]:
        """Signals of images that the encoder can assess, and their rows; those that a fit has left in the cache are not made again."""
        cache, parts, kept = self.stream.cache(), [], []
        for start in range(0, len(rows), TOGETHER):
            some = rows[start : start + TOGETHER]
            made = {int(row): self._cached(cache, int(row)) for row in some}
            fresh = np.array([row for row, one in made.items() if one is None], dtype=np.int64)
            if len(fresh):
                new = self.encoded(self.pixels.take(fresh))
                made |= {int(row): chosen(new, [n]) for n, row in enumerate(fresh)}
            for row, one in made.items():
                if one is not None and not self.stream.encoder.refused(one):
                    parts.append(one)
                    kept.append(row)
            if progress is not None:
                progress({"event": "sample", "done": start + len(some), "total": len(rows)})
        if cache is not None:
            cache.close()
        return joined(parts) if parts else {}, np.array(kept, dtype=np.int64)

    def _cached(self, cache: FeatureCache | None, row: int) -> dict[str, Tensor] | None:
        found = None if cache is None else cache.get(self.data.kept[row].digest)
        if found is None or not set(found[1]) >= self.stream.needs:
            return None
        return {name: torch.tensor(found[1][name])[None] for name in self.stream.needs}

    def encoded(self, images: Tensor) -> dict[str, Tensor]:
        """Signals on the CPU."""
        found = self.stream.encoder.encode(images.to(self.stream.device), self.stream.needs)
        return {name: value.cpu() for name, value in found.items() if name in self.stream.needs}


def _draw(artefact: str, contrast: tuple[float, float] | None) -> Draw:
    if artefact not in ARTEFACTS:
        raise ConfigError(f"there is no artefact {artefact!r}{nearest(artefact, list(ARTEFACTS))}. There are: {', '.join(ARTEFACTS)}")
    if contrast is None:
        return ARTEFACTS[artefact]
    if artefact != "star":
        raise ConfigError(f"contrast = {contrast} goes with the artefact star, not with {artefact}")
    ranges = StarRanges(contrast=contrast)
    return lambda pixels, *, rng: star(pixels, rng=rng, ranges=ranges)


def _opened(given: Path, settings: Mapping[str, str], encoder: str | None, device: torch.device) -> tuple[Recipe, KlipEncoder, Gate | None]:
    """Recipe and encoder of a KLIP gate, or of the recipe klip on a diffusion model."""
    if (given / MANIFEST).is_file():
        kind = saved.encoder_kind(given)
        if kind in ("klip", "klip_prior"):
            gate = saved.load(given, encoder=encoder, device=str(device))
            if settings:
                raise ConfigError(f"--set {next(iter(settings))}: the gate is fitted already; tune its diffusion model instead")
            if not isinstance(gate.encoder, KlipEncoder):
                raise ConfigError(f"{given} has no KLIP encoder")
            return gate.recipe, gate.encoder, gate
    spec = f"diffusion:{given}"
    plan = recipes.with_choices(recipes.read("klip", settings), encoder=spec, layers=(), alpha=None)
    network = dressed(plan, open_encoder(spec, device=str(device)), device)
    if not isinstance(network, KlipEncoder):
        raise ConfigError(f"{given} is no diffusion model that KLIP can use")
    return plan, network, None


def _read(
    plan: Recipe,
    network: KlipEncoder,
    train: Any,
    seed: int,
    device: torch.device,
    jobs: int | None,
    axes: str,
    progress: Progress | None,
    use_cache: bool,
) -> _Material:
    stream = Stream(
        network,
        plan.preparation(network.input.size),
        wanted(plan, network)[0] | watched(network),
        jobs=cores() if jobs is None else jobs,
        form_seed=seed if plan.forms.random else None,
        fingerprint=True,
        use_cache=use_cache,
        device=device,
        modalities=measurable(network),
    )
    pixels, data = Pixels(), Collected()
    reader = replace(stream, needs=frozenset({"image"}))
    found, skipped = read_images(train, reader, frozenset(), pixels, data, {}, None, seed, axes, None, progress)
    require(data, SMALLEST + LEAST, {})
    return _Material(stream, data, pixels, found, skipped)


def _usable(plan: Recipe, read: _Material, old: Gate | None, seed: int) -> np.ndarray:
    """Rows that did not train the gate's own model, where these are the images it was made of; else all."""
    if plan.train is None or old is None or read.data.digest() != old.facts["data"]["digest"]:
        return np.arange(read.data.n)
    return shares(plan.train, read.data, read.data.copies(), seed).gate


def _some(data: Collected, usable: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Rows that get an artefact; copies and patients stay together."""
    share = min(0.5, count / len(usable))
    place = {int(row): n for n, row in enumerate(usable)}
    copies = [[place[row] for row in rows if row in place] for rows in data.copies()]
    kept = [data.kept[row] for row in usable]
    part, rest = split(
        [i.group for i in kept], [i.digest for i in kept], shares=(share, 1 - share), seed=seed, copies=[rows for rows in copies if rows]
    )
    if len(part) < LEAST or len(rest) < SMALLEST:
        raise DataError(
            f"{len(part)} images to tune on and {len(rest)} to calibrate on; at least {LEAST} and {SMALLEST} are needed: give more images"
        )
    found: np.ndarray = usable[part]
    return found


def _rescored(read: _Material, detector: KLIP, clean: Mapping[int, Signals], some: np.ndarray, draw: Draw, seed: int) -> Rescored:
    """Sample the images of the choice with an artefact each, and score both under all blocks and windows."""
    rows = [int(row) for row in some if int(row) in clean]
    usual, strange, masks = [], [], []
    for start in range(0, len(rows), TOGETHER):
        here = rows[start : start + TOGETHER]
        images = read.pixels.take(np.array(here)).numpy()
        numbers = [int(read.data.kept[row].digest[:12], 16) for row in here]
        planted = [draw(image, rng=np.random.default_rng([seed, n])) for image, n in zip(images, numbers, strict=True)]
        signals = read.encoded(torch.from_numpy(np.stack([one.pixels for one in planted])))
        refused = read.stream.encoder.refused(signals)
        fine = [n for n in range(len(here)) if n not in refused]
        strange.append(chosen(signals, fine))
        usual += [{name: value[None] for name, value in clean[here[n]].items()} for n in fine]
        masks += [planted[n].mask for n in fine]
    if len(usual) < LEAST:
        raise DataError(f"{len(usual)} of {len(some)} images show a body when they are reconstructed; at least {LEAST} are needed")
    one, other, name = joined(usual), joined(strange), SIGNALS[detector.units]
    side = int(one[name].shape[-1])
    touched = functional.adaptive_max_pool2d(torch.from_numpy(np.stack(masks)).float()[:, None], side)[:, 0] > 0
    body = (one[FOREGROUND], other[FOREGROUND]) if detector.foreground else (None, None)
    return rescore(one[name], other[name], touched, body=body[0], odd_body=body[1], reduction=detector.reduction)


def _chosen(
    found: Rescored, before: KLIP, by: By, seed: int
) -> tuple[Surface, tuple[int, int], tuple[tuple[float, float, float, float], tuple[float, float] | None]]:
    """The surface, the choice of two thirds of the images, and its worth on the others."""
    order = torch.randperm(found.clean.shape[2], generator=torch.Generator().manual_seed(seed))
    cut = max(2, 2 * len(order) // 3)
    b, w = found.surface(order[:cut]).best(by)
    rest = found.surface(order[cut:])
    low, high = found.interval(b, w, by, order[cut:], seed=seed)
    place = place_of(rest, before)
    old = None if place is None else (float(rest.images[place]), float(rest.blocks[place]))
    return found.surface(), (b, w), ((float(rest.images[b, w]), float(rest.blocks[b, w]), low, high), old)


def _evidence(
    after: KLIP, network: KlipEncoder, artefact: str, found: Rescored, by: By, told: tuple[Any, Any], digest: str
) -> dict[str, Any]:
    (images, blocks, low, high), before = told
    n = found.clean.shape[2]
    return {
        "method": "klip",
        "chosen_by": f"{artefact} drawn into {n} in-distribution images, {n - max(2, 2 * n // 3)} of them kept to say what it is worth",
        "block_in_pixels": after.cells * network.config()["cell"],
        "window": [round(share, 4) for share in after.window],
        "to_be_large": {"both": "mean AUROC of images and of blocks", "images": "AUROC of images", "blocks": "AUROC of blocks"}[by],
        "auroc_of_images": round(images, 4),
        "auroc_of_blocks": round(blocks, 4),
        "interval": [round(low, 4), round(high, 4)],
        **({"auroc_before": [round(v, 4) for v in before]} if before is not None else {}),
        "data_digest": digest,
    }


def _gate(
    plan: Recipe, read: _Material, signals: Signals, rows: np.ndarray, old: Gate | None, seed: int, progress: Progress | None
) -> Gate:
    """Fitted and calibrated on the images that took no part in the choice."""
    training = {} if old is None else old.facts.get("training", {})
    material = Material(read.data, read.data.of(rows), read.found, read.skipped, training)
    with SignalStore(map_rows=None) as store:
        store.append(signals)
        return finish(plan, read.stream, store, material, seed, False, False, progress)


def _words(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)
