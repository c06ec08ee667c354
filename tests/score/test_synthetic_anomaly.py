"""The score of synthetic-anomaly networks: mean of the most suspicious pixels, its map, and where it is blind."""

import numpy as np
import pytest
import torch

from offmap.core.errors import ConfigError, SignalError
from offmap.represent.synthetic_anomaly import top_share
from offmap.score.synthetic_anomaly import SyntheticAnomaly


def maps(count: int = 6, sides: tuple[int, int] = (9, 13)) -> torch.Tensor:
    return torch.rand(count, 1, *sides, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(("share", "pixels"), [(0.0, 1), (0.001, 1), (0.05, 6), (0.5, 58), (1.0, 117)])
def test_the_score_is_the_mean_of_the_largest_values(share: float, pixels: int) -> None:
    """0 is the maximum, 1 the mean of all."""
    detector, odd = SyntheticAnomaly(share=share), maps()
    signals = {detector.signal: top_share(odd, share)}
    expected = [np.sort(one.ravel())[-pixels:].mean() for one in odd.numpy()]
    np.testing.assert_allclose(detector.fit([signals]).score(signals).numpy(), expected, rtol=1e-6)


def test_settings_stand_in_the_name_of_the_signal_and_the_map_is_the_signal() -> None:
    detector = SyntheticAnomaly(share=0.25)
    assert detector.needs == {"synthetic.top:share=0.25"}
    fitted = detector.fit([{"synthetic.top:share=0.25": torch.rand(4)}])
    assert fitted.state == {}
    torch.testing.assert_close(fitted.map({"synthetic.map": maps()}), maps()[:, 0].float())


def test_trap_the_mean_of_all_pixels_misses_what_is_small_and_the_largest_pixel_is_fooled_by_one() -> None:
    """A small spot on an otherwise quiet map, against maps that are a little suspicious everywhere, and maps with one bad pixel."""
    spot = torch.full((1, 1, 40, 40), 0.02)
    spot[:, :, 5:9, 5:9] = 0.9
    dull, bad = torch.full((1, 1, 40, 40), 0.1), torch.full((1, 1, 40, 40), 0.02)
    bad[:, :, 3, 3] = 1.0
    assert top_share(spot, 1.0) < top_share(dull, 1.0)
    assert top_share(spot, 0.0) < top_share(bad, 0.0)
    assert top_share(spot, 0.01) > max(top_share(dull, 0.01), top_share(bad, 0.01))


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match=r"synthetic_anomaly: share = .* must lie in 0\.\.1"):
        SyntheticAnomaly(share=share)


def test_a_signal_of_another_shape_is_refused() -> None:
    with pytest.raises(SignalError, match=r"must be \(N,\)"):
        SyntheticAnomaly().fit([{SyntheticAnomaly().signal: torch.rand(4, 2)}])


def test_it_is_found_by_the_names_of_its_methods() -> None:
    for name in ("FPI", "PII", "NSA", "Many Tasks"):
        assert name in SyntheticAnomaly.reference
