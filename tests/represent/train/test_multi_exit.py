"""A network with four exits: published sizes, exits as convolutions, a toy training, and the encoder that it makes."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from offmap.core.encoder import Input
from offmap.core.errors import ConfigError
from offmap.represent.nets.multi_exit import MultiExitResNet
from offmap.represent.train.multi_exit import ExitPlan, _order, exit_loss, train_multi_exit, with_own_exits
from offmap.score.mecam import MECAM

SPEC = Input(32, 1, (0.5,), (0.25,))
PLAN = ExitPlan(epochs=4, batch=16, rate=0.05, last_rate=0.001)


def stripes(count: int = 60, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Along one axis or the other, or none."""
    rng, labels = torch.Generator().manual_seed(seed), torch.arange(count) % 3
    at = torch.linspace(0, 25, 32).sin()
    fields = torch.stack([at[:, None].expand(32, 32), at.expand(32, 32), torch.zeros(32, 32)])
    return (0.5 + 0.3 * fields[labels][:, None] + 0.1 * torch.randn(count, 1, 32, 32, generator=rng)).clamp(0, 1), labels


@pytest.mark.parametrize(("depth", "size", "ends"), [(18, 11_176_512, (64, 128, 256, 512)), (50, 23_508_032, (256, 512, 1024, 2048))])
def test_the_trunk_has_the_published_number_of_weights(depth: int, size: int, ends: tuple[int, ...]) -> None:
    """Those of ResNet-18 and 50 for ImageNet (11.69 and 25.56 million) without their last layer of 1000 classes."""
    net = MultiExitResNet(8, depth=depth)
    trunk = sum(p.numel() for name, p in net.named_parameters() if not name.startswith("exits"))
    assert trunk == size
    assert tuple(exit.in_features for exit in net.exits) == ends


def test_maps_halve_and_an_exit_is_the_mean_of_its_convolution() -> None:
    net = MultiExitResNet(5, width=4, generator=torch.Generator().manual_seed(1)).eval()
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        maps, logits, (weights, biases) = net.maps(x), net.logits(x), net.heads()
        assert [tuple(m.shape[1:]) for m in maps] == [(4, 16, 16), (8, 8, 8), (16, 4, 4), (32, 2, 2)]
        for m, z, w, b in zip(maps, logits, weights, biases, strict=True):
            seen = torch.nn.functional.conv2d(m, w[:, :, None, None], b)
            torch.testing.assert_close(seen.mean(dim=(2, 3)), z)
        torch.testing.assert_close(net(x), logits[-1])


def test_weights_come_from_the_generator_alone() -> None:
    one, same = (MultiExitResNet(3, width=4, generator=torch.Generator().manual_seed(1)).state_dict() for _ in range(2))
    assert all(torch.equal(one[k], same[k]) for k in one)


def test_the_loss_is_the_weighted_sum() -> None:
    rng = torch.Generator().manual_seed(0)
    logits, labels = [torch.randn(5, 3, generator=rng) for _ in range(4)], torch.tensor([0, 2, 1, 1, 0])
    expected = 0.0
    for w, z in zip((0.25, 0.5, 0.75, 1.0), logits, strict=True):
        for row, label in zip(z.tolist(), labels.tolist(), strict=True):
            expected += w * (math.log(sum(math.exp(v) for v in row)) - row[label]) / 5
    assert float(exit_loss(logits, labels, ExitPlan().exits)) == pytest.approx(expected, rel=1e-5)


def test_a_toy_training_learns_repeats_itself_and_keeps_the_best_epoch() -> None:
    x, labels = stripes()
    told: list[tuple[int, float, float]] = []
    first = train_multi_exit(x, labels, PLAN, spec=SPEC, width=4, progress=lambda *now: told.append(now))
    again = train_multi_exit(x, labels, PLAN, spec=SPEC, width=4)
    assert [epoch for epoch, _, _ in told] == [0, 1, 2, 3]
    assert told[-1][1] < told[0][1]
    assert first.areas == again.areas == tuple(area for _, _, area in told)
    assert first.areas[first.epoch] == max(first.areas)
    assert max(first.areas[first.epoch + 1 :], default=0.0) < max(first.areas)
    assert all(torch.equal(v, again.net.state_dict()[k]) for k, v in first.net.state_dict().items())
    assert not first.net.training
    assert not set(first.train.tolist()) & set(first.held_out.tolist())
    assert labels[first.held_out].bincount().tolist() == [3, 3, 3]


def test_half_precision_starts_from_the_same_loss_and_epochs_can_be_watched() -> None:
    x, labels = stripes()
    seen: list[int] = []
    losses: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    for precision, told in losses.items():
        found = train_multi_exit(
            x,
            labels,
            replace(PLAN, batch=64, precision=precision),  # type: ignore[arg-type]
            spec=SPEC,
            width=4,
            progress=lambda _epoch, loss, _area, told=told: told.append(loss),
            watch=lambda epoch, net: seen.append(epoch + 10 * net.training),
        )
        assert {p.dtype for p in found.net.parameters()} == {torch.float32}
        assert told[-1] < told[0]
    assert seen == 2 * [0, 1, 2, 3]
    assert losses["bfloat16"][0] == pytest.approx(losses["float32"][0], rel=0.02)
    assert losses["bfloat16"] != losses["float32"]


def test_as_an_encoder_it_shows_its_own_exits_and_is_a_classifier() -> None:
    x, labels = stripes()
    net = train_multi_exit(x, labels, PLAN, spec=SPEC, width=4).net
    reader = with_own_exits(net, Input(64, 1, (0.5,), (0.25,)))
    assert reader.base.config()["head"] == "exits.3"
    shown = torch.rand(3, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    signals = reader.encode(shown, MECAM().needs | MECAM().map_needs | {"logits"})
    with torch.no_grad():
        torch.testing.assert_close(signals["logits"], net((shown - 0.5) / 0.25))
        torch.testing.assert_close(signals["mecam.features"], net.maps((shown - 0.5) / 0.25)[-1].mean(dim=(2, 3)))
    assert signals[MECAM().evidence].shape == (3, 1, 64, 64)


def test_balanced_batches_draw_rare_classes_as_often() -> None:
    labels = torch.tensor([0] * 900 + [1] * 100)
    rows = _order(labels, torch.arange(1000), True, torch.Generator().manual_seed(0))
    assert 400 < int((labels[rows] == 1).sum()) < 600
    assert sorted(_order(labels, torch.arange(1000), False, torch.Generator().manual_seed(0)).tolist()) == list(range(1000))


def test_values_out_of_range_are_named() -> None:
    x = torch.rand(4, 1, 32, 32)
    for labels in ([0, 0, 0, 0], [0, 0, 1, 2], [-1, -1, 0, 0], [0, 0, 2, 2]):
        with pytest.raises(ConfigError, match=r"labels must be 0 \.\.\. K-1"):
            train_multi_exit(x, torch.tensor(labels), PLAN, spec=SPEC, width=4)
    with pytest.raises(ConfigError, match="depth = 34 must be 18 or 50"):
        MultiExitResNet(3, depth=34)
    for values in ({"epochs": 0}, {"held_out": 0.0}, {"rate": 0.0}, {"momentum": 1.0}):
        with pytest.raises(ConfigError):
            ExitPlan(**values)  # type: ignore[arg-type]


def test_rows_that_choose_the_checkpoint_can_be_given() -> None:
    x, labels = stripes()
    rows = torch.tensor([3, 4, 5, 9])
    found = train_multi_exit(x, labels, replace(PLAN, epochs=1), spec=SPEC, width=4, held_out=rows)
    assert found.held_out.tolist() == rows.tolist()
    assert sorted(found.train.tolist() + rows.tolist()) == list(range(60))
    for lacking in (torch.tensor([3, 4]), torch.arange(0, 60, 3)):
        with pytest.raises(ConfigError, match="each class must be among"):
            train_multi_exit(x, labels, PLAN, spec=SPEC, width=4, held_out=lacking)
