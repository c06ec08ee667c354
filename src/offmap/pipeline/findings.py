"""What a comparison of detectors found, in words and as a table for the recipe."""

from collections.abc import Sequence
from typing import Any

import offmap
from offmap.core.detector import Detector, Localiser
from offmap.pipeline.contest import Contestant
from offmap.pipeline.ranking import REPEATS, TIE, Standing, candidates
from offmap.pipeline.synthetic import KINDS, SEVERITIES
from offmap.report.ranking import Line, Ranking

FEW = 50
"""Test images below which the interval is too wide to tell most detectors apart."""


def evidence(
    chosen: Standing, standings: Sequence[Standing], *, sizes: tuple[int, int, int], seed: int, date: str, digest: str, encoder: str
) -> dict[str, Any]:
    """The table ``[evidence]`` of a recipe.

    Args:
        standings: the best first.
        sizes: images to fit on, to standardise on, and to test.
    """
    low, high = chosen.interval
    best = candidates(standings)[0]
    return {
        "method": chosen.one.name,
        "mean_auroc": round(chosen.mean, 4),
        "interval": [round(low, 4), round(high, 4)],
        "auroc_of_parts": round(chosen.local, 4),
        "auroc_of_whole_images": round(chosen.whole, 4),
        "auroc_of_file_forms": round(chosen.form, 4),
        "best": best.one.name,
        "best_auroc": round(best.mean, 4),
        "detectors_compared": len(candidates(standings)),
        "images_fit": sizes[0],
        "images_held_out": sizes[1],
        "images_tested": sizes[2],
        "anomalies": sorted({kind.partition(".")[0] for kind in chosen.areas}),
        "severities": list(SEVERITIES),
        "encoder": encoder[-200:],
        "seed": seed,
        "date": date,
        "version": offmap.__version__,
        "data_digest": digest,
    }


def told(
    chosen: Standing, standings: Sequence[Standing], entered: Sequence[Contestant], own: Detector, found: dict[str, Any], notes: list[str]
) -> Ranking:
    """Everything for the page and the table.

    Args:
        standings: the best first.
        entered: all that were asked for, with the reasons of those that were not run.
        own: the detector of the recipe that was started from.
        found: the evidence.
        notes: on the data.
    """
    lines = [_line(s, rank, chosen, own) for rank, s in enumerate(standings, 1)]
    lines += [Line(method=one.name, passes=one.passes, reason=one.reason) for one in entered if one.reason]
    low, high = chosen.interval
    title = f"{chosen.one.name}: mean AUROC {chosen.mean:.3f} [{low:.3f}, {high:.3f}]"
    groups = {"A part of the image": "local", "The whole image": "whole"}
    return Ranking(
        lines=lines,
        title=title,
        sentences=sentences(chosen, standings, own),
        warnings=[*_cautions(chosen, standings, found), *notes],
        facts=_facts(found),
        groups={heading: [kind for kind in chosen.areas if KINDS[kind].group == group] for heading, group in groups.items()},
    )


def sentences(chosen: Standing, standings: Sequence[Standing], own: Detector) -> list[str]:
    """Why this one."""
    best, out = candidates(standings)[0], []
    if chosen is best:
        out.append(f"It is the best of {len(candidates(standings))} detectors.")
    else:
        lead, low, high = best.ahead_of(chosen)
        out.append(
            f"{best.one.name} is ahead by {lead:.3f} [{low:.3f}, {high:.3f}], which these images cannot tell from nothing (at most {TIE}, "
            f"and 0 lies in the interval). Of those so near the best this one is the cheapest: {_price(chosen)} against {_price(best)}."
        )
    rank, shipped = next(((i, s) for i, s in enumerate(standings, 1) if s.one.detector == own), (0, None))
    if shipped is chosen:
        out.append("It is the detector of the recipe already.")
    elif shipped is not None:
        lead, low, high = chosen.ahead_of(shipped)
        verdict = "better" if low > 0 else "worse" if high < 0 else "not told apart"
        out.append(
            f"The recipe's own detector, {shipped.one.name}, is number {rank} with {shipped.mean:.3f}; "
            f"difference {lead:+.3f} [{low:+.3f}, {high:+.3f}]: {verdict}."
        )
    return out


def _price(standing: Standing) -> str:
    _, fused, maps, _ = standing.price
    kind, read = "a fusion" if fused else "a single detector", "feature maps" if maps else "no maps"
    return f"{kind} of {standing.one.passes} that reads {read}, {standing.one.state_mb:.2f} MB of state"


def _cautions(chosen: Standing, standings: Sequence[Standing], found: dict[str, Any]) -> list[str]:
    out = ["The best of many looks better than it is: its number was chosen on these test images, too."]
    ahead = [s for s in standings if s not in candidates(standings) and s.mean > chosen.mean]
    if ahead:
        out.append(
            f"The baseline {ahead[0].one.name} does better ({ahead[0].mean:.3f}): much of this damage changes brightness most, and the "
            "encoder's features hardly see it. Try another encoder, or --recipe fine. A baseline is not recommended."
        )
    if found["images_tested"] < FEW:
        out.append(f"Only {found['images_tested']} test images: few detectors can be told apart. Give more images, or keep the recipe.")
    if not 0.4 <= chosen.form <= 0.6:
        out.append(
            f"It sees how a file was saved (AUROC {chosen.form:.3f} between forms of one image): use it where all files are made alike."
        )
    return out


def _facts(found: dict[str, Any]) -> dict[str, str]:
    low, high = found["interval"]
    return {
        "Images": f"{found['images_fit']} to fit on, {found['images_held_out']} to standardise on, {found['images_tested']} to test; "
        "patients and copies stay in one part",
        "Anomalies": "copies of the test images only: " + ", ".join(found["anomalies"]),
        "Severities of corruptions": ", ".join(map(str, found["severities"])) + " of 1 to 5",
        "Mean AUROC": f"mean of the mean over anomalies of a part and the mean over those of the whole image; here {low} to {high}",
        "Interval": f"95 %, {REPEATS:,} bootstrap samples of test images, the same ones for every detector",
        "Encoder": str(found["encoder"]),
        "Seed": str(found["seed"]),
        "Date": str(found["date"]),
        "Digest of the data": str(found["data_digest"]),
    }


def _line(standing: Standing, rank: int, chosen: Standing, own: Detector) -> Line:
    one, (low, high) = standing.one, standing.interval
    return Line(
        method=one.name,
        passes=one.passes,
        rank=rank,
        mean=standing.mean,
        low=low,
        high=high,
        local=standing.local,
        whole=standing.whole,
        form=standing.form,
        map=isinstance(one.detector, Localiser),
        fit_s=one.fit_s,
        score_ms=1e3 * one.score_s / max(1, one.scored),
        state_mb=one.state_mb,
        areas=standing.areas,
        forms=standing.forms,
        chosen=standing is chosen,
        own=one.detector == own,
    )
