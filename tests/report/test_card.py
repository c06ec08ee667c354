"""The gate's card in words."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offmap.report import card

FULL = {
    "id": "sha256:7f3a",
    "created": "2026-03-04",
    "version": "0.1.0",
    "recipe": "standard",
    "data": {
        "n_found": 652,
        "n_used": 640,
        "dropped": {"unreadable": 7, "odd_code": 5},
        "dropped_items": [{"item": f"x{i}.png", "reason": "unreadable"} for i in range(30)],
        "digest": "aa" * 32,
        "patients_known": 0,
        "duplicates": 4,
        "formats": {"jpeg": 640},
    },
    "prepare": ["Resized to 224 x 224."],
    "encoder": {"name": "builtin", "sha256": "d1" * 32, "layers": ["a", "b"], "input": "1 x 224 x 224"},
    "detectors": [{"name": "main", "method": "knn", "params": {"k": 10}, "reference": "Sun et al.", "passes": "1F"}],
    "calibration": {
        "kind": "cross",
        "n": 120,
        "folds": 5,
        "cap_bits": math.log2(121),
        "alpha": 0.05,
        "review_at": 0.05,
        "reject_at": 0.005,
        "false_alarm_interval": [0.02, 0.09],
        "reachable": ["accept", "review"],
        "tail": {"shape": 0.1},
    },
    "limits": ["Small lesions may be missed."],
    "warnings": ["Few images."],
    "scored_share": 0.84,
    "novel": {"key": 3},
}


def test_everything_is_said() -> None:
    text = card.text(FULL)
    for said in (
        "sha256:7f3a",
        "640",
        "7 unreadable: the file cannot be opened",
        "5 odd_code",
        "x19.png",
        "and 10 further ones",
        "images of one patient may lie on both sides",
        "Resized to 224 x 224.",
        "d1" * 32,
        "k = 10",
        "Sun et al.",
        "6.92 bits",
        "1 in 121",
        "4.32 bits (p <= 0.05)",
        "between 2 % and 9 %",
        "reject is out of reach",
        "Small lesions may be missed.",
        "Few images.",
        "84 %",
        "key: 3",
    ):
        assert said in " ".join(text.split()), said
    assert "x20.png" not in text


def test_an_empty_card_is_empty() -> None:
    assert card.text({}) == ""
    assert card.sections({}) == []


@pytest.mark.parametrize("key", sorted(FULL))
def test_any_key_may_be_missing_or_null(key: str) -> None:
    assert card.text({k: v for k, v in FULL.items() if k != key})
    assert card.text(FULL | {key: None})


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert "\x1b" not in card.text({"limits": ["\x1b[2J"], "data": {"dropped_items": [{"item": "\x1b]0;", "reason": "x"}]}})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(sorted(FULL) + sorted(FULL["calibration"])), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(FULL)), JSON))
def test_no_card_breaks_it(given_card: dict[str, object]) -> None:
    assert isinstance(card.text(given_card), str)
    json.dumps([s.title for s in card.sections(given_card)])
