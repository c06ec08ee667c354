"""Every trainer found, without a list, tells its curve while it trains and keeps it for the card, and gives pictures to judge it by."""

import json
from typing import Any

import pytest
import torch
from tests.conformance.trainers import TRAINERS, tiny

from offmap.core.trainer import Examples, Trained
from offmap.report.training import CRITERIA, figure


@pytest.fixture(scope="module")
def trained() -> dict[str, tuple[Trained, list[dict[str, Any]]]]:
    return {}


def made(method: str, trained: dict[str, tuple[Trained, list[dict[str, Any]]]]) -> tuple[Trained, list[dict[str, Any]]]:
    if method not in trained:
        trainer = tiny(method, steps=8, epochs=2)
        y = torch.linspace(-1, 1, trainer.input.size)
        centre = torch.linspace(-0.3, 0.3, 28)[:, None, None]
        images = torch.exp(-4 * ((y[:, None] - centre) ** 2 + y**2))[:, None].expand(-1, trainer.input.channels, -1, -1).contiguous()
        labels = torch.arange(28) % 2 if trainer.labelled else None
        told: list[dict[str, Any]] = []
        trained[method] = (
            trainer.train(Examples(images, labels, torch.arange(8)), seed=0, device=torch.device("cpu"), progress=told.append),
            told,
        )
    return trained[method]


@pytest.mark.parametrize("method", TRAINERS)
def test_the_curve_and_the_criterion_of_a_training_are_told_and_kept(method: str, trained: Any) -> None:
    pytest.importorskip("monai", reason="needs the extra [generative]")
    found, told = made(method, trained)
    facts = dict(found.facts)
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    criteria = [name for name in CRITERIA if name in facts]
    assert criteria
    assert len(facts["loss"]) == len(facts["checked_steps"]) > 1
    for name in criteria:
        steps = "student_checked_steps" if name.startswith("student_") else "checked_steps"
        assert len(facts[name]) == len(facts[steps])
    assert facts.get("kept_step", facts.get("kept_epoch")) in facts["checked_steps"]
    assert all(any(name.removeprefix("student_") in event for event in told) for name in criteria)
    assert ("student_loss" in facts) == ("student_agreement" in criteria)
    assert all(event["event"] == "train" and event["loss"] == pytest.approx(event["loss"]) for event in told)
    shown = str(figure(facts))
    assert shown.count("<polyline") >= 2
    assert "kept" in shown


@pytest.mark.parametrize("method", TRAINERS)
def test_a_gate_is_given_no_picture_that_shows_a_training_image(method: str, trained: Any) -> None:
    pytest.importorskip("monai", reason="needs the extra [generative]")
    found, _ = made(method, trained)
    assert "base64" not in json.dumps(dict(found.facts))
    assert all(sheet.picture.startswith("data:image/png;base64,") and len(sheet.caption) > 40 for sheet in found.sheets)
    for sheet in found.sheets:
        assert sheet.made_up == ("Drawn by" in sheet.caption)
