"""The diffusion encoder and its network: preconditioning, sizes, channels, saving, and one image as in its batch."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from offmap.core.errors import BundleError, ConfigError, NotAvailableError, SignalError
from offmap.represent.denoiser import Denoiser
from offmap.represent.diffusion import KINDS, DiffusionEncoder
from offmap.represent.nets.unet import EDMDenoiser, UNetShape, folded, loss_weight, unfolded
from offmap.represent.open import open_encoder, rebuild
from offmap.score.gepc import GEPC
from offmap.score.lmd import LMD
from offmap.score.msma import MSMA
from offmap.score.scoped import Scoped

pytest.importorskip("monai", reason="needs the extra [generative]")
pytest.importorskip("einops", reason="needs the extra [generative]")


def network(channels: int = 1, axes: int = 2, fold: int = 1) -> EDMDenoiser:
    """A small network with random weights, those that start at 0 included."""
    rng = torch.Generator().manual_seed(1)
    net = EDMDenoiser(UNetShape(channels, axes, (8, 16), fold=fold), 0.5, generator=rng)
    with torch.no_grad():
        for weight in net.parameters():
            if not bool(weight.any()):
                weight.copy_(0.1 * torch.randn(weight.shape, generator=rng))
    return net.eval()


def pictures(count: int = 3, channels: int = 1, sides: tuple[int, ...] = (12, 12)) -> Tensor:
    return torch.rand(count, channels, *sides, generator=torch.Generator().manual_seed(2))


def test_preconditioning_is_that_of_the_paper() -> None:
    net = network()
    assert isinstance(net, Denoiser)
    x, sigma, data = 2 * pictures() - 1, torch.tensor([0.05, 0.5, 4.0]), 0.5
    with torch.no_grad():
        got = net(x, sigma)
        for i, s in enumerate(sigma.tolist()):
            inner = net.net(x[i : i + 1] / math.sqrt(s**2 + data**2), torch.tensor([math.log(s) / 4]))
            expected = data**2 / (s**2 + data**2) * x[i : i + 1] + s * data / math.sqrt(s**2 + data**2) * inner
            torch.testing.assert_close(got[i : i + 1], expected, rtol=1e-4, atol=1e-5)


def test_the_weight_undoes_the_output_scale() -> None:
    """``lambda c_out^2 = 1``."""
    sigma = torch.tensor([0.01, 0.3, 20.0], dtype=torch.float64)
    scale = sigma * 0.5 / (sigma.square() + 0.25).sqrt()
    torch.testing.assert_close(loss_weight(sigma, 0.5) * scale.square(), torch.ones(3, dtype=torch.float64))


def test_weights_come_from_the_generator_alone() -> None:
    one, same = (EDMDenoiser(UNetShape(widths=(8,)), 0.5, generator=torch.Generator().manual_seed(3)).state_dict() for _ in range(2))
    assert all(torch.equal(one[k], same[k]) for k in one)


@pytest.mark.parametrize("sides", [(12, 12), (13, 7), (2, 31)])
def test_any_size_from_the_stride_on(sides: tuple[int, int]) -> None:
    encoder, asked = DiffusionEncoder(network(), 12), frozenset({"msma.norms:high=1,levels=2,low=0.1,noised=true"})
    (found,) = encoder.encode(pictures(sides=sides), asked).values()
    assert found.shape == (3, 2)
    assert bool(torch.isfinite(found).all())


def test_a_folded_network_sees_a_smaller_grid_and_keeps_pixels_in_their_places() -> None:
    net, x, seen = network(fold=2), 2 * pictures(2) - 1, []
    net.net.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    found = net(x, torch.tensor([0.1, 2.0]))
    assert seen[0].shape == (2, 4, 6, 6)
    assert torch.allclose(seen[0][0, 1], x[0, 0, ::2, 1::2] / math.hypot(0.1, 0.5))
    inside = net.net(seen[0], torch.tensor([0.1, 2.0]).log() / 4)
    skip, out = 0.25 / (0.01 + 0.25), 0.1 * 0.5 / math.hypot(0.1, 0.5)
    assert torch.allclose(found[0, 0, 1::2, ::2], skip * x[0, 0, 1::2, ::2] + out * inside[0, 2], atol=1e-6)
    assert net(pictures(1, sides=(13, 7)), torch.tensor([0.5])).shape == (1, 1, 13, 7)
    with pytest.raises(SignalError, match="4 pixels"):
        net(pictures(1, sides=(3, 8)), torch.tensor([0.5]))


def test_voxels_are_folded_as_pixels_are() -> None:
    x, volume = torch.rand(2, 3, 8, 12), torch.rand(2, 3, 4, 8, 12)
    assert torch.equal(folded(x, 2), torch.nn.functional.pixel_unshuffle(x, 2))
    assert torch.equal(folded(volume, 2)[:, 8 + 5], volume[:, 1, 1::2, ::2, 1::2])
    for given in (x, volume):
        assert torch.equal(unfolded(folded(given, 4), 4), given)
    assert network(axes=3, fold=2)(torch.rand(1, 1, 5, 4, 7), torch.tensor([0.5])).shape == (1, 1, 5, 4, 7)


def test_a_folded_model_is_rebuilt_and_others_keep_their_digest() -> None:
    small, plain = (DiffusionEncoder(network(fold=fold), 12) for fold in (2, 1))
    again = DiffusionEncoder.rebuilt(small.config(), small.state())
    assert again.denoiser.shape.fold == 2
    assert again.sha256 == small.sha256
    assert "fold" not in plain.config()["net"]


def test_images_smaller_than_the_stride_are_refused_by_name() -> None:
    with pytest.raises(SignalError, match=r"\(3, 1, 1, 12\) are smaller than the 2 pixels of the diffusion network's stride"):
        DiffusionEncoder(network(), 12).encode(pictures(sides=(1, 12)), frozenset({"msma.norms"}))
    with pytest.raises(SignalError, match="1 channels and 2 axes"):
        DiffusionEncoder(network(), 12).encode(pictures(sides=(6, 6, 6)), frozenset({"msma.norms"}))
    with pytest.raises(SignalError, match="1 or 3 channels"):
        DiffusionEncoder(network(), 12).encode(pictures(channels=2), frozenset({"msma.norms"}))


def test_grey_and_colour_meet() -> None:
    """Grey pixels on three channels are grey to a grey model, and one channel is three equal ones to a colour model."""
    grey = pictures()
    for channels in (1, 3):
        encoder = DiffusionEncoder(network(channels), 12)
        one, three = (encoder.encode(x, frozenset({"msma.norms"}))["msma.norms"] for x in (grey, grey.expand(-1, 3, -1, -1)))
        torch.testing.assert_close(one, three, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", sorted(KINDS))
def test_every_signal_of_an_image_is_that_in_its_batch_in_any_order(name: str) -> None:
    """Noise is drawn from the pixels."""
    encoder, x = DiffusionEncoder(network(), 12), pictures(3)
    few = {"msma.norms": ":levels=3", "diffpath.moments": ":levels=3", "multi_noise.errors": ":levels=3"}
    few |= {"eigenscore.values": ":iterations=2,levels=1,vectors=1", "lmd.errors": ":cells=3,levels=2", "lmd.map": ":cells=3,levels=2"}
    asked = frozenset({name + few.get(name, "")})
    (together,) = encoder.encode(x, asked).values()
    (turned,) = encoder.encode(x.flip(0), asked).values()
    alone = torch.cat([next(iter(encoder.encode(x[i : i + 1], asked).values())) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=2e-3, atol=1e-4)
    torch.testing.assert_close(together, turned.flip(0), rtol=2e-3, atol=1e-4)
    assert together.dtype == torch.float32
    assert not together.requires_grad


def test_detectors_read_what_it_gives() -> None:
    encoder = DiffusionEncoder(network(), 12)
    for detector in (MSMA(levels=3), Scoped(), GEPC(levels=1), LMD(levels=2, cells=3)):
        signals = encoder.encode(pictures(12), detector.needs)
        assert detector.fit([signals]).score(signals).shape == (12,)
    gepc = GEPC(levels=1)
    signals = encoder.encode(pictures(12), gepc.needs | gepc.map_needs)
    assert gepc.fit([signals]).map(signals).shape == (12, 12, 12)


def test_volumes() -> None:
    encoder = DiffusionEncoder(network(axes=3), 6)
    asked = frozenset({"msma.norms:levels=2", "gepc.map:levels=1", "lmd.map:cells=2,levels=2", "scoped.ratios"})
    found = encoder.encode(pictures(2, sides=(6, 4, 5)), asked)
    assert found["gepc.map:levels=1"].shape == found["lmd.map:cells=2,levels=2"].shape == (2, 1, 6, 4, 5)
    assert found["scoped.ratios"].shape == (2, 2)


def test_it_is_the_same_after_saving_and_rebuilding(tmp_path: Path) -> None:
    encoder, x = DiffusionEncoder(network(), 12), pictures()
    encoder.save(tmp_path)
    read = DiffusionEncoder.from_folder(tmp_path)
    rebuilt = DiffusionEncoder.rebuilt(encoder.config(), encoder.state())
    for other in (read, rebuilt, encoder.to("cpu")):
        assert other.sha256 == encoder.sha256
        assert torch.equal(
            other.encode(x, frozenset({"msma.norms"}))["msma.norms"], encoder.encode(x, frozenset({"msma.norms"}))["msma.norms"]
        )
    assert DiffusionEncoder(network(), 13).sha256 != encoder.sha256
    with pytest.raises(NotAvailableError, match=r"must hold config\.json"):
        DiffusionEncoder.from_folder(tmp_path / "none")
    (tmp_path / "config.json").write_text('{"net": {"stride": 3}, "sigma_data": 1, "size": 3}')
    with pytest.raises(ConfigError, match="makes no sense"):
        DiffusionEncoder.from_folder(tmp_path)
    weights = encoder.state()
    weights.pop("net.out.0.weight")
    with pytest.raises(BundleError, match=r"net\.out\.0\.weight"):
        DiffusionEncoder.rebuilt(encoder.config(), weights)
    broken = {k: v * math.nan for k, v in encoder.state().items()}
    with pytest.raises(BundleError, match="not finite"):
        DiffusionEncoder.rebuilt(encoder.config(), broken)


def test_it_is_opened_by_its_folder_and_again_from_a_gate(tmp_path: Path) -> None:
    encoder = DiffusionEncoder(network(), 12)
    encoder.save(tmp_path)
    opened = open_encoder(f"diffusion:{tmp_path}")
    assert opened.sha256 == encoder.sha256
    for given in (None, f"diffusion:{tmp_path}", opened):
        assert rebuild(opened.config(), opened.state(), given=given).sha256 == encoder.sha256
    DiffusionEncoder(network(), 13).save(tmp_path)
    with pytest.raises(BundleError, match="its scores would mean nothing"):
        rebuild(opened.config(), opened.state(), given=f"diffusion:{tmp_path}")
    with pytest.raises(BundleError, match="cannot be built again"):
        rebuild({**opened.config(), "net": {}, "sigma_data": 0.0}, opened.state())
    with pytest.raises(BundleError, match="channels = 2 must be 1 or 3"):
        rebuild({**opened.config(), "net": {"channels": 2}}, opened.state())
    with pytest.raises(ConfigError, match="no layers to choose"):
        open_encoder(f"diffusion:{tmp_path}", layers=["last"])


def test_unknown_settings_are_refused_before_any_file_is_read() -> None:
    with pytest.raises(ConfigError, match="no setting 'level'"):
        DiffusionEncoder(network(), 12).ready(frozenset({"msma.norms:level=3"}))


@pytest.mark.parametrize(
    "wrong",
    [
        {"channels": 0},
        {"channels": 65},
        {"classes": -1},
        {"axes": 1},
        {"widths": (12,)},
        {"widths": ()},
        {"blocks": 0},
        {"attention": (True,)},
    ],
)
def test_shapes_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        UNetShape(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="sigma_data = 0"):
        EDMDenoiser(UNetShape(), 0.0)
