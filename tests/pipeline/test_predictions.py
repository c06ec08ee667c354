"""Tables of predictions: what they mean, and what is refused by name."""

from pathlib import Path

import numpy as np
import pytest

from offmap.core.errors import ConfigError, ReadError
from offmap.pipeline.predictions import read
from offmap.report.table import Row, Table

HEAD = "path,label,prob.a,prob.b"
GOOD = ["x/1.png,a,0.9,0.1", "x/2.png,b,0.4,0.6", "x/3.png,b,0.7,0.3"]


def write(folder: Path, *lines: str) -> Path:
    path = folder / "preds.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def scores(*items: str) -> Table:
    return Table.from_rows(
        [Row(item=item, score=float(i), verdict="accept", parts={"knn": 1.0, "vim": 2.0}) for i, item in enumerate(items)]
    )


def test_probabilities_give_answers_and_confidences(tmp_path: Path) -> None:
    found = read(write(tmp_path, HEAD, *GOOD))
    assert found.paths == ("x/1.png", "x/2.png", "x/3.png")
    assert found.loss.tolist() == [0, 0, 1]
    assert list(found.confidences) == ["max_probability"]
    assert found.probability.tolist() == [0.9, 0.6, 0.7]
    assert found.strata == {"label": ("a", "b", "b")}


def test_three_classes_rank_by_entropy_as_well(tmp_path: Path) -> None:
    found = read(write(tmp_path, "path,label,prob.a,prob.b,prob.c", "1,a,0.5,0.5,0", "2,b,0.4,0.3,0.3"))
    assert found.confidences["negative_entropy"] == pytest.approx([-np.log(2), 0.4 * np.log(0.4) + 0.6 * np.log(0.3)])


def test_correct_and_a_confidence_are_enough_and_other_columns_are_strata(tmp_path: Path) -> None:
    head = "path,correct,confidence,site,age"
    found = read(write(tmp_path, head, *(f"{i},{i % 2},{i / 9},{'AB'[i % 2]},{i}" for i in range(30))))
    assert found.loss[:3].tolist() == [1, 0, 1]
    assert list(found.strata) == ["site"]
    assert "'age' has 30 values" in found.notes[0]
    asked = read(tmp_path / "preds.csv", strata=["age"])
    assert list(asked.strata) == ["age"]
    assert asked.notes == ()
    with pytest.raises(ConfigError, match="no column 'sites'; did you mean 'site'"):
        read(tmp_path / "preds.csv", strata=["sites"])


def test_ood_images_are_failures_always_or_only_when_wrong(tmp_path: Path) -> None:
    path = write(tmp_path, HEAD + ",ood", *(row + ",0" for row in GOOD), "o/1.png,a,0.9,0.1,1", "o/2.png,zebra,0.9,0.1,1")
    assert read(path).loss.tolist() == [0, 0, 1, 1, 1]
    assert read(path, ood_failure="wrong").loss.tolist() == [0, 0, 1, 0, 1]
    without = write(tmp_path, HEAD + ",ood", *(row + ",0" for row in GOOD), "o/1.png,,0.9,0.1,1")
    assert read(without).loss.tolist() == [0, 0, 1, 1]
    with pytest.raises(ConfigError, match="line 5: 1 of 4 images have no label"):
        read(without, ood_failure="wrong")
    with pytest.raises(ConfigError, match="'sometimes' must be 'always' or 'wrong'"):
        read(path, ood_failure="sometimes")


def test_a_split_may_have_no_labels_at_all(tmp_path: Path) -> None:
    path = write(tmp_path, HEAD + ",split", *(row + ",validation" for row in GOOD), "n/1.png,,0.9,0.1,new", "n/2.png,,0.5,0.5,new")
    found = read(path)
    assert np.isnan(found.loss).tolist() == [False, False, False, True, True]
    assert found.splits == ("validation",) * 3 + ("new",) * 2


def test_scores_join_by_path_as_written_or_beside_the_table(tmp_path: Path) -> None:
    path = write(tmp_path, HEAD, *GOOD)
    found = read(path, scores=scores("x/3.png", "./x/1.png", str(tmp_path / "x" / "2.png"), "other.png"))
    assert found.confidences["score"].tolist() == [-1, -2, 0]
    assert list(found.confidences) == ["max_probability", "score", "score.knn", "score.vim"]
    table = tmp_path / "scores.csv"
    scores("x/1.png", "x/2.png", "x/3.png").save(table)
    assert read(path, scores=table).confidences["score"].tolist() == [0, -1, -2]


def test_an_item_that_was_not_assessed_has_the_lowest_confidence(tmp_path: Path) -> None:
    rows = [Row(item="x/1.png", score=1.0, verdict="accept"), Row(item="x/2.png", status="not_assessed", reason="truncated")]
    found = read(write(tmp_path, HEAD, *GOOD[:2]), scores=Table.from_rows(rows))
    assert found.confidences["score"].tolist() == [-1, -np.inf]


BAD = {
    "no probabilities": (["path,label", "1,a", "2,b"], "labels but no probabilities"),
    "sum": ([HEAD, "1,a,0.9,0.3", "2,b,0.4,0.6", "3,b,0.9,0.9"], r"line 2: the probabilities sum to 1.2, not to 1 \(2 such rows\)"),
    "logits": ([HEAD, "1,a,3.5,-2.5", "2,b,0.4,0.6"], "line 2: prob.a = 3.5 is outside"),
    "no number": ([HEAD, "1,a,0.9,0.1", "2,b,,0.6"], "line 3: prob.a = '' is no finite number"),
    "nan": ([HEAD, "1,a,nan,0.1", "2,b,0.4,0.6"], "line 2: prob.a = 'nan' is no finite number"),
    "missing labels": ([HEAD, *GOOD, "4,,0.5,0.5"], "line 5: 1 of 4 images have no label"),
    "no label at all": ([HEAD, "1,,0.9,0.1", "2,,0.4,0.6"], "line 2: 2 of 2 images have no label"),
    "missing labels in a split": (
        [HEAD + ",split", "1,a,1,0,test", "2,b,0,1,test", "3,,1,0,test", "4,,1,0,new"],
        "line 4: 1 of 3 images of split 'test'",
    ),
    "one class of probabilities": (["path,label,prob.a", "1,a,1"], "'prob.a' is the only class"),
    "one class of labels": ([HEAD, "1,a,0.9,0.1", "2,a,0.4,0.6"], "all labels are 'a'"),
    "unknown label": ([HEAD, *GOOD, "4,bb,0.5,0.5"], "line 5: label 'bb' has no column prob.bb"),
    "duplicate": ([HEAD, *GOOD, "x/2.png,a,0.5,0.5"], "line 5: 'x/2.png' is there already, in line 3"),
    "duplicate column": (["path,path,correct", "1,1,1"], "'path' is there twice"),
    "no path": (["item,label,prob.a,prob.b", "1,a,1,0"], "'path' is missing"),
    "empty path": ([HEAD, ",a,1,0"], "line 2: the path is empty"),
    "neither label nor correct": (["path,prob.a,prob.b", "1,0.5,0.5"], "'label' with prob.<class> columns, or a column 'correct'"),
    "no confidence": (["path,correct", "1,1", "2,0"], "nothing says how sure"),
    "correct is no truth": (["path,correct,confidence", "1,yes,0.5"], "line 2: correct = 'yes' must be 0 or 1"),
    "ood is no truth": ([HEAD + ",ood", "1,a,1,0,far"], "line 2: ood = 'far' must be 0 or 1"),
    "fields": ([HEAD, "1,a,0.9,0.1,x"], "line 2: 5 fields, 4 expected"),
    "no row": ([HEAD], "no row below the header"),
    "empty": ([""], "'path' is missing"),
}


@pytest.mark.parametrize(("lines", "says"), BAD.values(), ids=BAD)
def test_bad_tables_are_refused_by_name(tmp_path: Path, lines: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        read(write(tmp_path, *lines))


def test_tables_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, HEAD, *GOOD)
    with pytest.raises(
        ConfigError, match=r"line 3: 'x/2.png' is no item of the score table \(2 of 3 paths are not\); its first item is 'x/1.png'"
    ):
        read(path, scores=scores("x/1.png", "y.png"))
    with pytest.raises(ConfigError, match=r"line 4: 'x/3.png' is 2 items"):
        read(path, scores=scores("x/1.png", "x/2.png", "x/3.png", "x/3.png"))
    with pytest.raises(ConfigError, match="score table has no row"):
        read(path, scores=Table.from_rows([]))
    with pytest.raises(ReadError, match="cannot be read as a score table"):
        read(path, scores=tmp_path / "none.csv")


def test_files_that_are_no_table_are_refused(tmp_path: Path) -> None:
    (tmp_path / "preds.csv").write_bytes(b"path,label\n\xff\xfe\n")
    for path in (tmp_path / "preds.csv", tmp_path / "none.csv", tmp_path):
        with pytest.raises(ConfigError, match="cannot be read"):
            read(path)
