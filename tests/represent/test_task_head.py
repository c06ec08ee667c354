"""The small network of a task: it learns, it does the same twice, and its dropout is that of each image."""

import pytest
import torch
from torch import Tensor

from offmap.core.errors import ConfigError
from offmap.represent.task_head import HeadPlan, TaskHead, train_task

PLAN = HeadPlan(hidden=8, steps=300, batch=32, rate=1e-2)


def blobs(count: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    centres = 3 * torch.eye(3, 6)
    return centres[labels] + torch.randn(count, 6, generator=generator) + 50, labels


def trained(seed: int = 0, plan: HeadPlan = PLAN) -> TaskHead:
    x, y = blobs(240, 1)
    held = blobs(90, 2)
    return train_task(x, y, *held, classes=3, plan=plan, generator=torch.Generator().manual_seed(seed))


def test_it_learns_and_does_the_same_twice() -> None:
    x, y = blobs(300, 3)
    one, twin, other = trained(), trained(), trained(seed=1)
    answers = one.logits(one.hidden(x)).argmax(dim=1)
    assert float((answers == y).float().mean()) > 0.9
    torch.testing.assert_close(one.logits(one.hidden(x)), twin.logits(twin.hidden(x)), rtol=0, atol=0)
    assert not torch.allclose(one.logits(one.hidden(x)), other.logits(other.hidden(x)), atol=1e-2)


def test_the_formula() -> None:
    model, (x, _) = trained(), blobs(5, 4)
    w = {name: value.double() for name, value in model.state_dict().items()}
    hidden = (((x.double() - w["mean"]) / w["spread"]) @ w["first.weight"].T + w["first.bias"]).clamp_min(0)
    torch.testing.assert_close(model.hidden(x).double(), hidden, atol=1e-4, rtol=0)
    torch.testing.assert_close(model.logits(model.hidden(x)).double(), hidden @ w["head.weight"].T + w["head.bias"], atol=1e-4, rtol=0)


def test_passes_depend_on_the_image_alone_and_average_to_the_plain_pass() -> None:
    model, (x, _) = trained(), blobs(4, 5)
    hidden = model.hidden(x)
    all_of_them = model.passes(hidden, (11, 12, 13, 14), 6)
    alone = model.passes(hidden[2:3], (13,), 6)
    torch.testing.assert_close(all_of_them[2:3], alone)
    many = model.passes(hidden, (11, 12, 13, 14), 4000).double()
    error = many.std(dim=1) / 4000**0.5
    assert bool(((many.mean(dim=1) - model.logits(hidden).double()).abs() < 5 * error + 1e-6).all())


def test_a_pass_leaves_out_units_and_stretches_the_others() -> None:
    model, (x, _) = trained(), blobs(1, 6)
    hidden = model.hidden(x)
    keep = torch.rand(8, generator=torch.Generator().manual_seed(5)) >= 0.2
    torch.testing.assert_close(model.passes(hidden, (5,), 1)[:, 0], model.logits(hidden * keep / 0.8))


def test_refusals() -> None:
    model, (x, _) = trained(plan=HeadPlan(hidden=8, dropout=0.0, steps=1)), blobs(2, 7)
    with pytest.raises(ConfigError, match="dropout = 0"):
        model.passes(model.hidden(x), (1, 2), 3)
    for wrong in ({"hidden": 1}, {"dropout": 1.0}, {"steps": 0}, {"batch": 0}):
        with pytest.raises(ConfigError, match=f"{next(iter(wrong))} = {next(iter(wrong.values()))}"):
            HeadPlan(**wrong)  # type: ignore[arg-type]
