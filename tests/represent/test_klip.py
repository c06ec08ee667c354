"""The encoder of KLIP with priors for which the posterior is known."""

import pytest
import torch
from torch import Tensor, nn

from offmap.core.errors import BundleError, ConfigError, SignalError
from offmap.represent.klip import FOREGROUND, MAP, OWN, RECONSTRUCTION, RELATIVE, RESIDUAL, KlipEncoder, refuse_modality
from offmap.represent.open import rebuild
from offmap.represent.operators.parse import parse
from offmap.represent.posterior.edm import EDM
from offmap.represent.posterior.patches import PatchPrior
from offmap.score.klip import KLIP

SIDE = 24


def head(side: int = SIDE) -> Tensor:
    """A disc of 0.5 on black, in [-1, 1]."""
    at = torch.linspace(-1, 1, side)
    return 0.5 * 2 * (at[:, None].hypot(at[None, :]) < 0.8).float() - 1


class Heads(nn.Module):
    """Pixels that vary about the head by ``spread``, each by itself."""

    def __init__(self, spread: float = 0.15) -> None:
        super().__init__()
        self.mean = nn.Parameter(head()[None, None])
        self.spread = nn.Parameter(torch.tensor(spread))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        s, v = sigma.view(-1, 1, 1, 1).square(), self.spread.square()
        out: Tensor = (v * x + s * self.mean) / (v + s)
        return out


def images(count: int, seed: int = 0, *, disc: bool = False) -> Tensor:
    drawn = head() + 0.15 * torch.randn(count, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    if disc:
        drawn[:, :, 8:12, 12:16] += 0.8
    return ((drawn + 1) / 2).clamp(0, 1)


def encoder(operator: str = "identity:noise=0.2", **settings: object) -> KlipEncoder:
    sampler = EDM(steps=20, samples=2, sigma_max=10.0, deviation=0.15)
    given = {"size": SIDE, "sampler": sampler, "modality": "", **settings}
    return KlipEncoder(Heads(), operator, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("operator", ["identity:noise=0.2", "ct:views=16,noise=0.01", "mri:noise=0.02", "inpaint:grid=6,keep=0.7"])
def test_signals_have_their_shapes_and_are_reproducible_in_any_batch(operator: str) -> None:
    reader, x = encoder(operator), images(5)
    found = reader.encode(x, OWN | {"image"})
    assert {name: tuple(value.shape) for name, value in found.items()} == {
        "image": (5, 1, SIDE, SIDE),
        MAP: (5, 20, 6, 6),
        RELATIVE: (5, 20, 6, 6),
        FOREGROUND: (5, 6, 6),
        RESIDUAL: (5,),
        RECONSTRUCTION: (5, 1, SIDE, SIDE),
    }
    assert reader.provides == frozenset(found)
    again, alone = reader.encode(x, OWN), reader.encode(x[3:4], OWN)
    for name in OWN:
        assert torch.equal(found[name], again[name])
        torch.testing.assert_close(alone[name][0], found[name][3], rtol=1e-3, atol=1e-4)
    assert set(reader.encode(x, frozenset({"image"}))) == {"image"}


def test_more_images_than_are_sampled_at_once_are_the_same() -> None:
    reader, x = encoder(), images(20)
    whole = reader.encode(x, frozenset({MAP}))
    torch.testing.assert_close(reader.encode(x[15:18], frozenset({MAP}))[MAP], whole[MAP][15:18])


def test_a_disc_is_found_where_it_lies_and_the_image_scores_higher() -> None:
    reader, detector = encoder("ct:views=16,noise=0.01"), KLIP(window=(0.0, 1.0), cells=1)
    needs = detector.needs
    fitted = detector.fit([reader.encode(images(8), needs)])
    usual, odd = reader.encode(images(8, 1), needs), reader.encode(images(8, 1, disc=True), needs)
    assert float(fitted.score(odd).min()) > float(fitted.score(usual).max())
    assert fitted.map(odd).flatten(1).argmax(dim=1).tolist() == [2 * 6 + 3] * 8


def test_the_foreground_is_the_body_of_the_reconstruction() -> None:
    reader = encoder("ct:views=16,noise=0.01")
    body = reader.encode(images(2), frozenset({FOREGROUND}))[FOREGROUND]
    assert float(body[:, 0, 0].max()) == 0.0
    assert float(body[:, 2:4, 2:4].min()) == 1.0


def test_measurements_give_what_images_do_and_no_image_is_needed() -> None:
    reader = encoder("ct:views=16,noise=0.02")
    operator, x = parse("ct:views=16,noise=0.02"), images(3)
    y = operator.forward(2 * x - 1) + 0.02 * torch.randn(3, 1, *operator.measured((SIDE, SIDE)), generator=torch.Generator().manual_seed(5))
    found = reader.measured(y)
    assert set(found) == OWN
    error = (found[RECONSTRUCTION] - x).square().mean().sqrt()
    assert float(error) < 0.065
    assert 0.7 < float(found[RESIDUAL].min()) <= float(found[RESIDUAL].max()) < 1.3
    assert float(reader.measured(y + 0.2 * torch.randn(y.shape, generator=torch.Generator().manual_seed(6)))[RESIDUAL].min()) > 2


def test_bad_measurements_are_refused() -> None:
    reader = encoder("ct:views=16")
    y = torch.zeros(2, 1, 16, 34)
    y[1, 0, 3, 4] = torch.nan
    with pytest.raises(SignalError, match=r"not finite in rows \[1\]"):
        reader.measured(y)
    with pytest.raises(SignalError, match="is it ct:views=20"):
        reader.measured(torch.zeros(2, 1, 20, 34))
    with pytest.raises(SignalError, match="1 channels"):
        reader.measured(torch.zeros(2, 3, 16, 34))
    with pytest.raises(SignalError, match="must be 24 x 24"):
        reader.encode(torch.zeros(2, 1, 32, 32), frozenset({MAP}))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"cell": 5}, r"cell = 5 does not divide .* 24; 1, 2, 3, 4, 6, 8, 12, 24 do"),
        ({"windows": 7}, "20 steps are no multiple of windows = 7"),
        ({"operator": "ct", "modality": "MR"}, r"ct:.* measures CT images, the prior or gate was made with MR"),
        ({"operator": "mri", "modality": "CT"}, "measures MR images"),
        ({"operator": "deblur:kernel=31"}, "kernel = 31 is larger than an image of 24 x 24"),
        ({"operator": "ctt"}, "did you mean 'ct'"),
    ],
)
def test_parts_that_do_not_fit_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        encoder(**settings)  # type: ignore[arg-type]


def test_operators_for_any_modality_are_taken() -> None:
    refuse_modality(parse("identity"), ("MR",))
    refuse_modality(parse("ct"), ())


def test_a_denoiser_without_weights_needs_an_identity() -> None:
    def gaussian(x: Tensor, sigma: Tensor) -> Tensor:
        return x / (1 + sigma.view(-1, 1, 1, 1).square())

    with pytest.raises(ConfigError, match="give it an identity"):
        KlipEncoder(gaussian, "identity", size=SIDE)
    assert KlipEncoder(gaussian, "identity", size=SIDE, identity="gaussian").sha256


def test_the_digest_tells_networks_operators_and_samplers_apart() -> None:
    plain = encoder()
    others = [encoder("identity:noise=0.1"), encoder(sampler=EDM(steps=40)), encoder(cell=2)]
    others.append(KlipEncoder(Heads(0.2), "identity:noise=0.2", EDM(steps=20, samples=2, sigma_max=10.0, deviation=0.15), size=SIDE))
    others.append(KlipEncoder(PatchPrior(Heads(), 12), "identity:noise=0.2", size=SIDE))
    others.append(encoder(precision="bfloat16"))
    assert len({plain.sha256, *(other.sha256 for other in others)}) == 7
    assert others[-1].to("cpu").config()["precision"] == "bfloat16"
    assert plain.to("cpu").sha256 == encoder().sha256


def test_a_gate_takes_the_same_encoder_and_no_other() -> None:
    config = encoder("ct:views=16").config()
    assert rebuild(config, None, given=encoder("ct:views=16")).sha256 == config["sha256"]
    with pytest.raises(BundleError, match="other values of operator"):
        rebuild(config, None, given=encoder("ct:views=12"))
    with pytest.raises(BundleError, match="holds no weights"):
        rebuild(config, None)
