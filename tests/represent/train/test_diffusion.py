"""Training of diffusion models: the loss, exact resume, and everything that can go wrong."""

import errno
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from offmap.core.errors import ConfigError, DataError
from offmap.represent.train import checkpoint
from offmap.represent.train import diffusion as training
from offmap.represent.train.diffusion import DiffusionPlan, TrainedDiffusion, train_diffusion
from offmap.represent.train.judged import Judged
from offmap.represent.train.planted import Trial

pytest.importorskip("monai", reason="needs the extra [generative]")
pytest.importorskip("einops", reason="needs the extra [generative]")

PLAN = DiffusionPlan(size=8, widths=(8, 16), steps=6, batch=4, warmup=2, check_every=2, held_out=0.25)


def blobs(count: int = 24, side: int = 8, axes: int = 2) -> Tensor:
    """A bright spot near the middle."""
    rng = torch.Generator().manual_seed(0)
    centres = 0.2 * torch.randn(count, axes, *[1] * axes, generator=rng)
    grid = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, side)] * axes, indexing="ij"))
    return torch.exp(-4 * (grid - centres).square().sum(dim=1, keepdim=True))


def watched(**changes: object) -> tuple[TrainedDiffusion, list[Judged]]:
    told: list[Judged] = []
    options = {"images": blobs(), "plan": PLAN, "progress": told.append} | changes
    return train_diffusion(options.pop("images"), options.pop("plan"), **options), told  # type: ignore[arg-type]


def test_an_untrained_network_has_a_loss_of_one_and_training_lowers_it() -> None:
    """Preconditioning and weight make ``lambda E|c_skip (x + n) - x|^2 = 1`` at every level where F is 0, as it is at first."""
    run = training._Run.of(blobs(400), PLAN, 0, torch.device("cpu"))
    state = run.begin()
    with torch.no_grad():
        losses = [float(run.loss(state.net, run.train, torch.Generator().manual_seed(i))) for i in range(4)]
    assert np.mean(losses) == pytest.approx(1.0, abs=0.1)
    _, told = watched(plan=DiffusionPlan(size=8, widths=(8, 16), steps=60, batch=16, warmup=5, check_every=60, rate=5e-3))
    assert np.mean([p.loss for p in told[-10:]]) < 0.7 * np.mean([p.loss for p in told[:5]])


def test_a_resumed_run_has_the_losses_and_weights_of_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, told = watched()

    class StopError(Exception):
        pass

    first: list[Judged] = []

    def until_fifth(now: Judged) -> None:
        first.append(now)
        if now.step == 5:
            raise StopError

    with pytest.raises(StopError):
        watched(out=tmp_path, progress=until_fifth)
    rest, later = watched(out=tmp_path, resume=True)
    assert [p.loss for p in later[:4]] == [p.loss for p in first[:4]]
    assert [(p.step, p.loss) for p in later] == [(p.step, p.loss) for p in told]
    assert later[-1].area == told[-1].area
    assert later[-1].held_out == told[-1].held_out
    assert whole.kept == rest.kept
    assert all(torch.equal(v, rest.net.state_dict()[k]) for k, v in whole.net.state_dict().items())
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    watched(out=tmp_path)
    with pytest.raises(ConfigError, match="another seed"):
        watched(out=tmp_path, resume=True, seed=1)
    with pytest.raises(ConfigError, match="another images"):
        watched(out=tmp_path, resume=True, images=blobs(30))
    (tmp_path / checkpoint.FILE).write_bytes(b"no")
    with pytest.raises(ConfigError, match="no readable checkpoint"):
        watched(out=tmp_path, resume=True)


def test_a_loss_that_is_not_finite_ends_the_run_with_the_last_good_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    good, _ = watched(plan=PLAN, out=tmp_path)
    calls, own = itertools.count(), training._Run.loss

    def failing(self: training._Run, net: object, clean: Tensor, rng: torch.Generator, *rest: object) -> Tensor:
        found = own(self, net, clean, rng)  # type: ignore[arg-type]
        return found * math.nan if next(calls) == 6 else found

    monkeypatch.setattr(training._Run, "loss", failing)
    ended, told = watched(out=tmp_path)
    assert "not finite at step 5" in ended.notes[-1]
    assert f"those of step {ended.kept}" in ended.notes[-1]
    assert ended.kept in (2, 4)
    assert told[-1].step == 4
    assert all(bool(torch.isfinite(v).all()) for v in ended.net.state_dict().values())
    assert ended.steps < good.steps


def test_a_loss_that_is_not_finite_before_the_first_checkpoint_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training._Run, "loss", lambda self, net, clean, rng, *rest: torch.tensor(math.nan))
    with pytest.raises(ConfigError, match=r"step 1, before the first checkpoint: take a lower rate than 0\.001"):
        watched()


def test_a_full_disk_is_named_and_the_checkpoint_before_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    watched(out=tmp_path)
    before = (tmp_path / checkpoint.FILE).read_bytes()

    def full(self: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ConfigError, match=r"cannot be written to .*No space left on device"):
        watched(out=tmp_path)
    monkeypatch.undo()
    assert (tmp_path / checkpoint.FILE).read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.safetensors", "log.jsonl"]


def test_few_images_are_refused_or_noted_and_equal_ones_refused() -> None:
    with pytest.raises(DataError, match="5 images to train a diffusion model on: 16 are the least"):
        watched(images=blobs(5))
    broken = blobs()
    broken[5] = math.nan
    with pytest.raises(DataError, match=r"not finite in rows \[5\]"):
        watched(images=broken)
    with pytest.raises(DataError, match="one value everywhere"):
        watched(images=torch.full((20, 1, 8, 8), 0.5))
    with pytest.raises(ConfigError, match="do not have sides of size = 8"):
        watched(images=torch.rand(20, 1, 8, 9))
    assert "24 training images are few" in watched()[0].notes[0]


def test_it_ends_early_where_drawn_anomalies_are_found_less_and_less(monkeypatch: pytest.MonkeyPatch) -> None:
    areas = iter([0.6, 0.8, 0.795, 0.7, 0.6])
    monkeypatch.setattr(Trial, "area", lambda self, net, device: next(areas))
    plan = DiffusionPlan(size=8, widths=(8, 16), steps=40, batch=4, check_every=2, held_out=0.25, patience=2)
    ended, told = watched(plan=plan)
    assert (ended.steps, ended.kept, ended.area) == (10, 6, 0.795)
    assert told[-1].step == 10
    assert "seen best at step 6" in ended.notes[-1]


def test_the_trial_tells_a_denoiser_that_knows_from_one_that_does_not() -> None:
    images = torch.full((40, 1, 16, 16), 0.5)
    images[:, :, 4:12, 4:12] = 0.8
    trial = Trial.of(images, 0)
    assert not torch.equal(trial.normal, trial.odd)
    assert trial.area(lambda x, sigma: 2 * images[: len(x)] - 1, torch.device("cpu")) > 0.9
    assert trial.area(lambda x, sigma: x, torch.device("cpu")) == pytest.approx(0.5, abs=0.02)


def test_a_trial_of_volumes_draws_every_kind_of_anomaly_inside_the_volume() -> None:
    trial = Trial.of(blobs(12, 10, axes=3), 0)
    changed = (trial.odd != trial.normal).flatten(1).float().mean(dim=1)
    assert bool((changed > 0).all())
    assert float(changed.max()) < 0.5
    assert (torch.isfinite(trial.odd) & (trial.odd >= 0) & (trial.odd <= 1)).all()


def test_volumes_are_trained_on_too() -> None:
    found, _ = watched(images=blobs(20, 4, axes=3), plan=DiffusionPlan(size=4, widths=(8, 8), steps=2, batch=2, check_every=2))
    with torch.no_grad():
        assert found.net(torch.rand(2, 1, 4, 5, 6), torch.tensor([0.1, 1.0])).shape == (2, 1, 4, 5, 6)


def test_half_precision_starts_the_same() -> None:
    _, half = watched(plan=DiffusionPlan(size=8, widths=(8, 16), steps=2, batch=4, check_every=2, held_out=0.25, precision="bfloat16"))
    _, full = watched(plan=DiffusionPlan(size=8, widths=(8, 16), steps=2, batch=4, check_every=2, held_out=0.25))
    assert half[0].loss == pytest.approx(full[0].loss, rel=0.02)


def test_fine_tuning_begins_with_the_given_weights_and_is_another_run(tmp_path: Path) -> None:
    first, _ = watched()
    before = {k: v.clone() for k, v in first.net.state_dict().items()}
    run = training._Run.of(blobs(), PLAN, 0, torch.device("cpu"))
    state = run.begin(first.net)
    assert all(torch.equal(v, before[k]) for k, v in state.net.state_dict().items())
    watched(start=first.net, out=tmp_path)
    assert all(torch.equal(v, before[k]) for k, v in first.net.state_dict().items())
    with pytest.raises(ConfigError, match="another start"):
        watched(out=tmp_path, resume=True, start=run.begin().net)
    with pytest.raises(ConfigError, match="architecture"):
        watched(start=first.net, plan=DiffusionPlan(size=8, widths=(8, 8), steps=2, batch=4))


def test_a_folded_network_trains(tmp_path: Path) -> None:
    found, told = watched(plan=DiffusionPlan(size=8, widths=(8, 16), fold=2, steps=4, batch=4, check_every=2), out=tmp_path)
    assert found.net.shape.fold == 2
    assert all(math.isfinite(p.loss) for p in told)


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": None},
        {"steps": 0},
        {"rate": -1.0},
        {"average": 1.0},
        {"held_out": 0.6},
        {"margin": 0.5},
        {"size": 2},
        {"size": 8, "fold": 4},
        {"fold": 3},
        {"noise_spread": math.inf},
    ],
)
def test_values_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        DiffusionPlan(**wrong)  # type: ignore[arg-type]


def test_the_rate_warms_up_and_falls_and_minutes_end_a_run() -> None:
    plan = DiffusionPlan(steps=None, minutes=2.0, warmup=10, rate=1.0)
    assert plan.rate_at(0, 0.0) == pytest.approx(0.1)
    assert plan.rate_at(100, 60.0) == pytest.approx(0.5)
    assert plan.done(0, 120.0) == 1.0
