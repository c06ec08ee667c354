"""Networks of the autoencoder family and their encoder: sizes, channels, saving, and one image as in its batch."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from offmap.core.errors import BundleError, ConfigError, NotAvailableError, SignalError
from offmap.represent.autoencoder import AutoencoderEncoder
from offmap.represent.nets.autoencoder import VAE, AutoencoderShape, Kind, autoencoder
from offmap.represent.open import open_encoder, rebuild
from offmap.score.complexity import Complexity
from offmap.score.elbo import ELBO
from offmap.score.latent_distance import LatentDistance
from offmap.score.reconstruction import Reconstruction
from offmap.score.typicality import Typicality

pytest.importorskip("monai", reason="needs the extra [generative]")

FAMILY: tuple[Kind, ...] = ("ae", "dae", "vae", "vq_vae")
MEASURES = frozenset(f"reconstruction.{m}" for m in ("l1", "l2", "ssim", "ssim_contrast"))


def encoder(kind: Kind, channels: int = 1, sides: tuple[int, ...] = (12, 12), *, uncertainty: bool = False) -> AutoencoderEncoder:
    shape = AutoencoderShape(kind, channels, sides, (8, 16), 4, 8, uncertainty)
    return AutoencoderEncoder(autoencoder(shape, generator=torch.Generator().manual_seed(1)))


def pictures(count: int = 3, channels: int = 1, sides: tuple[int, ...] = (12, 12)) -> Tensor:
    return torch.rand(count, channels, *sides, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("kind", FAMILY)
@pytest.mark.parametrize("sides", [(12, 12), (13, 7), (5, 31), (6, 5, 7)])
@pytest.mark.parametrize("channels", [1, 3])
def test_sides_may_be_odd_and_differ_and_axes_be_three(kind: Kind, sides: tuple[int, ...], channels: int) -> None:
    found = encoder(kind, channels, sides)
    signals = found.encode(
        pictures(channels=channels, sides=sides), found.provides - {"reconstruction.perceptual", "reconstruction.perceptual.map"}
    )
    assert signals["reconstruction.l1.map"].shape == (3, 1, *sides)
    assert all(bool(torch.isfinite(value).all()) and len(value) == 3 for value in signals.values())
    assert ("latent.code" in signals) == (kind != "dae")
    assert ("elbo.parts" in signals) == (kind == "vae")


@pytest.mark.parametrize("kind", FAMILY)
def test_images_that_the_network_cannot_take_are_refused_by_name(kind: Kind) -> None:
    found = encoder(kind)
    stride = found.model.shape.stride
    with pytest.raises(SignalError, match=rf"\(3, 1, 1, 12\) are smaller than the {stride} pixels of the network's stride"):
        found.encode(pictures(sides=(1, 12)), MEASURES)
    with pytest.raises(SignalError, match="1 channels and 2 axes"):
        found.encode(pictures(sides=(6, 6, 6)), MEASURES)
    with pytest.raises(SignalError, match="1 or 3 channels"):
        found.encode(pictures(channels=2), MEASURES)
    if kind in ("ae", "vae"):
        with pytest.raises(SignalError, match=r"\(3, 1, 12, 20\) do not have the sides \(12, 12\)"):
            found.encode(pictures(sides=(12, 20)), MEASURES)
    else:
        assert found.encode(pictures(sides=(9, 20)), MEASURES)["reconstruction.l2"].shape == (3,)


@pytest.mark.parametrize("kind", FAMILY)
def test_every_signal_of_an_image_is_that_in_its_batch_in_any_order(kind: Kind) -> None:
    found, x = encoder(kind, uncertainty=kind == "ae"), pictures()
    together, turned = found.encode(x, found.provides), found.encode(x.flip(0), found.provides)
    alone = [found.encode(x[i : i + 1], found.provides) for i in range(3)]
    for name in found.provides - {"image"}:
        torch.testing.assert_close(together[name], torch.cat([part[name] for part in alone]), rtol=1e-3, atol=1e-5, msg=name)
        torch.testing.assert_close(together[name], turned[name].flip(0), rtol=1e-3, atol=1e-5, msg=name)
        assert together[name].dtype == torch.float32
        assert not together[name].requires_grad


@pytest.mark.parametrize("kind", FAMILY)
def test_grey_and_colour_meet(kind: Kind) -> None:
    grey = pictures()
    for channels in (1, 3):
        found = encoder(kind, channels)
        one, three = (found.encode(x, found.provides) for x in (grey, grey.expand(-1, 3, -1, -1)))
        for name in found.provides - {"image"}:
            torch.testing.assert_close(one[name], three[name], rtol=1e-3, atol=1e-5, msg=name)


def test_detectors_read_what_it_gives() -> None:
    vae, x = encoder("vae"), pictures(12)
    for detector in (Reconstruction(), LatentDistance(), ELBO(), Complexity(), Typicality(), Reconstruction(measure="perceptual")):
        signals = vae.encode(x, detector.needs)
        assert detector.fit([signals]).score(signals).shape == (12,)
    for measure in ("ssim", "perceptual", "normalised"):
        detector = Reconstruction(measure=measure)  # type: ignore[arg-type]
        found = encoder("ae", uncertainty=True)
        signals = found.encode(x, detector.needs | detector.map_needs)
        assert detector.fit([signals]).map(signals).shape == (12, 12, 12)


def test_signals_that_a_kind_does_not_have_are_refused_before_any_file_is_read() -> None:
    for kind, name in (("dae", "latent.code"), ("ae", "elbo.parts:samples=1"), ("vae", "reconstruction.normalised")):
        with pytest.raises(ConfigError, match=f"of kind {kind} and has no signal"):
            encoder(kind).ready(frozenset({name}))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no setting 'sample'"):
        encoder("vae").ready(frozenset({"elbo.parts:sample=3"}))
    assert encoder("vae").encode(pictures(), frozenset({"image"})).keys() == {"image"}


def test_weights_come_from_the_generator_alone() -> None:
    for kind in FAMILY:
        one, same, other = (
            autoencoder(AutoencoderShape(kind, sides=(8, 8), widths=(8, 8)), generator=torch.Generator().manual_seed(seed)).state_dict()
            for seed in (3, 3, 4)
        )
        assert all(torch.equal(one[k], same[k]) for k in one)
        assert any(not torch.equal(one[k], other[k]) for k in one)


def test_a_vae_is_what_its_parts_say() -> None:
    net, x = encoder("vae").model, pictures()
    assert isinstance(net, VAE)
    with torch.no_grad():
        mean, log_variance = net.encode(x)
        assert mean.shape == log_variance.shape == (3, 4)
        torch.testing.assert_close(net(x).images, net.decode(mean))
        torch.testing.assert_close(net.code(x), mean)
    net.follow(torch.tensor(0.04), share=1.0)
    assert float(net.deviation) == pytest.approx(0.2)
    net.follow(torch.tensor(0.0), share=1.0)
    assert float(net.deviation) == pytest.approx(0.25 / 255)


def test_it_is_the_same_after_saving_and_opening_and_again_from_a_gate(tmp_path: Path) -> None:
    for kind in FAMILY:
        found, x = encoder(kind), pictures()
        found.save(tmp_path / kind)
        opened = open_encoder(f"autoencoder:{tmp_path / kind}")
        for given in (None, f"autoencoder:{tmp_path / kind}", opened):
            again = rebuild(opened.config(), opened.state(), given=given)
            assert again.sha256 == found.sha256
            assert torch.equal(again.encode(x, MEASURES)["reconstruction.l2"], found.encode(x, MEASURES)["reconstruction.l2"])
        assert found.to("cpu").sha256 == found.sha256
    assert encoder("ae").sha256 != encoder("vae").sha256


def test_folders_and_gates_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    found = encoder("vae")
    with pytest.raises(NotAvailableError, match=r"must hold config\.json and model\.safetensors of a trained autoencoder"):
        AutoencoderEncoder.from_folder(tmp_path / "none")
    found.save(tmp_path)
    (tmp_path / "config.json").write_text('{"net": {"stride": 3}}')
    with pytest.raises(ConfigError, match="makes no sense"):
        AutoencoderEncoder.from_folder(tmp_path)
    (tmp_path / "config.json").write_text("[3]")
    with pytest.raises(ConfigError, match="must be a table"):
        AutoencoderEncoder.from_folder(tmp_path)
    weights = found.state()
    weights.pop("log_deviation")
    with pytest.raises(BundleError, match="log_deviation"):
        AutoencoderEncoder.rebuilt(found.config(), weights)
    with pytest.raises(BundleError, match="not finite"):
        AutoencoderEncoder.rebuilt(found.config(), {k: v * math.nan for k, v in found.state().items()})
    with pytest.raises(BundleError, match="cannot be built again"):
        rebuild({**found.config(), "net": {}, "sha256": "0", "kind": "autoencoder"} | {"net": {"kind": 3}}, found.state())
    with pytest.raises(ConfigError, match="no layers to choose"):
        open_encoder(f"autoencoder:{tmp_path}", layers=["last"])


def test_a_full_disk_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(self: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ConfigError, match=r"the autoencoder cannot be written to .*No space left on device"):
        encoder("ae").save(tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"channels": 2},
        {"sides": (8,)},
        {"sides": (3, 64)},
        {"widths": (12,)},
        {"widths": ()},
        {"kind": "dae", "widths": (8,)},
        {"latent": 0},
        {"entries": 1},
        {"kind": "vae", "uncertainty": True},
    ],
)
def test_shapes_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        AutoencoderShape(**wrong)  # type: ignore[arg-type]
