"""A whole benchmark: every set is read once, every method is fitted on every division, every trial is kept and can be resumed."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from offmap.benchmark.classifier import Head, codes, train_head
from offmap.benchmark.encoded import Encoded, Reading, Seen
from offmap.benchmark.large import LargeSignals
from offmap.benchmark.passes import pass_trials
from offmap.benchmark.plan import HEAD, Method, names_for, needs_of
from offmap.benchmark.rows import Rows, with_alias
from offmap.benchmark.setup import Setup
from offmap.benchmark.suite import Division, Item
from offmap.benchmark.trial import Running, Trial, failure, fit
from offmap.core import duplicates
from offmap.core.errors import ConfigError, DataError
from offmap.core.types import Image, Signals

PENULTIMATE = "features.penultimate"
Key = tuple[str, int, str]
"""In-distribution set, seed, method."""


@dataclass(frozen=True, eq=False)
class Own:
    """An in-distribution set in the form that is fitted on.

    Args:
        labels: class of each item; empty where the suite asks for none, or where there are not two classes.
        large: maps and images, while they are needed.
    """

    name: str
    formed: Encoded
    labels: tuple[str, ...]
    large: LargeSignals | None


@dataclass
class Bench:
    """One run.

    Args:
        sets: signals of every set as it is.
        formed: vectors of every in-distribution set in the form that is fitted on.
        divisions: of each in-distribution set and seed, as positions of items.
        heads: classifier of each in-distribution set and seed, where labels are there.
        trials: all that came of it.
        notes: sentences on sets and images that could not be used.
        undivided: in-distribution sets that are too small to be divided, and why.
    """

    setup: Setup
    sets: dict[str, Encoded] = field(default_factory=dict)
    formed: dict[str, Encoded] = field(default_factory=dict)
    divisions: dict[tuple[str, int], Division] = field(default_factory=dict)
    heads: dict[tuple[str, int], Head] = field(default_factory=dict)
    trials: dict[Key, Trial] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    undivided: dict[str, str] = field(default_factory=dict)

    @property
    def own(self) -> tuple[str, ...]:
        """In-distribution sets that are there and could be divided."""
        return tuple(name for name in self.setup.own if name not in self.undivided)

    def items(self, name: str) -> list[Item]:
        """Images of a set that was read, with the patients that their files name."""
        return self.sets[name].of(self.setup.suite.items(name))

    def run(self) -> None:
        """Everything, in the order in which each image is read once.

        Raises:
            ConfigError: no in-distribution set is there.
            DataError: none of them has enough images.
        """
        setup = self.setup
        if not setup.own:
            raise ConfigError(f"suite {setup.suite.name}: no in-distribution set is there ({setup.suite.absent(setup.suite.own[0])})")
        with ExitStack() as stack:
            owns = [own for name in setup.own if (own := self._own(name, stack)) is not None]
            if not owns:
                raise DataError("; ".join(f"{name}: {reason}" for name, reason in self.undivided.items()))
            self._read_sets(self._fit_large(owns))
        for own in owns:
            self._vector_trials(own)

    def _own(self, name: str, stack: ExitStack) -> Own | None:
        """Read an in-distribution set in the form that is fitted on, and divide it; None where it has too few images."""
        setup, suite = self.setup, self.setup.suite
        vectors, large = needs_of(setup.methods, setup.fit_encoder.provides, fit=True)
        items, reading = suite.items(name), setup.reading(vectors | self._head_needs(), fit=True)
        waiting = [m for m in setup.methods if m.reads == "large" and setup.pending(name, m)]
        needed = large.union(*(m.detector.needs for m in waiting))
        kept = stack.enter_context(LargeSignals(needed, setup.out / "signals")) if waiting else None
        formed = reading.known(name, items, form_seed=setup.form_seed) if kept is None else None
        if formed is None:
            seen = kept.add if kept is not None else None
            formed = reading.encode(name, items, form_seed=setup.form_seed, large=large if kept is not None else frozenset(), seen=seen)
        self.formed[name] = formed
        groups = duplicates.find(formed.prints, list(formed.digests)) if formed.prints is not None else []
        copies = [[int(formed.at[row]) for row in group] for group in groups]
        try:
            self.divisions |= {(name, seed): suite.split(name, seed, copies, formed.of(items)) for seed in setup.seeds}
        except DataError as error:
            self.undivided[name] = str(error)
            return None
        return Own(name, formed, self._labels(name), kept)

    def _labels(self, name: str) -> tuple[str, ...]:
        """Classes of the items of an in-distribution set, where the suite asks for them and they can be told apart."""
        suite = self.setup.suite
        labels = tuple(item.label for item in suite.items(name)) if suite.in_distribution(name).labels else ()
        try:
            codes(labels or ("a", "b"))
        except ConfigError as error:
            self.notes.append(f"no classes of {name} are used: {error}")
            return ()
        return labels

    def _head_needs(self) -> frozenset[str]:
        return frozenset({PENULTIMATE}) if self.setup.heads else frozenset()

    # methods that read maps and images ------------------------------------------------------------------------------

    def _fit_large(self, owns: Sequence[Own]) -> dict[Key, Running]:
        """Fit them on every division; they stay in memory until every set has gone by."""
        running: dict[Key, Running] = {}
        for own in owns:
            for method in self.setup.methods if own.large is not None else ():
                for seed in self.setup.pending(own.name, method) if method.reads == "large" else ():
                    self.setup.tell(f"{own.name}: {method.name}", seed, len(self.setup.seeds))
                    try:
                        running[own.name, seed, method.name] = fit(method.detector, *self._large_parts(own, seed, method), seed=seed)
                    except Exception as error:  # one method must not stop the others; its row says why
                        self._keep(own.name, seed, method, failure(error, self.setup.key(own.name, seed, method)))
        return running

    def _large_parts(self, own: Own, seed: int, method: Method) -> Iterator[Iterable[Signals]]:
        """Fit and held-out part as batches."""
        division, names = self.divisions[own.name, seed], method.fit_names(self.setup.encoder.provides)
        for part in (division.fit, division.held_out):
            items = own.formed.items(part)
            if own.large is not None:
                yield _labelled(own.large.batches(items, names, self.setup.device), own, items)

    def _read_sets(self, running: dict[Key, Running]) -> None:
        """Read every set as it is, and let the fitted methods score it while it goes by."""
        setup = self.setup
        vectors, large = needs_of(setup.methods, setup.encoder.provides, fit=False)
        reading = setup.reading(vectors | self._head_needs())
        everything = dict.fromkeys([*self.own, *(name for own in self.own for name in setup.others(own))])
        order: dict[str, list[int]] = {}
        for name in everything:
            listeners = {key: run for key, run in running.items() if name == key[0] or name in setup.others(key[0])}
            seen = _Scorer(name, listeners, order.setdefault(name, []), self) if listeners else None
            self.sets[name] = self._read(reading, name, large if listeners else frozenset(), seen)
            self.notes += _refused(name, self.sets[name])
        for (own, seed, name), run in running.items():
            if (own, seed, name) not in self.trials:
                method = self._method(name)
                ranks = {s: np.argsort(at, kind="stable") for s, at in order.items()}
                self._keep(own, seed, method, run.finish(setup.key(own, seed, method), ranks))

    def _read(self, reading: Reading, name: str, large: frozenset[str], seen: Seen | None) -> Encoded:
        """A set as it is, or the test images of all divisions with a corruption."""
        setup, items, made = self.setup, self.setup.suite.items(name), self.setup.suite.corruption(name)
        if made is not None:
            test = np.unique(np.concatenate([self.divisions[made[0], seed].test for seed in setup.seeds]))
            known = reading.known(name, [items[i] for i in test]) if seen is None else None
            kept = replace(known, at=test[known.at]) if known is not None else None
            return kept or reading.encode(name, items, only=test, damage=setup.damage(name, test), large=large, seen=seen, keep=False)
        known = reading.known(name, items) if seen is None else None
        return known or reading.encode(name, items, large=large, seen=seen)

    # methods that read vectors ------------------------------------------------------------------------------------------

    def _vector_trials(self, own: Own) -> None:
        setup = self.setup
        for seed in setup.seeds:
            if own.labels and own.name in setup.heads:
                self._train(own, seed)
            for method in setup.methods:
                known = setup.known(own.name, seed, method)
                if known is not None and self._aligned(known):
                    self.trials[own.name, seed, method.name] = known
                elif known is not None and method.reads == "large":
                    self._keep(own.name, seed, method, Trial("not_run", "other images could be read than in the run before: run again"))
                elif method.lacking:
                    self.trials[own.name, seed, method.name] = Trial("not_run", method.lacking)
                elif method.reads == "vectors":
                    setup.tell(f"{own.name}: {method.name}", seed, len(setup.seeds))
                    self._keep(own.name, seed, method, self._trial(own, seed, method))
            self._pass_trials(own, seed)

    def _aligned(self, trial: Trial) -> bool:
        """Whether a trial of an earlier run has a score for each image that could be read now."""
        return all(len(scores) == len(self.sets[name].at) for name, scores in trial.scores.items())

    def _pass_trials(self, own: Own, seed: int) -> None:
        """Methods of further passes, through the classifier of this division."""
        setup, head = self.setup, self.heads.get((own.name, seed))
        waiting = [m for m in setup.methods if m.reads == "passes" and (own.name, seed, m.name) not in self.trials]
        if head is None:
            found = {m.name: Trial("not_run", _unlabelled(own.name)) for m in waiting}
        elif waiting:
            setup.tell(f"{own.name}: further passes", seed, len(setup.seeds))
            found = pass_trials(setup, own.name, seed, self.divisions[own.name, seed], head, waiting, self.sets)
        for method in waiting:
            self._keep(own.name, seed, method, found[method.name])

    def _train(self, own: Own, seed: int) -> None:
        """The classifier of one division, trained on its fit part."""
        division, native = self.divisions[own.name, seed], self.sets[own.name]
        fit_rows, test_rows = own.formed.rows(division.fit), native.rows(division.test)
        features, test = own.formed.vectors[PENULTIMATE][fit_rows], native.vectors[PENULTIMATE][test_rows]
        labels = [own.labels[i] for i in own.formed.at[fit_rows]], [own.labels[i] for i in native.at[test_rows]]
        try:
            self.heads[own.name, seed] = train_head(features, labels[0], test, labels[1])
        except ConfigError as error:
            self.notes.append(f"no classifier was trained on {own.name} with seed {seed}: {error}")

    def _trial(self, own: Own, seed: int, method: Method) -> Trial:
        setup, key = self.setup, self.setup.key(own.name, seed, method)
        head = self.heads.get((own.name, seed))
        reads_head = bool(HEAD & (method.detector.needs | method.detector.fit_needs))
        if setup.base is not None and reads_head and head is None:
            return Trial("not_run", _unlabelled(own.name), key=key)
        if "label" in method.detector.fit_needs and not own.labels:
            return Trial("not_run", f"needs the classes of {own.name}: two or more, with labels = true in the suite", key=key)
        try:
            run = fit(method.detector, *self._fit_parts(own, seed, method, head), seed=seed)
            for name in (own.name, *setup.others(own.name)):
                signals = self._signals(self.sets[name].vectors, head)
                names = names_for(method, signals, setup.encoder.layers, fit=False)
                run.score(name, Rows(signals, np.arange(len(self.sets[name].at)), names, setup.device))
            return run.finish(key)
        except Exception as error:  # as above
            return failure(error, key)

    def _fit_parts(self, own: Own, seed: int, method: Method, head: Head | None) -> tuple[Rows, Rows]:
        division, signals = self.divisions[own.name, seed], self._signals(own.formed.vectors, head)
        names = names_for(method, signals, self.setup.encoder.layers, fit=True)
        if own.labels:
            numbers, _ = codes(own.labels)
            signals["label"] = torch.from_numpy(numbers[own.formed.at])
            names |= {"label"} if method.uses_labels else frozenset()
        fit_rows, held_rows = own.formed.rows(division.fit), own.formed.rows(division.held_out)
        return Rows(signals, fit_rows, names, self.setup.device), Rows(signals, held_rows, names, self.setup.device)

    def _signals(self, vectors: Mapping[str, Tensor], head: Head | None) -> dict[str, Tensor]:
        """Vectors with their alias, and with the logits of the trained head in place of the placeholder's."""
        signals = with_alias(vectors, self.setup.encoder.layers)
        if head is not None and PENULTIMATE in signals:
            signals |= {"logits": head.logits(signals[PENULTIMATE]), "head.weight": head.weight, "head.bias": head.bias}
        return signals

    def _method(self, name: str) -> Method:
        return next(m for m in self.setup.methods if m.name == name)

    def _keep(self, own: str, seed: int, method: Method, trial: Trial) -> None:
        self.trials[own, seed, method.name] = trial
        trial.save(self.setup.path(own, seed, method))


@dataclass(frozen=True, eq=False)
class _Scorer:
    """Lets fitted methods score each batch of a set that is read."""

    name: str
    listeners: dict[Key, Running]
    order: list[int]
    bench: Bench

    def __call__(self, at: Int[np.ndarray, " n"], images: Sequence[Image], signals: Mapping[str, Tensor]) -> None:
        self.order.extend(at.tolist())
        moved = {k: v.to(self.bench.setup.device) for k, v in signals.items()}
        for (own, seed, method), run in [*self.listeners.items()]:
            try:
                run.score(self.name, [moved])
            except Exception as error:  # as above
                del self.listeners[own, seed, method]
                found = self.bench._method(method)
                self.bench._keep(own, seed, found, failure(error, self.bench.setup.key(own, seed, found)))


def _labelled(batches: Iterable[Signals], own: Own, items: Int[np.ndarray, " n"]) -> Iterable[Signals]:
    """The batches with their labels, where there are some."""
    return _Labelled(batches, torch.from_numpy(codes(own.labels)[0][items])) if own.labels else batches


@dataclass(frozen=True, eq=False)
class _Labelled:
    batches: Iterable[Signals]
    labels: Int[Tensor, " n"]

    def __iter__(self) -> Iterator[Signals]:
        start = 0
        for batch in self.batches:
            count = len(next(iter(batch.values())))
            yield {**batch, "label": self.labels[start : start + count].to(next(iter(batch.values())).device)}
            start += count


def _unlabelled(name: str) -> str:
    return f"no classifier was trained on {name}: it has no labels, not all of them, or one class only"


def _refused(name: str, encoded: Encoded) -> list[str]:
    """A sentence on the images of a set that could not be used."""
    if not encoded.refused:
        return []
    reasons = sorted({reason for _, reason in encoded.refused})
    return [f"{len(encoded.refused)} images of {name} could not be used ({', '.join(reasons)}), for example {encoded.refused[0][0]!r}"]
