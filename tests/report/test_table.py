"""The score table in memory."""

import sys
from pathlib import Path

import numpy as np
import pytest

from offmap.core.errors import ConfigError, NotAvailableError, OODError, ReadError, SignalError
from offmap.report.table import Row, Table


def row(item: str, bits: float, extra: float | None, score: float) -> Row:
    return Row(item, score=score, p_value=2.0**-bits, surprise_bits=bits, bits_extrapolated=extra, verdict="review")


BROKEN = Row("broken", status="not_assessed", reason="empty")


def test_worklist_order() -> None:
    rows = [row("low", 1.0, None, 9.0), BROKEN, row("cap", 8.0, None, 1.0), row("far", 8.0, 30.0, 1.0), row("cap2", 8.0, None, 2.0)]
    table = Table.from_rows(rows)
    listed = [r["item"] for r in table.worklist().rows]
    assert listed == ["far", "cap2", "cap", "low", "broken"]
    assert listed[:-1] == [r.item for r in sorted(rows, key=lambda r: r.rank, reverse=True)][:-1]
    assert [r["item"] for r in table.rows] == ["low", "broken", "cap", "far", "cap2"]


def test_ties_keep_the_input_order() -> None:
    table = Table.from_rows([row(f"{i}", 2.0, None, 1.0) for i in range(50)])
    assert [r["item"] for r in table.worklist().rows] == [str(i) for i in range(50)]


def test_counts_and_missing_values() -> None:
    table = Table.from_rows([BROKEN, row("a", 1.0, None, 0.1)])
    assert table.counts == {"accept": 0, "review": 1, "reject": 0, "not_assessed": 1}
    first, second = table.rows
    assert first["reason"] == "empty"
    assert [first[k] for k in ("score", "p_value", "surprise_bits", "cause")] == [None] * 4
    assert second["score"] == 0.1
    assert len(table) == 2


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), np.float32("nan")])
def test_a_score_that_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises((SignalError, TypeError), match=r"x\.png|beartype|float"):
        Row("x.png", score=bad, verdict="accept")


def test_contradictions_are_refused() -> None:
    with pytest.raises(SignalError, match=r"x\.png"):
        Row("x.png", status="not_assessed", reason="empty", score=1.0)
    with pytest.raises(SignalError, match=r"x\.png"):
        Row("x.png", score=1.0)


def test_repr_shows_no_patient_data_and_no_control_characters() -> None:
    secret = Row(
        "a\x1b[31m\u202egnp.png",
        score=1.0,
        p_value=0.5,
        surprise_bits=1.0,
        verdict="accept",
        identifiers={"PatientName": "CANARY^NAME"},
        meta={"note": "CANARY note"},
    )
    table = Table.from_rows([secret] * 30)
    for text in (repr(table), table._repr_html_(), repr(secret.identifiers and table)):
        assert "CANARY" not in text
        assert "\x1b" not in text
        assert "\u202e" not in text
        assert "30 items: 30 accept" in text
        assert "18 more" in text
    assert "CANARY^NAME" not in repr(secret)


def test_repr_html_is_escaped() -> None:
    table = Table.from_rows([row("<script>alert(1)</script>", 1.0, None, 1.0)])
    assert "<script>" not in table._repr_html_()
    assert "&lt;script&gt;" in table._repr_html_()


def test_repr_of_an_empty_table() -> None:
    assert repr(Table.from_rows([])) == "Table(0 items)"


def test_frames() -> None:
    table = Table.from_rows([row("a", 1.0, None, 1.0), BROKEN])
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    assert isinstance(table.to_pandas(), pandas.DataFrame)
    assert isinstance(table.to_polars(), polars.DataFrame)
    assert table.to_polars()["score"].dtype == polars.Float32
    assert table.to_pandas()["item"].tolist() == ["a", "broken"]


def test_a_missing_frame_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table.from_rows([])
    for package in ("pandas", "polars"):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(NotAvailableError, match=r"offmap\[frames\]"):
            getattr(table, f"to_{package}")()


def test_loading_what_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(ReadError):
        Table.load(tmp_path / "missing.csv")
    for name, content in (
        ("a.csv", b"x,y\n1,2\n"),
        ("a.jsonl", b'{"x": 1}\n'),
        ("b.jsonl", b"garbage"),
        ("b.parquet", b"PAR1"),
        ("c.csv", b""),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(OODError):
            Table.load(tmp_path / name)
    with pytest.raises(ConfigError, match=r"\.csv, \.jsonl or \.parquet"):
        Table.load(tmp_path / "a.txt")


def test_dates_and_numbers_in_manifest_columns_stay_text(tmp_path: Path) -> None:
    given = Row("a", score=1.0, p_value=1.0, surprise_bits=0.0, verdict="accept", meta={"date": "2024-01-01", "n": "007"})
    for suffix in (".csv", ".jsonl", ".parquet"):
        Table.from_rows([given]).save(tmp_path / f"t{suffix}")
        (back,) = Table.load(tmp_path / f"t{suffix}").rows
        assert (back["meta.date"], back["meta.n"]) == ("2024-01-01", "007")
