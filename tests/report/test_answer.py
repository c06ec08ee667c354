"""A classifier's answer: entropy against scipy, words that do not round to certainty, and the rows and columns that hold it."""

import math
from pathlib import Path

import pytest
from scipy.stats import entropy

from offmap.core.errors import SignalError
from offmap.report.answer import ADVICE, NO_PROMISE, Answer, Believed, told
from offmap.report.page import Page
from offmap.report.row import Row
from offmap.report.table import Table

CHANCES = (0.05, 0.7, 0.2, 0.05)
RULE = Believed(True, "max_probability", 0.7, "max_probability > 0.9", "with a probability of 90 % at most 5 % fail", 0.05, 0.9, 0.8)


def row(answer: Answer | None, verdict: str = "accept", item: str = "a.png") -> Row:
    return Row(item, score=1.0, p_value=0.25, surprise_bits=2.0, verdict=verdict, answer=answer)  # type: ignore[arg-type]


def test_numbers_are_those_of_scipy_and_order_is_by_probability() -> None:
    found = Answer(CHANCES, ("a", "b", "c", "d"))
    assert found.entropy == pytest.approx(entropy(CHANCES))
    assert found.entropy_share == pytest.approx(entropy(CHANCES) / math.log(4))
    assert (found.predicted, found.max_probability) == ("b", 0.7)
    assert [name for name, _ in found.top] == ["b", "c", "a"]
    assert Answer((0.5, 0.5)).entropy_share == pytest.approx(1.0)
    assert Answer((1.0, 0.0)).entropy == 0


def test_unnamed_classes_are_counted_and_nothing_is_told_as_certain() -> None:
    assert Answer(CHANCES).predicted == "class 1"
    words = told(Answer((1.0, 0.0)), flagged=False)
    assert words.headline == "class 0 > 99.9 %"
    assert words.others == "class 1 < 0.1 %"
    assert "largest probability > 0.999" in words.doubt


def test_scope_and_belief_stay_two_things() -> None:
    for flagged in (False, True):
        words = told(Answer(CHANCES, believed=RULE), flagged=flagged)
        assert words.decision == "yes"
        assert words.because == "max_probability = 0.7; accepted: max_probability > 0.9; with a probability of 90 % at most 5 % fail"
        assert words.caution == (NO_PROMISE if flagged else "")
    unknown = told(Answer(CHANCES), flagged=True)
    assert (unknown.decision, unknown.because, unknown.caution) == ("not known", ADVICE, "")
    assert "--abstain" in ADVICE


def test_no_finite_answer_is_no_answer() -> None:
    found = Answer((), ("a", "b"), Believed(True, "max_probability", None, "max_probability > 0.9", "p", 0.05, 0.9, 0.8))
    assert (found.predicted, found.max_probability, found.entropy, found.top) == (None, None, None, ())
    words = told(found, flagged=False)
    assert words.headline.startswith("no answer")
    assert words.because.startswith("max_probability is no finite number")
    assert found.facts()["predicted"] is None


def test_what_is_no_answer_is_refused() -> None:
    for bad in ((0.5, 0.4), (1.5, -0.5), (float("nan"), 1.0)):
        with pytest.raises(SignalError, match="must not be negative, and sum to 1"):
            Answer(bad)
    with pytest.raises(SignalError, match="3 class names for 2 probabilities"):
        Answer((0.5, 0.5), ("a", "b", "c"))


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_tables_with_answers_read_back_and_tables_without_are_as_before(tmp_path: Path, ending: str) -> None:
    rows = [row(Answer(CHANCES, ("a", "b", "c", "d"))), row(Answer(())), Row("x", status="not_assessed", reason="empty")]
    Table.from_rows(rows).save(tmp_path / f"t{ending}")
    back = Table.load(tmp_path / f"t{ending}").rows
    assert [r["predicted"] for r in back] == ["b", None, None]
    assert [r["max_probability"] for r in back] == [0.7, None, None]
    assert back[0]["entropy"] == pytest.approx(entropy(CHANCES))
    assert "predicted" not in Table.from_rows([row(None)]).arrow.column_names


def test_the_page_of_one_image_puts_it_first_and_escapes_class_names(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    with Page(tmp_path, {}, single=True) as page:
        page.add(row(Answer((0.1, 0.9), ("b", evil), RULE), "review"))
    html = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert html.count("<script>") == 1
    assert html.index('class="case') < html.index("How to read this page")
    for said in ("Is it in scope?", "Is the answer believable?", "Would abstain at your risk limit: <strong>yes", NO_PROMISE):
        assert said in html, said
    assert 'class="tiles"' not in html
    assert 'id="controls"' not in html


def test_the_page_of_a_run_shows_answers_without_the_advice_on_each(tmp_path: Path) -> None:
    with Page(tmp_path, {}) as page:
        page.add(row(Answer(CHANCES)))
        page.add(row(Answer((0.5, 0.5), ("x", "y"), RULE), item="b.png"))
    html = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert html.count("What the classifier answers") == 2
    assert html.count("Would abstain at your risk limit") == 1
    assert "Classes are counted from 0" in html
    with Page(tmp_path, {}) as page:
        page.add(row(None))
    html = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "What the classifier answers" not in html
    assert "<dt>Answer</dt>" not in html
