"""The card of a gate in words: what it was fitted on, how, what its degrees mean, and what it cannot do.

A card is a mapping of JSON values, as the gate's manifest keeps it. A key that is missing is left out; a key that is not
known here is shown at the end under its own name, so that nothing is lost.
"""

import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from markupsafe import Markup

from offmap.core.types import REASONS
from offmap.report.training import STEPS, course, figure, numbers
from offmap.report.words import count, number, one_in, percent, printable

LISTED = 20
"""Entries of a long list that are shown."""
LARGEST_CAP = 64.0
"""Bits; no calibration set has 2^64 images."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a card.

    Args:
        term: what it is.
        values: one or more short texts.
        code: hashes, file names and settings, shown in a fixed-width face.
    """

    term: str
    values: tuple[str, ...]
    code: bool = False


@dataclass(frozen=True, slots=True)
class Section:
    """A group of lines with a heading.

    Args:
        figure: what the page shows below the lines.
    """

    title: str
    entries: tuple[Entry, ...]
    figure: Markup = field(default_factory=Markup)


def sections(card: Mapping[str, Any]) -> list[Section]:
    """The card as groups of lines; empty groups are left out."""
    training = _mapping(card, "training")
    second = _mapping(training, "second")
    made = [
        ("Gate", _gate(card)),
        ("In-distribution data", _data(_mapping(card, "data"))),
        ("Preparation of every image", _sentences(card, "prepare", "Step")),
        ("Encoder", _encoder(_mapping(card, "encoder"))),
        ("Training of the network", _training(training)),
        ("Training of the second network", _training(second)),
        *((f"Detector {d.get('name') or d.get('method') or i}", _detector(d)) for i, d in enumerate(_mappings(card, "detectors"), 1)),
        ("Cascade", _cascade(_mapping(card, "cascade"))),
        ("Evidence for the choice of detector", _evidence(_mapping(card, "evidence"))),
        ("Calibration", _calibration(_mapping(card, "calibration"))),
        ("Limits", _sentences(card, "limits", "Limit")),
        ("Warnings", _sentences(card, "warnings", "Warning")),
        ("Further", _rest(card, _KNOWN)),
    ]
    shown = {"Training of the network": figure(training), "Training of the second network": figure(second)}
    return [Section(printable(title), tuple(map(_clean, entries)), shown.get(title, Markup(""))) for title, entries in made if entries]


def text(card: Mapping[str, Any], *, width: int = 100) -> str:
    """The card for a terminal.

    Args:
        card: JSON values of the gate's manifest.
        width: characters a line; a value that has no space may be longer.
    """
    found = sections(card)
    margin = min(26, max((len(e.term) for s in found for e in s.entries), default=0))
    lines: list[str] = []
    for section in found:
        lines += ["", section.title, "-" * len(section.title)] if lines else [section.title, "-" * len(section.title)]
        for entry in section.entries:
            for i, value in enumerate(entry.values):
                head = f"  {entry.term if i == 0 else '':<{margin}}  "
                lines += textwrap.wrap(
                    value,
                    max(width, margin + 30),
                    initial_indent=head,
                    subsequent_indent=" " * len(head),
                    break_long_words=False,
                ) or [head.rstrip()]
    return "\n".join(lines)


_KNOWN = frozenset(
    (
        "id",
        "created",
        "version",
        "recipe",
        "data",
        "prepare",
        "encoder",
        "training",
        "detectors",
        "cascade",
        "evidence",
        "calibration",
        "limits",
        "warnings",
    )
) | {"scored_share"}


def _gate(card: Mapping[str, Any]) -> list[Entry]:
    share = card.get("scored_share")
    scored = (
        [Entry("Share of the image scored", (f"{percent(share)} on average; outside it the map is empty",))] if _is_number(share) else []
    )
    return [
        *_plain(card, {"id": "Identity"}, code=True),
        *_plain(card, {"created": "Fitted", "version": "offmap version", "recipe": "Recipe"}),
        *scored,
    ]


def _data(data: Mapping[str, Any]) -> list[Entry]:
    out = _plain(data, {"n_found": "Files found", "n_used": "Images used", "n_skipped": "Passed over, no images"})
    dropped = data.get("dropped")
    if isinstance(dropped, Mapping) and dropped:
        out.append(
            Entry(
                "Left out", tuple(f"{_show(n)} {reason}: {REASONS.get(str(reason), 'no further detail')}" for reason, n in dropped.items())
            )
        )
    items = data.get("dropped_items")
    if isinstance(items, Sequence) and not isinstance(items, str) and items:
        names = [f"{i.get('item', '')} ({i.get('reason', '')})" if isinstance(i, Mapping) else str(i) for i in items]
        out.append(Entry("Files left out", _first(names), code=True))
    known, used = data.get("patients_known"), data.get("n_used")
    if isinstance(known, bool):
        out.append(Entry("Patients", ("known: parts were split by patient" if known else "not known: parts were split by image",)))
    elif isinstance(known, int):
        of = f" of {used:,}" if isinstance(used, int) else ""
        split = "parts were split by patient" if known else "parts were split by image, so images of one patient may lie on both sides"
        out.append(Entry("Patient known", (f"for {known:,}{of} images; {split}",)))
    out += _plain(data, {"duplicates": "Look like copies"})
    out += _plain(data, {"digest": "Digest of the data"}, code=True)
    return out + _rest(
        data, {"n_found", "n_used", "n_skipped", "dropped", "dropped_items", "patients_known", "duplicates", "digest", "scored_share"}
    )


def _encoder(encoder: Mapping[str, Any]) -> list[Entry]:
    return [
        *_plain(encoder, {"name": "Name"}),
        *_plain(encoder, {"sha256": "SHA-256"}, code=True),
        *_plain(encoder, {"layers": "Layers", "input": "Input"}),
        *_rest(encoder, {"name", "sha256", "layers", "input"}),
    ]


_TRAINED = {
    "trainer": "Trainer",
    "epochs": "Epochs",
    "kept_epoch": "Epoch kept",
    "validation_auroc": "Validation AUROC by epoch",
    "steps": "Steps",
    "kept_step": "Step kept",
    "seconds": "Seconds",
    "device": "Device",
}


def _courses(training: Mapping[str, Any]) -> list[Entry]:
    """What changed during a training: first, middle, last; all where there are few."""
    out = []
    for key in training:
        term, values = course(key), numbers(training[key])
        if not term or not values:
            continue
        few = list(values) if len(values) <= 12 else [values[round(i * (len(values) - 1) / 11)] for i in range(12)]
        out.append(Entry(term, (" ".join(_show(v) for v in few),)))
    return out


def _training(training: Mapping[str, Any]) -> list[Entry]:
    count, classes = _mapping(training, "images"), _mapping(training, "classes")
    words = {"train": "trained it", "checkpoint": "chose the checkpoint", "gate": "made the gate and trained nothing"}
    drawn = {key for key in training if course(key) or key.endswith(STEPS)}
    shares = tuple(f"{_show(count[key])} {text}" for key, text in words.items() if key in count)
    return [
        *([Entry("Images", shares)] if shares else []),
        *([Entry("Classes", _first([f"{name}: {_show(n)}" for name, n in classes.items()]))] if classes else []),
        *_plain(training, _TRAINED),
        *_courses(training),
        *([Entry("Pictures", ("made up by the model, on the page of a report",))] if {"samples", "sheets"} & training.keys() else []),
        *_rest(training, {*_TRAINED, *drawn, "images", "classes", "samples", "sheets", "second"}),
    ]


def _detector(detector: Mapping[str, Any]) -> list[Entry]:
    params = detector.get("params")
    settings = [f"{k} = {json.dumps(v, ensure_ascii=False)}" for k, v in params.items()] if isinstance(params, Mapping) else []
    return [
        *_plain(detector, {"method": "Method"}),
        *([Entry("Settings", tuple(settings), code=True)] if settings else []),
        *_plain(detector, {"passes": "Network passes", "reference": "Source"}),
        *_rest(detector, {"name", "method", "params", "passes", "reference"}),
    ]


def _cascade(cascade: Mapping[str, Any]) -> list[Entry]:
    known = ("first", "then", "undecided", "rule", "share", "ms_first", "ms_then", "ms_mean")
    if not all(key in cascade for key in known):
        return _rest(cascade, frozenset())
    low, high = cascade["undecided"]
    first, then, rule = (str(cascade[key]) for key in ("first", "then", "rule"))
    word = {"mean": "the mean of both", "max": "the larger of both", "second": f"that of {then}"}.get(rule, rule)
    passed = f"{then}, where the p-value of {first} lies between {_show(low)} and {_show(high)}; the score is then {word}"
    return [
        Entry("Every image", (first,)),
        Entry("Undecided images", (passed,)),
        Entry("Share of them", (f"{percent(cascade['share'])} of the calibration images",)),
        Entry(
            "Milliseconds an image",
            (
                f"{_show(cascade['ms_first'])} for {first}, {_show(cascade['ms_then'])} more for {then}; "
                f"{_show(cascade['ms_mean'])} on average of in-distribution images (networks alone, on the machine that fitted)",
            ),
        ),
        *_rest(cascade, frozenset(known)),
    ]


MEASURED: Mapping[str, str] = {
    "method": "Chosen",
    "mean_auroc": "Mean AUROC",
    "interval": "95 % interval",
    "auroc_of_parts": "AUROC, parts of the image",
    "auroc_of_whole_images": "AUROC, whole image",
    "auroc_of_file_forms": "AUROC, file forms",
    "auroc_of_images": "AUROC of images",
    "auroc_of_blocks": "AUROC of blocks inside them",
    "auroc_before": "Both, with block and window as before",
    "chosen_by": "Chosen by",
    "to_be_large": "To be large",
    "block_in_pixels": "Block, pixels",
    "window": "Window, share of the steps",
    "best": "Best",
    "best_auroc": "Mean AUROC of the best",
    "detectors_compared": "Detectors compared",
}
"""What is known of a choice of detector or of its settings, in words."""


def _evidence(evidence: Mapping[str, Any]) -> list[Entry]:
    return [*_plain(evidence, MEASURED), *_rest(evidence, frozenset(MEASURED))]


_KINDS = {
    "split": "split: images kept apart from fitting give the scale",
    "cross": "cross-conformal: each image is scored by the fold that did not see it",
}


def _calibration(calibration: Mapping[str, Any]) -> list[Entry]:
    out = []
    kind = calibration.get("kind")
    if kind:
        out.append(Entry("Kind", (_KINDS.get(str(kind), _show(kind)),)))
    out += _plain(calibration, {"n": "Images", "folds": "Folds"})
    cap = cap_bits(calibration)
    if cap is not None:
        out.append(Entry("Largest degree (cap)", (f"{number(round(cap, 2))} bits: rarer than {one_in(2.0**-cap)} cannot be told apart",)))
    out += [Entry(term, (band,)) for term, band in _bands(calibration)]
    interval = calibration.get("false_alarm_interval")
    if isinstance(interval, Sequence) and not isinstance(interval, str) and len(interval) == 2 and all(map(_is_number, interval)):
        low, high = (percent(x) for x in interval)
        out.append(Entry("False alarms to expect", (f"between {low} and {high} of unseen in-distribution images",)))
    reachable = calibration.get("reachable")
    if isinstance(reachable, Sequence) and not isinstance(reachable, str):
        missing = "" if "reject" in reachable else "; reject is out of reach: it needs more in-distribution images"
        out.append(Entry("Bands within reach", (", ".join(map(str, reachable)) + missing,)))
    tail = calibration.get("tail")
    if isinstance(tail, Mapping) and tail:
        pairs = ", ".join(f"{k} {_show(v)}" for k, v in tail.items())
        out.append(Entry("Tail beyond the cap", (f"extrapolated, less sure than the rest: {pairs}",)))
    known = {"kind", "n", "folds", "cap_bits", "alpha", "review_at", "reject_at", "false_alarm_interval", "reachable", "tail"}
    return out + _rest(calibration, known)


def _bands(calibration: Mapping[str, Any]) -> list[tuple[str, str]]:
    review, reject = thresholds(calibration)
    out = []
    for term, p, meaning in (("Review", review, "sent to review or further"), ("Reject", reject, "rejected")):
        if p is not None:
            out.append(
                (
                    f"{term} from",
                    f"{-math.log2(p):.2f} bits (p <= {p:.4g}): {percent(p)} of in-distribution images are {meaning}, by design",
                )
            )
    return out


def thresholds(calibration: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """P-values at and below which an image goes to review and to reject; None where the card does not say."""
    return _p_value(calibration.get("review_at", calibration.get("alpha"))), _p_value(calibration.get("reject_at"))


def cap_bits(calibration: Mapping[str, Any]) -> float | None:
    """Largest degree that the calibration can give, bits; None where the card does not say (or says nonsense)."""
    value = calibration.get("cap_bits")
    return float(value) if _is_number(value) and 0 < value < LARGEST_CAP else None


def _p_value(value: Any) -> float | None:
    return float(value) if _is_number(value) and 0 < value <= 1 else None


def listed(card: Mapping[str, Any], key: str) -> list[str]:
    """Sentences under a key of the card; one text counts as one sentence, anything else than texts as none."""
    given = card.get(key)
    found = [given] if isinstance(given, str) else list(given) if isinstance(given, Sequence) else []
    return [_show(sentence) for sentence in found]


def _sentences(card: Mapping[str, Any], key: str, term: str) -> list[Entry]:
    return [Entry(f"{term} {i}", (sentence,)) for i, sentence in enumerate(listed(card, key), 1)]


def _mapping(card: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = card.get(key)
    return value if isinstance(value, Mapping) else {}


def _mappings(card: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    value = card.get(key)
    return [v for v in value if isinstance(v, Mapping)] if isinstance(value, Sequence) else []


def _plain(values: Mapping[str, Any], terms: Mapping[str, str], *, code: bool = False) -> list[Entry]:
    return [Entry(term, (_show(values[key]),), code) for key, term in terms.items() if values.get(key) not in (None, "", [])]


def _rest(values: Mapping[str, Any], known: frozenset[str] | set[str]) -> list[Entry]:
    left = {key: value for key, value in values.items() if key not in known and value not in (None, "", [], {})}
    return [Entry(key.replace("_", " ").capitalize(), (_show(value),)) for key, value in left.items()]


def _first(names: list[str]) -> tuple[str, ...]:
    more = [f"and {count(len(names) - LISTED, 'further one')}"] if len(names) > LISTED else []
    return (*names[:LISTED], *more)


def _clean(entry: Entry) -> Entry:
    return Entry(printable(entry.term), tuple(map(printable, entry.values)), entry.code)


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _show(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)):
        return number(value) if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{k}: {_show(v)}" for k, v in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_show(v) for v in value)
    return str(value)
