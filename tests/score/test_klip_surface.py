"""The tuner's arithmetic against loops over every setting, and its choice."""

import numpy as np
import pytest
import torch
from torch import Tensor

from offmap.core.errors import SignalError
from offmap.score._klip_surface import Surface, area_under, rescore
from offmap.score.klip import KLIP


def drawn(n: int = 5, k: int = 4, side: int = 4, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    clean, odd = (torch.rand(n, k, side, side, generator=rng) for _ in range(2))
    masks = torch.rand(n, side, side, generator=rng) > 0.7
    body, odd_body = (torch.rand(n, side, side, generator=rng).clamp_min(0.4) - 0.4 for _ in range(2))
    seen = (torch.arange(k) % 3 == 1)[:, None, None]
    return clean, odd + 0.4 * masks[:, None] * seen, masks, body, odd_body


def pairs(usual: list[float], strange: list[float]) -> float:
    """Share of pairs, one by one."""
    return float(np.mean([1.0 if s > u else 0.5 if s == u else 0.0 for s in strange for u in usual]))


def naive_blocks(maps: np.ndarray, body: np.ndarray, mask: np.ndarray, cells: int, start: int, stop: int) -> list[tuple[float, bool]]:
    """Value and label of every block of one image that touches the body."""
    out = []
    for i in range(0, maps.shape[1], cells):
        for j in range(0, maps.shape[2], cells):
            here = slice(i, i + cells), slice(j, j + cells)
            if (body[here] > 0).any():
                value = sum(float(maps[t][here].astype(np.float64).sum()) for t in range(start, stop))
                out.append((value, bool(mask[here].any())))
    return out


@pytest.mark.parametrize("reduction", ["max", "p95", "sum"])
def test_every_setting_is_what_loops_give(reduction: str) -> None:
    clean, odd, masks, body, odd_body = drawn()
    found = rescore(clean, odd, masks, body=body, odd_body=odd_body, reduction=reduction)  # type: ignore[arg-type]
    surface = found.surface()
    assert found.cells == (1, 2)
    assert len(found.windows) == 10
    reduce = {"max": np.max, "sum": np.sum, "p95": lambda v: np.quantile(v, 0.95)}[reduction]
    for b, cells in enumerate(found.cells):
        for w, (start, stop) in enumerate(found.windows):
            none = np.zeros(masks.shape[1:], bool)
            usual = [naive_blocks(m.numpy(), a.numpy(), none, cells, start, stop) for m, a in zip(clean, body, strict=True)]
            strange = [
                naive_blocks(m.numpy(), a.numpy(), k.numpy(), cells, start, stop) for m, a, k in zip(odd, odd_body, masks, strict=True)
            ]
            scores = [[float(reduce([v for v, _ in blocks])) for blocks in images] for images in (usual, strange)]
            assert float(surface.images[b, w]) == pytest.approx(pairs(*scores), abs=1e-9)
            inside = [
                pairs([v for v, label in blocks if not label], [v for v, label in blocks if label])
                for blocks in strange
                if len({label for _, label in blocks}) == 2
            ]
            assert float(surface.blocks[b, w]) == pytest.approx(np.mean(inside), abs=1e-9)


def test_scores_are_those_of_the_detector() -> None:
    clean, odd, masks, body, odd_body = drawn(6, 20, 8, 1)
    found = rescore(clean, odd, masks, body=body, odd_body=odd_body)
    b, w = found.cells.index(2), found.windows.index((13, 17))
    detector = KLIP(window=(0.65, 0.85), cells=2)
    for maps, cover, mine in ((clean, body, found.clean), (odd, odd_body, found.odd)):
        signals = {"klip.map": maps, "klip.foreground": cover}
        torch.testing.assert_close(detector.fit([signals]).score(signals), mine[b, w].float())


def test_area_under_counts_ties_by_half() -> None:
    usual, strange = torch.tensor([0.0, 1.0, 1.0, 2.0]).double(), torch.tensor([1.0, 3.0]).double()
    assert float(area_under(usual, strange)) == pytest.approx(pairs(usual.tolist(), strange.tolist()))
    assert float(area_under(usual, usual)) == 0.5


def test_the_choice_finds_the_window_and_the_block_in_which_artefacts_were_planted() -> None:
    rng = torch.Generator().manual_seed(3)
    clean, odd = (torch.rand(200, 10, 8, 8, generator=rng) for _ in range(2))
    masks = torch.zeros(200, 8, 8, dtype=torch.bool)
    masks[:, 2:4, 4:6] = True
    odd[:, 3:6] += 0.2 * masks[:, None]
    surface = rescore(clean, odd, masks, body=None, odd_body=None).surface()
    b, w = surface.best("both")
    assert surface.cells[b] == 2
    assert surface.windows[w] == (3, 6)
    assert surface.shares(w) == (0.3, 0.6)


def test_of_equal_settings_the_longest_window_and_the_smallest_block_are_taken() -> None:
    flat = torch.ones(2, 3, dtype=torch.float64)
    assert Surface((1, 2), ((0, 1), (0, 2), (1, 2)), 2, flat, flat).best("both") == (0, 1)


def test_a_choice_of_images_gives_the_surface_of_those_alone() -> None:
    clean, odd, masks, body, odd_body = drawn(8)
    some = torch.tensor([1, 4, 6])
    part = rescore(clean, odd, masks, body=body, odd_body=odd_body).surface(some)
    alone = rescore(clean[some], odd[some], masks[some], body=body[some], odd_body=odd_body[some]).surface()
    torch.testing.assert_close(part.images, alone.images)
    torch.testing.assert_close(part.blocks, alone.blocks, equal_nan=True)


def test_the_interval_holds_the_value_and_narrows_with_more_images() -> None:
    widths = []
    for n in (10, 160):
        clean, odd, masks, _, _ = drawn(n, 2, 4, 5)
        found = rescore(clean, odd + 0.2, masks, body=None, odd_body=None)
        low, high = found.interval(0, 0, "images", torch.arange(n))
        assert low <= float(found.surface().images[0, 0]) <= high
        widths.append(high - low)
    assert widths[1] < 0.5 * widths[0]


def test_what_cannot_be_tuned_is_refused() -> None:
    clean, odd, masks, _, _ = drawn()
    with pytest.raises(SignalError, match="same two or more images"):
        rescore(clean[:1], odd[:1], masks[:1], body=None, odd_body=None)
    with pytest.raises(SignalError, match="no blocks to choose from"):
        rescore(clean[..., :1, :1], odd[..., :1, :1], masks[..., :1, :1], body=None, odd_body=None)
    nowhere = rescore(clean, odd, torch.zeros_like(masks), body=None, odd_body=None).surface()
    with pytest.raises(SignalError, match="both blocks with and without"):
        nowhere.best("blocks")
