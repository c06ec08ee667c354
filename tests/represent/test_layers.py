"""Pooling against float64, names and patterns, pixels."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offmap.core.encoder import Input
from offmap.core.errors import ConfigError, SignalError
from offmap.represent.digest import tensors_sha256
from offmap.represent.layers import chosen, joined, normalise, spatial_stats, wanted


@settings(max_examples=30, deadline=None)
@given(
    shape=st.lists(st.integers(1, 7), min_size=1, max_size=3),
    level=st.floats(-100, 100, width=32),
    seed=st.integers(0, 2**31),
)
def test_statistics_equal_numpy_in_float64(shape: list[int], level: float, seed: int) -> None:
    maps = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(seed)) + level
    flat = maps.double().flatten(2).numpy()
    deviation = flat.std(axis=2, ddof=1) if flat.shape[2] > 1 else np.zeros((2, 3))
    np.testing.assert_allclose(spatial_stats(maps).numpy(), np.concatenate([flat.mean(axis=2), deviation], axis=1), rtol=1e-4, atol=1e-4)


def test_statistics_do_not_depend_on_the_memory_order() -> None:
    maps = torch.randn(2, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    other = maps.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(spatial_stats(maps), spatial_stats(other), rtol=0, atol=1e-6)


def test_statistics_need_space() -> None:
    with pytest.raises(SignalError, match="one to three spatial axes"):
        spatial_stats(torch.zeros(2, 3))


def test_patterns_reach_layers_and_names_reach_everything() -> None:
    provides = {"features.a", "features.b", "features.last", "features.cls", "feature_map.a", "logits", "image"}
    assert wanted({"features.*"}, provides, ("a", "b")) == {"features.a", "features.b", "features.last"}
    assert wanted({"features.cls", "logits", "label"}, provides, ("a", "b")) == {"features.cls", "logits"}
    assert wanted({"feature_map.*"}, provides, ("a", "b")) == {"feature_map.a"}


def test_layers_are_chosen_by_name() -> None:
    assert chosen((), ("a", "b"), "net") == ("a", "b")
    assert chosen(("b", "a"), ("a", "b", "c"), "net") == ("a", "b")
    with pytest.raises(ConfigError, match=r"net has no layer 'layr1'; it has: layer1, layer2; did you mean 'layer1'\?"):
        chosen(("layr1",), ("layer1", "layer2"), "net")


def test_pixels_are_normalised_per_channel() -> None:
    pixels = torch.full((1, 3, 2, 2), 0.5)
    out = normalise(pixels, Input(2, 3, (0.5, 0.25, 0.0), (1.0, 0.5, 0.25)))
    assert out[0, :, 0, 0].tolist() == [0.0, 0.5, 2.0]


def test_colour_becomes_luma_for_a_grey_encoder() -> None:
    red = torch.zeros(1, 3, 2, 2)
    red[:, 0] = 1
    out = normalise(red, Input(2, 1, (0.0,), (1.0,)))
    torch.testing.assert_close(out, torch.full((1, 1, 2, 2), 0.299))


def test_chunks_keep_aliases() -> None:
    one, two = torch.zeros(1, 2), torch.ones(2, 2)
    signals = joined([{"a": one, "b": one}, {"a": two, "b": two}])
    assert signals["a"] is signals["b"]
    assert signals["a"].shape == (3, 2)


def test_digest_follows_values_names_types_and_note() -> None:
    base = {"a": torch.arange(4.0), "b": torch.zeros(2, dtype=torch.bfloat16)}
    digest = tensors_sha256(base)
    assert digest == tensors_sha256(dict(reversed(base.items())))
    changed = [base | {"a": torch.arange(4.0) + 1}, base | {"a": torch.arange(4.0).reshape(2, 2)}, {"a": base["a"], "c": base["b"]}]
    assert len({digest, tensors_sha256(base, note="x"), *map(tensors_sha256, changed)}) == 5


def test_grey_on_three_channels_is_exactly_what_one_channel_gives() -> None:
    grey = torch.rand(4, 1, 9, 7, generator=torch.Generator().manual_seed(2))
    spec = Input(9, 1, (0.5,), (0.5,))
    assert torch.equal(normalise(grey.expand(-1, 3, -1, -1), spec), normalise(grey, spec))
