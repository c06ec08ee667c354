"""Random changes of training images."""

import pytest
import torch

from offmap.represent.train.augment import augmented


@pytest.mark.parametrize("how", ["light", "strong"])
def test_values_stay_in_range_and_a_seed_gives_the_same(how: str) -> None:
    images = torch.rand(8, 3, 24, 32, generator=torch.Generator().manual_seed(1))
    one, two = (augmented(images, how, torch.Generator().manual_seed(5)) for _ in range(2))  # type: ignore[arg-type]
    torch.testing.assert_close(one, two)
    assert one.shape == images.shape
    assert float(one.min()) >= 0
    assert float(one.max()) <= 1 + 1e-6
    assert not torch.equal(one, images)


def test_strong_cuts_a_black_square_and_keeps_grey_grey() -> None:
    images = torch.full((64, 1, 56, 56), 0.8).expand(-1, 3, -1, -1)
    found = augmented(images, "strong", torch.Generator().manual_seed(3))
    torch.testing.assert_close(found[:, 0], found[:, 2])
    black = (found[:, 0] == 0).flatten(1).sum(dim=1)
    assert int((black > 0).sum()) >= 56
    assert int(black[black < 1000].max()) <= 25


def test_light_keeps_the_grey_values_of_a_flat_image() -> None:
    images = torch.full((4, 1, 16, 16), 0.3)
    torch.testing.assert_close(augmented(images, "light", torch.Generator().manual_seed(0)), images)
