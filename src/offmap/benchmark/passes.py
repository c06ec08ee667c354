"""Methods that take further passes through a classifier whose head is trained anew for each division."""

from collections.abc import Sequence

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


def pass_trials(setup: Setup, own: str, seed: int, division: Division, head: Head, methods: Sequence[Method]) -> dict[str, Trial]:
    """Trials of some methods on one division; every set goes through the classifier once for all of them.

    Args:
        methods: those whose ``reads`` is ``passes``.
    """
    if setup.base is None:
        raise ConfigError("no classifier is trained in this benchmark")
    encoder = probed(setup.base, head.weight, head.bias, device=setup.device)
    return _Passes(setup, own, seed, encoder, tuple(methods)).run(division)


class _Passes:
    """One division: its classifier, and the methods that are still in the running."""

    def __init__(self, setup: Setup, own: str, seed: int, encoder: Encoder, methods: tuple[Method, ...]) -> None:
        self.setup, self.own, self.seed, self.encoder = setup, own, seed, encoder
        self.trials: dict[str, Trial] = {}
        self.running: dict[str, Running] = {}
        self.methods = tuple(m for m in methods if self._ready(m))

    def run(self, division: Division) -> dict[str, Trial]:
        """Fit, score every set, give the trials."""
        self._fit(division)
        for name in (self.own, *self.setup.others(self.own)):
            if self.running:
                made = self.setup.suite.corruption(name) is not None
                items = division.test if made else np.arange(len(self.setup.suite.items(name)))
                self._score(name, self._encoded(name, np.sort(items), fit=False))
        done = {name: run.finish(self._key(self._method(name))) for name, run in self.running.items()}
        return {**self.trials, **done}

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
