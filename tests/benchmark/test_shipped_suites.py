"""The suites that come with offmap: each reads, says where it comes from, and gives images where data are at hand."""

from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from offmap.benchmark.checkpoint import NETWORKS
from offmap.benchmark.suite import Suite, read_suite, shipped
from offmap.datasets import local

NAMES = {
    "corruptions",
    "labels",
    "mecam-isic",
    "mecam-local",
    "mecam-pathmnist",
    "medmnist",
    "near-far-v1",
    "nova",
    "openmibood-midog",
    "openmibood-oasis3",
    "openmibood-phakir",
}
OPENMIBOOD = {
    "openmibood-midog": ("resnet50", 2, 7, 2),
    "openmibood-phakir": ("resnet18", 2, 3, 2),
}


def text(name: str) -> str:
    return (resources.files("offmap.benchmark") / "suites" / f"{name}.toml").read_text(encoding="utf-8")


def here(name: str) -> Suite:
    """A suite over the local data."""
    root = local.find()
    if root is None:
        pytest.skip("no local data ($OFFMAP_DATA)")
    return read_suite(name, root)


def test_all_are_listed() -> None:
    assert set(shipped()) == NAMES


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_suite_reads_and_names_itself(name: str, tmp_path: Path) -> None:
    suite = read_suite(name, tmp_path)
    assert suite.name == name
    assert suite.folder == tmp_path
    for own in suite.own:
        assert suite.absent(own) != ""
        others = suite.others(own)
        assert others
        assert not set(others) & {own, *suite.in_distribution(own).parts}


@pytest.mark.parametrize("name", sorted(NAMES - {"near-far-v1"}))
def test_a_suite_says_what_it_is_where_it_comes_from_and_where_to_put_it(name: str) -> None:
    header = text(name).partition("\nname = ")[0].lower()
    assert f'suite "{name}"' in header
    assert all(line.startswith("#") for line in header.splitlines())
    assert "licence" in header or "cc by" in header
    assert "--data dir" in header
    assert shipped()[name]


def test_the_local_suite_is_that_of_the_data() -> None:
    root = local.find()
    if root is None or not (root / "near-far-v1.toml").is_file():
        pytest.skip("no local data ($OFFMAP_DATA)")
    assert text("near-far-v1") == (root / "near-far-v1.toml").read_text(encoding="utf-8")


def test_the_local_suite_gives_the_rows_that_were_measured() -> None:
    """Folders one below the other, sorted as paths, cut to 600 or 200; the permutation of numpy's generator for each seed."""
    suite = here("near-far-v1")
    for name, given in suite.sets.items():
        found = sorted(p for folder in given.paths for p in (suite.folder / folder).glob("*") if p.is_file() and p.name[0] != ".")
        assert suite.files(name) == found[: 600 if name in suite.own else 200]
    assert suite.others("busi_normal_benign")["busi_malignant"] == "near"
    assert len(suite.others("busi_normal_benign")) == 16
    division = suite.split("kermany_normal", 2)
    order = np.random.default_rng(2).permutation(600)
    for rows, expected in zip((division.fit, division.held_out, division.test), np.split(order, [300, 420]), strict=True):
        np.testing.assert_array_equal(rows, expected)


def test_classes_of_the_labelled_suite() -> None:
    suite = here("labels")
    classes = {own: sorted({item.label for item in suite.items(own)}) for own in suite.own}
    assert classes == {
        "kermany": ["normal", "pneumonia"],
        "brain": ["glioma", "meningioma", "no_tumour"],
        "lung": ["aca", "normal"],
        "busi": ["benign", "normal"],
        "medical_mnist": ["AbdomenCT", "CXR", "ChestCT", "Hand", "HeadCT"],
    }
    assert all(suite.in_distribution(own).labels for own in suite.own)
    for own in suite.own:
        for seed in suite.seeds:
            division = suite.split(own, seed)
            assert {suite.items(own)[row].label for row in division.fit} == set(classes[own])


def test_medmnist_has_one_finding_in_distribution_and_its_own_parts() -> None:
    suite = here("medmnist")
    for own, label in (("pneumonia_normal", 0), ("breast_benign", 1), ("retina_none", 0)):
        if suite.absent(own):
            pytest.skip(suite.absent(own))
        items, division = suite.items(own), suite.split(own, 1)
        parts = {
            name: {items[row].source.key for row in rows}
            for name, rows in zip("fht", (division.fit, division.held_out, division.test), strict=True)
        }
        assert parts == {"f": {"train_images"}, "h": {"val_images"}, "t": {"test_images"}}
        with np.load(items[0].source.path) as arrays:
            assert len(division.test) == int((arrays["test_labels"] == label).sum())


def test_what_was_not_fetched_is_named_with_the_command() -> None:
    suite = read_suite("medmnist", Path("nowhere"))
    assert suite.absent("bloodmnist").endswith("bloodmnist.npz is not there; fetch it with: offmap data get bloodmnist")


ORIGINS = {
    "images/busi": "busi",
    "data:breastmnist": "busi",
    "images/kermany": "kermany",
    "data:pneumoniamnist": "kermany",
    "images/nih": "nih",
    "data:chestmnist": "nih",
    "images/medical_mnist": "nih",
}
"""What the notes of the data say of sets that hold the same images."""


def origins(suite: Suite, *names: str) -> set[str]:
    """Where the images of some sets come from, where that is shared with others."""
    paths = [path for name in names for path in suite.sets[name].paths]
    return {origin for start, origin in ORIGINS.items() for path in paths if path.startswith(start)}


@pytest.mark.parametrize("name", sorted(NAMES))
def test_no_far_set_has_images_of_the_in_distribution_one(name: str) -> None:
    suite = read_suite(name, Path("nowhere"))
    for own in suite.ids:
        for other, kind in suite.others(own.set).items():
            if kind == "far":
                assert not origins(suite, *own.parts) & origins(suite, other), (own.set, other)


@pytest.mark.parametrize("name", sorted(OPENMIBOOD))
def test_openmibood_reads_lists_and_classifiers(name: str, tmp_path: Path) -> None:
    suite = read_suite(name, tmp_path / "data")
    (own,) = suite.ids
    network, *counts = OPENMIBOOD[name]
    kinds = list(suite.others(own.set).values())
    assert [kinds.count(kind) for kind in ("covariate", "near", "far")] == counts
    assert own.classifier is not None
    assert own.classifier.network == network in NETWORKS
    for number, given in enumerate(suite.sets.values()):
        path = tmp_path / "data" / given.list
        path.parent.mkdir(parents=True, exist_ok=True)
        image = tmp_path / "data" / given.list_root / f"{number}.tiff"
        image.parent.mkdir(exist_ok=True)
        image.write_bytes(b"x")
        path.write_text(f"{image.name} {number % 2 if given.name in own.parts else -1}\n")
    assert [suite.absent(each) for each in (own.set, *suite.others(own.set))] == [""] * (1 + len(kinds))
    division = suite.split(own.set, 1)
    assert [len(part) for part in (division.fit, division.held_out, division.test)] == [1, 1, 1]
    assert {item.label for item in suite.items(own.set)} == {"0", "1"}
    assert {item.label for other in suite.others(own.set) for item in suite.items(other)} == {""}
    assert all(item.source.volume == (name == "openmibood-oasis3") for item in suite.items(own.set))
