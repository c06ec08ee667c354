"""Everything of a benchmark that is chosen before an image is read, and the key under which a trial is kept."""

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int

import offmap
from offmap.benchmark.corrupted import Damage
from offmap.benchmark.encoded import Reading, stamp
from offmap.benchmark.plan import Method
from offmap.benchmark.suite import Suite
from offmap.benchmark.trial import Trial, settings
from offmap.core.encoder import Encoder
from offmap.pipeline.recipe import Recipe
from offmap.pipeline.stream import Progress
from offmap.represent.proxy import with_proxies

FORM_SEED = 0
"""Of the random file form that each image to fit on gets, where the recipe asks for one."""


@dataclass(frozen=True)
class Setup:
    """What a benchmark runs, on what, and where.

    Args:
        out: folder of the results; signals and trials of an earlier run in it are used again.
        encoder: of all methods.
        base: where a classifier is trained on the suite's labels: the encoder under its head, which in ``encoder`` is a placeholder.
        recipe: preparation and file forms.
        methods: rows of the table.
        seeds: one division of each in-distribution set a seed.
        jobs: decode workers.
    """

    suite: Suite
    out: Path
    encoder: Encoder
    recipe: Recipe
    methods: tuple[Method, ...]
    seeds: tuple[int, ...]
    base: Encoder | None = None
    jobs: int = 1
    device: torch.device = field(default=torch.device("cpu"))
    progress: Progress | None = None

    @cached_property
    def own(self) -> tuple[str, ...]:
        """In-distribution sets whose images are there."""
        return tuple(name for name in self.suite.own if not self.suite.absent(name))

    @cached_property
    def heads(self) -> frozenset[str]:
        """In-distribution sets on whose labels a classifier is trained."""
        labelled = (name for name in self.own if self.suite.in_distribution(name).labels)
        return frozenset(labelled) if self.base is not None else frozenset()

    @cached_property
    def fit_encoder(self) -> Encoder:
        """The encoder, with proxy features where a method is fitted on them."""
        needs = frozenset().union(*(m.detector.fit_needs for m in self.methods if not m.lacking))
        return with_proxies(self.encoder, needs, self.recipe.encoder.proxies)

    @cached_property
    def form_seed(self) -> int | None:
        """Of the forms of images to fit on; None = as they are."""
        return FORM_SEED if self.recipe.forms.random else None

    def others(self, own: str) -> dict[str, str]:
        """Sets that are there and compared with an in-distribution set, and how."""
        return {name: kind for name, kind in self.suite.others(own).items() if not self.suite.absent(name)}

    def damage(self, name: str, wanted: Int[np.ndarray, " n"] | None = None) -> Damage | None:
        """What makes a set of corrupted images; None for sets of files.

        Args:
            wanted: positions of the items to damage; all when None.
        """
        made, items = self.suite.corruption(name), self.suite.items(name)
        if made is None:
            return None
        chosen = items if wanted is None else [items[i] for i in wanted.tolist()]
        return Damage(made[1], made[2], frozenset(item.name for item in chosen))

    def reading(self, needs: frozenset[str], *, fit: bool = False) -> Reading:
        """How images become signals, for fitting or as they are."""
        preparation = self.recipe.preparation(self.encoder.input.size)
        return Reading(
            self.fit_encoder if fit else self.encoder,
            preparation,
            needs,
            self.out / "signals",
            self.jobs,
            self.suite.volumes,
            self.device,
            self.progress,
        )

    def tell(self, event: str, done: int, total: int) -> None:
        """Progress."""
        if self.progress is not None:
            self.progress({"event": event, "done": done, "total": total})

    def path(self, own: str, seed: int, method: Method) -> Path:
        """File of one trial."""
        return self.out / "trials" / own / str(seed) / f"{method.name}.safetensors"

    def key(self, own: str, seed: int, method: Method) -> str:
        """What the scores of a trial depend on."""
        text = json.dumps([settings(method.detector), seed, self._bases[own]], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def known(self, own: str, seed: int, method: Method) -> Trial | None:
        """A trial of an earlier run with the same key; one that failed is tried again."""
        trial = Trial.load(self.path(own, seed, method))
        return trial if trial is not None and trial.status == "ok" and trial.key == self.key(own, seed, method) else None

    def pending(self, own: str, method: Method) -> tuple[int, ...]:
        """Seeds for which a method has still to be run."""
        return () if method.lacking else tuple(seed for seed in self.seeds if self.known(own, seed, method) is None)

    @cached_property
    def _bases(self) -> dict[str, str]:
        """Digest of everything but method and seed, for each in-distribution set."""
        stamps: dict[str, str] = {}
        found = {}
        for own in self.own:
            for name in (own, *self.others(own)):
                if name not in stamps:
                    stamps[name] = stamp(self.suite.items(name))
            what = [
                offmap.__version__,
                self.encoder.sha256,
                self.encoder.config(),
                self.recipe.preparation(self.encoder.input.size).to_json(),
                self.form_seed,
                self.suite.shares,
                own,
                own in self.heads or self.suite.in_distribution(own).labels,
                *([self.seeds] if self.suite.corruptions else []),
                *([self.recipe.encoder.proxies] if self.recipe.encoder.proxies else []),
                {name: stamps[name] for name in (own, *self.others(own))},
            ]
            found[own] = hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()
        return found
