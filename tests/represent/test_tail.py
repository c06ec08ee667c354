"""RankFeat's logits against the singular value decomposition."""

import pytest
import torch
from tests.represent.tiny import encoder, images, pixels, tiny
from torch import Tensor

from offmap.represent.tail import without_leading


def by_decomposition(maps: Tensor) -> Tensor:
    out = []
    for image in maps.flatten(2):
        left, size, right = torch.linalg.svd(image, full_matrices=False)
        out.append(image - size[0] * torch.outer(left[:, 0], right[0]))
    return torch.stack(out).view_as(maps)


def test_logits_equal_those_of_maps_without_their_leading_triplet() -> None:
    net = tiny()
    names = {"rankfeat.logits.one:steps=300", "rankfeat.logits.two:steps=300"}
    got = encoder(net).encode(images(), frozenset(names))
    net.eval()
    with torch.no_grad():
        one = net.one(pixels(images()))
        early = net.head(net.neck(net.two(by_decomposition(one))))
        late = net.head(net.neck(by_decomposition(net.two(one))))
    torch.testing.assert_close(got["rankfeat.logits.one:steps=300"], early.float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got["rankfeat.logits.two:steps=300"], late.float(), rtol=1e-4, atol=1e-5)


def test_twenty_steps_suffice_where_the_leading_value_stands_out() -> None:
    rng = torch.Generator().manual_seed(0)
    maps = torch.rand(6, 24, 7, 7, generator=rng, dtype=torch.float64)
    torch.testing.assert_close(without_leading(maps, 20), by_decomposition(maps), rtol=0, atol=1e-9)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e6])
def test_maps_of_any_size_and_of_rank_one(scale: float) -> None:
    rng = torch.Generator().manual_seed(0)
    left, right = torch.randn(3, 5, 1, generator=rng), torch.randn(3, 1, 16, generator=rng)
    maps = (scale * left * right).view(3, 5, 4, 4)
    assert float(without_leading(maps, 20).abs().max()) <= 1e-5 * float(maps.abs().max())


def test_a_map_of_zeros_stays() -> None:
    assert torch.equal(without_leading(torch.zeros(2, 3, 4, 4), 20), torch.zeros(2, 3, 4, 4))


def test_aliases_are_the_deepest_layers() -> None:
    names = frozenset({"rankfeat.logits.last", "rankfeat.logits.last_but_one", "rankfeat.logits.one", "rankfeat.logits.two"})
    reader = encoder(tiny())
    assert names <= reader.provides
    signals = reader.encode(images(), names)
    assert torch.equal(signals["rankfeat.logits.last"], signals["rankfeat.logits.two"])
    assert torch.equal(signals["rankfeat.logits.last_but_one"], signals["rankfeat.logits.one"])
