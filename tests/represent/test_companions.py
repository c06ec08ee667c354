"""What stands beside a VAE: trained with it, kept with it, and each of its signals against the models by themselves."""

import copy
import math

import pytest
import torch
from torch import Tensor

from offmap.core.errors import BundleError, ConfigError, DataError
from offmap.core.trainer import Examples
from offmap.represent.autoencoder import AutoencoderEncoder
from offmap.represent.companions import WithCompanions
from offmap.represent.elbo_slopes import alignments, decoder_weights
from offmap.represent.nets import autoencoder as nets
from offmap.represent.nets.autoencoder import AutoencoderShape, autoencoder
from offmap.represent.train.companions import Beside, train_beside
from offmap.represent.train.objectives import VAEPlan
from offmap.represent.train.reconstruction import _Run, train_reconstruction
from offmap.represent.trainers.vae import VAE

pytest.importorskip("monai", reason="needs the extra [generative]")

SMALL = {"widths": (8, 8), "latent": 3, "steps": 6, "batch": 4, "warmup": 2, "check_every": 3, "held_out": 0.25}
CPU = torch.device("cpu")
ALL = frozenset({"elbo.background:samples=1", "elbo.members:samples=1", "gradcon.alignment", "elbo.parts:samples=1", "latent.code"})


def images(count: int = 24, side: int = 12) -> Tensor:
    grid = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, side)] * 2, indexing="ij"))
    centres = 0.2 * torch.randn(count, 2, 1, 1, generator=torch.Generator().manual_seed(0))
    return torch.exp(-4 * (grid - centres).square().sum(dim=1, keepdim=True))


def vae(seed: int) -> AutoencoderEncoder:
    shape = AutoencoderShape("vae", 1, (12, 12), (8, 8), 3)
    return AutoencoderEncoder(autoencoder(shape, generator=torch.Generator().manual_seed(seed)))


def gradients_for(encoder: AutoencoderEncoder) -> dict[str, Tensor]:
    model = encoder.model
    assert isinstance(model, nets.VAE)
    rng = torch.Generator().manual_seed(9)
    return {name: torch.randn(value.shape, generator=rng) for name, value in decoder_weights(model).items()}


def test_signals_are_those_of_the_models_by_themselves() -> None:
    own, background, other = vae(1), vae(2), vae(3)
    gradients, x = gradients_for(own), images(5)
    found = WithCompanions(own, background=background, others=[other], gradients=gradients).encode(x, ALL)
    name = "elbo.parts:samples=1"
    parts = {k: one.encode(x, frozenset({name}))[name] for k, one in {"own": own, "background": background, "other": other}.items()}
    assert torch.equal(found[name], parts["own"])
    assert torch.equal(found["elbo.background:samples=1"], parts["background"])
    bounds = torch.stack([parts[k][:, 0] - parts[k][:, 1] for k in ("own", "other")], dim=1)
    assert torch.equal(found["elbo.members:samples=1"], bounds)
    assert torch.equal(found["gradcon.alignment"], alignments(own.model, x, gradients))  # type: ignore[arg-type]
    assert set(found) == ALL


def test_it_is_built_again_from_its_weights() -> None:
    own = vae(1)
    whole = WithCompanions(own, background=vae(2), others=[vae(3), vae(4)], gradients=gradients_for(own))
    again = WithCompanions.rebuilt(whole.config(), whole.state())
    assert isinstance(again, WithCompanions)
    assert again.sha256 == whole.sha256 == whole.to("cpu").sha256
    one, other = (encoder.encode(images(3), ALL) for encoder in (whole, again))
    assert all(torch.equal(one[name], other[name]) for name in ALL)
    assert isinstance(WithCompanions.rebuilt(own.config(), own.state()), AutoencoderEncoder)


def test_what_does_not_fit_is_refused() -> None:
    own = vae(1)
    small = AutoencoderEncoder(autoencoder(AutoencoderShape("vae", 1, (8, 8), (8,), 3)))
    plain = AutoencoderEncoder(autoencoder(AutoencoderShape("ae", 1, (12, 12), (8, 8), 3)))
    for other in (small, plain):
        with pytest.raises(ConfigError, match="VAEs for the same images"):
            WithCompanions(own, background=other)
    with pytest.raises(BundleError, match="do not fit its decoder"):
        WithCompanions(own, gradients={"spread.weight": torch.zeros(1)})
    with pytest.raises(BundleError, match="not finite"):
        WithCompanions(own, gradients={k: v * math.nan for k, v in gradients_for(own).items()})
    with pytest.raises(ConfigError, match="no setting"):
        WithCompanions(own, background=vae(2)).ready(frozenset({"elbo.background:codes=1"}))


def test_summed_gradients_are_those_of_the_steps() -> None:
    """Against a plain loop: the same batches, gradients taken by autograd."""
    plan = VAEPlan(**{**SMALL, "gradients": True, "average": 0.0, "steps": 3, "check_every": 3})  # type: ignore[arg-type]
    kept = train_reconstruction(images(), plan, held_out=torch.arange(6)).net.state_dict()
    run = _Run.of(images(), plan, 0, CPU, torch.arange(6))
    state = run.begin()
    total = {name: torch.zeros_like(value) for name, value in decoder_weights(state.net).items()}  # type: ignore[arg-type]
    for step in range(3):
        twin = copy.deepcopy(state.net)
        loss = run.step_loss(twin.train(), step)
        weights = decoder_weights(twin)  # type: ignore[arg-type]
        for name, slope in zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True):
            total[name] += slope
        run.step(state)
    share = kept_share(3)
    assert share > 0
    for name, value in total.items():
        found = kept[f"gradient.{name.replace('.', '/')}"].flatten()
        assert float(torch.cosine_similarity(found, value.flatten(), dim=0)) > 0.9


def kept_share(step: int) -> float:
    """The running mean of the weights follows them by a share of its own early on, so sums agree in direction only."""
    return min(0.5, (1 + step) / (10 + step))


def test_the_trainer_keeps_all_and_an_empty_gate_promises_the_same() -> None:
    trainer = VAE(**{**SMALL, "size": 12, "background": True, "members": 3, "gradients": True})  # type: ignore[arg-type]
    told: list[dict[str, object]] = []
    found = trainer.train(Examples(images(), None, torch.arange(6)), seed=0, device=CPU, progress=told.append)
    encoder, promised = trainer.open(0, found.state, device=CPU), trainer.open(0, None, device=CPU)
    assert encoder.provides == promised.provides >= {"elbo.background", "elbo.members", "gradcon.alignment"}
    signals = encoder.encode(images(3), ALL)
    assert tuple(signals["elbo.members:samples=1"].shape) == (3, 3)
    assert all(bool(torch.isfinite(value).all()) for value in signals.values())
    assert len({float(v) for v in signals["elbo.members:samples=1"][0]}) == 3
    assert sum(event.get("what") == "companion" for event in told) == 6
    bare = VAE(**{**SMALL, "size": 12}).open(0, None, device=CPU)  # type: ignore[arg-type]
    assert not {"elbo.background", "elbo.members", "gradcon.alignment"} & bare.provides
    with pytest.raises(ConfigError, match="do not fit"):
        trainer.open(0, {"weight": torch.zeros(1)}, device=CPU)


def test_the_background_model_sees_random_pixels_and_its_latest_weights_are_kept() -> None:
    plan = VAEPlan(**SMALL)  # type: ignore[arg-type]
    state = train_beside(images(), plan, Beside(background=True, corruption=0.5), held_out=torch.arange(6))
    own = train_reconstruction(images(), plan, held_out=torch.arange(6)).net.state_dict()
    assert set(state) == {f"background.{name}" for name in own}
    assert any(not torch.equal(state[f"background.{name}"], value) for name, value in own.items())


@pytest.mark.parametrize("wrong", [{"corruption": 0.0}, {"corruption": 1.0}, {"members": 0}, {"members": 101}])
def test_values_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="corruption"):
        VAE(**{**SMALL, "size": 12, **wrong})  # type: ignore[arg-type]


def test_five_images_are_refused() -> None:
    trainer = VAE(**{**SMALL, "size": 12, "background": True})  # type: ignore[arg-type]
    with pytest.raises(DataError, match="5 images"):
        trainer.train(Examples(images(5), None, torch.arange(2)), seed=0, device=CPU)
