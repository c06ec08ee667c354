"""False alarms end to end: p-values of exchangeable images are uniform, whatever the division."""

import numpy as np
import pytest
from scipy import ndimage, stats

import offmap
from offmap.calibrate.threshold import beta_binomial_band

SMALL = {"prepare.detail.size": "32", "prepare.resize.size": "32", "score.standard.maps": "false"}


def clouds(n: int, rng: np.random.Generator) -> np.ndarray:
    """Smooth random images, float32 in [0, 1], ``(n, 32, 32)``."""
    fields = [ndimage.gaussian_filter(rng.standard_normal((32, 32)), rng.uniform(0.5, 3)) for _ in range(n)]
    return np.stack([(f - f.min()) / np.ptp(f) for f in fields]).astype(np.float32)


@pytest.mark.parametrize("kind", ["split", "cross"])
def test_p_values_of_exchangeable_images_are_uniform(kind: str) -> None:
    rng, found, n, m = np.random.default_rng(1), [], 150, 120
    for seed in range(4):
        gate = offmap.fit(clouds(n, rng), axes="NHW", settings={**SMALL, "calibrate.kind": kind}, seed=seed)
        found.append(np.array([row["p_value"] for row in gate.score(clouds(m, rng), axes="NHW").rows]))
        if kind == "split":
            low, high = beta_binomial_band(gate.scorer.ranks.n, m, 0.2)
            assert low <= (found[-1] <= 0.2).sum() <= high
    pooled = np.concatenate(found)
    assert stats.kstest(pooled, "uniform").statistic < 0.12
    assert 0.01 < np.mean(pooled <= 0.05) < 0.1


def test_copies_and_patients_stand_in_one_part_only() -> None:
    """A copy of a training image in the calibration part would make it look too typical."""
    images = clouds(60, np.random.default_rng(2))
    doubled = np.concatenate([images, images[:, ::-1]])
    gate = offmap.fit(doubled, axes="NHW", settings=SMALL)
    assert gate.facts["data"]["duplicates"] == 60
    alone = offmap.fit(images, axes="NHW", settings=SMALL)
    new = clouds(100, np.random.default_rng(3))
    flagged = [np.mean([row["p_value"] <= 0.1 for row in g.score(new, axes="NHW").rows]) for g in (gate, alone)]
    assert flagged[0] < 0.25
    assert flagged[1] < 0.25
