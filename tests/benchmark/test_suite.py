"""Suites from files made by the test."""

from pathlib import Path

import numpy as np
import pytest

from offmap.benchmark.suite import Item, Suite, read_suite
from offmap.core.errors import ConfigError, DataError
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
FIXED = 'fit = "own"\nheld_out = "alike"\ntest = "strange"\n'


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    for folder, count in (("a", 3), ("b", 3), ("c", 3), ("d", 1)):
        (tmp_path / folder).mkdir()
        for i in range(count):
            (tmp_path / folder / f"{i}.png").write_bytes(b"x")
    (tmp_path / "a" / ".hidden").write_bytes(b"x")
    return changed(tmp_path)


def changed(folder: Path, *pairs: tuple[str, str], more: str = "") -> Suite:
    """The suite of a text in which some words are replaced."""
    text = TEXT
    for before, after in pairs:
        assert before in text
        text = text.replace(before, after)
    (folder / "toy.toml").write_text(text + more)
    return read_suite(folder / "toy.toml")


def people(*names: str) -> list[Item]:
    return [Item(Source(Path(f"{i}.png"), f"{i}.png"), patient=name) for i, name in enumerate(names)]


def test_files_are_the_first_by_path(suite: Suite) -> None:
    assert [str(p.relative_to(suite.folder)) for p in suite.files("own")] == ["a/0.png", "a/1.png", "a/2.png", "b/0.png"]
    assert [item.name for item in suite.items("alike")] == ["c/0.png", "c/1.png"]


def test_no_maximum_takes_all_and_a_set_may_have_its_own(suite: Suite) -> None:
    all_of_them = changed(suite.folder, ("max_id = 4", "max_id = 0"), ("max_other = 2", "max_other = 0"))
    assert [len(all_of_them.items(name)) for name in ("own", "alike")] == [6, 3]
    assert len(changed(suite.folder, ('paths = ["c"]', 'paths = ["c"]\nmaximum = 1')).items("alike")) == 1


def test_every_set_that_is_neither_near_nor_ignored_is_far(suite: Suite) -> None:
    assert suite.own == ("own",)
    assert suite.others("own") == {"alike": "near", "strange": "far"}


def test_far_and_covariate_sets_can_be_named(suite: Suite) -> None:
    named = changed(suite.folder, ('near = ["alike"]', 'covariate = ["alike"]\nfar = ["twin"]'), ('ignore = ["twin"]', ""))
    assert named.others("own") == {"alike": "covariate", "twin": "far"}
    assert changed(suite.folder, ('near = ["alike"]', "far = []")).others("own") == {}


def test_corruptions_add_sets_that_come_last(suite: Suite) -> None:
    damaged = changed(suite.folder, ("max_id = 4", 'max_id = 4\ncorruptions = ["blur", "jpeg"]\nseverities = [1, 5]'))
    made = ["own~blur@1", "own~blur@5", "own~jpeg@1", "own~jpeg@5"]
    assert list(damaged.others("own").items())[2:] == [(name, "corruption") for name in made]
    assert damaged.corruption("own~jpeg@5") == ("own", "jpeg", 5)
    assert [damaged.corruption(name) for name in ("own", "own~jpeg@2", "own~noise@1", "alike~jpeg@1")] == [None] * 4
    assert damaged.items("own~jpeg@5") == damaged.items("own")
    assert damaged.absent("own~jpeg@5") == ""


def test_all_corruptions_are_those_of_the_package(suite: Suite) -> None:
    from offmap.simulate.corruptions import CORRUPTIONS

    assert changed(suite.folder, ("max_id = 4", 'max_id = 4\ncorruptions = "all"')).corruptions == tuple(CORRUPTIONS)


def test_a_division_is_disjoint_complete_and_depends_on_the_seed(suite: Suite) -> None:
    items = people(*[""] * 50)
    parts = suite.divide(items, 1)
    assert [len(parts.fit), len(parts.held_out), len(parts.test)] == [25, 10, 15]
    assert sorted(np.concatenate([parts.fit, parts.held_out, parts.test])) == list(range(50))
    np.testing.assert_array_equal(parts.fit, np.random.default_rng(1).permutation(50)[:25])
    assert not np.array_equal(parts.fit, suite.divide(items, 2).fit)


def test_copies_stay_in_one_part_and_nothing_else_moves(suite: Suite) -> None:
    items = people(*[""] * 40)
    before = suite.divide(items, 3)
    copies = [(int(before.fit[0]), int(before.test[0]), int(before.held_out[0])), ()]
    after = suite.divide(items, 3, copies)
    homes = [{int(row) for row in part} & set(copies[0]) for part in (after.fit, after.held_out, after.test)]
    assert homes == [set(copies[0]), set(), set()]
    assert {int(row) for row in before.fit} < {int(row) for row in after.fit}
    assert sorted(np.concatenate([after.fit, after.held_out, after.test])) == list(range(40))


@pytest.mark.parametrize("seed", range(5))
def test_patients_stay_in_one_part(suite: Suite, seed: int) -> None:
    names = [f"p{i % 17}" for i in range(90)]
    division = suite.divide(people(*names), seed, copies=[(0, 1)])
    homes = [{names[row] for row in part} for part in (division.fit, division.held_out, division.test)]
    assert not homes[0] & homes[1]
    assert not homes[0] & homes[2]
    assert not homes[1] & homes[2]
    assert any({"p0", "p1"} <= home for home in homes)
    assert abs(len(division.fit) - 45) <= 6


def test_too_few_images_or_patients_are_refused(suite: Suite) -> None:
    with pytest.raises(DataError, match="2 images cannot be divided into 3 parts"):
        suite.divide(people("", ""), 1)
    with pytest.raises(DataError, match="1 patients"):
        suite.divide(people(*["p"] * 30), 1)
    with pytest.raises(DataError, match="cannot be divided"):
        suite.divide(people(*[""] * 10), 1, copies=[tuple(range(10))])


def test_a_fixed_division_stands_for_its_sets(suite: Suite) -> None:
    fixed = changed(suite.folder, ('set = "own"\nnear = ["alike"]\nignore = ["twin"]', 'set = "whole"\nlabels = false\n' + FIXED))
    assert [item.name for item in fixed.items("whole")] == [
        "a/0.png",
        "a/1.png",
        "a/2.png",
        "b/0.png",
        "c/0.png",
        "c/1.png",
        "c/2.png",
        "d/0.png",
    ]
    division = fixed.split("whole", 1)
    assert [part.tolist() for part in (division.fit, division.held_out, division.test)] == [[0, 1, 2, 3], [4, 5, 6], [7]]
    assert fixed.others("whole") == {"twin": "far"}


def test_without_a_held_out_set_its_share_comes_from_the_fit_part(suite: Suite) -> None:
    fixed = changed(suite.folder, ('set = "own"\nnear = ["alike"]\nignore = ["twin"]', 'set = "whole"\nfit = "own"\ntest = "alike"'))
    division = fixed.split("whole", 1, copies=[(0, 5)])
    assert sorted([*division.fit, *division.held_out]) == [0, 1, 2, 3]
    assert [len(division.fit), len(division.held_out), division.test.tolist()] == [3, 1, [4, 5, 6]]


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ('near = ["alike"]', 'near = ["alikes"]', "names the set 'alikes', which it does not describe; did you mean 'alike'"),
        ('near = ["alike"]', 'near = ["twin"]', "'twin' is there as two things"),
        ('near = ["alike"]', 'near = "alike"', "must be a list of texts"),
        ('near = ["alike"]', 'fit = "own"', "names the sets 'fit' and 'test'"),
        ('near = ["alike"]', "labels = true", "has no 'label'"),
        ('near = ["alike"]', 'nears = ["alike"]', "unknown key 'nears'; did you mean 'near'"),
        ("max_id = 4", "", "the key 'max_id' is missing"),
        ("max_id = 4", "max_id = -1", "must be a whole number, 0 or more"),
        ("max_id = 4", "max_id = true", "must be a whole number"),
        ("max_id = 4", 'max_id = 4\ncorruptions = ["blurr"]', "no corruption 'blurr'; did you mean 'blur'"),
        ("max_id = 4", "max_id = 4\nseverities = [6]", "among 1 to 5"),
        ("max_id = 4", "max_id = 4\nfoldr = 3", "unknown key 'foldr'"),
        ("test = 0.3", "test = 0.4", "sum 1"),
        ("fit = 0.5", "fits = 0.5", "fit, held_out, test"),
        ("seeds = [1, 2]", "seeds = []", "must be a list of whole numbers"),
        ('name = "toy"', 'name = "toy', "cannot be read"),
        ('name = "alike"', 'name = "own"', "'own' is there twice"),
        ('name = "alike"', 'name = "own~blur@1"', "marks corruptions"),
        ('paths = ["c"]', "", "either 'paths' or 'list'"),
        ('paths = ["c"]', 'paths = ["c"]\nlist = "c.txt"', "either 'paths' or 'list'"),
        ('paths = ["c"]', 'paths = ["c"]\nwhere = { finding = [] }', "a table of columns"),
        ('paths = ["c"]', 'paths = ["c"]\nlabels = "x"', "unknown key 'labels'; did you mean 'label'"),
        ('ignore = ["twin"]', '[id.classifier]\nnetwork = "resnet18"', "the key 'weights' is missing"),
    ],
)
def test_a_suite_that_makes_no_sense_is_refused(suite: Suite, before: str, after: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        changed(suite.folder, (before, after))


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_bytes(b"name = '\xff'")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_suite(tmp_path / "x.toml")


def test_a_set_without_files_is_absent_and_says_why(suite: Suite) -> None:
    (suite.folder / "d" / "0.png").unlink()
    (suite.folder / "d").rmdir()
    fresh = read_suite(suite.folder / "toy.toml")
    assert fresh.absent("own") == ""
    assert fresh.absent("strange") == f"set 'strange' of suite toy: no files in d below {suite.folder}"
    with pytest.raises(ConfigError, match="no files in d"):
        fresh.items("strange")
    (suite.folder / "d").mkdir()
    assert "no files in d" in fresh.absent("strange")


def test_an_unknown_set_is_refused_with_the_nearest_name(suite: Suite) -> None:
    for ask in (suite.items, suite.files, suite.absent):
        with pytest.raises(ConfigError, match="no set 'stranger'; did you mean 'strange'"):
            ask("stranger")
    for ask in (suite.others, suite.in_distribution, lambda name: suite.split(name, 1)):
        with pytest.raises(ConfigError, match="no in-distribution set 'alike'"):
            ask("alike")


def test_a_suite_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_suite(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="no suite 'near-far'; did you mean 'near-far-v1'"):
        read_suite("near-far")


def test_images_lie_below_the_root_that_was_given_or_written(suite: Suite, tmp_path: Path) -> None:
    elsewhere = tmp_path / "suites"
    elsewhere.mkdir()
    (elsewhere / "toy.toml").write_text('root = ".."\n' + TEXT)
    assert [i.name for i in read_suite(elsewhere / "toy.toml").items("alike")] == ["c/0.png", "c/1.png"]
    (elsewhere / "toy.toml").write_text(TEXT)
    assert read_suite(elsewhere / "toy.toml", root=tmp_path).items("alike") == suite.items("alike")
    assert "no files" in read_suite(elsewhere / "toy.toml").absent("alike")


def test_labels_may_name_the_column_of_a_set(suite: Suite) -> None:
    named = changed(suite.folder, ('near = ["alike"]', 'labels = "folder"\nnear = ["alike"]'))
    assert named.in_distribution("own").labels
    assert [item.label for item in named.items("own")] == ["a", "a", "a", "b"]
    assert [item.label for item in named.items("alike")] == ["", ""]


def test_a_classifier_is_read(suite: Suite) -> None:
    table = '\n[id.classifier]\nnetwork = "resnet18"\nweights = "w.safetensors"\nclasses = 3\nsize = [36, 64]\nmean = [0, 0.5, 1]\n'
    found = changed(suite.folder, more=table).in_distribution("own").classifier
    assert found is not None
    assert (found.network, found.weights, found.classes, found.size, found.mean, found.std) == (
        "resnet18",
        "w.safetensors",
        3,
        (36, 64),
        (0.0, 0.5, 1.0),
        (),
    )


def test_classes_are_sorted_as_words_or_as_numbers(suite: Suite) -> None:
    named = changed(suite.folder, ('near = ["alike"]', 'labels = "folder"\nnear = ["alike"]'))
    assert named.classes("own") == ["a", "b"]
    rows = [f"a/{i % 3}.png {label}" for i, label in enumerate((10, 2, 1))]
    (suite.folder / "list.txt").write_text("\n".join(rows))
    pair = ('paths = ["b", "a"]', 'list = "list.txt"')
    assert changed(suite.folder, pair, ('near = ["alike"]', "labels = true")).classes("own") == ["1", "2", "10"]
    (suite.folder / "list.txt").write_text("\n".join([*rows[:2], "a/2.png -1"]))
    with pytest.raises(ConfigError, match=r"1 of 3 images have no class, a/2\.png for example"):
        changed(suite.folder, pair).classes("own")
    with pytest.raises(ConfigError, match="has one class only, 'a'"):
        changed(suite.folder, ('paths = ["b", "a"]', 'paths = ["a"]\nlabel = "folder"')).classes("own")
