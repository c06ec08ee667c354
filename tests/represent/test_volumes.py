"""Volumes, slice by slice and patch by patch, against loops."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from offmap.core.encoder import Encoder
from offmap.core.errors import ConfigError, SignalError
from offmap.represent.encoder import BuiltinEncoder
from offmap.represent.patches import Cut, Patches
from offmap.represent.slices import SliceWise


@pytest.fixture(scope="module")
def base() -> BuiltinEncoder:
    torch.set_num_threads(1)
    return BuiltinEncoder.shipped(layers=["stem", "stages.3"])


def volumes(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


def test_slices_are_pooled_by_mean_and_maximum(base: Encoder) -> None:
    x = volumes(2, 1, 40, 32, 48)
    signals = SliceWise(base).encode(x, frozenset({"features.*", "feature_map.*", "image"}))
    for i in range(2):
        one = base.encode(x[i].transpose(0, 1), frozenset({"features.*", "feature_map.*"}))
        expected = torch.cat([one["features.stages.3"].mean(dim=0), one["features.stages.3"].amax(dim=0)])
        torch.testing.assert_close(signals["features.last"][i], expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(signals["feature_map.stem"][i], one["feature_map.stem"].transpose(0, 1), rtol=0, atol=1e-5)
    assert signals["feature_map.stem"].shape == (2, 24, 40, 16, 24)
    assert torch.equal(signals["image"], x)


def test_a_volume_gives_what_it_gives_in_its_batch(base: Encoder) -> None:
    x = volumes(3, 1, 20, 32, 32)
    for encoder in (SliceWise(base), Patches(base, Cut(size=16, stride=16, view=32))):
        whole = encoder.encode(x, frozenset({"features.last"}))["features.last"]
        torch.testing.assert_close(encoder.encode(x[1:2], frozenset({"features.last"}))["features.last"], whole[1:2], rtol=0, atol=1e-5)


def test_deviation_over_one_slice_is_zero(base: Encoder) -> None:
    out = SliceWise(base, ("mean", "std")).encode(volumes(1, 1, 1, 32, 32), frozenset({"features.stem"}))["features.stem"]
    assert torch.equal(out[:, 48:], torch.zeros(1, 48))


def test_unknown_pools_and_empty_volumes_are_refused(base: Encoder) -> None:
    with pytest.raises(ConfigError, match="one or several of mean, max, std"):
        SliceWise(base, ("median",))
    with pytest.raises(SignalError, match="no slice"):
        SliceWise(base).encode(volumes(1, 1, 0, 32, 32), frozenset({"features.last"}))


def test_patches_are_the_three_planes_through_their_centre(base: Encoder) -> None:
    x = volumes(2, 1, 24, 40, 33)
    signals = Patches(base, Cut(size=16, stride=8, view=32)).encode(x, frozenset({"feature_map.patches", "features.patches"}))
    grid = signals["feature_map.patches"]
    assert grid.shape == (2, 3 * 512, 2, 4, 4)
    corner = (8, 8, round(17 * 2 / 3))
    cube = x[1, 0, corner[0] : corner[0] + 16, corner[1] : corner[1] + 16, corner[2] : corner[2] + 16]
    planes = torch.stack([cube[8], cube[:, 8], cube[:, :, 8]])[:, None]
    views = functional.interpolate(planes, size=(32, 32), mode="bilinear", antialias=True)
    expected = base.encode(views, frozenset({"features.last"}))["features.last"].flatten()
    torch.testing.assert_close(grid[1, :, 1, 1, 2], expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(signals["features.patches"][:, : 3 * 512], grid.mean(dim=(2, 3, 4)), rtol=0, atol=1e-5)


def test_patches_reach_both_edges(base: Encoder) -> None:
    starts = Patches(base, Cut(size=16, stride=16))._starts(volumes(1, 1, 16, 50, 32))
    assert [s.tolist() for s in starts] == [[0], [0, 11, 23, 34], [0, 16]]


def test_small_volumes_and_unknown_layers_are_refused(base: Encoder) -> None:
    with pytest.raises(SignalError, match="smaller than one patch of 32 voxels"):
        Patches(base).encode(volumes(1, 1, 31, 64, 64), frozenset({"features.last"}))
    with pytest.raises(ConfigError, match=r"no layer 'stages.9'; it has: stem, stages.3; did you mean 'stages.3'"):
        Patches(base, Cut(layer="stages.9"))
    with pytest.raises(ConfigError, match="view = 8 must be 32 or more"):
        Cut(view=8)
