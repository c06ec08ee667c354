"""Codes of images and a diffusion model of them: sizes, seeds, saving, and what the trainers make."""

import pytest
import torch
from tests.represent.train.test_diffusion import blobs

from offmap.core.errors import BundleError, ConfigError, SignalError
from offmap.core.trainer import Examples
from offmap.represent.conditional import class_errors, likeliest
from offmap.represent.diffusion import DiffusionEncoder
from offmap.represent.latent_diffusion import LatentDiffusionEncoder
from offmap.represent.nets.latent import SPREAD, Codec, CodecShape, coded
from offmap.represent.nets.unet import EDMDenoiser, UNetShape
from offmap.represent.noised import noise_of, seeded_by
from offmap.represent.train import codec as training
from offmap.represent.train.codec import CodecPlan, train_codec
from offmap.represent.train.diffusion import DiffusionPlan, _Run, train_diffusion
from offmap.represent.trained import TrainedEncoder
from offmap.represent.trainers.conditional_diffusion import ConditionalDiffusion
from offmap.represent.trainers.latent_diffusion import LatentDiffusion

pytest.importorskip("monai", reason="needs the extra [generative]")
pytest.importorskip("einops", reason="needs the extra [generative]")

CPU = torch.device("cpu")
SHAPE = CodecShape(widths=(8, 8), latent=3)
NEEDS = frozenset({"msma.norms", "gepc.map", "scoped.ratios"})


def encoder(axes: int = 2) -> LatentDiffusionEncoder:
    codec = Codec(CodecShape(1, axes, (8, 8), 3), generator=torch.Generator().manual_seed(1))
    codec.settle(2 * blobs(20, 12, axes=axes) - 1)
    return LatentDiffusionEncoder(codec, EDMDenoiser(UNetShape(3, axes, (8, 16)), 0.5), 12)


def test_codes_are_centred_and_as_large_as_pixels() -> None:
    codec, x = Codec(SHAPE), 2 * blobs(30, 12) - 1
    codec.settle(x)
    z = coded(codec, x, CPU)
    assert z.shape == (30, 3, 6, 6)
    assert z.mean(dim=(0, 2, 3)).abs().max() < 1e-5
    assert float(z.square().mean().sqrt()) == pytest.approx(SPREAD, rel=1e-4)
    raw = codec.posterior(x)[0]
    torch.testing.assert_close(codec.decode(z, (12, 12)), codec.restored(raw, (12, 12)), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("axes", [2, 3])
def test_one_image_has_the_signals_of_its_batch(axes: int) -> None:
    x, own = blobs(5, 12, axes=axes), encoder(axes)
    together, alone = own.encode(x, NEEDS), own.encode(x[3:4], NEEDS)
    for name in NEEDS:
        torch.testing.assert_close(together[name][3:4], alone[name], rtol=1e-3, atol=1e-5)
    assert together["gepc.map"].shape[2:] == (6,) * axes


def test_odd_sizes_and_colour_are_taken_and_small_ones_refused() -> None:
    own = encoder()
    assert own.encode(torch.rand(2, 1, 11, 13), frozenset({"gepc.map"}))["gepc.map"].shape == (2, 1, 6, 7)
    grey = torch.rand(2, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    one, three = (own.encode(x, NEEDS)["msma.norms"] for x in (grey, grey.expand(-1, 3, -1, -1)))
    torch.testing.assert_close(one, three)
    with pytest.raises(SignalError, match="at least 2 pixels"):
        own.encode(torch.rand(1, 1, 1, 1), NEEDS)


def test_noise_can_be_seeded_by_other_images() -> None:
    x, z = torch.rand(3, 1, 4, 4), torch.rand(3, 2, 2, 2)
    with seeded_by(x):
        one, other = noise_of(z, 2), noise_of(z + 1e-7, 2)
    assert torch.equal(one, other)
    assert not torch.equal(one, noise_of(z, 2))


def test_weights_make_the_trip_and_damage_is_named() -> None:
    own = encoder()
    again = LatentDiffusionEncoder.rebuilt(own.config(), own.state())
    assert again.sha256 == own.sha256
    state = own.state()
    state.pop("codec.spread")
    with pytest.raises(BundleError, match=r"\(codec\) do not fit its description: spread"):
        LatentDiffusionEncoder.rebuilt(own.config(), state)
    with pytest.raises(ConfigError, match="makes no sense"):
        LatentDiffusionEncoder.rebuilt({}, {})


def test_a_codec_learns_to_restore_and_its_loss_is_that_of_the_formula() -> None:
    x = 2 * blobs(40) - 1
    plan = CodecPlan(steps=60, batch=16, rate=5e-3, warmup=5, check_every=20)
    found = train_codec(x[8:], x[:8], SHAPE, plan, device=CPU)
    flat = float((x[:8] - x[8:].mean(dim=0)).abs().mean())
    assert found.error < flat
    rng = torch.Generator().manual_seed(3)
    mean, deviation = found.net.posterior(x[:4])
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(3))
    back = found.net.net.decode(mean + deviation * noise)
    law, normal = torch.distributions.Normal(mean, deviation), torch.distributions.Normal(0.0, 1.0)
    kl = torch.distributions.kl_divergence(law, normal).flatten(1).mean(dim=1)
    expected = (back - x[:4]).abs().flatten(1).mean(dim=1) + 0.3 * kl
    torch.testing.assert_close(training.losses(found.net, x[:4], 0.3, rng), expected, rtol=1e-4, atol=1e-5)


def test_a_latent_model_is_trained_and_opened_again() -> None:
    trainer = LatentDiffusion(size=8, widths=(8, 16), code_widths=(8, 8), steps=4, code_steps=4, batch=4, warmup=2, check_every=2)
    told: list[dict[str, object]] = []
    found = trainer.train(Examples(blobs(24), None, torch.arange(6)), seed=0, device=CPU, progress=told.append)
    assert [event["done"] for event in told] == [2, 4, 6, 8]
    assert {event["total"] for event in told} == {8}
    assert found.facts["code_shape"] == [4, 4, 4]
    assert [sheet.made_up for sheet in found.sheets] == [True, False]
    assert found.facts["checked_steps"] == [2, 4]
    assert len(found.facts["loss"]) == len(found.facts["codec_loss"]) == 2
    again = TrainedEncoder(trainer, (), found.state)
    assert again.encode(blobs(3), frozenset({"msma.norms"}))["msma.norms"].shape == (3, 10)
    with pytest.raises(ConfigError, match="sigma_data is missing"):
        trainer.open(0, {k: v for k, v in found.state.items() if k != "sigma_data"}, device=CPU)
    with pytest.raises(ConfigError, match="codes of size = 8 are 1 pixels wide"):
        LatentDiffusion(size=8, widths=(8, 16), code_widths=(8, 8, 8, 8))


def classes(count: int = 30) -> tuple[torch.Tensor, torch.Tensor]:
    """Spots, and their negatives."""
    labels = torch.arange(count) % 2
    return torch.where(labels.view(-1, 1, 1, 1) == 0, blobs(count), 1 - blobs(count)), labels


class TwoGaussians(EDMDenoiser):
    """The exact denoiser of images N(m_k, 0.2^2) around the mean of their class."""

    means = torch.tensor([-0.3, 0.3, 0.0])

    def forward(self, x: torch.Tensor, sigma: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
        level = sigma.view(-1, 1, 1, 1).square()
        mean = self.means[torch.full((len(x),), 2) if label is None else label].view(-1, 1, 1, 1)
        return mean + 0.04 / (0.04 + level) * (x - mean)


def test_the_likeliest_class_is_the_one_under_which_the_image_is_denoised_best() -> None:
    net, labels = TwoGaussians(UNetShape(1, 2, (8, 8), classes=2), 0.3), torch.arange(40) % 2
    noise = 0.2 * torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    clean = TwoGaussians.means[labels].view(-1, 1, 1, 1) + noise
    assert torch.equal(likeliest(net, clean), labels)
    assert class_errors(net, clean).shape == (40, 2)


def test_a_model_is_told_of_most_labels() -> None:
    x, labels = classes(48)
    plan = DiffusionPlan(size=8, widths=(8, 16), steps=10, batch=16, warmup=5, check_every=10, rate=5e-3)
    net = train_diffusion(x, plan, held_out=torch.arange(8), labels=labels).net
    assert net.shape.classes == 2
    clean, sigma = 2 * x[:8] - 1, torch.full((8,), 0.5)
    with torch.no_grad():
        torch.testing.assert_close(net(clean, sigma), net(clean, sigma, torch.full((8,), 2)))
        assert not torch.allclose(net(clean, sigma), net(clean, sigma, labels[:8]))
    run = _Run.of(x, plan, 0, CPU, labels=labels)
    dropped = run._dropped(torch.zeros(4000, dtype=torch.int64), 2, torch.Generator().manual_seed(0))
    assert float((dropped == 2).double().mean()) == pytest.approx(0.2, abs=0.03)
    with pytest.raises(ConfigError, match="label_dropout = 0"):
        ConditionalDiffusion(label_dropout=0.0)


def test_the_conditional_trainer_asks_for_labels_and_scores_without() -> None:
    x, labels = classes()
    told, untold = (
        ConditionalDiffusion(size=8, widths=(8, 16), steps=6, batch=4, warmup=2, check_every=3, condition=condition)  # type: ignore[arg-type]
        for condition in ("likeliest", "none")
    )
    assert ConditionalDiffusion.labelled
    found = told.train(Examples(x, labels, torch.arange(6)), seed=0, device=CPU)
    one, other = (t.open(2, found.state, device=CPU) for t in (told, untold))
    assert isinstance(one, DiffusionEncoder)
    norms = frozenset({"msma.norms"})
    assert not torch.equal(one.encode(x[:4], norms)["msma.norms"], other.encode(x[:4], norms)["msma.norms"])
    torch.testing.assert_close(one.encode(x[:4], norms)["msma.norms"][2:3], one.encode(x[2:3], norms)["msma.norms"], rtol=1e-4, atol=1e-5)
    assert DiffusionEncoder.rebuilt(one.config(), one.state()).sha256 == one.sha256
    with pytest.raises(ConfigError, match="do not fit its description"):
        told.open(3, found.state, device=CPU)
