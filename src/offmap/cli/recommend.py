"""offmap recommend: which detector for these images, by in-distribution images alone."""

from typing import Annotated

import typer

from offmap.cli import options, outputs
from offmap.cli.exits import say
from offmap.cli.fit import RecipeName, Seed, Train
from offmap.cli.progress import emit, progress
from offmap.cli.tables import show
from offmap.core.allocator import keep_freed_memory

Methods = Annotated[str, typer.Option("--methods", metavar="A,B", help="Detectors to compare; all that can run if not given.")]
Budget = Annotated[str, typer.Option("--budget", metavar="PASSES", help="Network passes per image a detector may take: 1F, 2F+1B, any.")]
Limit = Annotated[int, typer.Option("--limit", metavar="N", min=1, help="Use a random choice of at most this many images.")]
SHOWN = 10
"""Detectors that are printed; the page and the table have all."""


def recommend(
    train: Train,
    *,
    out: options.Out,
    methods: Methods = "",
    recipe: RecipeName = "standard",
    encoder: options.Encoder = None,
    budget: Budget = "1F",
    limit: Limit = 1000,
    seed: Seed = 0,
    jobs: options.Jobs = None,
    device: options.Device = "auto",
    trust_classifier: options.TrustClassifier = False,
    no_cache: options.NoCache = False,
    json_lines: options.Json = False,
) -> None:
    """Rank detectors on in-distribution images alone, and write a recipe with the best."""
    outputs.folder(out)
    keep_freed_memory()
    import offmap
    from offmap.report.ranking import refuse_foreign

    refuse_foreign(out / "index.html")
    with progress(json_lines) as report:
        found = offmap.recommend(
            train,
            methods=[name.strip() for name in methods.split(",") if name.strip()],
            recipe=recipe,
            encoder=encoder,
            budget=budget,
            limit=limit,
            seed=seed,
            device=device,
            jobs=jobs,
            trust_classifier=trust_classifier,
            progress=report,
            use_cache=not no_cache,
        )
    found.save(out)
    if json_lines:
        emit({"event": "done", "out": str(out), "method": found.method, "evidence": dict(found.recipe.evidence)})
        return
    rows = [(s.rank, s.method, s.mean, s.low, s.high, s.local, s.whole, s.form) for s in found.ranking.ran[:SHOWN]]
    show(("rank", "detector", "mean AUROC", "from", "to", "parts", "whole", "file form"), rows)
    for line in (f"Recommended: {found.ranking.title}", *found.ranking.sentences, *(f"Note: {text}" for text in found.ranking.warnings)):
        say(line)
    say(f"Next: offmap fit TRAIN --recipe {out / 'recipe.toml'} --out GATE    All of it: {out / 'index.html'}")
