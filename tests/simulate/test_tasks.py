"""Tasks of altering images: exact masks, labels by each kind's own equation, and what is refused."""

import numpy as np
import pytest
from scipy import ndimage, sparse
from scipy.sparse import linalg

from offmap.core.errors import ConfigError
from offmap.simulate.poisson import from_gradients
from offmap.simulate.tasks import FPI, NSA, PII, SEEN, TASKS, CutPaste, CutPasteScar


def pictures(channels: int = 1, size: tuple[int, ...] = (41, 30), count: int = 3) -> list[np.ndarray]:
    """Smooth discs (balls) on black."""
    rng = np.random.default_rng(0)
    away = np.sqrt(sum((g - n / 2) ** 2 for g, n in zip(np.indices(size), size, strict=True)))
    disc = away < 0.42 * min(size)
    grain = [ndimage.gaussian_filter(rng.random((channels, *size)), (0, *[1.5] * len(size))) for _ in range(count)]
    return [(disc * np.clip(0.2 + 0.6 * g, 0, 1)).astype(np.float32) for g in grain]


def solved(own: np.ndarray, *slopes: np.ndarray) -> np.ndarray:
    """Poisson's equation with the border of ``own``, pixel by pixel."""
    inner = tuple(n - 2 for n in own.shape)
    count = int(np.prod(inner))
    index = np.full(own.shape, -1)
    index[(slice(1, -1),) * own.ndim] = np.arange(count).reshape(inner)
    matrix, load = sparse.lil_matrix((count, count)), np.zeros(count)
    for place in zip(*np.nonzero(index >= 0), strict=True):
        row = index[place]
        matrix[row, row] = 2 * own.ndim
        for axis, slope in enumerate(slopes):
            before, after = (tuple(p + step * (a == axis) for a, p in enumerate(place)) for step in (-1, 1))
            load[row] -= slope[place] - slope[before]
            for beside in (before, after):
                if index[beside] >= 0:
                    matrix[row, index[beside]] = -1
                else:
                    load[row] += own[beside]
    out = own.copy()
    out[(slice(1, -1),) * own.ndim] = linalg.spsolve(matrix.tocsr(), load).reshape(inner)
    return out


@pytest.mark.parametrize("name", list(TASKS))
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(41, 30), (8, 8), (9, 33), (13, 9, 10)])
def test_masks_are_exact_labels_lie_in_them_and_seeds_repeat(name: str, channels: int, size: tuple[int, ...]) -> None:
    images = pictures(channels, size)
    before = [image.copy() for image in images]
    for seed in range(12):
        one, again = (TASKS[name].alter(images, np.random.default_rng(seed)) for _ in range(2))
        assert np.array_equal(one.pixels, again.pixels)
        assert one.task == name
        assert one.pixels.shape == images[0].shape
        assert 0 <= one.pixels.min() <= one.pixels.max() <= 1
        assert np.array_equal(one.pixels[:, ~one.mask], images[0][:, ~one.mask])
        assert not one.labels[~one.mask].any()
        assert (one.labels[one.mask] > 0).all()
        assert one.labels.max() <= 1
        assert (np.abs(one.pixels - images[0]) > SEEN).any()
    assert all(np.array_equal(a, b) for a, b in zip(images, before, strict=True))


@pytest.mark.parametrize("size", [(41, 30), (20, 24, 22)])
def test_what_is_altered_shows_something(size: tuple[int, ...]) -> None:
    """The background of both images is left alone, so that nothing there has a label that no network can guess."""
    images = pictures(size=size)
    bodies = [image[0] > 0 for image in images]
    for name, task in TASKS.items():
        shares = [float(bodies[0][task.alter(images, np.random.default_rng(s), bodies=bodies).mask].mean()) for s in range(10)]
        assert np.mean(shares) > 0.5, name


def test_interpolation_mixes_by_its_label() -> None:
    """Eq. 1 of FPI: ``(1 - a) own + a foreign``."""
    own, other = np.full((1, 40, 40), 0.2, np.float32), np.full((1, 40, 40), 0.8, np.float32)
    found = FPI().alter([own, other], np.random.default_rng(0))
    np.testing.assert_allclose(found.pixels[0][found.mask], 0.2 + 0.6 * found.labels[found.mask], atol=1e-6)
    assert len(np.unique(found.labels[found.mask])) == 1


def test_the_solver_is_that_of_the_equation() -> None:
    rng = np.random.default_rng(1)
    for shape in ((9, 7), (5, 7, 6), (3, 3, 4)):
        own = rng.random(shape)
        slopes = [rng.random(np.diff(own, axis=axis).shape) for axis in range(own.ndim)]
        np.testing.assert_allclose(from_gradients(own, slopes), solved(own, *slopes), atol=1e-12)
        np.testing.assert_allclose(from_gradients(own, [np.diff(own, axis=axis) for axis in range(own.ndim)]), own, atol=1e-12)


def test_poisson_interpolation_of_an_image_with_a_flat_one_scales_its_gradients() -> None:
    """Where the other image is flat, the larger gradient is ``(1 - a) own``."""
    own = pictures()[0]
    task = PII()
    found = task.alter([own, np.full_like(own, 0.5)], np.random.default_rng(3), bodies=[np.ones(own.shape[1:], bool)] * 2)
    rows, columns = np.flatnonzero(found.mask.any(axis=1)), np.flatnonzero(found.mask.any(axis=0))
    box = np.s_[rows[0] - 1 : rows[-1] + 2, columns[0] - 1 : columns[-1] + 2]
    inside, share = own[0][box].astype(np.float64), float(found.labels.max())
    expected = solved(inside, (1 - share) * np.diff(inside, axis=0), (1 - share) * np.diff(inside, axis=1))
    np.testing.assert_allclose(found.pixels[0][box], expected, atol=1e-6)


def test_labels_of_nsa_follow_the_change() -> None:
    images = pictures(3)
    task = NSA(steepness=30.0, middle=0.05)
    found = task.alter(images, np.random.default_rng(2))
    change = np.abs(found.pixels.astype(np.float64) - images[0]).mean(axis=0)
    np.testing.assert_allclose(found.labels[found.mask], 1 / (1 + np.exp(-30 * (change[found.mask] - 0.05))), atol=1e-5)
    assert (change[found.mask] > SEEN * 0.999).all()
    mixed = NSA(mixed=True).alter(images, np.random.default_rng(2))
    assert not np.array_equal(mixed.pixels, found.pixels)


def test_cutpaste_moves_a_piece_of_the_image_itself() -> None:
    own = pictures()[0]
    found = CutPaste(jitter=0.0).alter([own, np.zeros_like(own)], np.random.default_rng(5), bodies=[np.ones(own.shape[1:], bool)] * 2)
    rows, columns = np.flatnonzero(found.mask.any(axis=1)), np.flatnonzero(found.mask.any(axis=0))
    piece = found.pixels[0, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    windows = np.lib.stride_tricks.sliding_window_view(own[0], piece.shape)
    assert (np.abs(windows - piece) < 1e-6).all(axis=(2, 3)).any()
    assert set(np.unique(found.labels)) == {0.0, 1.0}


def test_a_scar_is_thin() -> None:
    own = pictures(size=(128, 128))
    areas = [int(CutPasteScar().alter(own, np.random.default_rng(s)).mask.sum()) for s in range(20)]
    assert max(areas) <= (128 * 16 / 256 + 2) * (128 * 25 / 256 + 2)
    assert min(areas) >= 3
    rod = CutPasteScar(length=(0.3, 0.3)).alter(pictures(size=(40, 40, 40)), np.random.default_rng(1)).mask
    assert 3 <= rod.sum() <= (40 * 16 / 256 + 2) ** 2 * (0.3 * 40 + 2)


def test_images_without_anything_to_see_end() -> None:
    flat = [np.full((1, 16, 16), 0.5, np.float32)] * 2
    assert not (FPI().alter(flat, np.random.default_rng(0)).pixels != flat[0]).any()


def test_what_cannot_be_altered_is_refused() -> None:
    one, two = pictures(count=2)
    with pytest.raises(ConfigError, match="two or more images of one shape; 1 of"):
        FPI().alter([one], np.random.default_rng(0))
    with pytest.raises(ConfigError, match="of one shape; 2 of"):
        FPI().alter([one, two[:, 1:]], np.random.default_rng(0))
    with pytest.raises(ConfigError, match=r"\(1, 7, 30\) must have 1 or 3 channels and sides of 8"):
        FPI().alter([one[:, :7], two[:, :7]], np.random.default_rng(0))
