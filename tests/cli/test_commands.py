"""The commands from end to end, on images made here."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import typer.testing
from PIL import Image

from offmap.cli import app

CANARY = "DOE^JANE-4711"
Result = typer.testing.Result
Run = Callable[..., Result]


def blob(rng: np.random.Generator, size: int = 64) -> np.ndarray:
    """A soft bright ellipse on a dark ground."""
    y, x = np.mgrid[:size, :size] / size - 0.5
    cy, cx = rng.uniform(-0.08, 0.08, 2)
    a, b = rng.uniform(0.15, 0.3, 2)
    field = np.exp(-(((y - cy) / a) ** 2) - ((x - cx) / b) ** 2) + 0.05 * rng.standard_normal((size, size))
    return np.asarray(np.clip(200 * field + 20, 0, 255), dtype=np.uint8)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders ``train`` (48 blobs), ``new`` (6 blobs, 3 of noise, a broken and an empty file), ``broken``."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(1)
    for name in ("train", "new", "broken"):
        (root / name).mkdir()
    for i in range(48):
        Image.fromarray(blob(rng)).save(root / "train" / f"{i:03}.png")
    for i in range(6):
        Image.fromarray(blob(rng)).save(root / "new" / f"a{i}.png")
    for i in range(3):
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(root / "new" / f"b{i}.png")
    (root / "new" / "c0.png").write_bytes((root / "new" / "a0.png").read_bytes()[:200])
    (root / "new" / "c1.png").write_bytes(b"")
    (root / "broken" / "x.png").write_bytes(CANARY.encode())
    return root


@pytest.fixture(scope="module")
def run() -> Run:
    def invoke(*arguments: object) -> Result:
        return typer.testing.CliRunner().invoke(app, [str(a) for a in arguments])

    return invoke


@pytest.fixture(scope="module")
def gate(images: Path, run: Run) -> Path:
    out = images / "gate"
    done = run("fit", images / "train", "--out", out, "--jobs", 1)
    assert done.exit_code == 0, done.stderr
    return out


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def events(done: Result) -> list[dict[str, object]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_fit_tells_what_was_made(images: Path, run: Run, tmp_path: Path) -> None:
    done = run("fit", images / "train", "--out", tmp_path / "gate", "--jobs", 1)
    assert done.exit_code == 0
    assert done.stdout == ""
    assert "on 48 images" in done.stderr
    assert "sha256:" in done.stderr
    assert (tmp_path / "gate" / "manifest.json").exists()


def test_fit_in_json_ends_with_done(images: Path, run: Run, tmp_path: Path) -> None:
    done = run("fit", images / "train", "--out", tmp_path / "gate", "--jobs", 1, "--limit", 30, "--json")
    assert done.exit_code == 0
    *progress, last = events(done)
    assert last["event"] == "done"
    assert last["n_used"] == 30
    assert str(last["id"]).startswith("sha256:")
    assert all(e["event"] != "done" for e in progress)


def test_score_writes_a_row_an_item(images: Path, gate: Path, run: Run, tmp_path: Path) -> None:
    done = run(
        "score", gate, images / "new", "--out", tmp_path / "s.csv", "--maps", tmp_path / "m", "--report", tmp_path / "r", "--jobs", 1
    )
    assert done.exit_code == 0, done.stderr
    assert done.stdout == ""
    found = rows(tmp_path / "s.csv")
    assert [Path(r["item"]).name for r in found] == [
        "a0.png",
        "a1.png",
        "a2.png",
        "a3.png",
        "a4.png",
        "a5.png",
        "b0.png",
        "b1.png",
        "b2.png",
        "c0.png",
        "c1.png",
    ]
    assert [(r["status"], r["reason"]) for r in found[-2:]] == [("not_assessed", "truncated"), ("not_assessed", "empty")]
    bits = [float(r["surprise_bits"]) for r in found[:-2]]
    assert min(bits[6:]) == max(bits)
    assert "Not assessed" in done.stderr
    assert (tmp_path / "r" / "index.html").stat().st_size > 1000
    assert len(list((tmp_path / "m").glob("*.npy"))) == 9


def test_score_in_json_counts(images: Path, gate: Path, run: Run, tmp_path: Path) -> None:
    done = run("score", gate, images / "new", "--out", tmp_path / "s.jsonl", "--jobs", 1, "--json")
    last = events(done)[-1]
    table = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text(encoding="utf-8").splitlines()]
    counted = {v: sum(r["verdict"] == v for r in table) for v in ("accept", "review", "reject", "not_assessed")}
    assert last["verdicts"] == counted
    assert last["reasons"] == {"truncated": 1, "empty": 1}
    assert last["n"] == 11


def test_explain_writes_a_page(images: Path, gate: Path, run: Run, tmp_path: Path) -> None:
    done = run("explain", gate, images / "new" / "b0.png", "--out", tmp_path / "why")
    assert done.exit_code == 0, done.stderr
    assert (tmp_path / "why" / "index.html").exists()


def test_explain_of_a_broken_image_is_code_3(images: Path, gate: Path, run: Run, tmp_path: Path) -> None:
    done = run("explain", gate, images / "new" / "c1.png", "--out", tmp_path / "why")
    assert done.exit_code == 3
    assert "c1.png" in done.stderr


def test_check_says_what_would_be_read(images: Path, gate: Path, run: Run) -> None:
    done = run("check", images / "new", "--gate", gate, "--jobs", 1)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.count("png") >= 11
    assert "9 would be scored, 2 would not" in done.stderr
    *items, last = events(run("check", images / "new", "--jobs", 1, "--json"))
    assert [e["status"] for e in items].count("ok") == last["ok"] == 9


def test_inspect_prints_the_card(gate: Path, run: Run) -> None:
    done = run("inspect", gate)
    assert done.exit_code == 0, done.stderr
    assert "multilayer_mahalanobis" in done.stdout
    identity = events(run("inspect", gate, "--json"))[-1]["id"]
    assert str(identity) in done.stdout


def test_the_expected_gate_is_used_and_another_refused(images: Path, gate: Path, run: Run, tmp_path: Path) -> None:
    identity = events(run("inspect", gate, "--json"))[-1]["id"]
    out = ("--out", tmp_path / "s.csv", "--jobs", 1)
    assert run("score", gate, images / "new", *out, "--expect", identity).exit_code == 0
    other = "sha256:" + "0" * 64
    done = run("score", gate, images / "new", *out, "--expect", other)
    assert done.exit_code == 4
    assert other in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["score", "{root}/gate", "{root}/nowhere", "--out", "{out}/s.csv"], 2),
        (["score", "{root}/gate", "{root}/new", "--out", "{out}/s.xlsx"], 2),
        (["score", "{root}/gate", "{root}/broken", "--out", "{out}/s.csv"], 3),
        (["score", "{root}/train", "{root}/new", "--out", "{out}/s.csv"], 4),
        (["fit", "{root}/broken", "--out", "{out}/g"], 3),
        (["fit", "{root}/train", "--out", "{root}/new/a0.png"], 2),
        (["fit", "{root}/train", "--out", "{out}/g", "--recipe", "standart"], 2),
        (["fit", "{root}/train", "--out", "{out}/g", "--set", "score.standard"], 2),
        (["fit", "{root}/train", "--out", "{out}/g", "--set", "decide.alhpa=0.1"], 2),
        (["fit", "{root}/train", "--out", "{out}/g", "--encoder", "builtim"], 2),
        (["fit", "{root}/train", "--out", "{out}/g", "--alpha", "2"], 2),
        (["check", "{root}/broken"], 3),
        (["inspect", "{root}/nowhere"], 4),
    ],
)
def test_exit_codes(arguments: list[str], code: int, images: Path, gate: Path, run: Run, tmp_path: Path) -> None:
    done = run(*(a.format(root=images, out=tmp_path) for a in arguments))
    assert done.exit_code == code, done.stderr
    assert CANARY not in done.output
    assert "Traceback" not in done.output
    assert not (tmp_path / "g").exists()


def test_a_changed_gate_is_refused(images: Path, gate: Path, run: Run, tmp_path: Path) -> None:
    copy = tmp_path / "gate"
    copy.mkdir()
    for file in gate.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    tensors = next(copy.glob("*.safetensors"))
    content = bytearray(tensors.read_bytes())
    content[-1] ^= 1
    tensors.write_bytes(content)
    done = run("score", copy, images / "new", "--out", tmp_path / "s.csv")
    assert done.exit_code == 4
    assert tensors.name in done.stderr
    assert not (tmp_path / "s.csv").exists()


def test_methods_lists_what_a_recipe_can_name(run: Run) -> None:
    done = run("methods")
    assert done.exit_code == 0
    assert "multilayer_mahalanobis" in done.stdout
    found = events(run("methods", "--json"))
    assert {"detector", "encoder", "recipe", "step", "done"} == {e["event"] for e in found}
    default = next(e for e in found if e.get("name") == "multilayer_mahalanobis")
    assert default["map"] is True
    assert default["labels"] is False


def test_import_weights(run: Run, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    torch.save({"state_dict": {"a.weight": torch.arange(6.0).reshape(2, 3)}}, tmp_path / "x.pt")
    done = run("import-weights", tmp_path / "x.pt", "--json")
    assert done.exit_code == 0, done.stderr
    assert load_file(tmp_path / "x.safetensors")["a.weight"].tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    assert run("import-weights", tmp_path / "none.pt").exit_code == 2


def test_patient_data_stays_inside(gate: Path, run: Run, tmp_path: Path) -> None:
    """Names, identifiers and private tags appear nowhere, also not when a file cannot be read."""
    pydicom = pytest.importorskip("pydicom")
    (tmp_path / "dicom").mkdir()
    rng = np.random.default_rng(2)
    for i in range(3):
        data = pydicom.Dataset()
        data.file_meta = pydicom.dataset.FileMetaDataset()
        data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        data.SOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
        data.SOPInstanceUID = f"1.2.3.{i}"
        data.PatientName, data.PatientID, data.Modality = CANARY, CANARY, "OT"
        data.private_block(0x0011, CANARY, create=True).add_new(1, "LO", CANARY)
        pixels = blob(rng)
        data.Rows, data.Columns = pixels.shape
        data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
        data.BitsAllocated, data.BitsStored, data.HighBit = 8, 8, 7
        data.PixelData = pixels.tobytes() if i < 2 else pixels.tobytes()[:100]
        data.save_as(tmp_path / "dicom" / f"{i}.dcm", enforce_file_format=True)
    out = tmp_path / "out"
    done = run("score", gate, tmp_path / "dicom", "--out", out / "s.csv", "--report", out / "r", "--maps", out / "m", "--jobs", 1)
    assert done.exit_code == 0, done.stderr
    assert [r["status"] for r in rows(out / "s.csv")] == ["ok", "ok", "not_assessed"]
    explained = run("explain", gate, tmp_path / "dicom" / "2.dcm", "--out", out / "why")
    checked = run("check", tmp_path / "dicom", "--jobs", 1)
    for text in (done.output, explained.output, checked.output):
        assert CANARY not in text
    for file in out.rglob("*"):
        assert not file.is_file() or CANARY.encode() not in file.read_bytes(), file
    asked = run("score", gate, tmp_path / "dicom", "--out", out / "id.csv", "--include-identifiers", "--jobs", 1)
    assert asked.exit_code == 0
    assert CANARY in (out / "id.csv").read_text(encoding="utf-8")
    assert CANARY not in asked.output


@pytest.mark.slow
def test_interrupt_leaves_nothing_half_written(images: Path, gate: Path, tmp_path: Path) -> None:
    import signal
    import time

    many = tmp_path / "many.csv"
    many.write_text("path\n" + "\n".join(f"{images}/train/{i % 48:03}.png" for i in range(20_000)) + "\n", encoding="utf-8")
    command = [
        sys.executable,
        "-c",
        "from offmap.cli import main; main()",
        "score",
        gate,
        many,
        "--out",
        tmp_path / "s.csv",
        "--json",
        "--no-cache",
    ]
    running = subprocess.Popen([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    assert running.stdout is not None
    first = running.stdout.readline()
    assert json.loads(first)["event"] == "score"
    time.sleep(0.2)
    running.send_signal(signal.SIGINT)
    _, error = running.communicate(timeout=60)
    assert running.returncode == 130, error
    assert sorted(p.name for p in tmp_path.iterdir()) == ["many.csv"]
