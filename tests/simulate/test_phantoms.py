"""Phantoms: repeatable, varied, and ordered from near to far."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from offmap.core.errors import ConfigError
from offmap.simulate.phantom_families import MEDICAL
from offmap.simulate.phantoms import FAMILIES, VARIANTS, draw, write_phantoms


@pytest.mark.parametrize("family", FAMILIES)
def test_every_picture_is_repeatable_and_its_own(family: str) -> None:
    first, second = (draw(family, i, seed=0, size=80) for i in (0, 1))
    assert np.array_equal(first, draw(family, 0, seed=0, size=80))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, draw(family, 0, seed=1, size=80))
    assert first.shape[:2] == (80, 80)
    assert first.std() > 15


@pytest.mark.parametrize("family", list(MEDICAL))
@pytest.mark.parametrize("variant", list(VARIANTS))
def test_variants_change_the_same_anatomy(family: str, variant: str) -> None:
    plain, strange = (draw(family, 3, seed=0, size=96, variant=v).astype(int) for v in ("plain", variant))
    assert np.abs(strange - plain).mean() > 0.5
    if variant == "lesion":
        assert (strange == plain).mean() > 0.7


def coarse(picture: np.ndarray) -> np.ndarray:
    """A few numbers that tell families apart: a thumbnail and the strength of detail, in colour."""
    colour = picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=2)
    small = np.asarray(Pillow.fromarray(colour).resize((8, 8), Pillow.Resampling.BOX), dtype=float)
    detail = np.abs(np.diff(colour.astype(float), axis=0)).mean(axis=(0, 1))
    return np.concatenate([small.ravel() / 16, detail])


@pytest.mark.parametrize("family", list(MEDICAL))
def test_other_families_are_farther_than_ones_own(family: str) -> None:
    own = np.stack([coarse(draw(family, i, seed=0, size=96)) for i in range(12)])
    spread = np.linalg.norm(own - own.mean(axis=0), axis=1).max()
    for other in set(FAMILIES) - {family}:
        assert np.linalg.norm(coarse(draw(other, 0, seed=0, size=96)) - own.mean(axis=0)) > spread


def test_files_are_written_by_part(tmp_path: Path) -> None:
    folders = write_phantoms(tmp_path / "with space", n=6, seed=0, size=64, near=3, far=6, family="chest")
    written = {part: sorted(place.iterdir()) for part, place in folders.items()}
    assert {part: len(paths) for part, paths in written.items()} == {"id": 6, "near": 3, "far": 6}
    for part, paths in written.items():
        assert folders[part] == tmp_path / "with space" / part
        for path in paths:
            with Pillow.open(path) as picture:
                assert picture.size == (64, 64)
    assert {p.name.split("_")[0] for p in written["far"]} == set(FAMILIES) - {"chest"}
    assert {p.stem.split("_")[2] for p in written["near"]} == set(VARIANTS)


def test_impossible_requests_are_refused(tmp_path: Path) -> None:
    for wrong in ({"n": 0}, {"n": 4, "family": "brian"}, {"n": 4, "size": 20}):
        with pytest.raises(ConfigError):
            write_phantoms(tmp_path, seed=0, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="did you mean 'brain'"):
        draw("brian", 0, seed=0)
    with pytest.raises(ConfigError, match="lesion"):
        draw("brain", 0, seed=0, variant="lesoin")
