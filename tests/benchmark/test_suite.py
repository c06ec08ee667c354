"""Suites from files made by the test."""

from pathlib import Path

import numpy as np
import pytest

from offmap.benchmark.suite import Item, Suite, read_suite
from offmap.core.errors import ConfigError
from offmap.core.types import Source

TEXT = """
name = "toy"
max_id = 4
max_other = 2
split = { fit = 0.5, held_out = 0.2, test = 0.3 }
seeds = [1, 2]
[[set]]
name = "own"
paths = ["b", "a"]
[[set]]
name = "alike"
paths = ["c"]
[[set]]
name = "strange"
paths = ["d"]
[[set]]
name = "twin"
paths = ["d"]
[[id]]
set = "own"
near = ["alike"]
ignore = ["twin"]
"""


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    for folder, count in (("a", 3), ("b", 3), ("c", 3), ("d", 1)):
        (tmp_path / folder).mkdir()
        for i in range(count):
            (tmp_path / folder / f"{i}.png").write_bytes(b"x")
    (tmp_path / "a" / ".hidden").write_bytes(b"x")
    (tmp_path / "toy.toml").write_text(TEXT)
    return read_suite(tmp_path / "toy.toml")


def test_files_are_the_first_by_path(suite: Suite) -> None:
    assert [str(p.relative_to(suite.folder)) for p in suite.files("own")] == ["a/0.png", "a/1.png", "a/2.png", "b/0.png"]
    assert [p.name for p in suite.files("alike")] == ["0.png", "1.png"]


def test_every_set_that_is_neither_near_nor_ignored_is_far(suite: Suite) -> None:
    assert suite.own == ("own",)
    assert suite.others("own") == {"alike": "near", "strange": "far"}


def test_a_division_is_disjoint_complete_and_depends_on_the_seed(suite: Suite) -> None:
    items = [Item(Source(Path(str(i)), str(i))) for i in range(50)]
    parts = suite.divide(items, 1)
    assert [len(parts.fit), len(parts.held_out), len(parts.test)] == [25, 10, 15]
    assert sorted(np.concatenate([parts.fit, parts.held_out, parts.test])) == list(range(50))
    np.testing.assert_array_equal(parts.fit, np.random.default_rng(1).permutation(50)[:25])
    assert not np.array_equal(parts.fit, suite.divide(items, 2).fit)


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ('near = ["alike"]', 'near = ["unlike"]', "unlike"),
        ("max_id = 4", "", "max_id"),
        ('name = "toy"', 'name = "toy', "cannot be read"),
    ],
)
def test_a_suite_that_makes_no_sense_is_refused(suite: Suite, before: str, after: str, says: str) -> None:
    path = suite.folder / "toy.toml"
    path.write_text(TEXT.replace(before, after))
    with pytest.raises(ConfigError, match=says):
        read_suite(path)


def test_a_set_without_files_or_name_is_refused(suite: Suite) -> None:
    (suite.folder / "d" / "0.png").unlink()
    with pytest.raises(ConfigError, match="no files"):
        suite.files("strange")
    with pytest.raises(ConfigError, match="no set 'nowhere'"):
        suite.files("nowhere")


def test_a_suite_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_suite(tmp_path / "none.toml")
