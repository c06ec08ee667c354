"""From the name of a suite to tables, plots and a page: what ``offmap benchmark`` does."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from offmap.benchmark.checkpoint import open_classifier
from offmap.benchmark.findings import write
from offmap.benchmark.guards import ToldApart, file_statistics, told_apart
from offmap.benchmark.plan import choose
from offmap.benchmark.results import Results, evaluate, kinds
from offmap.benchmark.run import Bench
from offmap.benchmark.setup import Setup
from offmap.benchmark.suite import Suite, read_suite
from offmap.benchmark.summary import Line, summarise
from offmap.core.encoder import Encoder
from offmap.core.errors import ConfigError
from offmap.pipeline import recipe as recipes
from offmap.pipeline.gate import cores
from offmap.pipeline.recipe import Recipe
from offmap.pipeline.stream import Progress
from offmap.represent.device import resolve_device
from offmap.represent.open import Given, open_encoder
from offmap.represent.probe import Backboned, probed, width
from offmap.represent.slices import SliceWise


@dataclass(frozen=True, eq=False)
class Comparison:
    """What a benchmark found.

    Args:
        bench: signals, divisions, classifiers and trials.
        results: the tidy table.
        summary: one line a method, best near mean first.
        apart: pairs of sets and how well file statistics alone separate them.
    """

    bench: Bench
    results: Results
    summary: list[Line]
    apart: list[ToldApart]


def compare(
    suite: str | Path,
    *,
    out: str | Path,
    data: str | Path | None = None,
    methods: Sequence[str] = (),
    encoder: Given | None = None,
    recipe: str = recipes.STANDARD,
    seeds: int | None = None,
    jobs: int | None = None,
    device: str = "auto",
    trust_classifier: bool = False,
    progress: Progress | None = None,
) -> Comparison:
    """Run a suite and write everything into a folder; a second run in the same folder goes on where the first one stopped.

    Args:
        suite: a ``.toml`` file or the name of one that comes with offmap.
        out: folder for tables, plots, the page, and the signals and trials that a second run uses again.
        data: folder that paths of the suite are relative to, in place of its own.
        methods: names of detectors, or of the recipe's parts; all when empty. The intensity baseline is always there.
        encoder: ``builtin``, ``hub:NAME_OR_DIR``, ``classifier:FILE`` or a module; the suite's classifier, else the recipe's, if not given.
        recipe: whose preparation and file forms are used; its parts are rows of their own where their parameters are not the defaults.
        seeds: number of divisions; as the suite says if not given.
        jobs: decode workers; the number of cores if not given.
        device: ``auto``, ``cpu``, ``cuda``, ``mps``.
        trust_classifier: allow ``classifier:FILE`` to run the program in that file.
        progress: called with events.

    Raises:
        ConfigError: the suite, a method or the encoder makes no sense, or no in-distribution set is there.
    """
    asked, plan, place = read_suite(suite, data), recipes.read(recipe), resolve_device(device)
    network, base = _encoder(asked, plan, encoder, str(place), trust_classifier)
    setup = Setup(
        suite=asked,
        out=Path(out),
        encoder=network,
        recipe=plan,
        methods=choose(methods, network, recipe=plan, trained=base is not None),
        seeds=_seeds(asked, seeds),
        base=base,
        jobs=cores() if jobs is None else jobs,
        device=place,
        progress=progress,
    )
    bench = Bench(setup)
    bench.run()
    results = evaluate(bench)
    found = Comparison(bench, results, summarise(results, dict(kinds(bench))), _apart(bench))
    write(found.bench, found.results, found.summary, found.apart)
    return found


def _encoder(suite: Suite, plan: Recipe, given: Given | None, device: str, trust: bool) -> tuple[Encoder, Encoder | None]:
    """The encoder, and the one under its head where the head is trained on the suite's labels.

    A classifier that the user gives keeps its head; that of a hub model, which knows other classes, is replaced.
    """
    published = [each.classifier for each in suite.ids if each.classifier is not None]
    if given is None and published:
        if len(suite.ids) > 1:
            raise ConfigError(
                f"suite {suite.name} names a classifier and has {len(suite.ids)} in-distribution sets; give one with --encoder"
            )
        return open_classifier(published[0], suite.folder, device=device), None
    chosen = plan.encoder.spec if given is None else given
    network = open_encoder(
        chosen, layers=plan.encoder.layers, device=device, trust_classifier=trust, text=plan.encoder.text, exits=plan.encoder.exits
    )
    if suite.volumes:
        return SliceWise(network), None
    if not any(each.labels for each in suite.ids) or not isinstance(network, Backboned):
        return network, None
    size = width(network)
    return probed(network, torch.zeros(2, size), torch.zeros(2), device=device), network


def _seeds(suite: Suite, count: int | None) -> tuple[int, ...]:
    if count is None:
        return suite.seeds
    if count < 1:
        raise ConfigError(f"seeds = {count}: one division or more is needed")
    more = range(max(suite.seeds) + 1, max(suite.seeds) + 1 + count)
    return (*suite.seeds, *more)[:count]


def _apart(bench: Bench) -> list[ToldApart]:
    """How well files alone separate every pair that is compared."""
    setup = bench.setup
    found = {}
    names = [name for own in bench.own for name in (own, *setup.others(own)) if setup.suite.corruption(name) is None]
    for name in dict.fromkeys(names):
        found[name] = file_statistics(bench.items(name), name)
    return [told_apart(found[own], found[other]) for own in bench.own for other in setup.others(own) if other in found]
