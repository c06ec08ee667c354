"""R(2+1)D against the table of its paper."""

import pytest
import torch
from torch.nn import functional

from offmap.represent.nets.r2plus1d import Block, R2Plus1D, between


@pytest.mark.parametrize(("before", "width"), [(64, 64), (64, 128), (128, 256), (256, 512), (512, 512)])
def test_both_halves_have_as_many_weights_as_the_whole(before: int, width: int) -> None:
    middle = between(before, width)
    assert (9 * before + 3 * width) * middle <= 27 * before * width < (9 * before + 3 * width) * (middle + 1)


def test_names_and_shapes_of_the_published_weights() -> None:
    state = R2Plus1D(1, 2).state_dict()
    known = {
        "stem.0.weight": (45, 1, 1, 7, 7),
        "stem.3.weight": (64, 45, 3, 1, 1),
        "layer1.0.conv1.0.0.weight": (144, 64, 1, 3, 3),
        "layer1.0.conv1.0.3.weight": (64, 144, 3, 1, 1),
        "layer2.0.conv1.0.0.weight": (230, 64, 1, 3, 3),
        "layer2.0.downsample.0.weight": (128, 64, 1, 1, 1),
        "layer4.0.conv2.0.3.weight": (512, 921, 3, 1, 1),
        "layer4.1.conv2.1.running_var": (512,),
        "fc.weight": (2, 512),
    }
    assert {key: tuple(state[key].shape) for key in known} == known


def test_maps_halve_as_in_the_table() -> None:
    sizes: list[tuple[int, ...]] = []
    net = R2Plus1D(3, 4).eval()
    for name in ("stem", "layer1", "layer2", "layer3", "layer4"):
        net.get_submodule(name).register_forward_hook(lambda _module, _given, gave: sizes.append(tuple(gave.shape[1:])))
    with torch.no_grad():
        assert net(torch.rand(1, 3, 8, 32, 32)).shape == (1, 4)
    assert sizes == [(64, 8, 16, 16), (64, 8, 16, 16), (128, 4, 8, 8), (256, 2, 4, 4), (512, 1, 2, 2)]


def test_a_block_is_what_its_formula_says() -> None:
    block = Block(4, 6, 2).eval()
    x = torch.rand(2, 4, 6, 8, 8)
    given = block.state_dict()

    def normalised(value: torch.Tensor, name: str) -> torch.Tensor:
        tensors = (given[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return functional.batch_norm(value, *tensors)

    def halves(value: torch.Tensor, name: str, stride: int) -> torch.Tensor:
        plane = functional.conv3d(value, given[f"{name}.0.weight"], stride=(1, stride, stride), padding=(0, 1, 1))
        middle = normalised(plane, f"{name}.1").relu()
        return functional.conv3d(middle, given[f"{name}.3.weight"], stride=(stride, 1, 1), padding=(1, 0, 0))

    first = normalised(halves(x, "conv1.0", 2), "conv1.1").relu()
    second = normalised(halves(first, "conv2.0", 1), "conv2.1")
    shortcut = normalised(functional.conv3d(x, given["downsample.0.weight"], stride=2), "downsample.1")
    with torch.no_grad():
        torch.testing.assert_close(block(x), (second + shortcut).relu())
