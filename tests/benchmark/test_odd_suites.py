"""Suites with something wrong in them: what is wrong is a row with a reason, and the rest still runs."""

import dataclasses
import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from offmap.benchmark.classifier import codes
from offmap.benchmark.compare import Comparison, compare
from offmap.benchmark.suite import read_suite
from offmap.benchmark.trial import Trial, source
from offmap.core.errors import ConfigError, DataError
from offmap.score.knn import KNN

OWN = '[[set]]\nname = "own"\npaths = ["own"]\n'
OTHER = '[[set]]\nname = "other"\npaths = ["other"]\n'
ASKED = '[[id]]\nset = "own"\nnear = ["other"]\n'


@pytest.fixture
def place(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name, count, level in (("own", 20, 60), ("other", 8, 150), ("single", 1, 30)):
        (tmp_path / name).mkdir()
        for i in range(count):
            picture(rng, level).save(tmp_path / name / f"{i:02d}.png")
    return tmp_path


def picture(rng: np.random.Generator, level: float) -> Image.Image:
    """Grey noise of 32 pixels about a level."""
    return Image.fromarray(np.clip(rng.normal(level, 40, (32, 32)), 0, 255).astype(np.uint8))


def run(
    place: Path, tables: str, *, methods: str = "mahalanobis", seeds: str = "[1]", more: str = "", count: int | None = None
) -> Comparison:
    head = f'name = "odd"\nmax_id = 0\nmax_other = 0\nseeds = {seeds}\n{more}\n'
    (place / "suite.toml").write_text(head + tables, encoding="utf-8")
    return compare(place / "suite.toml", out=place / "out", methods=methods.split(","), jobs=0, seeds=count)


def reasons(found: Comparison) -> dict[str, str]:
    return {row["method"]: row["reason"] for row in found.results.rows if row["status"] != "ok"}


def test_a_method_of_the_deepest_layer_runs_alone(place: Path) -> None:
    found = run(place, OWN + OTHER + ASKED)
    assert {line["method"] for line in found.summary} == {"mahalanobis", "intensity"}


@pytest.mark.parametrize(("first", "second"), [(1, 2), (2, 1)])
def test_another_number_of_seeds_scores_the_corrupted_images_of_its_own_divisions(place: Path, first: int, second: int) -> None:
    tables, more = OWN + OTHER + ASKED, 'corruptions = ["noise"]\nseverities = [1]'
    run(place, tables, more=more, count=first)
    again = run(place, tables, more=more, count=second)
    for path in (place / "out" / "trials").rglob("*.safetensors"):
        path.unlink()
    fresh = run(place, tables, more=more, count=second)
    assert [row.get("auroc") for row in again.results.rows] == [row.get("auroc") for row in fresh.results.rows]


@pytest.mark.parametrize(("column", "words"), [('label = "=usual"', "all 20 images have the label"), ("", "1 of 20 images have no label")])
def test_without_two_classes_methods_that_need_none_still_run(place: Path, column: str, words: str) -> None:
    lines = ["path,finding", *(f"own/{i:02d}.png,{'ab'[i % 2] if i else ''}" for i in range(20))]
    (place / "own.csv").write_text("\n".join(lines), encoding="utf-8")
    own = f'[[set]]\nname = "own"\npaths = ["own.csv"]\n{column or "label = " + chr(34) + "finding" + chr(34)}\n'
    found = run(place, own + OTHER + ASKED + "labels = true\n", methods="mahalanobis,msp,odin")
    assert {line["method"] for line in found.summary} == {"mahalanobis", "intensity"}
    assert "no classifier was trained" in reasons(found)["msp"]
    assert "no classifier was trained" in reasons(found)["odin"]
    assert [note for note in found.bench.notes if words in note]


def test_an_in_distribution_set_that_is_too_small_is_a_row_and_the_others_run(place: Path) -> None:
    single = '[[set]]\nname = "single"\npaths = ["single"]\n[[id]]\nset = "single"\nnear = ["other"]\n'
    found = run(place, OWN + OTHER + single + ASKED + 'ignore = ["single"]\n')
    (row,) = [row for row in found.results.rows if row["id_set"] == "single"]
    assert row["status"] == "not_run"
    assert "1 images cannot be divided" in row["reason"]
    assert {row["id_set"] for row in found.results.rows if row["status"] == "ok"} == {"own"}


def test_no_in_distribution_set_that_can_be_divided_is_refused(place: Path) -> None:
    with pytest.raises(DataError, match="cannot be divided"):
        run(place, '[[set]]\nname = "single"\npaths = ["single"]\n[[id]]\nset = "single"\nnear = ["other"]\n' + OTHER)


def test_plots_are_drawn_where_one_set_has_nothing_to_compare(place: Path) -> None:
    (place / "junk").mkdir()
    (place / "junk" / "0.png").write_bytes(b"no picture")
    own = '[[set]]\nname = "own2"\npaths = ["own"]\n[[id]]\nset = "own2"\nnear = ["junk"]\nfar = []\n'
    junk = '[[set]]\nname = "junk"\npaths = ["junk"]\n'
    found = run(place, OWN + OTHER + junk + own + ASKED + 'ignore = ["own2"]\n')
    assert {row["id_set"] for row in found.results.rows if row["status"] == "ok"} == {"own"}


def test_a_file_of_several_images_and_a_file_listed_twice_are_named(place: Path) -> None:
    rng = np.random.default_rng(1)
    pages = [picture(rng, 100) for _ in range(3)]
    pages[0].save(place / "other" / "pages.tif", save_all=True, append_images=pages[1:])
    lines = ["path", *(f"own/{i:02d}.png" for i in range(20)), "own/00.png"]
    (place / "own.csv").write_text("\n".join(lines), encoding="utf-8")
    notes = run(place, OWN.replace('["own"]', '["own.csv"]') + OTHER + ASKED).bench.notes
    assert [note for note in notes if "other" in note and "several images" in note and "pages.tif" in note]
    assert [note for note in notes if "own" in note and "listed twice" in note and "own/00.png" in note]


@pytest.mark.parametrize("name", ["a/b", "..", "a\\\\b"])
def test_a_name_that_is_no_file_name_is_refused(place: Path, name: str) -> None:
    tables = f'name = "odd"\nmax_id = 0\nmax_other = 0\n[[set]]\nname = "{name}"\npaths = ["own"]\n[[id]]\nset = "{name}"\n'
    (place / "suite.toml").write_text(tables, encoding="utf-8")
    with pytest.raises(ConfigError, match="a set is named"):
        read_suite(place / "suite.toml")


def test_a_seed_that_is_there_twice_is_refused(place: Path) -> None:
    with pytest.raises(ConfigError, match="seeds"):
        run(place, OWN + OTHER + ASKED, seeds="[1, 1]")


def test_patients_that_files_name_stay_in_one_part_and_are_drawn_together(place: Path) -> None:
    for i in range(24):
        data = Dataset()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.SOPClassUID, data.SOPInstanceUID, data.PatientID = MRImageStorage, generate_uid(), f"P{i // 4}"
        data.Rows = data.Columns = 32
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.PixelData = np.random.default_rng(i).integers(0, 900, (32, 32)).astype("<u2").tobytes()
        (place / "mr").mkdir(exist_ok=True)
        data.save_as(place / "mr" / f"{i:02d}.dcm", enforce_file_format=True)
    for _ in range(2):  # from the files, then from what the first run kept
        bench = run(place, OWN.replace('["own"]', '["mr"]') + OTHER + ASKED).bench
        division = bench.divisions["own", 1]
        parts = [{row // 4 for row in rows.tolist()} for rows in (division.fit, division.held_out, division.test)]
        assert sum(map(len, parts)) == 6
        assert len({item.patient for item in bench.items("own")}) == 6


def test_a_method_that_needs_classes_says_where_they_come_from(place: Path) -> None:
    found = run(place, OWN + OTHER + ASKED, methods="mahavar")
    assert "labels = true" in reasons(found)["mahavar"]


def test_classes_reach_methods_beside_a_classifier_that_was_given(place: Path) -> None:
    lines = ["path,finding", *(f"own/{i:02d}.png,{i % 2}" for i in range(20))]
    (place / "own.csv").write_text("\n".join(lines), encoding="utf-8")
    own = '[[set]]\nname = "own"\npaths = ["own.csv"]\nlabel = "finding"\n'
    head = 'name = "odd"\nmax_id = 0\nmax_other = 0\n'
    (place / "suite.toml").write_text(head + own + OTHER + ASKED + "labels = true\n", encoding="utf-8")
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 2))
    found = compare(place / "suite.toml", out=place / "out", methods=["mahavar"], encoder=network.eval(), jobs=0)
    assert {line["method"] for line in found.summary} == {"mahavar", "intensity"}, reasons(found)
    assert not found.bench.heads


def test_classes_that_are_numbers_are_counted_in_their_order() -> None:
    numbers, classes = codes([str(i) for i in range(12)])
    assert numbers.tolist() == list(range(12))
    assert classes[9:] == ("9", "10", "11")


def test_a_method_whose_source_is_edited_is_run_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "from offmap.score.knn import KNN\nclass Mine(KNN):\n    pass\n"
    (tmp_path / "mine_of_an_author.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("mine_of_an_author")
    before = source(module.Mine)
    assert source(module.Mine) == before != source(KNN)
    (tmp_path / "mine_of_an_author.py").write_text(text + "    extra = 1\n", encoding="utf-8")
    assert source(importlib.reload(module).Mine) != before


def test_a_kept_trial_of_other_images_is_not_used(place: Path) -> None:
    fresh = run(place, OWN + OTHER + ASKED)
    for name in ("mahalanobis", "intensity"):
        path = place / "out" / "trials" / "own" / "1" / f"{name}.safetensors"
        trial = Trial.load(path)
        assert trial is not None
        dataclasses.replace(trial, scores={**trial.scores, "own": trial.scores["own"][1:]}).save(path)
    again = run(place, OWN + OTHER + ASKED)
    assert again.summary[0]["near"] == next(line["near"] for line in fresh.summary if line["method"] == "mahalanobis")
    assert "run again" in reasons(again)["intensity"]
    assert not reasons(run(place, OWN + OTHER + ASKED))
