"""KLIP from the command line: measurements in files, every kind of bad input, block maps, and the tuner."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import typer.testing
from PIL import Image as Pillow

import offmap
from offmap.cli import app
from offmap.pipeline.measured import psnr
from offmap.represent.diffusion import DiffusionEncoder
from offmap.represent.nets.unet import EDMDenoiser, UNetShape
from offmap.represent.operators.parse import parse

pytest.importorskip("monai", reason="needs the extra [generative]")
pytest.importorskip("einops", reason="needs the extra [generative]")

SIDE, SPREAD, TEXT = 16, 0.25, "ct:views=12,noise=0.01"
SET = {
    "klip.operator": TEXT,
    "klip.windows": "10",
    "klip.sampler.steps": "10",
    "klip.sampler.samples": "2",
    "klip.sampler.sigma_max": "10",
    "klip.sampler.deviation": str(SPREAD),
    "score.klip.window": "[0.0, 1.0]",
    "score.klip.cells": "1",
}
Run = Callable[..., typer.testing.Result]


def pixels(count: int, seed: int, *, odd: bool = False) -> np.ndarray:
    """In [0, 1]: what an untrained network is the denoiser of."""
    x = SPREAD * np.random.default_rng(seed).standard_normal((count, SIDE, SIDE))
    x[:, 8:12, 4:8] += 1.2 * odd
    return np.clip((x + 1) / 2, 0, 1).astype(np.float32)


def sinograms(x: np.ndarray, text: str = TEXT) -> np.ndarray:
    operator = parse(text)
    y = operator.forward(torch.from_numpy(2 * x[:, None] - 1)).numpy()[:, 0]
    return np.asarray(y + operator.noise * np.random.default_rng(7).standard_normal(y.shape), dtype=np.float32)


@pytest.fixture(scope="module")
def run() -> Run:
    def invoke(*arguments: object) -> typer.testing.Result:
        return typer.testing.CliRunner().invoke(app, [str(a) for a in arguments])

    return invoke


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders ``prior``, ``train`` and ``gate``."""
    root = tmp_path_factory.mktemp("klip")
    DiffusionEncoder(EDMDenoiser(UNetShape(1, 2, (8, 8), 1), SPREAD), SIDE).save(root / "prior")
    (root / "train").mkdir()
    for i, image in enumerate(pixels(44, 0)):
        Pillow.fromarray((255 * image).astype(np.uint8)).save(root / "train" / f"{i:03d}.png")
    return root


@pytest.fixture(scope="module")
def gate(place: Path, run: Run) -> Path:
    settings = [word for key, value in SET.items() for word in ("--set", f"{key}={value}")]
    done = run("fit", place / "train", "--recipe", "klip", "--encoder", f"diffusion:{place / 'prior'}", *settings, "--out", place / "gate")
    assert done.exit_code == 0, done.stderr
    assert "klip:ct:arc=180,noise=0.01,views=12 on diffusion:" in done.stderr
    return place / "gate"


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_measurements_of_files_get_rows_maps_reconstructions_and_a_page(gate: Path, run: Run, tmp_path: Path) -> None:
    x = np.concatenate([pixels(2, 1), pixels(1, 1, odd=True)])
    y = tmp_path / "y"
    y.mkdir()
    np.save(y / "a.npy", sinograms(x))
    np.savez(y / "b.npz", sinograms(x)[2])
    reference = tmp_path / "reference.npy"
    np.save(reference, np.concatenate([x, x[2:]]))
    out, maps, report = tmp_path / "s.csv", tmp_path / "maps", tmp_path / "report"
    options = ("--operator", "ct:views=12", "--reference", reference, "--maps", maps, "--report", report, "--out", out)
    done = run("score", gate, y, *options)
    assert done.exit_code == 0, done.stderr
    found = rows(out)
    assert [Path(row["item"]).name for row in found] == ["a.npy[0]", "a.npy[1]", "a.npy[2]", "b.npz"]
    assert list(found[0])[:10] == list(offmap.load(gate).score(pixels(1, 1), axes="NHW").rows[0])[:10]
    p = [float(row["p_value"]) for row in found]
    assert max(p[2:]) < 0.1 < min(p[:2])
    assert found[2]["score"] == found[3]["score"]
    for i in range(3):
        made = np.load(maps / f"{i:07d}.reconstruction.npy")
        assert made.shape == (1, SIDE, SIDE)
        assert float(found[i]["psnr"]) == pytest.approx(float(psnr(made[None], x[None, i : i + 1])[0]), abs=1e-3)
        assert 0.6 < float(found[i]["residual"]) < 1.5
        assert np.load(maps / f"{i:07d}.npy").shape == (SIDE, SIDE)
        assert (maps / f"{i:07d}.png").exists()
    assert np.unravel_index(int(np.load(maps / "0000002.npy").argmax()), (SIDE, SIDE))[0] in range(6, 14)
    page = (report / "index.html").read_text()
    for words in ("reconstruction", "PSNR", "dB", "left over", "4 measurements"):
        assert words in page
    parquet = run("score", gate, y / "a.npy", "--operator", TEXT, "--out", tmp_path / "s.parquet", "--json")
    assert json.loads(parquet.stdout.splitlines()[-1])["n"] == 3


def test_one_bad_measurement_stops_nothing_and_says_why(gate: Path, run: Run, tmp_path: Path) -> None:
    y = sinograms(pixels(1, 1))[0]
    gap, arc = y.copy(), sinograms(pixels(1, 1), "ct:views=12,noise=0.01,arc=360")[0]
    gap[3, 4] = np.nan
    air = sinograms(np.zeros((1, SIDE, SIDE), np.float32))[0]
    loud = y + 0.5 * np.random.default_rng(0).standard_normal(y.shape)
    bad = {"air": air, "arc": arc, "gap": gap, "huge": 1e30 * y, "loud": loud, "views": y[:10]}
    for name, values in {**bad, "good": y}.items():
        np.save(tmp_path / f"{name}.npy", values.astype(np.float32))
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "good.npy").read_bytes()[:-40])
    (tmp_path / "empty.npy").write_bytes(b"")
    Pillow.new("L", (20, 20)).save(tmp_path / "picture.png")
    out = tmp_path / "out" / "s.csv"
    done = run("score", gate, tmp_path, "--operator", "ct:views=12", "--out", out, "--maps", tmp_path / "out" / "maps")
    assert done.exit_code == 0, done.stderr
    found = {Path(row["item"]).stem: row for row in rows(out)}
    assert {name: row["reason"] for name, row in found.items()} == {
        "air": "no_foreground",
        "arc": "noise_level",
        "cut": "truncated",
        "empty": "empty",
        "gap": "non_finite",
        "good": "",
        "huge": "diverged",
        "loud": "noise_level",
        "objects": "unsupported",
        "picture": "unreadable",
        "views": "wrong_measurement",
    }
    assert [name for name, row in found.items() if row["verdict"] != "not_assessed"] == ["good"]
    assert float(found["loud"]["residual"]) > 10
    assert "times the stated noise is left" in done.stderr
    assert "is it ct:views=10" in done.stderr
    assert [path.name for path in (tmp_path / "out" / "maps").glob("*.npy") if "reconstruction" not in path.name] == ["0000005.npy"]


def test_what_does_not_go_with_the_gate_is_an_error(gate: Path, run: Run, tmp_path: Path) -> None:
    file = tmp_path / "y.npy"
    np.save(file, sinograms(pixels(2, 1)))
    np.save(tmp_path / "one.npy", pixels(1, 1))
    np.save(tmp_path / "bright.npy", 255 * pixels(2, 1))
    np.save(tmp_path / "large.npy", np.zeros((2, 20, 20)))
    score = ("score", gate, file, "--out", tmp_path / "s.csv")
    for words, arguments in (
        (
            "the gate was fitted with ct:arc=180,noise=0.01,views=12, ct:arc=180,noise=0.01,views=24 was given",
            ("--operator", "ct:views=24"),
        ),
        ("the gate was fitted with ct", ("--operator", "ct:noise=0.02")),
        ("the gate was fitted with ct", ("--operator", "mri")),
        ("did you mean 'ct'", ("--operator", "tc")),
        ("1 images for 2 measurements", ("--operator", "ct", "--reference", tmp_path / "one.npy")),
        ("must lie in [0, 1]", ("--operator", "ct", "--reference", tmp_path / "bright.npy")),
        ("no images of 16 x 16", ("--operator", "ct", "--reference", tmp_path / "large.npy")),
        ("goes with --operator", ("--reference", file)),
    ):
        done = run(*score, *arguments)
        assert done.exit_code == 2, done.stderr
        assert words in " ".join(done.stderr.replace("│", " ").split())
        assert not (tmp_path / "s.csv").exists()
    np.save(tmp_path / "bad.npy", sinograms(pixels(1, 1))[0, :5])
    done = run("score", gate, tmp_path / "bad.npy", "--operator", "ct", "--out", tmp_path / "s.csv")
    assert done.exit_code == 3
    assert "none of the 1 items could be assessed" in done.stderr


def test_references_may_be_image_files(gate: Path, run: Run, tmp_path: Path) -> None:
    x = pixels(2, 1)
    np.save(tmp_path / "y.npy", sinograms(x))
    (tmp_path / "images").mkdir()
    for i, image in enumerate(x):
        Pillow.fromarray((255 * image).round().astype(np.uint8)).save(tmp_path / "images" / f"{i}.png")
    done = run("score", gate, tmp_path / "y.npy", "--operator", "ct", "--reference", tmp_path / "images", "--out", tmp_path / "s.csv")
    assert done.exit_code == 0, done.stderr
    assert all(float(row["psnr"]) > 15 for row in rows(tmp_path / "s.csv"))


def test_block_maps_of_images_and_of_measurements(gate: Path, run: Run, tmp_path: Path) -> None:
    x = pixels(2, 1, odd=True)
    np.save(tmp_path / "y.npy", sinograms(x))
    for i, image in enumerate(x):
        Pillow.fromarray((255 * image).astype(np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "2.png").write_bytes(b"no image")
    done = run("klip", "map", gate, tmp_path / "*.png", "--out", tmp_path / "images", "--jobs", 1)
    assert done.exit_code == 0, done.stderr
    assert [row["verdict"] == "not_assessed" for row in rows(tmp_path / "images" / "results.csv")] == [False, False, True]
    done = run("klip", "map", gate, tmp_path / "y.npy", "--operator", "ct", "--out", tmp_path / "measured")
    assert done.exit_code == 0, done.stderr
    for folder in ("images", "measured"):
        for i in range(2):
            blocks = np.load(tmp_path / folder / f"{i:07d}.npy")
            assert blocks.shape == (4, 4)
            assert divmod(int(blocks.argmax()), 4) == (2, 1)
            assert (tmp_path / folder / f"{i:07d}.png").exists()
    assert not (tmp_path / "images" / "0000002.npy").exists()


def test_the_tuner_prints_the_surface_draws_it_and_puts_its_choice_into_a_gate(gate: Path, run: Run, place: Path, tmp_path: Path) -> None:
    out = tmp_path / "tuned"
    done = run("klip", "tune", gate, place / "train", "--count", 20, "--contrast", "0.2,0.5", "--out", out)
    assert done.exit_code == 0, done.stderr
    for block in ("4 px", "8 px"):
        assert block in done.stdout
    assert "*" in done.stdout
    surface = rows(out / "surface.csv")
    assert len(surface) == 2 * 55
    (chosen,) = [row for row in surface if row["chosen"] == "1"]
    assert float(chosen["auroc_blocks"]) > 0.7
    assert (out / "surface.svg").read_text().startswith("<svg xmlns=")
    assert "Which block and which window" in (out / "index.html").read_text()
    tuned = offmap.load(out / "gate")
    params = tuned.recipe.parts["klip"].params()
    assert params["cells"] * 4 == int(chosen["block_pixels"])
    assert list(params["window"]) == [float(chosen["window_from"]), float(chosen["window_to"])]
    assert tuned.card["evidence"]["chosen_by"].startswith("star drawn into 20 in-distribution images")
    assert tuned.scorer.ranks.n == 24
    assert tuned.encoder.sha256 == offmap.load(gate).encoder.sha256


def test_a_diffusion_model_is_tuned_without_a_gate(place: Path, run: Run, tmp_path: Path) -> None:
    settings = [word for key, value in SET.items() for word in ("--set", f"{key}={value}")]
    arguments = (place / "prior", place / "train", "--count", 12, "--artefact", "lesion", "--by", "blocks", "--out", tmp_path, "--json")
    done = run("klip", "tune", *arguments, *settings)
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["block_in_pixels"] in (4, 8)
    assert offmap.load(tmp_path / "gate").scorer.ranks.n == 32


def test_what_cannot_be_tuned_is_an_error(gate: Path, run: Run, place: Path, tmp_path: Path) -> None:
    (tmp_path / "few").mkdir()
    for path in sorted((place / "train").iterdir())[:12]:
        (tmp_path / "few" / path.name).write_bytes(path.read_bytes())
    for code, words, arguments in (
        (2, "there is no artefact 'stars'; did you mean 'star'", (gate, place / "train", "--artefact", "stars")),
        (2, "goes with the artefact star", (gate, place / "train", "--artefact", "lesion", "--contrast", "0.1,0.2")),
        (2, "must be two numbers", (gate, place / "train", "--contrast", "0.1")),
        (2, "must be both, images or blocks", (gate, place / "train", "--by", "eye")),
        (2, "is fitted already", (gate, place / "train", "--set", "klip.cell=2")),
        (3, "needs at least 18", (gate, tmp_path / "few")),
        (2, "must hold config.json", (tmp_path / "few", place / "train")),
    ):
        done = run("klip", "tune", *arguments, "--out", tmp_path / "out")
        assert done.exit_code == code, done.stderr
        assert words in " ".join(done.stderr.replace("│", " ").split())


def test_a_gate_without_klip_takes_no_measurement(run: Run, place: Path, tmp_path: Path) -> None:
    (tmp_path / "plain.toml").write_text("[prepare.window]\n[prepare.resize]\nsize = 32\n[score.intensity]\n")
    plain = offmap.fit(pixels(12, 0), axes="NHW", recipe=str(tmp_path / "plain.toml"), jobs=0)
    plain.save(tmp_path / "gate")
    np.save(tmp_path / "y.npy", sinograms(pixels(1, 1)))
    for command in (
        ("score", tmp_path / "gate", tmp_path / "y.npy", "--operator", "ct"),
        ("klip", "map", tmp_path / "gate", place / "train"),
    ):
        done = run(*command, "--out", tmp_path / "out.csv")
        assert done.exit_code == 2
        assert "needs a KLIP gate" in done.stderr or "KLIP encoder (--recipe klip)" in done.stderr
