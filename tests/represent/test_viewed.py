"""Views of an image: which there are, and what a frozen backbone says of each."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from offmap.core.encoder import Encoder, Input
from offmap.core.errors import ConfigError
from offmap.represent.viewed import OTHER, SCORED, WINDOW, Look, ViewedEncoder, augmented, made

SIZE = 32


class Plain(nn.Module):
    """The pixels themselves, one value for every 4 x 4 patch, on two channels."""

    def forward(self, pixels: Tensor) -> Tensor:
        maps = functional.avg_pool2d(pixels[:, :1], 4)
        return torch.cat([maps, -maps], dim=1)


class Bare(Encoder):
    name, layers, provides = "bare", ("deep",), frozenset({"features.deep"})
    input, sha256 = Input(SIZE, 3, (0.5,) * 3, (0.25,) * 3), "0"

    def encode(self, images: Tensor, needs: frozenset[str]) -> dict[str, Tensor]:
        return {}

    def to(self, device: torch.device | str) -> "Bare":
        return self

    def state(self) -> None:
        return None

    def config(self) -> dict[str, object]:
        return {"name": self.name}


class WithBackbone(Bare):
    def backbone(self) -> nn.Module:
        return Plain()


def images(count: int = 3) -> Tensor:
    return torch.rand(count, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def test_made_classes_are_flips_turns_and_windows() -> None:
    pixels = images()
    flip, turned = made("laterality flip", SIZE), made("rotation", SIZE)
    assert torch.equal(flip["as it is"].of(pixels), pixels)
    assert torch.equal(flip["mirrored"].of(pixels), pixels.flip(3))
    for quarters, (name, look) in enumerate(turned.items()):
        assert torch.equal(look.of(pixels), torch.rot90(pixels, quarters, (2, 3))), name
    side = round(WINDOW * SIZE)
    rest = SIZE - side
    corners = {
        "centre": (rest // 2, rest // 2),
        "upper left": (0, 0),
        "upper right": (0, rest),
        "lower left": (rest, 0),
        "lower right": (rest, rest),
    }
    for name, look in made("crop position", SIZE).items():
        top, left = corners[name]
        window = pixels[:, :, top : top + side, left : left + side]
        expected = functional.interpolate(window, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
        torch.testing.assert_close(look.of(pixels)[:, :, 2:-2, 2:-2], expected[:, :, 2:-2, 2:-2], atol=1e-5, rtol=0)


def test_there_is_no_mirrored_view_where_a_flip_changes_the_label() -> None:
    with_flips, without = augmented(Look(), SIZE, flips=True), augmented(Look(), SIZE, flips=False)
    assert len(with_flips) == 8
    assert len(without) == 7
    assert with_flips[0] == without[0] == Look()
    mirrored = [look for look in with_flips if any(window[0] < 0 for window in look.windows)]
    assert set(with_flips) - set(without) == set(mirrored)
    centre = made("crop position", SIZE)["centre"]
    assert augmented(centre, SIZE, flips=False)[0] == centre
    assert all(look.windows[0] == centre.windows[0] for look in augmented(centre, SIZE, flips=False))


def test_features_are_the_means_of_the_cells_of_each_view() -> None:
    looks = (Look(), made("laterality flip", SIZE)["mirrored"])
    pixels = images()
    found = ViewedEncoder(WithBackbone(), looks, looks[1:]).encode(pixels, frozenset({SCORED, OTHER}))
    seen = (pixels[:, 0].double() - 0.5) / 0.25
    half = SIZE // 2
    cells = [seen[:, top : top + half, left : left + half].mean(dim=(1, 2)) for top in (0, half) for left in (0, half)]
    as_it_is = torch.stack([*cells, *(-cell for cell in cells)], dim=1)
    mirrored = torch.stack([cells[i] * sign for sign in (1, -1) for i in (1, 0, 3, 2)], dim=1)
    torch.testing.assert_close(found[SCORED].double(), torch.stack([as_it_is, mirrored], dim=1), atol=1e-5, rtol=0)
    torch.testing.assert_close(found[OTHER][:, 0], found[SCORED][:, 1])


def test_other_views_are_another_encoder() -> None:
    digests = {ViewedEncoder(WithBackbone(), (Look(i),), ()).sha256 for i in range(3)}
    assert len(digests) == 3


def test_what_cannot_be_done_is_said() -> None:
    with pytest.raises(ConfigError, match=r"no task 'sharpness'.*there are: laterality flip, crop position, rotation"):
        made("sharpness", SIZE)
    with pytest.raises(ConfigError, match=r"bare has no backbone.*use builtin"):
        ViewedEncoder(Bare(), (Look(),), ())
