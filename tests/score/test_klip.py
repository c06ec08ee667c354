"""KLIP of raw updates against loops in float64, and its traps one by one."""

import numpy as np
import pytest
import torch
from torch import Tensor

from offmap.core.errors import ConfigError, SignalError
from offmap.core.updates import UpdateSums, block_sums
from offmap.score.klip import KLIP, klip_map


def updates(seed: int = 0, shape: tuple[int, ...] = (6, 3, 2, 2, 8, 12)) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


G = torch.tensor([3.0, 2.0, 1.5, 1.0, 0.5, 0.25], dtype=torch.float64)
DT = torch.tensor([0.5, 0.4, 0.3, 0.2, 0.1, 0.05], dtype=torch.float64)


def naive(dx: np.ndarray, block: int, first: int, last: int, units: str) -> np.ndarray:
    """Straight from the formula, number by number."""
    samples, images, channels, height, width = dx.shape[1:]
    out = np.zeros((images, height // block, width // block))
    for n in range(images):
        for i in range(height):
            for j in range(width):
                for t in range(first, last):
                    for s in range(samples):
                        square = sum(float(dx[t, s, n, c, i, j]) ** 2 for c in range(channels))
                        if units == "divergence":
                            value = 0.5 * square / (float(G[t]) ** 2 * float(DT[t])) / samples
                        else:
                            value = square / float(G[t]) ** 2 / samples / (last - first)
                        out[n, i // block, j // block] += value
    return out


@pytest.mark.parametrize("units", ["divergence", "relative"])
@pytest.mark.parametrize(("block", "window"), [(1, None), (4, (2, 5)), (2, (0, 1))])
def test_it_is_the_sum_over_steps_and_the_mean_over_samples(units: str, block: int, window: tuple[int, int] | None) -> None:
    dx = updates()
    first, last = window or (0, 6)
    found = klip_map(dx, G, DT, block=block, window=window, units=units)  # type: ignore[arg-type]
    np.testing.assert_allclose(found.numpy(), naive(dx.numpy(), block, first, last, units), rtol=1e-12)


def test_trap_squares_are_averaged_and_not_the_average_squared() -> None:
    dx = torch.stack([torch.ones(1, 1, 4, 4), -torch.ones(1, 1, 4, 4)])[None].double()
    one = torch.ones(1, dtype=torch.float64)
    assert torch.equal(klip_map(dx, one, one, block=4), torch.full((1, 1, 1), 8.0, dtype=torch.float64))
    assert float(klip_map(dx.mean(dim=1, keepdim=True), one, one, block=4)) == 0.0


def test_trap_each_square_is_divided_by_its_own_length_of_time() -> None:
    """A constant score on an uneven grid: the calibrated form is the integral, the relative form counts steps."""
    sigma = torch.tensor([10.0, 3.0, 1.0, 0.1, 0.0], dtype=torch.float64)
    h = sigma[:-1].square() - sigma[1:].square()
    dt = sigma[:-1] - sigma[1:]
    g = (h / dt).sqrt()
    score = updates(3, (1, 2, 3, 1, 4, 4)).expand(4, -1, -1, -1, -1, -1)
    dx = h[:, None, None, None, None, None] * score
    expected = 0.5 * 100.0 * score[0].square().sum(dim=2).mean(dim=0)
    torch.testing.assert_close(klip_map(dx, g, dt, block=1), expected)
    relative = klip_map(dx, g, dt, block=1, units="relative")
    assert float((relative / expected).std()) < 1e-9
    late = klip_map(dx, g, dt, block=1, window=(2, 4), units="relative") / klip_map(dx, g, dt, block=1, window=(2, 4))
    assert float((late - relative / expected).abs().max()) > 1e-3


def test_blocks_add_up_and_the_score_is_quadratic() -> None:
    dx = updates(1)
    fine = klip_map(dx, G, DT, block=1)
    torch.testing.assert_close(block_sums(fine, 4), klip_map(dx, G, DT, block=4), rtol=1e-13, atol=0)
    whole = 0.5 * (dx.square().sum(dim=(3, 4, 5)).mean(dim=1) / (G.square() * DT)[:, None]).sum(dim=0)
    torch.testing.assert_close(fine.flatten(1).sum(dim=1), whole, rtol=1e-13, atol=0)
    torch.testing.assert_close(klip_map(2 * dx, G, DT, block=4), 4 * klip_map(dx, G, DT, block=4), rtol=1e-13, atol=0)


def test_volumes_have_blocks_too() -> None:
    dx = updates(2, (2, 1, 1, 1, 4, 6, 8))
    found = klip_map(dx, G[:2], DT[:2], block=2)
    expected = 0.5 * (dx[0].square() / (G[0] ** 2 * DT[0]) + dx[1].square() / (G[1] ** 2 * DT[1]))[0, 0, 0]
    assert found.shape == (1, 2, 3, 4)
    torch.testing.assert_close(found[0, 1, 2, 3], expected[2:4, 4:6, 6:8].sum())


def test_sums_over_windows_do_not_grow_with_the_steps_and_hold_what_whole_sums_do() -> None:
    dx = updates(4, (100, 2, 3, 1, 8, 8))
    g, dt = torch.linspace(3, 0.1, 100), torch.linspace(0.3, 0.01, 100)
    sums = UpdateSums(100, 20, 2)
    for i, update in enumerate(dx):
        sums = sums.add(i, update, g=float(g[i]), dt=float(dt[i]))
    assert sum(part.numel() for part in (*sums.divergence, *sums.relative)) == 2 * 20 * 3 * 16
    signals = {"klip.map": sums.maps(), "klip.relative.map": sums.maps(relative=True), "klip.foreground": torch.ones(3, 4, 4)}
    for units in ("divergence", "relative"):
        detector = KLIP(window=(0.65, 0.85), cells=2, units=units)  # type: ignore[arg-type]
        expected = klip_map(dx, g, dt, block=4, window=(65, 85), units=units)  # type: ignore[arg-type]
        fitted = detector.fit([signals])
        torch.testing.assert_close(fitted.map(signals), expected.float())
        torch.testing.assert_close(fitted.score(signals), expected.flatten(1).amax(dim=1).float())


def signals_of(maps: Tensor, body: Tensor | None = None) -> dict[str, Tensor]:
    return {"klip.map": maps, "klip.foreground": torch.ones(len(maps), *maps.shape[2:]) if body is None else body}


def test_trap_blocks_of_air_do_not_count() -> None:
    maps = torch.ones(1, 20, 8, 8)
    maps[:, :, 0, 0] = 1000.0
    body = torch.zeros(1, 8, 8)
    body[:, 3:6, 3:6] = 0.5
    one, every = (KLIP(foreground=f).fit([signals_of(maps, body)]) for f in (True, False))
    assert float(one.score(signals_of(maps, body))) == pytest.approx(4 * 4.0)
    assert float(every.score(signals_of(maps, body))) > 1000
    assert float(one.map(signals_of(maps, body))[0, 0, 0]) == 0.0


def test_reductions() -> None:
    maps = torch.rand(5, 20, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    body = (torch.rand(5, 8, 8, generator=torch.Generator().manual_seed(1)) > 0.6).double()
    signals = signals_of(maps, body)
    for reduction, reduce in (("max", np.max), ("sum", np.sum), ("p95", lambda v: np.quantile(v, 0.95))):
        found = KLIP(cells=1, window=(0.0, 1.0), reduction=reduction).fit([signals]).score(signals)  # type: ignore[arg-type]
        expected = [reduce(m.sum(0).numpy()[b.numpy() > 0]) for m, b in zip(maps, body, strict=True)]
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)


def test_trap_the_largest_of_more_blocks_is_larger() -> None:
    rng = torch.Generator().manual_seed(0)
    small, large = (torch.rand(400, 1, side, side, generator=rng) for side in (2, 16))
    detector = KLIP(window=(0.0, 1.0), cells=1)
    medians = [float(detector.fit([signals_of(m)]).score(signals_of(m)).median()) for m in (small, large)]
    assert medians[1] > medians[0] + 0.1


def test_bad_input_is_refused_with_a_reason() -> None:
    maps = torch.ones(3, 20, 6, 6)
    fitted = KLIP().fit([signals_of(maps)])
    empty = torch.ones(3, 6, 6)
    empty[1] = 0
    with pytest.raises(SignalError, match=r"foreground of rows \[1\] is empty"):
        fitted.score(signals_of(maps, empty))
    with pytest.raises(SignalError, match=r"6 x 6 cannot be cut into blocks of 4; blocks of 1, 2, 3, 6 fit"):
        KLIP(cells=4).fit([signals_of(maps)])
    with pytest.raises(SignalError, match=r"grid \[20, 8, 8\].*\[20, 6, 6\] when it was fitted"):
        fitted.score(signals_of(torch.ones(1, 20, 8, 8)))
    with pytest.raises(SignalError, match="cuts one of the signal's 20 windows"):
        KLIP(window=(0.61, 0.7)).fit([signals_of(maps)])
    with pytest.raises(SignalError, match=r"must be \(N, K, \*cells\)"):
        KLIP().fit([{"klip.map": torch.ones(3, 4), "klip.foreground": torch.ones(3, 4)}])
    with pytest.raises(SignalError, match="does not have the cells"):
        KLIP().fit([signals_of(maps, torch.ones(3, 3, 3))])
    with pytest.raises(SignalError, match="different grids"):
        KLIP().fit([signals_of(maps), signals_of(torch.ones(3, 20, 8, 8))])


@pytest.mark.parametrize(
    ("key", "value"), [("window", (0.5, 0.5)), ("window", (0.2,)), ("cells", 0), ("units", "bits"), ("reduction", "min")]
)
def test_a_parameter_out_of_range_is_refused(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{key}.* = "):
        KLIP.from_params({key: value})


def test_impossible_sums_are_refused() -> None:
    with pytest.raises(ConfigError, match="multiple of the windows"):
        UpdateSums(10, 3, 1)
    with pytest.raises(ConfigError, match="g\\^2 dt = 0"):
        UpdateSums(2, 1, 1).add(0, torch.ones(1, 1, 1, 2, 2), g=0.0, dt=1.0)
    with pytest.raises(ConfigError, match=r"step = 2 must lie in \[0, 2\)"):
        UpdateSums(2, 1, 1).add(2, torch.ones(1, 1, 1, 2, 2), g=1.0, dt=1.0)
    broken = torch.ones(1, 3, 1, 2, 2)
    broken[0, 1, 0, 0, 0] = torch.nan
    with pytest.raises(SignalError, match=r"not finite for images \[1\]"):
        UpdateSums(2, 1, 1).add(0, broken, g=1.0, dt=1.0)
    with pytest.raises(ConfigError, match="no update was added"):
        UpdateSums(2, 1, 1).maps()
    with pytest.raises(ConfigError, match="window = "):
        klip_map(updates(), G, DT, block=1, window=(3, 9))
