"""offmap explain: one image, looked at closely."""

from pathlib import Path
from typing import Annotated

import typer

from offmap.cli import options, outputs
from offmap.cli.exits import say
from offmap.cli.progress import emit

Abstain = Annotated[
    Path | None,
    typer.Option("--abstain", metavar="DIR", help="Folder of 'offmap evaluate --gate': would the answer be believed at that risk limit?"),
]
AbstainBy = Annotated[
    str,
    typer.Option(
        "--abstain-by", metavar="COLUMN", help="Number whose limit decides: max_probability, negative_entropy, score, score.NAME."
    ),
]


def explain(
    gate: options.Gate,
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="One image, given like an input of 'offmap score'.", show_default=False)],
    *,
    out: options.Out,
    abstain: Abstain = None,
    abstain_by: AbstainBy = "",
    encoder: options.Encoder = None,
    device: options.Device = "auto",
    trust_classifier: options.TrustClassifier = False,
    expect: options.Expect = None,
    json_lines: options.Json = False,
) -> None:
    """Show where one image is odd, the in-distribution images nearest to it, and whether the classifier's answer is believable."""
    outputs.folder(out)
    import offmap
    from offmap.report.answer import told
    from offmap.report.words import WITHHELD

    loaded = offmap.load(gate, expect=expect, encoder=encoder, trust_classifier=trust_classifier, device=device)
    found = loaded.explain(image, abstain=abstain, abstain_by=abstain_by)
    found.save(out)
    if json_lines:
        answer = {} if found.row.answer is None else {"answer": found.row.answer.facts()}
        emit({"event": "done", "out": str(out), "verdict": found.row.verdict, **answer})
    else:
        if found.row.answer is not None:
            words = told(found.row.answer, flagged=found.row.verdict != "accept")
            say(f"In scope: {found.row.verdict}, {found.row.surprise_bits:.1f} bits")
            say(f"Answer: {words.headline}. Would abstain at your risk limit: {words.decision} ({words.because})")
            if words.caution:
                say(words.caution)
        if found.withheld:
            say(f"No map: {WITHHELD}.")
        say(f"Look at {out / 'index.html'}")
