"""Tables on disk: they read back with other programs, and are complete or not there."""

import csv
import gc
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offmap.core.errors import ConfigError
from offmap.report.row import Columns, Row
from offmap.report.table import Table
from offmap.report.writer import TableWriter

SUFFIXES = (".csv", ".jsonl", ".parquet")


def row(item: str = "a.png", score: float = 1.5, **values: object) -> Row:
    return Row(item, score=score, p_value=0.25, surprise_bits=2.0, verdict="accept", **values)


def rows_until(error: type[BaseException]) -> Iterator[Row]:
    yield from (row() for _ in range(5))
    raise error


def read(path: Path) -> list[dict[str, object]]:
    """An independent reader: the standard library, or Parquet as plain Python."""
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    with path.open(encoding="utf-8", newline="") as file:
        return [{k: v or None for k, v in line.items()} for line in csv.DictReader(file)]


NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=30) | st.sampled_from(
    ["=1+1", "+a", "-b.png", "@c", 'quo"te, comma.png', "new\r\nline", "ß/日本.png", " space ", "x" * 300, "'", "NA", "null"]
)


@settings(max_examples=15, deadline=None)
@given(items=st.lists(st.tuples(NAMES, st.floats(width=32, allow_nan=False, allow_infinity=False)), min_size=1, max_size=6))
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_names_and_scores_round_trip(items: list[tuple[str, float]], suffix: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("t") / f"scores{suffix}"
    with TableWriter(path, parts=["knn"], meta=["site"]) as writer:
        writer.extend(row(name, score, parts={"knn": score}, meta={"site": name}) for name, score in items)
    back = read(path)
    assert [r["item"] for r in back] == [name for name, _ in items]
    assert [r["meta.site"] for r in back] == [name for name, _ in items]
    for key in ("score", "score.knn"):
        assert [np.float32(float(str(r[key]))) for r in back] == [np.float32(score) for _, score in items]
    again = Table.load(path)
    assert again.rows == Table.from_rows([row(n, s, parts={"knn": s}, meta={"site": n}) for n, s in items]).rows


@settings(max_examples=25, deadline=None)
@given(p=st.floats(min_value=1e-12, max_value=1.0))
def test_float64_keeps_every_bit(p: float, tmp_path_factory: pytest.TempPathFactory) -> None:
    bits = -math.log2(p) + 0.0
    path = tmp_path_factory.mktemp("t") / "scores.csv"
    Table.from_rows([Row("a", score=0.0, p_value=p, surprise_bits=bits, verdict="accept")]).save(path)
    (back,) = read(path)
    assert (float(str(back["p_value"])), float(str(back["surprise_bits"]))) == (p, bits)


def test_csv_is_rfc_4180(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    with TableWriter(path) as writer:
        writer.append(row('a,"b".png', 0.1))
        writer.append(Row("broken.dcm", status="not_assessed", reason="truncated"))
    assert path.read_bytes() == (
        b"item,status,reason,score,p_value,surprise_bits,bits_extrapolated,verdict,cause,cause_confidence\r\n"
        b'"a,""b"".png",ok,,0.1,0.25,2,,accept,,\r\n'
        b"broken.dcm,not_assessed,truncated,,,,,not_assessed,,\r\n"
    )


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_column_order_and_duplicates(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"scores{suffix}"
    with TableWriter(path, parts=["b", "a"], identifiers=["PatientID"], meta=["site"]) as writer:
        for _ in range(2):
            writer.append(row("same.png", parts={"a": 1.0}, identifiers={"PatientID": "007"}, meta={"site": "north"}))
    back = read(path)
    assert list(back[0])[10:] == ["score.b", "score.a", "id.PatientID", "meta.site"]
    assert [r["item"] for r in back] == ["same.png", "same.png"]
    assert back[0]["id.PatientID"] == "007"
    assert back[0]["score.b"] is None


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupted_run_leaves_nothing_half_written(suffix: str, error: type[BaseException], tmp_path: Path) -> None:
    path = tmp_path / f"scores{suffix}"
    path.write_text("before")
    with pytest.raises(error), TableWriter(path, chunk=2) as writer:
        writer.extend(rows_until(error))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert path.read_text() == "before"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_empty_table_has_its_columns(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / f"scores{suffix}"
    with TableWriter(path, parts=["knn"]):
        pass
    assert path.is_file()
    if suffix != ".jsonl":
        assert Table.load(path).arrow.column_names == Columns(parts=("knn",)).schema.names


@pytest.mark.parametrize("name", ["scores.xlsx", "scores", "scores.csv.gz"])
def test_other_endings_are_refused_by_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\.csv, \.jsonl or \.parquet"):
        TableWriter(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(ConfigError, match="cannot be written"):
        TableWriter(tmp_path / "file" / "scores.csv")
    with pytest.raises(ConfigError, match="is a folder"):
        TableWriter(tmp_path / "folder.csv")


def test_unknown_part_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'score.kmn'; did you mean 'knn'"), TableWriter(tmp_path / "s.csv", parts=["knn"]) as writer:
        writer.append(row(parts={"kmn": 1.0}))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_undecodable_file_names_are_escaped(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"scores{suffix}"
    with TableWriter(path) as writer:
        writer.append(row("caf\udce9.png"))
    assert read(path)[0]["item"] == "caf\\udce9.png"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_memory_does_not_grow_with_the_rows(suffix: str, tmp_path: Path) -> None:
    def alive() -> int:
        return sum(type(o) is Row for o in gc.get_objects())

    before, arrow = alive(), pa.total_allocated_bytes()
    with TableWriter(tmp_path / f"scores{suffix}", parts=["knn"], chunk=200) as writer:
        for i in range(5_000):
            writer.append(row(f"folder/{i:06d}.png", parts={"knn": float(i)}))
            if i % 1_000 == 999:
                assert alive() - before <= 200
        assert pa.total_allocated_bytes() - arrow < 2_000_000
    assert len(Table.load(tmp_path / f"scores{suffix}")) == 5_000


def test_csv_reads_with_pandas(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    path = tmp_path / "scores.csv"
    Table.from_rows([row("a\r\nb.png", 0.1)]).save(path)
    frame = pandas.read_csv(io.BytesIO(path.read_bytes()))
    assert frame["item"].tolist() == ["a\r\nb.png"]
    assert np.float32(frame["score"][0]) == np.float32(0.1)
