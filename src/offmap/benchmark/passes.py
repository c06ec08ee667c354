"""Methods that take further passes through a classifier whose head is trained anew for each division."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from offmap.benchmark.classifier import Head, codes
from offmap.benchmark.encoded import Encoded, Reading
from offmap.benchmark.plan import Method, names_for
from offmap.benchmark.rows import Rows, with_alias
from offmap.benchmark.setup import Setup
from offmap.benchmark.suite import Division
from offmap.benchmark.trial import Running, Trial, failure, fit
from offmap.core.encoder import Encoder
from offmap.core.errors import ConfigError
from offmap.represent.probe import probed


def pass_trials(
    setup: Setup, own: str, seed: int, division: Division, head: Head, methods: Sequence[Method], sets: Mapping[str, Encoded]
) -> dict[str, Trial]:
    """Trials of some methods on one division; every set goes through the classifier once for all of them.

    Args:
        sets: images of each set that could be assessed.
        methods: those whose ``reads`` is ``passes``.
    """
    if setup.base is None:
        raise ConfigError("no classifier is trained in this benchmark")
    encoder = probed(setup.base, head.weight, head.bias, device=setup.device)
    return _Passes(setup, own, seed, encoder, tuple(methods), sets).run(division)


class _Passes:
    """One division: its classifier, and the methods that are still in the running."""

    def __init__(
        self, setup: Setup, own: str, seed: int, encoder: Encoder, methods: tuple[Method, ...], sets: Mapping[str, Encoded]
    ) -> None:
        self.setup, self.own, self.seed, self.encoder, self.sets = setup, own, seed, encoder, sets
        self.trials: dict[str, Trial] = {}
        self.running: dict[str, Running] = {}
        self.methods = tuple(m for m in methods if self._ready(m))

    def run(self, division: Division) -> dict[str, Trial]:
        """Fit, score every set, give the trials; of the in-distribution set only test images are scored, the others are NaN."""
        self._fit(division)
        suite = self.setup.suite
        order: dict[str, np.ndarray] = {}
        for name in (self.own, *self.setup.others(self.own)) if self.running else ():
            count = len(suite.items(name))
            part = name == self.own or suite.corruption(name) is not None
            encoded = self._encoded(name, np.sort(division.test) if part else np.arange(count), fit=False)
            self._score(name, encoded)
            order[name] = encoded.at
        done = {name: run.finish(self._key(self._method(name))) for name, run in self.running.items()}
        return {**self.trials, **{name: replace(trial, scores=self._spread(trial, order)) for name, trial in done.items()}}

    def _spread(self, trial: Trial, order: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One number for each row of a set; NaN where an image was not asked for."""
        out = {}
        for name, scores in trial.scores.items():
            out[name] = np.full(len(self.sets[name].at), np.nan, dtype=np.float32)
            out[name][self.sets[name].rows(order[name])] = scores[np.isin(order[name], self.sets[name].at)]
        return out

    def _ready(self, method: Method) -> bool:
        try:
            self.encoder.ready(method.detector.needs)
        except ConfigError as error:
            self.trials[method.name] = failure(error, self._key(method))
            return False
        return True

    def _fit(self, division: Division) -> None:
        items = np.concatenate([division.fit, division.held_out])
        encoded = self._encoded(self.own, np.sort(items), fit=True)
        vectors = with_alias(encoded.vectors, self.encoder.layers)
        if self.own in self.setup.heads:
            numbers, _ = codes([item.label for item in self.setup.suite.items(self.own)])
            vectors["label"] = torch.from_numpy(numbers[encoded.at])
        for method in self.methods:
            names = names_for(method, vectors, self.encoder.layers, fit=True)
            parts = [Rows(vectors, encoded.rows(part), names, self.setup.device) for part in (division.fit, division.held_out)]
            try:
                self.running[method.name] = fit(method.detector, *parts, seed=self.seed)
            except Exception as error:  # one method must not stop the others; its row says why
                self.trials[method.name] = failure(error, self._key(method))

    def _score(self, name: str, encoded: Encoded) -> None:
        vectors = with_alias(encoded.vectors, self.encoder.layers)
        for method in [m for m in self.methods if m.name in self.running]:
            names = names_for(method, vectors, self.encoder.layers, fit=False)
            try:
                self.running[method.name].score(name, Rows(vectors, np.arange(len(encoded.at)), names, self.setup.device))
            except Exception as error:  # as above
                del self.running[method.name]
                self.trials[method.name] = failure(error, self._key(method))

    def _encoded(self, name: str, items: np.ndarray, *, fit: bool) -> Encoded:
        setup, provides = self.setup, self.encoder.provides
        needs = frozenset().union(*(m.fit_names(provides) if fit else m.score_needs for m in self.methods)) - {"label"}
        reading = Reading(self.encoder, setup.reading(needs).preparation, needs, setup.out / "signals", setup.jobs, device=setup.device)
        damage = setup.damage(name, items)
        form_seed = setup.form_seed if fit else None
        return reading.encode(name, setup.suite.items(name), form_seed=form_seed, only=items, damage=damage, keep=False)

    def _method(self, name: str) -> Method:
        return next(m for m in self.methods if m.name == name)

    def _key(self, method: Method) -> str:
        return self.setup.key(self.own, self.seed, method)
