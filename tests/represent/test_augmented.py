"""Views against scipy's interpolation, and their logits against the network's own."""

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from tests.represent.tiny import encoder, images, pixels, tiny

from offmap.represent.augmented import View, seen, views


def resampled(image: np.ndarray, view: View) -> np.ndarray:
    """Each output position looks up its place in the image: scaled about the centre, then moved."""
    across, along, right, down = view
    height, width = image.shape[1:]
    y, x = np.mgrid[:height, :width].astype(np.float64)
    rows = (y - (height - 1) / 2) * along + (height - 1) / 2 + down
    columns = (x - (width - 1) / 2) * across + (width - 1) / 2 + right
    return np.stack([map_coordinates(channel, [rows, columns], order=1, mode="nearest") for channel in image])


@pytest.mark.parametrize("size", [(16, 16), (50, 32)])
@pytest.mark.parametrize("index", range(10))
def test_views_equal_scipy(size: tuple[int, int], index: int) -> None:
    view = views(*size, upside_down=True)[index]
    x = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    np.testing.assert_allclose(seen(x, view)[0].numpy(), resampled(x[0].numpy(), view), atol=1e-9)


def test_views_are_few_fixed_and_small() -> None:
    assert len(views(224, 224, upside_down=False)) == 8
    assert len(set(views(224, 224, upside_down=True))) == 10
    assert views(224, 224, upside_down=False)[2:6] == ((1, 1, 9, 0), (1, 1, -9, 0), (1, 1, 0, 9), (1, 1, 0, -9))


def test_logits_are_those_of_the_views() -> None:
    net = tiny()
    name = "tta.logits:upside_down=true"
    got = encoder(net).encode(images(), frozenset({name, "logits", "tta.logits:upside_down=false"}))
    net.eval()
    assert torch.equal(got[name][:, 0], got["logits"])
    assert torch.equal(got[name][:, :8], got["tta.logits:upside_down=false"])
    for i, view in enumerate(views(16, 16, upside_down=True)):
        with torch.no_grad():
            expected = net(torch.stack([torch.from_numpy(resampled(x.numpy(), view)) for x in pixels(images())]))
        torch.testing.assert_close(got[name][:, i], expected.float(), rtol=1e-4, atol=1e-5)
