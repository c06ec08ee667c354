"""Training of adversarial models: the losses, exact resume, and everything that can go wrong."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from offmap.core.errors import ConfigError, DataError
from offmap.core.trainer import Examples
from offmap.represent.gan import GANEncoder
from offmap.represent.nets.gan import AdversarialModel, Critic, GANShape
from offmap.represent.train import gan as training
from offmap.represent.train.gan import GANPlan, TrainedGAN, train_gan
from offmap.represent.train.judged import Judged
from offmap.represent.trainers.gan import GAN

PLAN = GANPlan(size=12, widths=(8, 16), latent=4, steps=8, batch=4, check_every=2, held_out=0.25, encoding=0.5)


def blobs(count: int = 24, side: int = 12, channels: int = 1) -> Tensor:
    """A bright spot near the middle."""
    rng = torch.Generator().manual_seed(0)
    centres = 0.2 * torch.randn(count, 2, 1, 1, generator=rng)
    grid = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, side)] * 2, indexing="ij"))
    return torch.exp(-4 * (grid - centres).square().sum(dim=1, keepdim=True)).expand(-1, channels, -1, -1)


def watched(**changes: object) -> tuple[TrainedGAN, list[Judged]]:
    told: list[Judged] = []
    options = {"images": blobs(), "plan": PLAN, "progress": told.append} | changes
    return train_gan(options.pop("images"), options.pop("plan"), **options), told  # type: ignore[arg-type]


def test_the_generator_comes_first_and_then_the_encoder_learns() -> None:
    plan = GANPlan(size=12, widths=(8, 16), latent=4, steps=160, batch=8, check_every=40, held_out=0.25, rate=2e-3, adversarial_rate=2e-3)
    found, told = watched(plan=plan)
    assert [plan.encodes(i, 0.0) for i in range(160)] == [i >= 96 for i in range(160)]
    assert all(math.isnan(p.area) for p in told[:96])
    assert np.mean([p.loss for p in told[-10:]]) < 0.8 * np.mean([p.loss for p in told[96:101]])
    assert found.kept in (120, 160)
    assert found.steps == 160


def test_other_seeds_give_other_models() -> None:
    one, other = (watched(seed=seed)[0].model.state_dict() for seed in (0, 1))
    assert not torch.equal(one["generator.first.weight"], other["generator.first.weight"])
    assert not torch.equal(one["encoder.last.weight"], other["encoder.last.weight"])


def test_layers_of_the_critic_have_a_norm_of_one() -> None:
    critic = Critic(GANShape(12, widths=(8, 16), latent=4)).train()
    x = torch.randn(4, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for _ in range(200):
            critic(x)
        for part in (*critic.levels, critic.last):
            matrix = part.layer.weight.flatten(1).double()
            followed = float((matrix.T @ part.u.double()).norm())
            assert followed == pytest.approx(float(torch.linalg.matrix_norm(matrix, 2)), rel=1e-3)


def test_a_resumed_run_has_the_losses_and_weights_of_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, told = watched()

    class StopError(Exception):
        pass

    for folder, stop in ((tmp_path / "early", 3), (tmp_path / "late", 7)):
        first: list[Judged] = []

        def until(now: Judged, seen: list[Judged] = first, last: int = stop) -> None:
            seen.append(now)
            if now.step == last:
                raise StopError

        with pytest.raises(StopError):
            watched(out=folder, progress=until)
        rest, later = watched(out=folder, resume=True)
        assert [(p.step, p.loss) for p in later] == [(p.step, p.loss) for p in told]
        assert later[-1].area == told[-1].area
        assert whole.kept == rest.kept
        assert all(torch.equal(v, rest.model.state_dict()[k]) for k, v in whole.model.state_dict().items())


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    watched(out=tmp_path)
    with pytest.raises(ConfigError, match="another seed"):
        watched(out=tmp_path, resume=True, seed=1)


def failing(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    calls, own = itertools.count(), training._Run._descend

    def descend(self: training._Run, state: object, name: str, loss: Tensor, rate: float) -> float:
        return own(self, state, name, loss * math.nan if next(calls) == at else loss, rate)  # type: ignore[arg-type]

    monkeypatch.setattr(training._Run, "_descend", descend)


def test_a_loss_that_is_not_finite_ends_the_run_with_the_last_good_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, 10)
    ended, told = watched()
    assert "not finite at step 7" in ended.notes[-1]
    assert ended.kept == ended.steps == told[-1].step == 6
    assert all(bool(torch.isfinite(v).all()) for v in ended.model.state_dict().values())


def test_a_loss_that_is_not_finite_before_the_first_checkpoint_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, 1)
    with pytest.raises(ConfigError, match=r"step 1, before the first checkpoint: take a lower rate than 0\.001"):
        watched()


def test_it_trains_in_bfloat16_with_weights_in_float32() -> None:
    found, told = watched(plan=GANPlan(**{**vars(PLAN), "precision": "bfloat16"}))
    assert all(math.isfinite(p.loss) for p in told)
    assert {v.dtype for v in found.model.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize(
    ("images", "error", "words"),
    [
        (blobs(5), DataError, "5 images to train an adversarial model on: 16 are the least"),
        (torch.full((20, 1, 12, 12), 0.5), DataError, "one value everywhere"),
        (blobs(20, 16), ConfigError, "sides of size = 12"),
        (torch.where(torch.arange(20).view(-1, 1, 1, 1) == 3, math.nan, blobs(20)), DataError, r"rows \[3\]"),
    ],
)
def test_images_that_cannot_be_trained_on_are_refused(images: Tensor, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        watched(images=images)


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": None},
        {"rate": 0.0},
        {"encoding": 1.0},
        {"held_out": 0.0},
        {"average": 1.0},
        {"size": 8},
        {"latent": 0},
        {"widths": (7,)},
        {"kappa": -1.0},
        {"channels": 2},
    ],
)
def test_values_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        GAN(**{"widths": (8, 8, 8, 8), **wrong})  # type: ignore[arg-type]


def test_axes_may_be_three() -> None:
    model = AdversarialModel(GANShape(10, axes=3, widths=(8,), latent=4))
    x = model.generator(torch.zeros(2, 4))
    assert tuple(x.shape) == (2, 1, 10, 10, 10)
    assert tuple(model.encoder(x).shape) == (2, 4)
    assert tuple(model.critic(x).shape) == (2,)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_trainer_gives_weights_from_which_the_same_encoder_is_built(channels: int) -> None:
    trainer = GAN(**{**vars(PLAN), "channels": channels})
    told: list[dict[str, object]] = []
    colour = torch.cat([blobs(24)] * 3, dim=1)
    found = trainer.train(Examples(colour, None, torch.arange(6)), seed=0, device=torch.device("cpu"), progress=told.append)
    assert found.facts["steps"] == 8
    assert found.facts["kept_step"] in (4, 6, 8)
    assert told[-1]["done"] == 8
    needs = frozenset({"gan.errors"})
    one, other = (trainer.open(0, found.state, device=torch.device("cpu")).encode(colour, needs)["gan.errors"] for _ in range(2))
    assert torch.equal(one, other)
    fresh = trainer.open(0, None, device=torch.device("cpu"))
    assert isinstance(fresh, GANEncoder)
    assert fresh.provides >= {"gan.errors", "gan.map", "gan.latent_error"}
    with pytest.raises(ConfigError, match="do not fit"):
        trainer.open(0, {"weight": torch.zeros(1)}, device=torch.device("cpu"))
