"""Parts that no patient and no copy straddles, of the shares asked for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offmap.calibrate.split import folds, split
from offmap.core.errors import ConfigError, DataError


def digests(n: int) -> list[str]:
    return [f"d{i}" for i in range(n)]


@given(st.lists(st.sampled_from(["", "a", "b", "c", "d", "e", "f"]), min_size=30, max_size=80), st.integers(0, 100))
@settings(deadline=None)
def test_each_row_is_in_one_part_and_no_group_in_two(groups: list[str], seed: int) -> None:
    copies = [(0, 5), (5, 7)]
    parts = split(groups, digests(len(groups)), seed=seed, copies=copies)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(groups)))
    where = {row: part for part, rows in enumerate(parts) for row in rows.tolist()}
    for name in set(groups) - {""}:
        assert len({where[row] for row, group in enumerate(groups) if group == name}) == 1
    assert where[0] == where[5] == where[7]
    for rows in parts:
        assert np.all(np.diff(rows) > 0)


def test_equal_files_stay_together() -> None:
    same = digests(40)
    same[3] = same[31] = same[17]
    for seed in range(20):
        parts = split([""] * 40, same, seed=seed)
        assert sum(len({3, 17, 31} & set(rows.tolist())) == 3 for rows in parts) == 1


def test_single_images_hit_the_shares_exactly() -> None:
    assert [len(rows) for rows in split([""] * 1000, digests(1000))] == [600, 200, 200]
    assert [len(rows) for rows in folds([""] * 503, 5)] == [101, 101, 101, 100, 100]


@pytest.mark.parametrize("seed", range(10))
def test_groups_of_many_sizes_come_near_the_shares(seed: int) -> None:
    sizes = np.random.default_rng(seed).integers(1, 40, size=60)
    groups = [f"p{i}" for i, size in enumerate(sizes) for _ in range(size)]
    parts = split(groups, seed=seed)
    for rows, share in zip(parts, (0.6, 0.2, 0.2), strict=True):
        assert abs(len(rows) - share * len(groups)) < 1.5


def test_group_size_does_not_decide_the_part() -> None:
    """Were large patients always fitted on, the parts would not be exchangeable."""
    sizes = [1, 2, 4, 8] * 25
    groups = [f"p{i}" for i, size in enumerate(sizes) for _ in range(size)]
    size_of = {f"p{i}": size for i, size in enumerate(sizes)}
    large = np.zeros(3)
    total = np.zeros(3)
    for seed in range(80):
        for part, rows in enumerate(split(groups, seed=seed)):
            named = {groups[row] for row in rows}
            large[part] += sum(size_of[name] == 8 for name in named)
            total[part] += len(named)
    np.testing.assert_allclose(large / total, 0.25, atol=0.03)


def test_one_patient_with_most_images_is_placed_where_there_is_room() -> None:
    groups = ["big"] * 50 + [""] * 50
    for seed in range(10):
        assert [len(rows) for rows in split(groups, seed=seed)] == [60, 20, 20]


def test_the_division_depends_on_content_and_seed_not_on_order() -> None:
    names, n = digests(50), 50
    groups = [f"p{i // 3}" if i % 2 else "" for i in range(n)]
    order = np.random.default_rng(0).permutation(n)
    first = [{names[row] for row in rows} for rows in split(groups, names, seed=4)]
    turned = [groups[i] for i in order], [names[i] for i in order]
    second = [{turned[1][row] for row in rows} for rows in split(*turned, seed=4)]
    assert first == second
    assert first != [{names[row] for row in rows} for rows in split(groups, names, seed=5)]


def test_a_share_of_zero_gives_an_empty_part() -> None:
    fit, held_out, calibrate = split([""] * 10, shares=(0.7, 0.3, 0.0))
    assert (len(fit), len(held_out), len(calibrate)) == (7, 3, 0)


def test_every_part_gets_something() -> None:
    assert all(len(rows) for seed in range(20) for rows in split(["a"] * 90 + ["b", "c"], seed=seed))
    assert all(len(rows) for seed in range(20) for rows in folds(["a", "b", "c"] * 9, 3, seed=seed))


@pytest.mark.parametrize("seed", range(5))
def test_folds_hold_each_image_once_and_no_patient_twice(seed: int) -> None:
    groups = [f"p{i % 23}" for i in range(200)]
    found = folds(groups, 5, seed=seed)
    assert sorted(np.concatenate(found).tolist()) == list(range(200))
    patients = [{groups[row] for row in rows} for rows in found]
    assert sum(map(len, patients)) == 23
    assert max(map(len, found)) - min(map(len, found)) <= 9


def test_too_few_patients_are_refused_with_their_number() -> None:
    with pytest.raises(DataError, match=r"40 images of 2 patients .* cannot be divided into 3 parts"):
        split(["a", "b"] * 20)
    with pytest.raises(DataError, match="0 images"):
        split([])
    with pytest.raises(DataError, match="5 parts"):
        folds(["a", "b", "c"])


def test_nonsense_is_refused() -> None:
    with pytest.raises(ConfigError, match="sum 1"):
        split([""] * 9, shares=(0.5, 0.4, 0.2))
    with pytest.raises(ConfigError, match="9 groups and 2 digests"):
        split([""] * 9, ["a", "b"])
    with pytest.raises(ConfigError, match="2 or more"):
        folds([""] * 9, 1)
