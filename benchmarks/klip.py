"""KLIP on brain slices of two collections: reconstruction, localisation, whole images, evaluations, cost, and divergence.

    python benchmarks/klip.py --folder /tmp/klip
    python benchmarks/klip.py --folder /tmp/klip --parts areas --images 12 --minutes 1      (a trial of the script)

Slices of IXI and of brain_mr (no tumour) at 64 pixels. A prior is trained on the fit part of brain_mr, and a second one fine-tuned from it
on that of IXI; both are tested on the test parts of both. Sparse-view CT of 24 parallel views is simulated with the operator that
reconstructs (an inverse crime), with noise of 0.01 for images in [-1, 1]. Windows and blocks of KLIP are the defaults, and tuned on
stars that are planted in the tuning part of the prior's own collection. Networks and samples stay in ``--folder``: run again, it goes
on where it stopped. Everything runs on the CPU with one thread.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import klip_areas as areas
import klip_images as slices
import klip_rivals as rivals
import numpy as np
import torch
from klip_areas import Reading, Truth
from klip_bench import COPIES, MAIN, OPERATOR, SETTINGS, SIZE, WHOLE, Bench, done, sinograms, train
from klip_images import Collection
from results import Made, markdown, write_csv, write_markdown
from torch import Tensor

from offmap.core.updates import UpdateSums
from offmap.datasets import local
from offmap.represent.diffusion import DiffusionEncoder
from offmap.represent.klip import FOREGROUND, MAP, RECONSTRUCTION, RESIDUAL, KlipEncoder
from offmap.represent.measurement_kl import measurement_kl
from offmap.represent.open import open_encoder
from offmap.represent.operators import contract

TITLES = {
    "psnr": "KLIP: reconstruction from 24 views, PSNR in dB",
    "areas": "KLIP: localisation (where, AUROC of blocks) and whole images (whether, AUROC)",
    "evaluations": "KLIP: evaluations of the network against AUROC",
    "cost": "KLIP: cost",
    "apart": "Divergence of the two priors",
}


def reconstruction(bench: Bench) -> list[dict[str, object]]:
    """PSNR on the test slices of both collections; filter and weight are chosen on the tuning part of the prior's own."""
    tune = bench.clean(bench.prior, "tune")
    window, _ = rivals.tuned(lambda v: rivals.filtered_back_projection(sinograms(tune), OPERATOR, SIZE, str(v)), rivals.FILTERS, tune)
    weight, _ = rivals.tuned(lambda v: rivals.total_variation(sinograms(tune), OPERATOR, SIZE, float(str(v))), rivals.WEIGHTS, tune)
    rows: list[dict[str, object]] = []
    for collection in bench.collections:
        images = bench.clean(collection, "test")
        y = sinograms(images)
        found = {
            f"filtered back-projection ({window})": rivals.filtered_back_projection(y, OPERATOR, SIZE, str(window)),
            f"total variation ({weight})": rivals.total_variation(y, OPERATOR, SIZE, float(str(weight))),
        }
        residual = {}
        for setting in (MAIN, WHOLE) if done(bench, WHOLE, collection) else (MAIN,):
            signals = bench.sampled(setting, collection, "test", "clean")
            found[f"posterior mean, {setting}"], residual[f"posterior mean, {setting}"] = signals[RECONSTRUCTION], signals[RESIDUAL]
        for name, picture in found.items():
            value, draws = areas.mean_area(rivals.psnr(picture, images).numpy())
            low, high = areas.interval(draws)
            off = float(residual[name].mean()) if name in residual else ""
            rows.append(
                {"prior": bench.prior, "slices": collection, "method": name, "psnr": value, "lo": low, "hi": high}
                | {"residual": off, "n": len(images)}
            )
    return rows


@dataclass(frozen=True)
class Judge:
    """Rows of one prior and the test slices of one collection."""

    bench: Bench
    collection: str

    def row(self, kind: str, method: str, seen: str, scores: Mapping[str, np.ndarray], blocks: np.ndarray | None) -> dict[str, object]:
        """One line, and the replicates of its numbers under keys that begin with ``~``."""
        bench = self.bench
        truth = Truth.of(bench.clean(self.collection, "test"), bench.odd(self.collection, "test", kind))
        line: dict[str, object] = {"prior": bench.prior, "slices": self.collection, "planted": kind, "method": method, "sees": seen}
        for name, strict in (("where", True), ("where, whole mask", False)):
            if blocks is None:
                line |= {name: "", f"{name} lo": "", f"{name} hi": ""}
                continue
            value, draws = areas.mean_area(truth.areas(blocks, strict=strict))
            low, high = areas.interval(draws)
            line |= {name: value, f"{name} lo": low, f"{name} hi": high, f"~{name}": draws}
        value, draws = areas.set_area(scores["clean"], scores[kind])
        low, high = areas.interval(draws)
        return line | {"whether": value, "whether lo": low, "whether hi": high, "~whether": draws, "n": len(truth.head)}

    def klip(self, setting: str) -> list[dict[str, object]]:
        """KLIP by default and tuned, without its window, without its blocks, and the full divergence."""
        bench = self.bench
        found = {name: bench.sampled(setting, self.collection, "test", name) for name in ("clean", *slices.PLANT)}
        default, (where, which) = bench.default(setting), bench.tuned(setting)
        whole = Reading(0, found["clean"][MAP].shape[1], areas.BLOCK)
        blocks = [Reading(0, whole.stop, reading.block) for reading in (where, which)]
        rows = []
        for kind in slices.PLANT:
            odd = found[kind]
            for method, a, b in (
                ("KLIP, tuned on stars", where, which),
                ("KLIP, default", default, default),
                ("KLIP, blocks only", *blocks),
            ):
                scores = {name: b.score(s[MAP], s[FOREGROUND]) for name, s in found.items()}
                rows.append(self.row(kind, method, "sinogram", scores, a.judged(odd[MAP])))
            scores = {name: s[MAP].double().sum(dim=(1, 2, 3)).numpy() for name, s in found.items()}
            rows.append(self.row(kind, "full KL", "sinogram", scores, whole.judged(odd[MAP])))
        return rows

    def rivals(self, seen: str, found: Mapping[str, Mapping[str, rivals.Found]]) -> list[dict[str, object]]:
        """Other methods."""
        rows = []
        for method, sets in found.items():
            scores = {name: one.scores for name, one in sets.items()}
            for kind in slices.PLANT:
                maps = sets[kind].maps
                rows.append(self.row(kind, method, seen, scores, None if maps is None else areas.judged(maps)))
        return rows


def compared(bench: Bench, methods: Sequence[str] = ()) -> list[dict[str, object]]:
    """Localisation and whole images: KLIP, the full divergence, and other methods on the images and on what KLIP reconstructs."""
    rows: list[dict[str, object]] = []
    own = bench.collections[bench.prior]
    fit, tune = own.images[own.fit], own.images[own.tune]
    mean = bench.sampled(MAIN, bench.prior, "tune", "clean")[RECONSTRUCTION]
    for collection in bench.collections:
        judge = Judge(bench, collection)
        lines = judge.klip(MAIN)
        plain = bench.sets(collection, "test")
        seen = {name: bench.sampled(MAIN, collection, "test", name)[RECONSTRUCTION] for name in plain}
        for words, sets, held_out in (("image", plain, tune), ("reconstruction", seen, mean)):
            makers = ways(bench, fit if words == "image" else held_out, held_out, words)
            makers = {name: way for name, way in makers.items() if not methods or name in methods}
            path = bench.folder / "rivals" / f"{bench.prior}-{collection}-{words}-{len(plain['clean'])}"
            lines += judge.rivals(words, rivals.kept(path, makers, sets))
        rows += against_klip(lines)
    return rows


def ways(bench: Bench, fit: Tensor, held_out: Tensor, words: str) -> dict[str, rivals.Way]:
    """The other methods; of those that are slow, none on reconstructions."""
    net, own = bench.encoder, bench.collections[bench.prior]
    names = [name for name in rivals.DIFFUSION if words == "image" or name != "eigenscore"]
    found: dict[str, rivals.Way] = {"NLL bound": lambda sets: {name: rivals.likelihood(net.denoiser, x) for name, x in sets.items()}}
    found |= {name: partial(rivals.of_the_prior, name, net, held_out) for name in names}
    found["patchcore"] = partial(rivals.patchcore, open_encoder("builtin"), fit)
    moved = slices.moved(own.images[own.fit], COPIES, 0)
    found["dae"] = partial(rivals.restored, bench.folder / f"dae-{bench.prior}", moved, own.images[own.tune], held_out)
    return found


def against_klip(rows: Sequence[dict[str, object]]) -> list[dict[str, object]]:
    """How far tuned KLIP is ahead, with a paired interval; the replicates are left out."""
    out = []
    for row in rows:
        best = next(r for r in rows if r["method"] == "KLIP, tuned on stars" and r["planted"] == row["planted"])
        for key in ("where", "whether"):
            if f"~{key}" in row:
                low, high = areas.interval(np.asarray(best[f"~{key}"]) - np.asarray(row[f"~{key}"]))
                row = row | {f"KLIP ahead, {key} lo": low, f"KLIP ahead, {key} hi": high}
        out.append({key: value for key, value in row.items() if not key.startswith("~")})
    return out


def evaluations(bench: Bench, names: Sequence[str]) -> list[dict[str, object]]:
    """AUROC, passes through the network and seconds of each setting, each with a reading tuned for it."""
    rows: list[dict[str, object]] = []
    for setting in names:
        sampler = SETTINGS[setting]
        passes = sampler.steps * sampler.samples * (3 if sampler.backward else 1)
        for collection in bench.collections:
            seconds = float(bench.sampled(setting, collection, "test", "clean")["seconds"])
            picture = bench.sampled(setting, collection, "test", "clean")[RECONSTRUCTION]
            psnr = float(rivals.psnr(picture, bench.clean(collection, "test")).mean())
            line: dict[str, object] = {"prior": bench.prior, "slices": collection, "setting": setting, "evaluations": passes}
            line |= {"seconds": seconds, "psnr": psnr}
            for row in Judge(bench, collection).klip(setting):
                if row["method"] == "KLIP, tuned on stars":
                    line |= {f"{row['planted']}, {key}": row[key] for key in ("where", "whether")}
            rows.append(line)
    return rows


def cost(bench: Bench) -> list[dict[str, object]]:
    """Share of sampling that the sums take, what bfloat16 changes, and the decomposition of the operator."""
    images = bench.clean(bench.prior, "test")[:8]
    spent, add = [0.0], UpdateSums.add

    def timed(self: UpdateSums, *args: object, **settings: object) -> UpdateSums:
        start = time.process_time()
        found = add(self, *args, **settings)  # type: ignore[arg-type]
        spent[0] += time.process_time() - start
        return found

    rows: list[dict[str, object]] = []
    maps = {}
    for precision in ("float32", "bfloat16"):
        klip = bench.klip(MAIN)
        klip = KlipEncoder(klip._denoiser, OPERATOR, SETTINGS[MAIN], size=SIZE, cell=areas.CELL, precision=precision)  # type: ignore[arg-type]
        klip.encode(images[:1], frozenset({MAP}))
        UpdateSums.add, spent[0], start = timed, 0.0, time.process_time()  # type: ignore[method-assign]
        maps[precision] = klip.encode(images, frozenset({MAP}))[MAP].double()
        seconds = time.process_time() - start
        UpdateSums.add = add  # type: ignore[method-assign]
        rows.append({"what": f"seconds an image, {precision}, {MAIN}", "value": seconds / len(images)})
        rows.append({"what": f"share of the sums, {precision}", "value": spent[0] / seconds})
    rows += half(maps["float32"], maps["bfloat16"], bench.tuned(MAIN))
    for size in (64, 128):
        contract._spectrum.cache_clear()
        OPERATOR.forward(torch.zeros(1, 1, size, size, dtype=torch.float64))
        start = time.process_time()
        values, vectors = contract._spectrum(OPERATOR, (size, size), torch.float32, "cpu")
        rows.append({"what": f"decomposition of A A^T, {size} px, seconds", "value": time.process_time() - start})
        rows.append({"what": f"decomposition of A A^T, {size} px, MB kept", "value": 4 * (values.numel() + vectors.numel()) / 1e6})
    return rows


def half(full: Tensor, low: Tensor, chosen: tuple[Reading, Reading]) -> list[dict[str, object]]:
    """Relative differences of bfloat16 from float32."""
    whole = [x.sum(dim=(1, 2, 3)) for x in (full, low)]
    body = torch.ones(len(full), *full.shape[2:])
    scores = [torch.from_numpy(chosen[1].score(x, body)) for x in (full, low)]
    blocks = [chosen[0].blocks(x) for x in (full, low)]
    return [
        {"what": "bfloat16 against float32, full KL, largest relative difference", "value": float((whole[1] / whole[0] - 1).abs().max())},
        {
            "what": "bfloat16 against float32, KLIP score, largest relative difference",
            "value": float((scores[1] / scores[0] - 1).abs().max()),
        },
        {
            "what": "bfloat16 against float32, blocks, root mean square of the difference over that of the blocks",
            "value": float((blocks[1] - blocks[0]).square().mean().sqrt() / blocks[0].square().mean().sqrt()),
        },
    ]


def apart(folder: Path, collections: Mapping[str, Collection], images: int) -> list[dict[str, object]]:
    """The divergence of the two priors, from test slices and from their back-projected sinograms."""
    nets = {name: DiffusionEncoder.from_folder(folder / name).denoiser for name in collections}
    rows: list[dict[str, object]] = []
    for one in collections:
        other = next(name for name in collections if name != one)
        x = 2 * collections[one].images[collections[one].test][:images] - 1
        back = OPERATOR.reconstruct(2 * sinograms(x / 2 + 0.5) - OPERATOR.forward(torch.ones_like(x)), (SIZE, SIZE))
        for words, seen in (("images", x), ("back-projected sinograms", back)):
            levels = [float(s) for s in np.geomspace(0.05, 10, 20)]
            found = measurement_kl(nets[one], nets[other], seen.split(16), sigmas=levels)
            peak = float(found.sigmas[(found.integrand * found.sigmas).argmax()])
            rows.append(
                {"images of": one, "from the prior of": other, "seen": words, "nats": found.divergence}
                | {"nats a pixel": found.divergence / SIZE**2, "largest at sigma": peak, "above": found.above, "n": found.images}
            )
    return rows


def short(rows: Sequence[Mapping[str, object]]) -> list[dict[str, object]]:
    """Intervals in one cell with their value."""
    out = []
    for row in rows:
        line: dict[str, object] = {}
        for key, value in row.items():
            low, high = (row.get(f"{key} {end}", row.get(end) if key == "psnr" else None) for end in ("lo", "hi"))
            if (key.endswith((" lo", " hi")) and not key.startswith("KLIP ahead")) or key in ("lo", "hi"):
                continue
            line[key] = value if low in (None, "") else f"{value:.3f} [{low:.3f}, {high:.3f}]"
        out.append(line)
    return out


def main() -> None:
    """Train, sample, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where networks and samples lie")
    parser.add_argument("--parts", default="psnr,areas,evaluations,cost,apart")
    parser.add_argument("--methods", default="", help="other methods of `areas`, separated by commas; default all")
    parser.add_argument("--priors", default="brain_mr,ixi")
    parser.add_argument("--settings", default=",".join(str(i) for i in range(len(SETTINGS))), help="numbers of settings")
    parser.add_argument("--images", type=int, default=40, help="of each part of each collection, at most")
    parser.add_argument("--minutes", type=float, default=32, help="of training the first prior; the second takes 0.7 times as long")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    torch.set_num_threads(1)
    root = local.find()
    if root is None:
        raise SystemExit("set OFFMAP_DATA to a folder with images/ixi/healthy and images/brain_mr/no_tumour")
    made, collections = Made.now(), slices.collections(root, SIZE)
    train(args.folder, collections, args.minutes)
    benches = [Bench(name, args.folder, collections, args.images) for name in args.priors.split(",")]
    chosen = [list(SETTINGS)[int(i)] for i in args.settings.split(",")]
    tables = {
        "psnr": lambda: [row for bench in benches for row in reconstruction(bench)],
        "areas": lambda: [row for bench in benches for row in compared(bench, list(filter(None, args.methods.split(","))))],
        "evaluations": lambda: [row for bench in benches[:1] for row in evaluations(bench, chosen)],
        "cost": lambda: cost(benches[0]),
        "apart": lambda: apart(args.folder, collections, args.images),
    }
    for part in args.parts.split(","):
        rows = tables[part]()
        write_csv(args.out / f"klip_{part}.csv", rows)
        write_markdown(args.out / f"klip_{part}.md", TITLES[part], markdown(short(rows)), made)


if __name__ == "__main__":
    main()
