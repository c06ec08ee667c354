"""What a benchmark runs: which methods, what each reads, and why some cannot run."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from offmap.core import registry
from offmap.core.component import nearest
from offmap.core.detector import Detector, missing
from offmap.core.encoder import Encoder
from offmap.core.errors import ConfigError
from offmap.core.signals import is_map
from offmap.pipeline.recipe import Recipe
from offmap.represent.layers import wanted
from offmap.represent.proxy import with_proxies

BASELINE = "intensity"
"""Always a row: what a method over features is worth, it must show against grey values and spectrum alone."""

HEAD = frozenset({"logits", "head.weight", "head.bias", "features.penultimate"})
"""Signals that follow from pooled features and a head, without another pass."""

PLAIN = ("features.", "feature_map.", "image", "proxy_features.", "text.")
"""How signals begin that need no head."""

Reads = Literal["vectors", "large", "passes"]
"""``vectors``: kept for all images; ``large``: maps and images, handed on batch by batch; ``passes``: more passes through a classifier."""


@dataclass(frozen=True)
class Method:
    """A detector of the benchmark.

    Args:
        name: of its row.
        detector: with its parameters.
        reads: how its signals come.
        lacking: why it cannot run at all; empty when it can.
    """

    name: str
    detector: Detector
    reads: Reads
    lacking: str = ""

    @property
    def score_needs(self) -> frozenset[str]:
        """Signals for scoring."""
        return self.detector.needs

    def fit_names(self, provides: Iterable[str]) -> frozenset[str]:
        """Signals for fitting, with those that it uses where they are there."""
        provided = tuple(provides)
        uses = {u for u in self.detector.fit_uses if not is_map(u) and not missing([u], provided)}
        return self.detector.needs | self.detector.fit_needs | uses

    @property
    def uses_labels(self) -> bool:
        """Whether fitting reads labels where there are some."""
        return "label" in self.detector.fit_needs | self.detector.fit_uses


def choose(asked: Sequence[str], encoder: Encoder, *, recipe: Recipe | None = None, trained: bool = False) -> tuple[Method, ...]:
    """The methods asked for, or all; the intensity baseline is always among them.

    Every detector is a row with its defaults. A part of the recipe with other parameters is a row of its own, under its name there.

    Args:
        asked: names of detectors or of parts of the recipe; empty = all.
        encoder: that gives the signals.
        recipe: whose parts take part.
        trained: whether its head is trained anew for each division, so that further passes are of that division only.

    Raises:
        ConfigError: an unknown name, with the nearest one.
    """
    known = {name: cls() for name, cls in registry.load_all("score", Detector).items()}
    parts = {} if recipe is None else recipe.parts
    known |= {name: detector for name, detector in parts.items() if detector != known.get(detector.method())}
    for name in asked:
        if name not in known:
            raise ConfigError(f"there is no method {name!r}{nearest(name, list(known))}. `offmap methods` lists all")
    names = list(dict.fromkeys([*asked, BASELINE])) if asked else list(known)
    return tuple(_method(name, known[name], encoder, trained) for name in names)


def _method(name: str, detector: Detector, encoder: Encoder, trained: bool) -> Method:
    needs = (detector.needs | detector.fit_needs) - {"label"}
    lacking = missing(needs, with_proxies(encoder, needs).provides)
    large = any(n == "image" or n.startswith("feature_map") for n in detector.needs)
    passes = trained and any(n not in HEAD and not n.startswith(PLAIN) for n in needs)
    reason = f"needs {', '.join(lacking)}, which {encoder.name} does not give" if lacking else ""
    if "ensemble.logits" in lacking:
        reason += ": give several classifiers, from Python (encoder=[one, two, three])"
    elif any(not n.startswith(PLAIN) for n in lacking):
        reason += ": give a classifier with --encoder, or a suite with labels"
    if not (lacking or passes):
        reason = _refusal(encoder, detector)
    if detector.stream:
        reason = "its score depends on the images before; sets that are scored one after the other would each be a stream of one kind"
    return Method(name, detector, "large" if large else "passes" if passes else "vectors", reason)


def _refusal(encoder: Encoder, detector: Detector) -> str:
    """Why the network cannot give what it names; empty when it can."""
    try:
        encoder.ready(detector.needs)
    except ConfigError as error:
        return str(error)
    return ""


def needs_of(methods: Iterable[Method], provides: frozenset[str], *, fit: bool) -> tuple[frozenset[str], frozenset[str]]:
    """Vector signals and large signals that runnable methods read, of those that the encoder gives.

    Args:
        fit: for fitting as well, or for scoring only.
    """
    asked: set[str] = set()
    for method in methods:
        if not method.lacking and method.reads != "passes":
            asked |= method.fit_names(provides) if fit else method.score_needs
    asked -= {"label"}
    given = {n for n in asked if not missing([n], provides)}
    large = {n for n in given if n == "image" or n.startswith("feature_map")}
    return frozenset(given - large), frozenset(large)


def names_for(method: Method, there: Mapping[str, object], layers: Sequence[str], *, fit: bool) -> frozenset[str]:
    """Names of the signals that a method gets, of those that are there; ``features.*`` reaches the encoder's layers only."""
    asked = method.fit_names(there) if fit else method.score_needs
    return wanted(asked, there, layers)
