"""A gate on a diffusion prior: fitted on images, saved, loaded, and asked about measurements."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import offmap
from offmap.core.errors import ConfigError, SignalError
from offmap.pipeline.gate import Gate
from offmap.pipeline.measured import psnr, score_measurements
from offmap.represent.klip import KlipEncoder
from offmap.represent.operators.parse import parse
from offmap.represent.posterior.edm import EDM

SIDE = 32
TEXT = "ct:views=20,noise=0.01"
RECIPE = "[prepare.window]\n[prepare.resize]\nsize = 32\n[forms]\nrandom = false\n[score.klip]\nwindow = [0.0, 1.0]\ncells = 1\n"


class Heads(nn.Module):
    """Pixels that vary about a disc, each by itself."""

    def __init__(self) -> None:
        super().__init__()
        at = torch.linspace(-1, 1, SIDE)
        self.mean = nn.Parameter((at[:, None].hypot(at[None, :]) < 0.8).float()[None, None] - 1)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        s = sigma.view(-1, 1, 1, 1).square()
        out: Tensor = (0.0225 * x + s * self.mean) / (0.0225 + s)
        return out


def encoder(text: str = TEXT) -> KlipEncoder:
    return KlipEncoder(Heads(), text, EDM(steps=20, samples=2, sigma_max=10.0, deviation=0.15), size=SIDE)


def images(count: int, seed: int, *, odd: bool = False) -> np.ndarray:
    rng = np.random.default_rng(seed)
    drawn = Heads().mean.detach().numpy() + 0.15 * rng.standard_normal((count, 1, SIDE, SIDE))
    drawn[:, :, 12:16, 16:20] += 0.8 * odd
    return np.clip((drawn + 1) / 2, 0, 1).astype(np.float32)


def measurements(x: np.ndarray, noise: float = 0.01) -> np.ndarray:
    y = parse(TEXT).forward(torch.from_numpy(2 * x - 1)).numpy()
    return np.asarray(y + noise * np.random.default_rng(7).standard_normal(y.shape), dtype=np.float32)


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Gate:
    file = tmp_path_factory.mktemp("klip") / "recipe.toml"
    file.write_text(RECIPE)
    return offmap.fit(images(60, 0), axes="NCHW", recipe=str(file), encoder=encoder())


def test_images_are_scored_and_mapped_by_the_whole_house(gate: Gate, tmp_path: Path) -> None:
    usual, odd = (gate.score(images(6, 3, odd=o), axes="NCHW").to_pandas()["p_value"] for o in (False, True))
    assert odd.max() < 0.1 < usual.median()
    gate.save(tmp_path / "gate")
    again = offmap.load(tmp_path / "gate", encoder=encoder())
    assert again.score(images(6, 3), axes="NCHW").to_pandas()["p_value"].tolist() == usual.tolist()
    heat = gate.explain(images(1, 3, odd=True)[0], axes="CHW").map
    assert heat is not None
    assert np.unravel_index(np.nanargmax(heat), heat.shape)[0] in range(10, 18)


def test_measurements_are_scored_without_images(gate: Gate) -> None:
    x = np.concatenate([images(4, 5), images(4, 5, odd=True)])
    found = score_measurements(gate, measurements(x), operator=TEXT, reference=x)
    p = found.table.to_pandas()["p_value"].to_numpy()
    assert p[4:].max() < 0.1 < np.median(p[:4])
    assert found.map is not None
    assert [int(i) for i in found.map[4:].reshape(4, -1).argmax(axis=1)] == [3 * 8 + 4] * 4
    assert found.psnr.min() > 20
    assert np.allclose(found.psnr, psnr(found.reconstruction, x))
    assert 0.7 < found.residual[:4].min() <= found.residual[:4].max() < 1.5
    flat = score_measurements(gate, torch.from_numpy(measurements(x)[:, 0]))
    assert np.array_equal(flat.table.to_pandas()["score"], found.table.to_pandas()["score"])


def test_bad_measurements_get_a_reason_and_never_a_map(gate: Gate) -> None:
    y = measurements(images(5, 6))
    y[1, 0, 3, 4] = np.nan
    y[2] = measurements(images(1, 8), noise=0.3)[0]
    y[3] = parse(TEXT).forward(torch.full((1, 1, SIDE, SIDE), -1.0)).numpy()[0]
    found = score_measurements(gate, y, explained=(0.25, 8.0))
    rows = found.table.to_pandas()
    assert rows["reason"].fillna("").tolist() == ["", "non_finite", "noise_level", "no_foreground", ""]
    assert rows["verdict"].tolist()[1:4] == ["not_assessed"] * 3
    assert found.map is not None
    assert np.isnan(found.map[1:4]).all()
    assert np.isfinite(found.map[[0, 4]]).all()
    assert np.isnan(found.reconstruction[1:4]).all()
    only = score_measurements(gate, y[1:2])
    assert only.table.to_pandas()["reason"].tolist() == ["non_finite"]
    assert np.isnan(only.residual).all()


def test_what_does_not_fit_the_gate_is_refused(gate: Gate) -> None:
    y = measurements(images(2, 6))
    with pytest.raises(ConfigError, match=r"the gate was fitted with ct:arc=180,noise=0.01,views=20, ct:.*views=24 was given"):
        score_measurements(gate, y, operator="ct:views=24")
    with pytest.raises(SignalError, match="is it ct:views=19"):
        score_measurements(gate, y[:, :, :19])
    with pytest.raises(SignalError, match="does not fit reconstructions"):
        score_measurements(gate, y, reference=images(1, 6))
    with pytest.raises(SignalError, match="there is no measurement"):
        score_measurements(gate, y[:0])
    facts = {**gate.facts, "data": {**gate.facts["data"], "modalities": ["MR"]}}
    foreign = Gate(gate.recipe, gate.encoder, gate.preparation, gate.scorer, facts)
    with pytest.raises(ConfigError, match="measures CT images, the prior or gate was made with MR"):
        score_measurements(foreign, y)
