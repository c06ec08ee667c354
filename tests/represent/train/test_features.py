"""Training on feature maps: it learns, resumes exactly, stops at NaN with what was good, and refuses what it cannot learn from."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from offmap.core.errors import ConfigError, DataError
from offmap.core.trainer import Examples
from offmap.represent.encoder import BuiltinEncoder
from offmap.represent.feature_nets import shapes_of
from offmap.represent.nets.distillation import Student
from offmap.represent.nets.feature_net import Maps
from offmap.represent.train import features
from offmap.represent.train.features import Source, TrainedOnFeatures, train_on_features
from offmap.represent.train.judged import Judged, Schedule
from offmap.represent.train.parallel import ALONE, Crew
from offmap.represent.trained import TrainedEncoder, named

CPU = torch.device("cpu")
LAYERS = ("stages.0", "stages.1")
PLAN = Schedule(steps=12, batch=4, warmup=2, check_every=4, average=0.9)


def discs(count: int, seed: int = 0, side: int = 32) -> Tensor:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side - 0.5
    shift = 0.05 * rng.standard_normal((count, 2, 1, 1))
    shown = 0.7 * (np.hypot(y - shift[:, 0], x - shift[:, 1]) < 0.3)
    return torch.from_numpy(np.clip(shown + 0.1 + 0.03 * rng.standard_normal(shown.shape), 0, 1)[:, None]).float()


@pytest.fixture(scope="module")
def base() -> BuiltinEncoder:
    torch.set_num_threads(1)
    return BuiltinEncoder.shipped(size=32)


def train(
    base: BuiltinEncoder,
    net: Student | None = None,
    plan: Schedule = PLAN,
    *,
    out: Path | None = None,
    resume: bool = False,
    progress: Callable[[Judged], None] | None = None,
) -> TrainedOnFeatures[Student]:
    own = net or student(base)
    return train_on_features(own, base, LAYERS, discs(30), torch.arange(6), plan, out=out, resume=resume, progress=progress)


def student(base: BuiltinEncoder) -> Student:
    return Student(shapes_of(base, LAYERS, CPU), width=8, rng=torch.Generator().manual_seed(0))


def test_a_resumed_run_has_the_losses_and_weights_of_one_sitting(base: BuiltinEncoder, tmp_path: Path) -> None:
    whole = train(base, out=tmp_path / "whole")

    def stop(now: Judged) -> None:
        if now.step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(base, out=tmp_path / "parts", progress=stop)
    again = train(base, out=tmp_path / "parts", resume=True)
    for name, value in whole.net.state_dict().items():
        assert torch.equal(value, again.net.state_dict()[name]), name
    losses = [
        {r["step"]: r["loss"] for r in map(json.loads, (tmp_path / p / "log.jsonl").read_text().splitlines())} for p in ("whole", "parts")
    ]
    assert losses[0] == losses[1]
    with pytest.raises(ConfigError, match="another plan"):
        train(base, plan=Schedule(steps=13, batch=4), out=tmp_path / "parts", resume=True)


class Diverging(Student):
    """Its loss is not finite from some step on."""

    steps, bad = 0, 10**9

    def loss(self, maps: Maps, rng: torch.Generator, crew: Crew = ALONE) -> Tensor:
        type(self).steps += int(self.training)
        found = super().loss(maps, rng, crew)
        return found * math.nan if type(self).steps >= self.bad and self.training else found


@pytest.mark.parametrize("bad", [7, 2])
def test_a_loss_that_is_not_finite_ends_the_run_and_the_last_good_checkpoint_stays(base: BuiltinEncoder, bad: int) -> None:
    net = Diverging(shapes_of(base, LAYERS, CPU), width=8, rng=torch.Generator().manual_seed(0))
    Diverging.steps, Diverging.bad = 0, bad
    if bad == 2:
        with pytest.raises(ConfigError, match="not finite at step 2, before the first checkpoint"):
            train(base, net)
        return
    found = train(base, net)
    assert found.kept == 4
    assert "not finite at step 7; the weights are those of step 4" in found.notes[-1]
    assert all(bool(torch.isfinite(v).all()) for v in found.net.state_dict().values())


def test_maps_that_do_not_fit_into_memory_are_made_anew(base: BuiltinEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Source(base, LAYERS, discs(5), CPU)
    monkeypatch.setattr(features, "KEPT", 1000)
    live = Source(base, LAYERS, discs(5), CPU)
    for one, other in zip(kept.take(torch.tensor([3, 1])), live.take(torch.tensor([3, 1])), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_few_equal_or_broken_images_are_refused(base: BuiltinEncoder) -> None:
    def go(images: Tensor) -> None:
        train_on_features(student(base), base, LAYERS, images, torch.arange(4), PLAN)

    with pytest.raises(DataError, match=r"1 images to train .* 16 and 2 are the least"):
        go(discs(5))
    with pytest.raises(DataError, match="all the same"):
        go(discs(1).expand(30, -1, -1, -1))
    broken = discs(30)
    broken[7, 0, 3, 3] = math.nan
    with pytest.raises(DataError, match=r"not finite in rows \[7\]"):
        go(broken)


SETTINGS = {
    "feature_flow": {"couplings": 2, "hidden": 8},
    "rd4ad": {"width": 8},
    "simplenet": {"hidden": 8},
    "invad": {"width": 8, "blocks": 1},
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_trainer_keeps_all_that_its_network_needs(name: str, precision: str) -> None:
    own = {"size": 32, "steps": 8, "batch": 4, "check_every": 4, "warmup": 2, "precision": precision, **SETTINGS[name]}
    trainer, told = named(name).from_params(own), []
    assert trainer.input.size == 32
    assert f"{name}.map" in trainer.open(0, None, device=CPU).provides
    found = trainer.train(Examples(discs(30), None, torch.arange(6)), seed=0, device=CPU, progress=told.append)
    assert [event["done"] for event in told] == [4, 8]
    assert found.facts["base"] == "builtin"
    encoder = TrainedEncoder(trainer, (), found.state)
    again = TrainedEncoder.from_bundle(json.loads(json.dumps(encoder.config())), encoder.state())
    signals = [e.encode(discs(3, seed=5), frozenset({f"{name}.map", "features.last"})) for e in (encoder, again)]
    assert tuple(signals[0][f"{name}.map"].shape[:2]) == (3, 1)
    for key, value in signals[0].items():
        assert torch.equal(value, signals[1][key])
    same = trainer.train(Examples(discs(30), None, torch.arange(6)), seed=0, device=CPU)
    assert all(torch.equal(value, same.state[key]) for key, value in found.state.items())


def test_a_network_of_another_shape_is_refused() -> None:
    small, large = (named("rd4ad").from_params({"size": 32, "steps": 4, "batch": 4, "width": w}) for w in (8, 12))
    state = small.train(Examples(discs(30), None, torch.arange(6)), seed=0, device=CPU).state
    with pytest.raises(ConfigError, match="weights do not fit rd4ad"):
        large.open(0, state, device=CPU)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("rd4ad", {"base": "classifier:x.pt2"}),
        ("rd4ad", {"base": "hub:x", "size": 64}),
        ("rd4ad", {"size": 16}),
        ("rd4ad", {"width": 2}),
        ("rd4ad", {"precision": "float16"}),
        ("feature_flow", {"couplings": 0}),
        ("simplenet", {"noise": 0.0}),
        ("invad", {"inversion": 0}),
        ("invad", {"reads": ["stages.9"]}),
    ],
)
def test_settings_out_of_range_are_refused(name: str, wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        named(name).from_params(wrong).open(0, None, device=CPU)


def test_a_transformer_can_be_the_base(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from tests.represent.test_hub import MODELS, drawn, saved

    folder = saved(drawn(MODELS["dinov2"][0]()), tmp_path / "model")
    trainer = named("rd4ad").from_params({"base": f"hub:{folder}", "steps": 4, "batch": 4, "width": 8})
    found = trainer.train(Examples(discs(30), None, torch.arange(6)), seed=0, device=CPU)
    assert found.facts["layers"] == ["layer.1", "layer.2", "layer.3"]
    (folder / "model.safetensors").unlink()
    signals = TrainedEncoder(trainer, (), found.state).encode(discs(2), frozenset({"rd4ad.map"}))
    assert tuple(signals["rd4ad.map"].shape) == (2, 1, 4, 4)
