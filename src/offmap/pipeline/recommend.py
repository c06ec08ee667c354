"""Which detector for these images? Ranked with in-distribution images alone, by anomalies that were made on purpose."""

import datetime
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from offmap.calibrate.split import split
from offmap.core.errors import ConfigError, DataError
from offmap.core.types import Image, Source
from offmap.pipeline import ranking as ranks
from offmap.pipeline import recipe as recipes
from offmap.pipeline.collect import Collected, codes, collect, warnings
from offmap.pipeline.contest import Contestant, Kept, enter, score_all, screen
from offmap.pipeline.findings import evidence, told
from offmap.pipeline.gate import cores
from offmap.pipeline.inputs import PathLike, images, is_array, paths
from offmap.pipeline.learn import MAP_ROWS
from offmap.pipeline.ranking import Standing
from offmap.pipeline.recipe import Recipe
from offmap.pipeline.store import SignalStore
from offmap.pipeline.stream import Batch, Progress, Stream
from offmap.pipeline.synthetic import KINDS, CopyWork
from offmap.pipeline.toml import to_toml
from offmap.read.messages import Message
from offmap.read.workers import Workers
from offmap.report.ranking import Ranking, refuse_foreign
from offmap.report.words import count
from offmap.represent.device import resolve_device
from offmap.represent.open import Given, open_encoder
from offmap.represent.proxy import with_proxies, without_proxies
from offmap.score.fusion import Fusion
from offmap.simulate.corruptions import CORRUPTIONS

SMALLEST = 40
"""Images below which nothing can be told: 22 to fit on, 8 to standardise, 10 to test."""

MOST = 80
"""Test images; each is copied some forty times."""

FEWEST_UNITS = 5
"""Patients, or clusters of copies, among the test images."""

LIMIT = 1000
"""Images read unless another number is asked for."""

RECIPE = "recipe.toml"
_NOWHERE = Source(Path(), "array")


@dataclass(frozen=True, eq=False)
class Recommendation:
    """What was found.

    Args:
        recipe: the recipe that was started from, with the recommended detector and its evidence.
        ranking: all detectors, for people.
        standings: those that were run, the best first.
    """

    recipe: Recipe
    ranking: Ranking
    standings: tuple[Standing, ...]

    @property
    def method(self) -> str:
        """Name of the recommended detector (``fusion`` for a fusion)."""
        return next(iter(self.recipe.parts.values())).method()

    def save(self, folder: PathLike) -> Path:
        """Write ``ranking.csv``, ``index.html`` and ``recipe.toml``.

        Raises:
            ConfigError: the folder holds an ``index.html`` that offmap did not write.
        """
        out = Path(folder)
        refuse_foreign(out / "index.html")
        out.mkdir(parents=True, exist_ok=True)
        self.ranking.to_csv(out / "ranking.csv")
        self.ranking.to_html(out / "index.html")
        comment = "\n".join([self.ranking.title, *self.ranking.sentences, "", f"offmap fit TRAIN --recipe {RECIPE} --out GATE"])
        (out / RECIPE).write_text(to_toml(self.recipe, comment=comment), encoding="utf-8")
        return out


@dataclass(frozen=True, eq=False)
class _Parts:
    """Rows that fit, that standardise, and that are tested; disjoint, by patient where known, copies together."""

    fit: np.ndarray
    held_out: np.ndarray
    test: np.ndarray


def recommend(
    train: Any,
    *,
    methods: Sequence[str] = (),
    recipe: str = recipes.STANDARD,
    encoder: Given | None = None,
    budget: str = "1F",
    limit: int = LIMIT,
    seed: int = 0,
    device: str = "auto",
    jobs: int | None = None,
    trust_classifier: bool = False,
    axes: str = "",
    progress: Progress | None = None,
    use_cache: bool = True,
) -> Recommendation:
    """Rank detectors with in-distribution images alone and recommend one.

    The images are divided into a part to fit on, a part to standardise on and a part to test. Test images are copied: with drawn
    lesions, with pasted pieces, and with corruptions of the whole image. A detector is as good as it tells the copies from the clean
    test images, mean over parts and whole. No out-of-distribution image is used.

    Args:
        train: as for ``offmap.fit``.
        methods: names of detectors; none named: all that can run.
        recipe: what surrounds the detector: steps, encoder, thresholds.
        encoder: as for ``offmap.fit``.
        budget: network passes per image that a detector may take, ``1F``, ``2F+1B`` or ``any``.
        limit: a random choice of so many images is read.
        seed: of every random choice.
        device, jobs, trust_classifier, axes, progress: as for ``offmap.fit``.

    Raises:
        ConfigError: an unknown method, a budget that is none, a limit below the smallest number, or a recipe without a window.
        DataError: too few usable images, or no method could be run (with the reasons).
    """
    if limit < SMALLEST:
        raise ConfigError(f"limit = {limit}: at least {SMALLEST} images are needed to compare detectors, 200 or more are better")
    spec = encoder if isinstance(encoder, str) else None
    plan = recipes.with_choices(recipes.read(recipe), encoder=spec, layers=(), alpha=None)
    if not plan.prepare or plan.prepare[0][0] != "window":
        raise ConfigError(f"recipe {recipe}: the first step must be [prepare.window], so that damage has a known strength")
    if tested := sorted(set(plan.encoder.proxies) & set(CORRUPTIONS)):
        raise ConfigError(f"recipe {recipe}: the proxies {', '.join(tested)} are also what is tested; name phantom families instead")
    where, entered = resolve_device(device), enter(methods)
    given = plan.encoder.spec if encoder is None or isinstance(encoder, str) else encoder
    network = open_encoder(
        given,
        layers=plan.encoder.layers,
        device=str(where),
        trust_classifier=trust_classifier,
        text=plan.encoder.text,
        exits=plan.encoder.exits,
    )
    network = with_proxies(network, frozenset().union(*(one.needs for one in entered)), plan.encoder.proxies)
    screen(entered, network, budget)
    needs = frozenset().union(*(one.needs for one in entered if not one.reason))
    if not needs:
        raise DataError("no method can be run: " + "; ".join(f"{one.name} {one.reason}" for one in entered[:5]))
    workers = cores() if jobs is None else jobs
    stream = Stream(network, plan.preparation(network.input.size), needs, jobs=workers, fingerprint=True, use_cache=use_cache, device=where)
    run = _Run(train, axes, plan, stream, seed, limit, progress or _silent)
    return run.recommend(entered)


def _silent(event: dict[str, Any]) -> None:
    """No one listens."""


@dataclass(frozen=True, eq=False)
class _Run:
    """One recommendation under way."""

    train: Any
    axes: str
    plan: Recipe
    stream: Stream
    seed: int
    limit: int
    progress: Progress

    def recommend(self, entered: list[Contestant]) -> Recommendation:
        layers = self.stream.encoder.layers
        data, seen = Collected(), dict[str, Source]()
        with SignalStore(layers, map_rows=MAP_ROWS) as store, SignalStore(layers) as vectors:
            self._read(store, data, seen)
            parts, units = self._divide(data)
            clean = [data.kept[row] for row in parts.test]
            rows = {image.digest: i for i, image in enumerate(clean)}
            running = [one for one in entered if not one.reason]
            self._fit(running, store, parts)
            kept = Kept(vectors)
            score_all(running, self._copies(running, rows, seen), rows, kept)
            standings = self._stand(running, units)
            standings += self._fuse(standings, store, parts, kept, units)
        return self._finish(entered, ranks.order(standings), data, parts)

    def _read(self, store: SignalStore, data: Collected, seen: dict[str, Source]) -> None:
        """Signals of the images in their random file form, as the gate will be fitted on them."""
        stream = replace(self.stream, form_seed=self.seed if self.plan.forms.random else None)
        if is_array(self.train):
            batches, total = stream.over_images(images(self.train, axes=self.axes)), None
        else:
            found = paths(self.train, volumes=False).sources
            order = np.random.default_rng(self.seed).permutation(len(found))
            batches, total = stream.over([found[i] for i in order]), len(found)
        collect(_noting(batches, seen), store, data, limit=self.limit, labels={}, total=total, progress=self.progress)
        if data.n < SMALLEST:
            reasons = ", ".join(sorted({d.reason for d in data.dropped}))
            dropped = f"; {len(data.dropped)} could not be used ({reasons})" if data.dropped else ""
            have = f"{count(data.n, 'image')} to compare detectors on{dropped}"
            raise DataError(f"{have}. At least {SMALLEST} are needed, 200 or more are better")
        if all(data.labels):
            store.add("label", codes(data.labels)[0])

    def _divide(self, data: Collected) -> tuple[_Parts, np.ndarray]:
        """Parts, and for each test image the number of its unit (patient or cluster of copies)."""
        groups, digests, copies = [i.group for i in data.kept], [i.digest for i in data.kept], data.copies()
        test = max(0.25 * min(1.0, 4 * MOST / data.n), 10 / data.n)
        fit, held, tested = split(groups, digests, shares=(0.8 - test, 0.2, test), seed=self.seed, copies=copies)
        unique = list({digests[row]: row for row in tested}.values())[:MOST]
        if len(unique) < ranks.FEWEST or len(fit) < 2 or len(held) < 2:
            raise DataError(
                f"{data.n} images fall into parts of {len(fit)}, {len(held)} and {len(unique)} different ones by patient and copies; "
                f"at least {ranks.FEWEST} are needed to test on: give images of more patients, or remove copies"
            )
        cluster = {row: n for n, rows in enumerate(copies) for row in rows}
        names = [groups[row] or (f"copies {cluster[row]}" if row in cluster else f"image {row}") for row in unique]
        number = {name: i for i, name in enumerate(dict.fromkeys(names))}
        if len(number) < FEWEST_UNITS:
            raise DataError(
                f"the {len(names)} test images are of {len(number)} patients (or clusters of copies); at least {FEWEST_UNITS} are needed"
            )
        return _Parts(fit, held, np.array(unique)), np.array([number[name] for name in names])

    def _fit(self, running: Sequence[Contestant], store: SignalStore, parts: _Parts) -> None:
        for done, one in enumerate(running):
            self.progress({"event": "recommend_fit", "done": done, "total": len(running)})
            one.fit(store, parts.fit, parts.held_out, seed=self.seed, device=self.stream.device)

    def _copies(self, running: Sequence[Contestant], rows: dict[str, int], seen: dict[str, Source]) -> Iterator[Batch]:
        """Batches of the copies of all test images; the clean ones are among them."""
        reads = frozenset().union(*(one.detector.needs for one in running))
        stream = replace(self.stream, encoder=without_proxies(self.stream.encoder), needs=reads)
        work = CopyWork(steps=stream.preparation.to_json(), limits=stream.limits, wanted=frozenset(rows), seed=self.seed)
        total, done = len(rows) * len(KINDS), 0
        with Workers(work, jobs=0 if is_array(self.train) else stream.jobs, limits=stream.limits) as workers:
            messages: Iterable[tuple[Source, Message]]
            if is_array(self.train):
                own = (image for image in images(self.train, axes=self.axes) if image.digest in rows)
                messages = ((_NOWHERE, message) for image in own for message in work.copies(image))
            else:
                sources = {(s.path, s.item, s.key): s for s in map(seen.__getitem__, rows)}
                messages = workers.run(list(sources.values()))
            for batch in stream.over_messages(messages):
                done += len(batch.entries)
                self.progress({"event": "recommend_copies", "done": done, "total": total})
                yield batch

    def _stand(self, scored: Sequence[Contestant], units: np.ndarray) -> list[Standing]:
        fine = [one for one in scored if not one.reason]
        if not fine:
            raise DataError("no method could be run: " + "; ".join(f"{one.name}: {one.reason}" for one in scored[:5]))
        used = ranks.usable(fine)
        draws = ranks.Draws.of(units, seed=self.seed)
        return [ranks.measure(one, draws, used) for one in fine]

    def _fuse(self, standings: list[Standing], store: SignalStore, parts: _Parts, kept: Kept, units: np.ndarray) -> list[Standing]:
        """Fusions of the best two and three that read vectors only."""
        names = [s.one.name for s in ranks.order(standings) if _vectors(s.one)]
        fusions = [Fusion(methods=tuple(names[:n])) for n in (2, 3) if len(names) >= n]
        made = [Contestant(f"fusion of {' + '.join(f.methods)}", f) for f in fusions]
        self._fit(made, store, parts)
        for one in made:
            if not one.reason:
                kept.score(one, len(parts.test), self.stream.device)
        return self._stand(made, units) if any(not one.reason for one in made) else []

    def _finish(self, entered: Sequence[Contestant], standings: list[Standing], data: Collected, parts: _Parts) -> Recommendation:
        chosen = ranks.choose(standings)
        sizes = (len(parts.fit), len(parts.held_out), len(parts.test))
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        found = evidence(chosen, standings, sizes=sizes, seed=self.seed, date=now, digest=data.digest(), encoder=self.stream.encoder.name)
        detector = chosen.one.detector
        plan = replace(self.plan, name=Path(RECIPE).stem, parts={detector.method(): detector}, evidence=found)
        own = next(iter(self.plan.parts.values()))
        notes = warnings(data, data.copies())
        return Recommendation(plan, told(chosen, standings, entered, own, found, notes), tuple(standings))


def _vectors(one: Contestant) -> bool:
    """Whether it can be a part of a fusion over the vectors that were kept."""
    return not isinstance(one.detector, Fusion) and not any(n.startswith("feature_map") or n == "image" for n in one.needs)


def _noting(batches: Iterable[Batch], seen: dict[str, Source]) -> Iterator[Batch]:
    """Batches as they pass, remembering which source each image came from."""
    for batch in batches:
        for entry, source in zip(batch.entries, batch.sources, strict=True):
            if isinstance(entry, Image):
                seen.setdefault(entry.digest, source)
        yield batch
