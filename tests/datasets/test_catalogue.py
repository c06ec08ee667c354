"""What is known of the public data sets."""

import hashlib
import re
from pathlib import Path

import pytest

from offmap.core.errors import ConfigError
from offmap.datasets.catalogue import catalogue, entry

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "medmnist"


def test_all_two_dimensional_sets_in_all_sizes() -> None:
    known = catalogue()
    assert len(known) == 12 * 4
    for name in ["pneumonia", "breast", "retina", "path", "derma", "blood", "organa", "organc", "organs", "chest", "oct", "tissue"]:
        for suffix in ("", "_64", "_128", "_224"):
            assert f"{name}mnist{suffix}" in known
    assert len({s.md5 for s in known.values()}) == len(known)
    for name, found in known.items():
        assert found.name == name
        assert re.fullmatch(r"[0-9a-f]{32}", found.md5)
        assert found.url == f"https://zenodo.org/records/10519652/files/{name}.npz"
        assert found.licence.startswith("CC BY")
        assert found.bytes_about is None or found.bytes_about < found.bytes_at_most


def test_licences_that_forbid_commercial_use_are_told() -> None:
    assert {s.name.split("_")[0] for s in catalogue().values() if "NC" in s.licence} == {"dermamnist"}


def test_numbers_of_a_set() -> None:
    pneumonia = entry("pneumoniamnist")
    assert (pneumonia.n_train, pneumonia.n_val, pneumonia.n_test, pneumonia.n) == (4708, 524, 624, 5856)
    assert pneumonia.labels == ("normal", "pneumonia")
    assert pneumonia.size == "4.2 MB"
    assert entry("pathmnist_224").size.startswith("< ")


def test_a_misspelt_name_gets_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'breastmnist'"):
        entry("brestmnist")


@pytest.mark.skipif(not (SHARED / "retinamnist.npz").is_file(), reason="no ../shared/data beside the checkout")
def test_checksum_of_a_real_file() -> None:
    content = (SHARED / "retinamnist.npz").read_bytes()
    known = entry("retinamnist")
    assert hashlib.md5(content, usedforsecurity=False).hexdigest() == known.md5
    assert len(content) == pytest.approx(known.bytes_about, rel=0.01)
