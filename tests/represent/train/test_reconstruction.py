"""Training of autoencoders: objectives, exact resume, and everything that can go wrong."""

import errno
import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from offmap.core.errors import ConfigError, DataError
from offmap.core.trainer import Examples
from offmap.represent.autoencoder import AutoencoderEncoder
from offmap.represent.nets.autoencoder import autoencoder
from offmap.represent.train import checkpoint
from offmap.represent.train import reconstruction as training
from offmap.represent.train.coarse_noise import coarse_noise, foreground
from offmap.represent.train.judged import Judged
from offmap.represent.train.objectives import AutoencoderPlan, DAEPlan, ReconstructionPlan, VAEPlan, VQVAEPlan, surprise
from offmap.represent.train.reconstruction import TrainedAutoencoder, train_reconstruction
from offmap.represent.trainers.autoencoder import Autoencoder
from offmap.represent.trainers.dae import DAE
from offmap.represent.trainers.vae import VAE
from offmap.represent.trainers.vq_vae import VQVAE

pytest.importorskip("monai", reason="needs the extra [generative]")

SMALL = {"widths": (8, 16), "steps": 6, "batch": 4, "warmup": 2, "check_every": 2, "held_out": 0.25}
PLANS: dict[str, ReconstructionPlan] = {
    "ae": AutoencoderPlan(**SMALL, latent=4),  # type: ignore[arg-type]
    "ae_u": AutoencoderPlan(**SMALL, latent=4, uncertainty=True),  # type: ignore[arg-type]
    "dae": DAEPlan(**SMALL, grid=3),  # type: ignore[arg-type]
    "vae": VAEPlan(**SMALL, latent=4),  # type: ignore[arg-type]
    "vq_vae": VQVAEPlan(**SMALL, latent=4, entries=16),  # type: ignore[arg-type]
}
PLAN = PLANS["vae"]


def blobs(count: int = 24, sides: tuple[int, ...] = (8, 8), channels: int = 1) -> Tensor:
    """A bright spot near the middle."""
    rng = torch.Generator().manual_seed(0)
    centres = 0.2 * torch.randn(count, len(sides), *[1] * len(sides), generator=rng)
    grid = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, n) for n in sides], indexing="ij"))
    return torch.exp(-4 * (grid - centres).square().sum(dim=1, keepdim=True)).expand(-1, channels, *sides)


def watched(**changes: object) -> tuple[TrainedAutoencoder, list[Judged]]:
    told: list[Judged] = []
    options = {"images": blobs(), "plan": PLAN, "progress": told.append} | changes
    return train_reconstruction(options.pop("images"), options.pop("plan"), **options), told  # type: ignore[arg-type]


@pytest.mark.parametrize("name", PLANS)
def test_training_lowers_the_loss_of_images_of_any_shape(name: str) -> None:
    plan = replace(PLANS[name], steps=50, batch=8, rate=5e-3, check_every=50)
    found, told = watched(images=blobs(30, (9, 11), 3), plan=plan)
    assert np.mean([p.loss for p in told[-8:]]) < np.mean([p.loss for p in told[:3]]) - 0.1
    assert found.kept == 50
    with torch.no_grad():
        assert found.net(blobs(2, (9, 11), 3)).images.shape == (2, 3, 9, 11)


@pytest.mark.parametrize("name", ["dae", "vae", "vq_vae"])
def test_a_resumed_run_has_the_losses_and_weights_of_an_uninterrupted_one(name: str, tmp_path: Path) -> None:
    whole, told = watched(plan=PLANS[name])

    class StopError(Exception):
        pass

    first: list[Judged] = []

    def until_fifth(now: Judged) -> None:
        first.append(now)
        if now.step == 5:
            raise StopError

    with pytest.raises(StopError):
        watched(plan=PLANS[name], out=tmp_path, progress=until_fifth)
    rest, later = watched(plan=PLANS[name], out=tmp_path, resume=True)
    assert [p.loss for p in later[:4]] == [p.loss for p in first[:4]]
    assert [(p.step, p.loss) for p in later] == [(p.step, p.loss) for p in told]
    assert (later[-1].area, later[-1].held_out, rest.kept) == (told[-1].area, told[-1].held_out, whole.kept)
    assert all(torch.equal(v, rest.net.state_dict()[k]) for k, v in whole.net.state_dict().items())
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [1, 2, 3, 4, 5, 6]


def test_a_run_that_ended_early_is_over_when_it_is_gone_on_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    areas = itertools.count(10, -1)
    monkeypatch.setattr(training._Run, "judged", lambda *_: (0.5, next(areas) / 10))
    plan = replace(PLAN, steps=20, patience=2)
    whole, told = watched(plan=plan, out=tmp_path)
    assert (whole.steps, whole.kept) == (3 * PLAN.check_every, PLAN.check_every)
    again, later = watched(plan=plan, out=tmp_path, resume=True)
    assert (again.steps, again.kept, again.notes) == (whole.steps, whole.kept, whole.notes)
    assert any("were seen best at step" in note for note in again.notes)
    assert len(later) == len(told)
    longer, _ = watched(plan=replace(plan, patience=3), out=tmp_path, resume=True)
    assert longer.steps == 4 * PLAN.check_every


def test_a_line_that_a_power_cut_tore_does_not_hinder(tmp_path: Path) -> None:
    _, told = watched(out=tmp_path)
    with (tmp_path / "log.jsonl").open("ab") as log:
        log.write(b'{"step": 7, "lo\x00')
    _, later = watched(out=tmp_path, resume=True)
    assert [(p.step, p.loss) for p in later] == [(p.step, p.loss) for p in told]


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    watched(out=tmp_path)
    with pytest.raises(ConfigError, match="another seed"):
        watched(out=tmp_path, resume=True, seed=1)
    with pytest.raises(ConfigError, match="another plan"):
        watched(out=tmp_path, resume=True, plan=PLANS["ae"])
    (tmp_path / checkpoint.FILE).write_bytes(b"no")
    with pytest.raises(ConfigError, match="no readable checkpoint"):
        watched(out=tmp_path, resume=True)


def test_a_loss_that_is_not_finite_ends_the_run_with_the_last_good_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls, own = itertools.count(), training._Run.step_loss

    def failing(self: training._Run, net: object, step: int) -> Tensor:
        found = own(self, net, step)  # type: ignore[arg-type]
        return found * math.nan if next(calls) == 4 else found

    monkeypatch.setattr(training._Run, "step_loss", failing)
    ended, told = watched(out=tmp_path)
    assert "not finite at step 5" in ended.notes[-1]
    assert f"those of step {ended.kept}" in ended.notes[-1]
    assert ended.kept in (2, 4)
    assert told[-1].step == 4
    assert all(bool(torch.isfinite(v).all()) for v in ended.net.state_dict().values())


def test_a_loss_that_is_not_finite_before_the_first_checkpoint_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training._Run, "step_loss", lambda self, net, step: torch.tensor(math.nan))
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


@pytest.mark.parametrize(
    ("images", "error", "words"),
    [
        (blobs(5), DataError, "5 images to train an autoencoder on: 16 are the least"),
        (torch.full((20, 1, 8, 8), 0.5), DataError, "one value everywhere"),
        (blobs(20, (3, 9)), ConfigError, r"sides = \(3, 9\) are smaller than the stride of 2 levels, 4 pixels"),
        (torch.where(torch.arange(20).view(-1, 1, 1, 1) == 3, math.nan, blobs(20)), DataError, r"rows \[3\]"),
    ],
)
def test_images_that_cannot_be_trained_on_are_refused(images: Tensor, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        watched(images=images)


def test_few_images_are_noted() -> None:
    assert "24 training images are few" in watched()[0].notes[0]


def test_volumes_are_trained_on_too() -> None:
    for name in ("dae", "vae"):
        found, _ = watched(images=blobs(20, (4, 5, 6)), plan=replace(PLANS[name], steps=2))
        with torch.no_grad():
            assert found.net(blobs(2, (4, 5, 6))).images.shape == (2, 1, 4, 5, 6)


def test_half_precision_starts_the_same_and_keeps_weights_in_float32() -> None:
    for name in ("dae", "vae", "vq_vae"):
        half, steps = watched(plan=replace(PLANS[name], precision="bfloat16"))
        assert steps[0].loss == pytest.approx(watched(plan=PLANS[name])[1][0].loss, rel=0.05)
        assert {v.dtype for v in half.net.state_dict().values() if v.is_floating_point()} == {torch.float32}


def test_the_checkpoint_is_judged_by_how_odd_drawn_anomalies_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """An oddness that falls from check to check: the first one is kept, and the run ends after ``patience`` worse ones."""
    areas = iter((0.9, 0.8, 0.7, 0.6))
    monkeypatch.setattr(training.Trial, "area_of", lambda self, score, device: next(areas))
    found, told = watched(plan=replace(PLAN, steps=20, patience=2))
    assert (found.kept, found.area, found.steps) == (2, 0.9, 6)
    assert "ended at step 6: drawn anomalies were seen best at step 2" in found.notes[-1]
    assert told[-1].step == 6


def test_coarse_noise_has_mean_0_its_deviation_at_the_grid_and_is_smooth_between() -> None:
    rng = torch.Generator().manual_seed(0)
    noise = coarse_noise((400, 1, 64, 64), deviation=0.2, grid=16, generator=rng)
    assert abs(float(noise.mean())) < 0.002
    assert 0.1 < float(noise.std()) < 0.2  # interpolation averages: less than at the points
    assert float((noise[:, :, 1:] - noise[:, :, :-1]).abs().median()) < 0.3 * float(noise.std())
    full = coarse_noise((400, 1, 16, 16), deviation=0.2, grid=16, generator=rng)
    assert float(full.std()) == pytest.approx(0.2, rel=0.02)
    assert coarse_noise((2, 3, 5, 6, 7), deviation=0.2, grid=16, generator=rng).shape == (2, 3, 5, 6, 7)


def test_noise_is_on_the_foreground_alone() -> None:
    """A network that gives back what it sees: its error is the noise, and there is none where the image is black."""
    plan, images = DAEPlan(widths=(8, 16), grid=4), blobs(6, (16, 16)) * (torch.arange(16) > 7)
    net = autoencoder(plan.shape(1, (16, 16))).eval()
    seen: list[Tensor] = []
    net.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    plan.losses(net, images, torch.Generator().manual_seed(0))
    noise = coarse_noise(tuple(images.shape), deviation=0.2, grid=4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(seen[0], torch.where(images > 0.02, images + noise, images))
    assert torch.equal(seen[0][..., :8], images[..., :8])
    assert bool((foreground(images, 0.02) == (images > 0.02)).all())


def test_the_surprise_has_gradients_that_do_not_fade() -> None:
    for scale in (1.0, 1e-6):
        errors = (scale * torch.tensor([1.0, 3.0])).requires_grad_()
        surprise(errors).mean().backward()
        assert errors.grad is not None
        torch.testing.assert_close(errors.grad * scale, torch.tensor([0.125, 0.125]))
    at = surprise(torch.full((4,), 0.01))
    torch.testing.assert_close(at, torch.full((4,), 0.5 + 0.5 * math.log(0.01)))


def test_the_loss_of_a_vae_is_its_negative_bound_and_the_deviation_follows_the_error() -> None:
    plan, x = VAEPlan(widths=(8, 16), latent=4), blobs(40)
    net = autoencoder(plan.shape(1, (8, 8))).eval()
    losses = plan.losses(net, x, torch.Generator().manual_seed(0)).detach().double()
    mean, log_variance = net.encode(x)  # type: ignore[operator]
    drawn = torch.randn(mean.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        decoded = net.decode(mean + (0.5 * log_variance).exp() * drawn)  # type: ignore[operator]
    density = torch.distributions.Normal(decoded.double(), 0.1).log_prob(x.double()).flatten(1).sum(dim=1)
    normal = torch.distributions.Normal
    kl = torch.distributions.kl_divergence(normal(mean, (0.5 * log_variance).exp()), normal(0.0, 1.0)).sum(dim=1).detach()
    torch.testing.assert_close(losses, (kl.double() - density) / 64, rtol=1e-4, atol=1e-5)
    plan.settle(net, x)
    with torch.no_grad():
        assert float(net.deviation) == pytest.approx(float((net(x).images - x).square().mean().sqrt()), rel=1e-4)  # type: ignore[arg-type]


def test_a_background_model_sees_mutated_pixels() -> None:
    found = VAEPlan(mutation=0.3)._mutated(torch.full((50, 1, 16, 16), 2.0), torch.Generator().manual_seed(0))
    assert float((found != 2.0).float().mean()) == pytest.approx(0.3, abs=0.02)
    assert float(found[found != 2.0].mean()) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch": 1},
        {"steps": None},
        {"rate": -1.0},
        {"average": 1.0},
        {"held_out": 0.6},
        {"beta": -1.0},
        {"mutation": 2.0},
        {"size": 4},
        {"channels": 2},
        {"share": 0.95},
        {"latent": 0},
    ],
)
def test_values_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        VAE(**wrong)  # type: ignore[arg-type]


def test_noise_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigError, match="noise = 0"):
        DAE(noise=0.0)


@pytest.mark.parametrize("kind", [Autoencoder, DAE, VAE, VQVAE])
def test_a_trainer_gives_weights_from_which_the_same_encoder_is_built(kind: type[VAE]) -> None:
    trainer = kind(**{**SMALL, "size": 9, "channels": 3})  # type: ignore[arg-type]
    told: list[dict[str, object]] = []
    found = trainer.train(Examples(blobs(24, (9, 9)), None, torch.arange(6)), seed=0, device=torch.device("cpu"), progress=told.append)
    assert found.facts["steps"] == told[-1]["done"] == 6
    needs = frozenset({"reconstruction.l2"})
    one, other = (
        trainer.open(0, found.state, device=torch.device("cpu")).encode(blobs(3, (9, 9)), needs)["reconstruction.l2"] for _ in "12"
    )
    assert torch.equal(one, other)
    fresh = trainer.open(0, None, device=torch.device("cpu"))
    assert isinstance(fresh, AutoencoderEncoder)
    assert fresh.input == trainer.input
    with pytest.raises(ConfigError, match="do not fit"):
        trainer.open(0, {"weight": torch.zeros(1)}, device=torch.device("cpu"))
