"""How arrays are taken apart into measurements."""

from pathlib import Path

import numpy as np
import pytest
import torch

from offmap.core.types import Source
from offmap.pipeline.measuring import items
from offmap.represent.klip import KlipEncoder
from offmap.represent.operators.parse import parse, says
from offmap.represent.posterior.edm import EDM

SIDE = 16


def encoder(text: str, channels: int = 1) -> KlipEncoder:
    def gaussian(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return x / (1 + sigma.view(-1, 1, 1, 1).square())

    return KlipEncoder(gaussian, text, EDM(steps=20), size=SIDE, channels=channels, identity="gaussian")


@pytest.mark.parametrize(
    ("channels", "shape", "count"),
    [(1, (), None), (1, (1,), 1), (1, (3,), 3), (1, (3, 1), 3), (3, (3,), None), (3, (2, 3), 2), (3, (3, 3), 3)],
)
def test_an_array_is_one_measurement_or_a_stack(channels: int, shape: tuple[int, ...], count: int | None, tmp_path: Path) -> None:
    reader, folder = encoder("ct:views=6", channels), tmp_path
    one = reader.operator.measured((SIDE, SIDE))
    np.save(folder / "y.npy", np.random.default_rng(0).standard_normal((*shape, *one)))
    found = list(items([Source(folder / "y.npy", "y.npy")], reader))
    assert [item.name for item in found] == (["y.npy"] if count is None else [f"y.npy[{i}]" for i in range(count)])
    assert all(item.values is not None and tuple(item.values.shape) == (channels, *one) for item in found)


def test_complex_k_space_is_taken_apart_into_real_and_imaginary_part(tmp_path: Path) -> None:
    reader = encoder("mri:coils=2")
    y = reader.operator.forward(torch.randn(3, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0)))[:, 0].numpy()
    np.save(tmp_path / "complex.npy", y[:, :, 0] + 1j * y[:, :, 1])
    np.save(tmp_path / "one.npy", y[0, :, 0] + 1j * y[0, :, 1])
    stack = list(items([Source(tmp_path / "complex.npy", "y")], reader))
    for item, expected in zip(stack, y, strict=True):
        assert item.values is not None
        np.testing.assert_array_equal(item.values[0].numpy(), expected.astype(np.float32))
    (one,) = items([Source(tmp_path / "one.npy", "y")], reader)
    assert one.values is not None
    assert torch.equal(one.values, stack[0].values)


def test_other_shapes_are_refused_with_what_they_may_be(tmp_path: Path) -> None:
    reader = encoder("ct:views=6")
    bins = reader.operator.measured((SIDE, SIDE))[1]
    for shape, words in (
        ((8, bins), "is it ct:views=8"),
        ((6, bins + 1), f"it has {bins + 1} bins"),
        ((7,), "does not"),
        ((2, 3, 6, bins), "1 x"),
    ):
        np.save(tmp_path / "y.npy", np.zeros(shape))
        (found,) = items([Source(tmp_path / "y.npy", "y")], reader)
        assert found.refused is not None
        assert found.refused.reason == "wrong_measurement"
        assert words in found.refused.detail


def test_a_text_is_compared_by_what_it_says() -> None:
    gate = parse("ct:views=24,noise=0.02")
    assert says("ct", gate)
    assert says("ct:views=24", gate)
    assert not says("ct:noise=0.01", gate)
    assert not says("fan:views=24", gate)
