"""The gate's card: what it was made of, what it promises, where it ends. Plain JSON."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from offmap.calibrate.threshold import beta_interval, needed
from offmap.core.encoder import Encoder
from offmap.decide.verdict import Thresholds
from offmap.represent.klip import KlipEncoder
from offmap.represent.klip_prior import PriorKlipEncoder
from offmap.represent.trained import TrainedEncoder

if TYPE_CHECKING:
    from offmap.pipeline.gate import Gate

KEPT_BYTES = 200 * 10**6
"""Weights up to this size are copied into the gate; those that were trained for it always."""


def card(gate: "Gate") -> dict[str, Any]:
    """Everything a person or an auditor wants to know of a gate but its id, in plain words where words are better."""
    data = gate.facts["data"]
    return {
        "created": gate.facts["created"],
        "version": gate.facts["version"],
        "recipe": gate.recipe.name,
        "seed": gate.facts["seed"],
        "data": data,
        "prepare": gate.preparation.describe(),
        "encoder": {
            "name": gate.encoder.name,
            "sha256": gate.encoder.sha256,
            "layers": list(gate.encoder.layers),
            "input": f"{' x '.join(map(str, gate.encoder.input.sides))} {'pixels' if gate.encoder.input.axes == 2 else 'voxels'}",
            **measurement(gate),
        },
        **({"training": gate.facts["training"]} if gate.facts.get("training") else {}),
        "detectors": [
            {"name": name, "method": d.method(), "params": d.params(), "reference": type(d).reference, "passes": d.passes}
            for name, d in gate.recipe.parts.items()
        ],
        **({"cascade": cascade(gate)} if gate.second else {}),
        **({"evidence": evidence(gate)} if gate.recipe.evidence else {}),
        "calibration": calibration(gate),
        "scored_share": data["scored_share"],
        "map": next(iter(gate.scorer.maps), None),
        "limits": limits(gate),
        "warnings": gate.facts["warnings"],
    }


def measurement(gate: "Gate") -> dict[str, Any]:
    """How a KLIP gate measures; nothing for others."""
    encoder = gate.encoder
    if not isinstance(encoder, KlipEncoder):
        return {}
    settings = {key: value for key, value in encoder.config().items() if key in ("operator", "sampler", "cell", "windows", "modality")}
    kept = isinstance(encoder, PriorKlipEncoder) and is_kept(encoder)
    left = gate.facts.get("residual")
    seen = {"left_of_measurements": f"{left[0]:.2f} to {left[1]:.2f} times the noise, of in-distribution images"} if left else {}
    return {**settings, **seen, "prior": "kept in the gate" if kept else "given again with the gate"}


def is_kept(encoder: Encoder) -> bool:
    """Whether a gate keeps the weights of its encoder: all that were trained for it, of others up to ``KEPT_BYTES``."""
    network = encoder.base if isinstance(encoder, PriorKlipEncoder) else encoder
    weights = encoder.state() or {}
    return bool(weights) and (
        isinstance(network, TrainedEncoder) or sum(t.numel() * t.element_size() for t in weights.values()) <= KEPT_BYTES
    )


def evidence(gate: "Gate") -> dict[str, Any]:
    """Why these detectors, and whether that was found out on the very images of this gate."""
    found = dict(gate.recipe.evidence)
    if "data_digest" in found:
        found["same_images"] = found["data_digest"] == gate.facts["data"]["digest"]
    return found


def cascade(gate: "Gate") -> dict[str, Any]:
    """Which part runs first, when the other one does, and what an image costs."""
    rule = gate.recipe.cascade
    return {**({} if rule is None else rule.params()), **gate.facts["cascade"]}


def calibration(gate: "Gate") -> dict[str, Any]:
    """The calibration part of the card."""
    calibrated, decide = gate.scorer.ranks, gate.recipe.decide
    n, split = calibrated.n, len(calibrated.sizes) == 1
    interval = beta_interval(n, decide.alpha) if split and n >= needed(decide.alpha) else None
    return {
        "kind": "split" if split else "cross",
        "n": n,
        "folds": gate.scorer.ensemble.folds,
        "cap_bits": round(calibrated.cap, 2),
        "alpha": decide.alpha,
        "review_at": decide.alpha,
        "reject_at": decide.reject_at,
        "false_alarm_interval": None if interval is None else [round(x, 4) for x in interval],
        "guarantee": _guarantee(split, n, decide.alpha),
        "reachable": [name for name, rate in (("review", decide.alpha), ("reject", decide.reject_at)) if n >= needed(rate)],
        "tail": gate.scorer.tail.words(),
    }


def limits(gate: "Gate") -> list[str]:
    """Where the promise ends, in sentences."""
    ranks, decide = gate.scorer.ranks, gate.recipe.decide
    n = ranks.n
    data: Mapping[str, Any] = gate.facts["data"]
    out = ["For research. Not a medical device; it does not find disease, it finds images unlike those it was fitted on."]
    out.append(
        f"At most {ranks.cap:.2f} bits can be shown with {n} calibration images; "
        "beyond that the extrapolated bits rank, without a guarantee."
    )
    out += out_of_reach(n, decide)
    if isinstance(gate.encoder, KlipEncoder):
        out.append(
            f"Calibrated on measurements that were simulated with {gate.encoder.operator.text()} from images; the same operator "
            "reconstructs them. Those of a scanner may be flagged more often than promised."
        )
    if not data["patients_known"]:
        out.append("Patients are not known: images of one patient may stand on both sides of the split.")
    elif data["patients_known"] < data["n_used"]:
        out.append(f"The patient is known for {data['patients_known']} of {data['n_used']} images only.")
    if data["scored_share"] is not None and data["scored_share"] < 0.995:
        out.append(f"On average {data['scored_share']:.0%} of an image is scored; what lies outside is never seen.")
    return out


def out_of_reach(n: int, decide: Thresholds) -> list[str]:
    """Verdicts that ``n`` calibration images cannot give, in sentences."""
    return [
        f"The verdict {name!r} is out of reach: it needs {needed(rate)} calibration images, there are {n}."
        for name, rate in (("review", decide.alpha), ("reject", decide.reject_at))
        if n < needed(rate)
    ]


def _guarantee(split: bool, n: int, alpha: float) -> str:
    if n < needed(alpha):
        return f"No image can be flagged at {alpha:g}: that needs {needed(alpha)} calibration images, there are {n}."
    if split:
        return f"Of images like those it was fitted on, on average at most {alpha:.1%} are flagged (exchangeable images; split conformal)."
    return (
        f"Of images like those it was fitted on, about {alpha:.1%} are flagged, in the worst case {min(1, 2 * alpha):.1%} "
        "(exchangeable images; cross-conformal)."
    )
