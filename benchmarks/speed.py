"""How fast `offmap score` is, end to end, against a hand-written loop and against the bare network; cold start; memory.

    python benchmarks/speed.py

Run it on an idle machine. Each pair is one run of `offmap score` (a process of its own, feature cache off, time from the opened gate to
the written table) and one run of the loop, in turn; reported are medians and the median of the pairs' ratios.
"""

import argparse
import csv
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image as Pillow
from results import Made, markdown, write_csv, write_markdown

import offmap
from offmap.benchmark.suite import read_suite
from offmap.core.types import Frame, Image
from offmap.datasets import local
from offmap.pipeline.gate import Gate, cores

BATCH = 32
FEATURES = frozenset({"features.*"})
OFFMAP = (
    (sys.executable, "-m", "offmap.cli")
    if not (Path(sys.executable).parent / "offmap").exists()
    else (str(Path(sys.executable).parent / "offmap"),)
)


@dataclass(frozen=True)
class Files:
    """One kind of input."""

    name: str
    paths: Sequence[Path]


def manifest(place: Path, files: Sequence[Path], count: int) -> Path:
    """A table that names files again and again until there are ``count`` rows."""
    path = place / f"{count}-{files[0].parent.name}{files[0].suffix}.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path"])
        writer.writerows([[files[i % len(files)]] for i in range(count)])
    return path


def scored(gate: Path, table: Path, place: Path) -> tuple[float, float]:
    """Seconds from the opened gate to the written table, and of the whole process."""
    start = time.perf_counter()
    words = [*OFFMAP, "score", str(gate), str(table), "--out", str(place / "scores.csv"), "--no-cache", "--json"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    whole = time.perf_counter() - start
    return float(json.loads(done.stdout.strip().splitlines()[-1])["seconds"]), whole


def picture(path: Path) -> np.ndarray:
    """Pixels of a file, channels first."""
    with Pillow.open(path) as opened:
        pixels = np.asarray(opened)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def by_hand(gate: Gate, files: Sequence[Path], count: int) -> float:
    """Seconds of a plain loop: decode with Pillow, the gate's steps, encode in batches; no score, no table."""
    start = time.perf_counter()
    for first in range(0, count, BATCH):
        batch = []
        for i in range(first, min(first + BATCH, count)):
            pixels = picture(files[i % len(files)])
            image = Image(pixels, "", Frame.whole(pixels.shape[1:]), file_format="jpeg")
            batch.append(torch.from_numpy(gate.preparation.apply(image).pixels))
        gate.encoder.encode(torch.stack(batch), FEATURES)
    return time.perf_counter() - start


def forward(gate: Gate, files: Sequence[Path], count: int) -> float:
    """Seconds of the network alone on prepared pixels."""
    pixels = [picture(p) for p in files[:BATCH]]
    images = [gate.preparation.apply(Image(p, "", Frame.whole(p.shape[1:]), file_format="jpeg")).pixels for p in pixels]
    batch = torch.from_numpy(np.stack(images))
    gate.encoder.encode(batch, FEATURES)
    start = time.perf_counter()
    for _ in range(count // BATCH):
        gate.encoder.encode(batch, FEATURES)
    return (time.perf_counter() - start) * count / (count // BATCH * BATCH)


def pairs(gate: Gate, folder: Path, kind: Files, place: Path, *, count: int, repeats: int, loop: bool = True) -> dict[str, object]:
    """Images a second of the three, and their ratios."""
    table = manifest(place, kind.paths, count)
    times: dict[str, list[float]] = {"score": [], "loop": [], "forward": []}
    for _ in range(repeats):
        times["score"].append(scored(folder, table, place)[0])
        if loop:
            times["loop"].append(by_hand(gate, kind.paths, count))
            times["forward"].append(forward(gate, kind.paths, count))
    rate = {name: count / statistics.median(found) if found else float("nan") for name, found in times.items()}
    row: dict[str, object] = {"input": kind.name, "images": count, "pairs": repeats, "offmap score /s": round(rate["score"], 1)}
    if not loop:
        return row
    ratios = {
        name: statistics.median([other / own for own, other in zip(times["score"], times[name], strict=True)])
        for name in ("loop", "forward")
    }
    return row | {
        "loop /s": round(rate["loop"], 1),
        "forward /s": round(rate["forward"], 1),
        "score : loop": ratios["loop"],
        "score : forward": ratios["forward"],
        "loop : forward": rate["loop"] / rate["forward"],
    }


def pngs(files: Sequence[Path], place: Path) -> list[Path]:
    """The same pictures as PNG."""
    return _written(files, place / "png", lambda pixels, path: Pillow.fromarray(pixels).save(path.with_suffix(".png")), ".png")


def dicoms(files: Sequence[Path], place: Path) -> list[Path]:
    """The same pictures as uncompressed 8-bit DICOM."""
    return _written(files, place / "dicom", _dicom, ".dcm")


def _written(files: Sequence[Path], folder: Path, write: Callable[[np.ndarray, Path], None], suffix: str) -> list[Path]:
    folder.mkdir()
    for i, path in enumerate(files):
        with Pillow.open(path) as opened:
            write(np.asarray(opened.convert("L")), folder / f"{i:04d}{suffix}")
    return sorted(folder.iterdir())


def _dicom(pixels: np.ndarray, path: Path) -> None:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = generate_uid()
    data = Dataset()
    data.file_meta = meta
    data.SOPClassUID, data.SOPInstanceUID, data.Modality = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID, "DX"
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 8, 8, 7, 0
    data.PixelData = pixels.tobytes()
    data.save_as(path, enforce_file_format=True)


def memory(gate: Path, table: Path, place: Path, count: int) -> dict[str, object]:
    """Largest memory while scoring: proportional set size (PSS) summed over all processes, sampled five times a second."""
    words = [*OFFMAP, "score", str(gate), str(table), "--out", str(place / "scores.csv"), "--no-cache", "--json"]
    run = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    largest, done = [0.0], threading.Event()

    def watch() -> None:
        root = psutil.Process(run.pid)
        while not done.wait(0.2):
            total = 0
            for process in [root, *_children(root)]:
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:
                    continue
            largest[0] = max(largest[0], total / 1e6)

    watcher = threading.Thread(target=watch, daemon=True)
    start = time.perf_counter()
    watcher.start()
    code = run.wait()
    done.set()
    watcher.join()
    if code != 0:
        raise SystemExit(f"offmap score ended with {code}")
    return {"images": count, "peak PSS, MB": round(largest[0]), "seconds": round(time.perf_counter() - start, 1)}


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return list(process.children(recursive=True))
    except psutil.Error:
        return []


def cold(gate: Path, path: Path, place: Path, repeats: int) -> list[float]:
    """Wall-clock seconds of the whole command for one image."""
    return [scored(gate, path, place)[1] for _ in range(repeats)]


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--many", type=int, default=20_000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    torch.set_num_threads(cores())
    suite = read_suite((local.find() or Path()) / "near-far-v1.toml")
    made, before = Made.now(), psutil.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        grey, colour = suite.files("kermany_normal"), suite.files("isic2017")
        gate = offmap.fit([str(p) for p in grey[:400]])
        folder = place / "gate"
        gate.save(folder)
        kinds = [
            Files("JPEG, grey, 224 px", grey),
            Files("JPEG, colour, 224 px", colour),
            Files("PNG, grey, 224 px", pngs(grey[:300], place)),
            Files("DICOM, 8 bit, 224 px", dicoms(grey[:300], place)),
        ]
        rates = [
            pairs(gate, folder, kind, place, count=args.images, repeats=args.repeats, loop=kind.paths[0].suffix != ".dcm") for kind in kinds
        ]
        print("\n".join(markdown(rates)), flush=True)
        starts = cold(folder, grey[500], place, args.repeats)
        usage = [memory(folder, manifest(place, grey, count), place, count) for count in (1000, args.many)]
    start = [
        {
            "cold start of one image, s": round(statistics.median(starts), 2),
            "least": round(min(starts), 2),
            "most": round(max(starts), 2),
            "runs": len(starts),
        }
    ]
    for tag, table in (("rates", rates), ("start", start), ("memory", usage)):
        write_csv(args.out / f"speed_{tag}.csv", table)
    notes = [f"One-minute load average before the first run: {before:.2f}. Threads of the loop and of the bare network: {cores()}.", ""]
    body = [*notes, *markdown(rates), "", *markdown(start), "", *markdown(usage)]
    write_markdown(args.out / "speed.md", "Speed and memory", body, made)
    print("\n".join(body))


if __name__ == "__main__":
    main()
