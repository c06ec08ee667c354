"""The synthetic-anomaly encoder: sizes, channels, settings, one image as in its batch, saving, gates."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from offmap.core.errors import BundleError, ConfigError, NotAvailableError, SignalError
from offmap.core.trainer import Examples
from offmap.represent.nets.synthetic_anomaly import Objective, SyntheticAnomalyNet, SyntheticAnomalyShape
from offmap.represent.open import open_encoder, rebuild
from offmap.represent.synthetic_anomaly import SyntheticAnomalyEncoder
from offmap.represent.trained import TrainedEncoder
from offmap.represent.trainers.synthetic_anomaly import SyntheticAnomaly as Trainer
from offmap.score.cutpaste import CutPaste
from offmap.score.synthetic_anomaly import SyntheticAnomaly

pytest.importorskip("monai", reason="needs the extra [generative]")

ALL = frozenset({"synthetic.map", "synthetic.top:share=0.1", "synthetic.features"})


def encoder(channels: int = 1, objective: Objective = "both", axes: int = 2) -> SyntheticAnomalyEncoder:
    shape = SyntheticAnomalyShape(channels, (8, 16, 16), 3, objective, axes)
    return SyntheticAnomalyEncoder(SyntheticAnomalyNet(shape, generator=torch.Generator().manual_seed(1)), 12)


def pictures(count: int = 3, channels: int = 1, sides: tuple[int, ...] = (12, 12)) -> Tensor:
    return torch.rand(count, channels, *sides, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("sides", [(12, 12), (13, 7), (4, 31), (5, 4), (8, 8, 8), (5, 9, 4)])
def test_any_size_from_the_stride_on(sides: tuple[int, ...]) -> None:
    found = encoder(axes=len(sides)).encode(pictures(sides=sides), ALL)
    assert found["synthetic.map"].shape == (3, 1, *sides)
    assert found["synthetic.features"].shape == (3, 16)
    assert found["synthetic.top:share=0.1"].shape == (3,)
    assert all(bool(torch.isfinite(v).all()) and v.dtype == torch.float32 and not v.requires_grad for v in found.values())
    assert 0 < float(found["synthetic.map"].min()) <= float(found["synthetic.map"].max()) < 1


def test_images_that_are_too_small_or_of_other_axes_and_channels_are_refused_by_name() -> None:
    with pytest.raises(SignalError, match=r"\(3, 1, 3, 12\) are smaller than the 4 pixels of the network's stride"):
        encoder().encode(pictures(sides=(3, 12)), ALL)
    with pytest.raises(SignalError, match="2 axes"):
        encoder().encode(pictures(sides=(6, 6, 6)), ALL)
    with pytest.raises(SignalError, match="3 axes"):
        encoder(axes=3).encode(pictures(), ALL)
    with pytest.raises(SignalError, match="1 or 3 channels"):
        encoder().encode(pictures(channels=2), ALL)


def test_a_network_of_images_is_described_as_before_there_were_others() -> None:
    assert "axes" not in encoder().config()["net"]
    assert "axes" not in Trainer(size=16).params()
    assert Trainer(size=16).over_volumes().params()["axes"] == 3
    deep = encoder(axes=3)
    assert SyntheticAnomalyEncoder.rebuilt(deep.config(), deep.state()).sha256 == deep.sha256


def test_grey_and_colour_meet() -> None:
    grey = pictures()
    for channels in (1, 3):
        one, three = (encoder(channels).encode(x, ALL) for x in (grey, grey.expand(-1, 3, -1, -1)))
        for name in ALL:
            torch.testing.assert_close(one[name], three[name], rtol=1e-4, atol=1e-5)


def test_every_signal_of_an_image_is_that_in_its_batch() -> None:
    x, net = pictures(5), encoder()
    together = net.encode(x, ALL)
    for name in ALL:
        alone = torch.cat([net.encode(x[i : i + 1], ALL)[name] for i in range(5)])
        torch.testing.assert_close(together[name], alone, rtol=1e-4, atol=1e-6)


def test_a_network_gives_what_it_was_trained_for_and_detectors_read_it() -> None:
    assert encoder(objective="class").provides == {"synthetic.features", "image"}
    assert encoder(objective="map").encode(pictures(), frozenset({"synthetic.*"})).keys() == {
        "synthetic.map",
        "synthetic.top",
        "synthetic.features",
    }
    for detector in (SyntheticAnomaly(), SyntheticAnomaly(share=1.0), CutPaste()):
        signals = encoder().encode(pictures(20), detector.needs)
        assert detector.fit([signals]).score(signals).shape == (20,)
    with pytest.raises(ConfigError, match=r"share = 2\.0 must lie in 0\.\.1"):
        encoder().ready(frozenset({"synthetic.top:share=2"}))
    with pytest.raises(ConfigError, match="has no setting 'part'"):
        encoder().ready(frozenset({"synthetic.top:part=1"}))


def test_it_is_opened_by_its_folder_and_again_from_a_gate(tmp_path: Path) -> None:
    own, x = encoder(), pictures()
    own.save(tmp_path)
    opened = open_encoder(f"synthetic_anomaly:{tmp_path}")
    kept, given = rebuild(own.config(), own.state()), rebuild(own.config(), None, given=f"synthetic_anomaly:{tmp_path}")
    for other in (opened, kept, given, own.to("cpu")):
        assert other.sha256 == own.sha256
        assert torch.equal(other.encode(x, ALL)["synthetic.map"], own.encode(x, ALL)["synthetic.map"])
    with pytest.raises(ConfigError, match="has no layers to choose"):
        open_encoder(f"synthetic_anomaly:{tmp_path}", layers=["a"])
    with pytest.raises(NotAvailableError, match=r"must hold config\.json"):
        open_encoder(f"synthetic_anomaly:{tmp_path / 'none'}")
    (tmp_path / "config.json").write_text('{"net": {"stride": 3}, "size": 3}')
    with pytest.raises(ConfigError, match="makes no sense"):
        open_encoder(f"synthetic_anomaly:{tmp_path}")
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match="must be a table"):
        open_encoder(f"synthetic_anomaly:{tmp_path}")
    weights = own.state()
    weights.pop("last.weight")
    with pytest.raises(BundleError, match=r"last\.weight"):
        SyntheticAnomalyEncoder.rebuilt(own.config(), weights)
    with pytest.raises(BundleError, match="not finite"):
        SyntheticAnomalyEncoder.rebuilt(own.config(), {k: v * math.nan for k, v in own.state().items()})


def test_the_trainer_gives_a_network_that_opens_again_and_facts_for_the_card() -> None:
    trainer = Trainer.from_params({"size": 12, "widths": [8, 8], "steps": 4, "batch": 4, "check_every": 2, "tasks": ["fpi", "pii"]})
    told: list[dict[str, object]] = []
    data = Examples(pictures(24, 3), None, torch.arange(4))
    found = trainer.train(data, seed=0, device=torch.device("cpu"), progress=told.append)
    assert found.facts["kept_step"] in (2, 4)
    assert [t["done"] for t in told] == [2, 4]
    assert len(found.facts["held_out_task_auroc"]) == 2
    opened = TrainedEncoder(trainer, (), found.state)
    again = TrainedEncoder.from_bundle(opened.config(), opened.state())
    assert torch.equal(opened.encode(pictures(), ALL)["synthetic.map"], again.encode(pictures(), ALL)["synthetic.map"])
    fresh = trainer.open(0, None, device=torch.device("cpu"))
    assert fresh.provides == opened.provides
    with pytest.raises(ConfigError, match="do not fit"):
        trainer.open(0, {"a": torch.zeros(1)}, device=torch.device("cpu"))
    for wrong in ({"size": 4}, {"size": 1000}, {"channels": 2}):
        with pytest.raises(ConfigError, match=r"\[train\] size"):
            Trainer.from_params(wrong)
