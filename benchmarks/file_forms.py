"""File form is not content: the same images at half size, or saved anew as PNG or JPEG, must keep their verdict.

    python benchmarks/file_forms.py --encoder builtin
    python benchmarks/file_forms.py --encoder hub:../shared/weights/mobilenet_v2_imagenet

Of each in-distribution set three quarters make a gate (the product's own division and calibration, five seeds); every fourth image is
saved anew in each form, read through the ordinary reader and scored. "Kept" is the share of images with the same verdict as the file
as it is; the AUROC compares the scores of the two forms of the same images (0.5: no trace of the form).
"""

import argparse
import multiprocessing
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from damage import one
from false_alarms import CPU, plain
from features import PRINT, Extractor, Vectors, folder_of, signals, without
from PIL import Image as Pillow
from results import Made, markdown, write_csv, write_markdown

from offmap.benchmark import metrics
from offmap.benchmark.suite import Suite, read_suite
from offmap.core.detector import Detector
from offmap.core.types import Image
from offmap.datasets import local
from offmap.pipeline import recipe as recipes
from offmap.pipeline.learn import Parts, divide, fit_scorer
from offmap.pipeline.recipe import Recipe
from offmap.pipeline.store import SignalStore
from offmap.represent.open import open_encoder
from offmap.score._reductions import Reduction
from offmap.score.multilayer_mahalanobis import MultilayerMahalanobis

EVERY, MOST = 4, 150
FORM_SEED = 0


def saved(picture: Pillow.Image, place: Path, *, half: Pillow.Resampling | None = None, quality: int | None = None) -> Path:
    """The picture written in one form."""
    if half is not None:
        picture = picture.resize(((picture.width + 1) // 2, (picture.height + 1) // 2), half)
    path = place / ("form.png" if quality is None else "form.jpg")
    if quality is None:
        picture.save(path, compress_level=1)
    else:
        picture.save(path, quality=quality)
    return path


Filters = Pillow.Resampling
FORMS: Mapping[str, Callable[[Pillow.Image, Path], Path]] = MappingProxyType(
    {
        "png": saved,
        "jpeg85": partial(saved, quality=85),
        "jpeg90": partial(saved, quality=90),
        "jpeg95": partial(saved, quality=95),
        "half_box": partial(saved, half=Filters.BOX),
        "half_bilinear": partial(saved, half=Filters.BILINEAR),
        "half_bicubic": partial(saved, half=Filters.BICUBIC),
        "half_lanczos": partial(saved, half=Filters.LANCZOS),
        "half_jpeg85": partial(saved, half=Filters.LANCZOS, quality=85),
    }
)


def formed(files: Sequence[Path], form: str) -> Iterator[Image]:
    """Each file saved anew in one form, and read again."""
    with tempfile.TemporaryDirectory() as place:
        for path in files:
            with Pillow.open(path) as picture:
                upright = picture if picture.mode in ("L", "RGB") else picture.convert("RGB")
                yield one(FORMS[form](upright, Path(place)))


def row(plan: Recipe, suite: Suite, own: str, extractor: Extractor, seeds: int) -> dict[str, object]:
    """One set: for each form the share of verdicts kept and the AUROC between the forms, mean over seeds."""
    files = suite.files(own)
    tested = files[::EVERY][:MOST]
    names = [[p.parent.name, p.name, p.stat().st_size] for p in tested]
    native = extractor.of_files(files)
    forms: dict[str, Vectors] = {form: extractor.of_images([own, names, form], formed(tested, form)) for form in FORMS}
    source = extractor.of_files(files, form_seed=FORM_SEED) if plan.forms.random else native
    images, copies = plain(files, source[PRINT])
    known = np.flatnonzero(np.arange(len(files)) % EVERY != 0)
    place = {int(r): i for i, r in enumerate(known)}
    inside = [rows for rows in ([place[r] for r in group if r in place] for group in copies) if len(rows) > 1]
    asked = {"native": {k: v[torch.arange(len(files))[::EVERY][:MOST]] for k, v in native.items()}, **forms}
    kept: dict[str, list[float]] = {form: [] for form in FORMS}
    between: dict[str, list[float]] = {form: [] for form in FORMS}
    with SignalStore() as store:
        store.append(signals(source))
        for seed in range(1, seeds + 1):
            division = [
                Parts(*(known[r] for r in (p.fit, p.held_out, p.calibrate)))
                for p in divide(plan.calibrate, [images[i] for i in known], inside, seed)
            ]
            scorer = fit_scorer(plan, store, division, seed=seed, device=CPU)
            degrees = {form: scorer(signals(vectors)) for form, vectors in asked.items()}
            verdicts = {form: plan.decide.verdicts(d.p_value.numpy()) for form, d in degrees.items()}
            for form in FORMS:
                kept[form].append(float(np.mean([a == b for a, b in zip(verdicts["native"], verdicts[form], strict=True)])))
                between[form].append(metrics.auroc(degrees["native"].score.numpy(), degrees[form].score.numpy()))
    line: dict[str, object] = {"set": own, "n": len(tested)}
    return line | {f"kept.{f}": np.mean(v) for f, v in kept.items()} | {f"auroc.{f}": np.mean(v) for f, v in between.items()}


def variants(plan: Recipe, encoder: str) -> list[tuple[str, Recipe, bool, bool, str]]:
    """The default gate with and without the two means; for a hub encoder also other reductions."""
    found = []
    own = next((d.reduction for d in plan.parts.values() if isinstance(d, MultilayerMahalanobis)), "")
    compared: tuple[Reduction, ...] = ("mean", "logsumexp", "max", "mean_knn")
    for low_pass in (True, False):
        steps = plan if low_pass else without(plan, "detail")
        for random in (True, False):
            found.append(("recipe", replace(steps, forms=replace(plan.forms, random=random)), random, low_pass, own))
            others = [r for r in compared if r != own] if random and encoder != "builtin" else []
            found += [("other reduction", replace(steps, parts=reduced(plan.parts, r)), random, low_pass, r) for r in others]
    return found


def reduced(parts: Mapping[str, Detector], reduction: Reduction) -> dict[str, Detector]:
    """The recipe's parts with another reduction."""
    return {name: replace(d, reduction=reduction) if isinstance(d, MultilayerMahalanobis) else d for name, d in parts.items()}


def work(task: tuple[str, str, int, str]) -> list[dict[str, object]]:
    """All variants on one set; runs in a process of its own."""
    torch.set_num_threads(1)
    encoder_name, own, seeds, recipe = task
    suite = read_suite((local.find() or Path()) / "near-far-v1.toml")
    encoder = open_encoder(encoder_name)
    rows = []
    for kind, plan, random, low_pass, reduction in variants(recipes.read(recipe), encoder_name):
        extractor = Extractor(encoder, plan.preparation(encoder.input.size), jobs=1)
        what = {"encoder": folder_of(encoder_name), "gate": kind, "reduction": reduction, "random_form": random, "low_pass": low_pass}
        rows.append(what | row(plan, suite, own, extractor, seeds))
        print("  ", [v if isinstance(v, str | bool | int) else round(float(v), 3) for v in rows[-1].values()], flush=True)  # type: ignore[arg-type]
    return rows


def summaries(rows: Sequence[Mapping[str, object]]) -> list[dict[str, object]]:
    """One line a gate: means and worst over sets and forms."""
    found: dict[tuple[object, ...], list[Mapping[str, object]]] = {}
    for line in rows:
        found.setdefault(tuple(line[k] for k in ("encoder", "gate", "reduction", "random_form", "low_pass")), []).append(line)
    out = []
    for key, lines in found.items():
        kept = {(str(line["set"]), f): float(str(line[f"kept.{f}"])) for line in lines for f in FORMS}
        between = {(str(line["set"]), f): float(str(line[f"auroc.{f}"])) for line in lines for f in FORMS}
        least = min(kept, key=lambda k: kept[k])
        most = max(between, key=lambda k: abs(between[k] - 0.5))
        what = dict(zip(("encoder", "gate", "reduction", "random_form", "low_pass"), key, strict=True))
        out.append(
            what
            | {"kept, mean": np.mean(list(kept.values())), "kept, least": kept[least], "where least": "/".join(least)}
            | {
                "AUROC, farthest from 0.5": between[most],
                "where farthest": "/".join(most),
                "cells within 0.40-0.60": f"{sum(abs(v - 0.5) <= 0.1 for v in between.values())} of {len(between)}",
                "cells kept >= 0.90": f"{sum(v >= 0.9 for v in kept.values())} of {len(kept)}",
            }
        )
    return out


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="builtin")
    parser.add_argument("--recipe", default=recipes.STANDARD)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    made = Made.now()
    ids = read_suite((local.find() or Path()) / "near-far-v1.toml").own
    with ProcessPoolExecutor(args.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        rows = [r for found in pool.map(work, [(args.encoder, own, args.seeds, args.recipe) for own in ids]) for r in found]
    name = f"file_forms_{folder_of(args.encoder)}"
    write_csv(args.out / f"{name}.csv", rows)
    short = summaries(rows)
    default = [
        {k: v for k, v in r.items() if k not in ("encoder", "gate", "reduction", "random_form", "low_pass")}
        for r in rows
        if r["gate"] == "recipe" and r["random_form"] and r["low_pass"]
    ]
    write_markdown(
        args.out / f"{name}.md",
        f"File forms, {folder_of(args.encoder)}",
        [*markdown(short), "", "The default gate:", "", *markdown(default)],
        made,
    )
    print("\n".join(markdown(short)))


if __name__ == "__main__":
    main()
