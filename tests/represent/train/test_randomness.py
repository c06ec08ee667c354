"""Randomness of steps: other seeds are other runs."""

import itertools

import torch

from offmap.represent.train.randomness import generator_of


def first(seed: int, step: int) -> float:
    return float(torch.randn((), generator=generator_of(seed, step), dtype=torch.float64))


def test_seeds_and_steps_give_numbers_of_their_own() -> None:
    places = list(itertools.product((0, 1, 2, 7, 1000), (0, 1, 2, 100_000, (1 << 31) - 1, 1 << 31)))
    assert len({first(*place) for place in places}) == len(places)
    assert first(3, 5) == first(3, 5)


def test_trap_a_seed_moved_beyond_32_bits_is_lost() -> None:
    """A generator on the CPU reads 32 bits only: why seeds are not shifted to the left."""
    lost, own = torch.Generator().manual_seed(1 << 32), torch.Generator().manual_seed(0)
    assert torch.equal(torch.rand(4, generator=lost), torch.rand(4, generator=own))
