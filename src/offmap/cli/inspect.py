"""offmap inspect: a gate's card."""

from offmap.cli import options
from offmap.cli.progress import emit


def inspect(
    gate: options.Gate,
    *,
    encoder: options.Encoder = None,
    device: options.Device = "cpu",
    trust_classifier: options.TrustClassifier = False,
    expect: options.Expect = None,
    json_lines: options.Json = False,
) -> None:
    """Print a gate's card: data, steps, detectors, calibration, limits, hashes."""
    import offmap
    from offmap.pipeline.saved import read_card
    from offmap.report.card import text

    if encoder is None:
        card = read_card(gate, expect=expect)
    else:
        card = offmap.load(gate, expect=expect, encoder=encoder, trust_classifier=trust_classifier, device=device).card
    if json_lines:
        emit({"event": "done", "id": card["id"], "card": card})
    else:
        print(text(card))
