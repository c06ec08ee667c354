"""Training of synthetic-anomaly networks: what they learn, which checkpoint is kept, exact resume, and everything that can go wrong."""

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from offmap.core.errors import ConfigError, DataError
from offmap.represent.synthetic_anomaly import top_share
from offmap.represent.train import synthetic_anomaly as training
from offmap.represent.train.judged import Judged
from offmap.represent.train.planted import area_of
from offmap.represent.train.synthetic_anomaly import SyntheticAnomalyPlan, TrainedSyntheticAnomaly, train_synthetic_anomaly
from offmap.represent.train.trials import AUCp, HeldOutTask, maps_of
from offmap.simulate.tasks import TASKS

pytest.importorskip("monai", reason="needs the extra [generative]")

CPU = torch.device("cpu")
PLAN = SyntheticAnomalyPlan(widths=(8, 8), steps=6, batch=4, warmup=2, check_every=2, held_out=0.25)
CUTPASTE = replace(PLAN, tasks=("cutpaste", "cutpaste_scar"), objective="class", unaltered=1 / 3)


def discs(count: int = 24, sides: tuple[int, int] = (12, 12), channels: int = 1) -> Tensor:
    """A disc near the middle, brighter towards one side, on black."""
    rng = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, n) for n in sides], indexing="ij")
    centres = 0.1 * torch.randn(count, 2, 1, 1, generator=rng)
    inside = (y - centres[:, :1]).square() + (x - centres[:, 1:]).square() < 0.6
    return (inside * (0.5 + 0.2 * x)).expand(-1, channels, -1, -1).contiguous().float()


def watched(**changes: object) -> tuple[TrainedSyntheticAnomaly, list[Judged]]:
    told: list[Judged] = []
    options = {"images": discs(), "plan": PLAN, "progress": told.append} | changes
    return train_synthetic_anomaly(options.pop("images"), options.pop("plan"), **options), told  # type: ignore[arg-type]


def test_it_learns_to_find_what_was_put_in() -> None:
    """Trained on pasted pieces it finds those of unseen images, pixel by pixel."""
    plan = replace(
        PLAN, tasks=("cutpaste", "fpi"), steps=100, batch=16, rate=1e-2, warmup=10, check_every=100, objective="both", average=0.9
    )
    found, told = watched(images=discs(60, (16, 16)), plan=plan)
    assert np.mean([p.loss for p in told[-20:]]) < 0.7 * np.mean([p.loss for p in told[:5]])
    trial = HeldOutTask.of(TASKS["cutpaste"], discs(80, (16, 16))[60:], discs(60, (16, 16)), 3)
    maps = maps_of(found.net, trial.odd, CPU)
    assert area_of(maps[trial.masks == 0], maps[trial.masks > 0]) > 0.85


def test_volumes_are_trained_on_too() -> None:
    """Each volume a stack of the same disc, shifted."""
    volumes = discs(72).reshape(24, 3, 12, 12).repeat_interleave(4, dim=1)[:, None]
    found, told = watched(images=volumes, plan=replace(PLAN, tasks=("cutpaste", "fpi", "nsa"), objective="both"))
    assert math.isfinite(told[-1].loss)
    assert found.net.shape.axes == 3
    trial = HeldOutTask.of(TASKS["cutpaste"], volumes[:6], volumes[6:], 3)
    assert maps_of(found.net, trial.odd, CPU).shape == trial.masks.shape == (18, 1, 12, 12, 12)
    assert 0 <= trial.area(found.net, CPU) <= 1
    with pytest.raises(ConfigError, match="two or three sides"):
        watched(images=volumes[:, :, 0, 0])


def test_a_batch_holds_unaltered_images_and_every_task() -> None:
    run = training._Run.of(discs(), replace(CUTPASTE, batch=300), 0, CPU, None, None)
    pixels, labels, classes = run.batch(0)
    assert classes.bincount().tolist() == pytest.approx([100, 100, 100], abs=30)
    known = discs()
    for image, label, kind in zip(pixels, labels, classes, strict=True):
        same = (known == image).flatten(1).all(dim=1).any()
        assert bool(same) == (int(kind) == 0)
        assert bool(label.any()) == (int(kind) > 0)
    assert all(torch.equal(a, b) for a, b in zip(run.batch(7), run.batch(7), strict=True))
    assert not torch.equal(run.batch(7)[0], run.batch(8)[0])


def test_the_kept_checkpoint_is_the_best_on_the_held_out_task_where_the_last_one_is_worse(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that over-trains and turns round: the held-out task is found at first, and called usual at the end."""
    areas = iter([0.6, 0.85, 0.845, 0.6, 0.3])
    monkeypatch.setattr(HeldOutTask, "area", lambda self, net, device: next(areas))
    found, told = watched(plan=replace(PLAN, steps=10))
    assert (found.steps, found.kept, found.area) == (10, 6, 0.845)
    assert told[-1].area == 0.3
    differ = [k for k, v in found.net.state_dict().items() if not torch.equal(v, found.last.state_dict()[k])]
    assert differ
    areas = iter([0.6, 0.85, 0.5, 0.4, 0.3])
    ended, _ = watched(plan=replace(PLAN, steps=40, patience=2))
    assert (ended.steps, ended.kept) == (8, 4)
    assert "anomalies of the held-out task intensity were seen best at step 4" in ended.notes[-1]


def test_the_judge_of_maps_is_the_mean_of_two_areas() -> None:
    found, _ = watched()
    trial = HeldOutTask.of(TASKS["warp"], discs(30)[24:], discs(), 1)
    assert len(trial.odd) == 48
    own, odd = maps_of(found.net, trial.normal, CPU), maps_of(found.net, trial.odd, CPU)
    scores = [top_share(m, 0.01).double().numpy() for m in (own, odd)]
    images = np.mean([(b > a) + 0.5 * (b == a) for a in scores[0] for b in scores[1]])
    inside = trial.masks.numpy() > 0
    outer, inner = odd.numpy()[~inside], odd.numpy()[inside]
    pixels = np.mean([(outer < p).mean() + 0.5 * (outer == p).mean() for p in inner])
    assert trial.area(found.net, CPU) == pytest.approx(0.5 * (images + pixels), abs=1e-6)


def test_cutpaste_is_judged_by_its_features_and_has_no_map() -> None:
    found, _ = watched(plan=CUTPASTE)
    assert math.isfinite(found.area)
    with torch.no_grad():
        seen = found.net(2 * discs(3) - 1)
    assert seen.map is None
    assert seen.classes is not None
    assert seen.classes.shape == (3, 3)


def test_aucp_chooses_by_unlabelled_images_and_marks_its_result() -> None:
    unlabelled = torch.cat([discs(10), torch.rand(5, 1, 12, 12, generator=torch.Generator().manual_seed(1))])
    marked, told = watched(unlabelled=unlabelled)
    plain, _ = watched()
    assert (marked.transductive, plain.transductive) == (True, False)
    assert "transductive: 15 unlabelled images" in marked.notes[-1]
    judge = AUCp(training._Run.of(discs(), PLAN, 0, CPU, None, None).held_out.usual, unlabelled)
    own, other = (top_share(maps_of(marked.net, x, CPU), 0.01) for x in (judge.usual, unlabelled))
    expected = (other[:, None] > own).double().mean() + 0.5 * (other[:, None] == own).double().mean()
    assert marked.area == pytest.approx(float(expected), abs=1e-9)
    assert [p.loss for p in told] == [p.loss for p in watched()[1]]
    assert math.isfinite(watched(unlabelled=unlabelled, plan=CUTPASTE)[0].area)
    with pytest.raises(DataError, match=r"unlabelled images are not finite in rows \[0\]"):
        watched(unlabelled=torch.full((1, 1, 12, 12), math.nan))


def test_a_resumed_run_has_the_losses_and_weights_of_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, told = watched()

    class StopError(Exception):
        pass

    first: list[Judged] = []

    def until_fifth(now: Judged) -> None:
        first.append(now)
        if now.step == 5:
            raise StopError

    with pytest.raises(StopError):
        watched(out=tmp_path, progress=until_fifth)
    rest, later = watched(out=tmp_path, resume=True)
    assert [p.loss for p in later[:4]] == [p.loss for p in first[:4]]
    assert [(p.step, p.loss) for p in later] == [(p.step, p.loss) for p in told]
    assert (later[-1].area, later[-1].held_out, rest.kept) == (told[-1].area, told[-1].held_out, whole.kept)
    assert all(torch.equal(v, rest.net.state_dict()[k]) for k, v in whole.net.state_dict().items())
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [1, 2, 3, 4, 5, 6]
    for other in ({"seed": 1}, {"images": discs(30)}, {"plan": replace(PLAN, tasks=("pii",))}):
        with pytest.raises(ConfigError, match="was made with another"):
            watched(out=tmp_path, resume=True, **other)


def test_a_loss_that_is_not_finite_ends_the_run_with_the_last_good_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, own = itertools.count(), training._Run.step_loss

    def failing(self: training._Run, net: object, step: int) -> Tensor:
        return own(self, net, step) * (math.nan if next(calls) == 4 else 1)  # type: ignore[arg-type]

    monkeypatch.setattr(training._Run, "step_loss", failing)
    ended, told = watched()
    assert "not finite at step 5" in ended.notes[-1]
    assert f"those of step {ended.kept}" in ended.notes[-1]
    assert ended.kept in (2, 4)
    assert told[-1].step == 4
    assert all(bool(torch.isfinite(v).all()) for v in ended.net.state_dict().values())
    monkeypatch.setattr(training._Run, "step_loss", lambda self, net, step: torch.tensor(math.nan))
    with pytest.raises(ConfigError, match=r"step 1, before the first checkpoint: take a lower rate than 0\.001"):
        watched()


@pytest.mark.parametrize(("sides", "channels"), [((9, 14), 1), ((13, 13), 3), ((8, 31), 3)])
def test_odd_sizes_that_are_not_square_and_colour_are_trained_on(sides: tuple[int, int], channels: int) -> None:
    found, _ = watched(images=discs(20, sides, channels), plan=replace(PLAN, tasks=tuple(t for t in TASKS if t != "intensity"), steps=4))
    assert found.kept in (2, 4)
    with torch.no_grad():
        assert found.net(discs(2, (11, 7), channels)).map.shape == (2, 1, 11, 7)


def test_what_cannot_be_trained_on_is_refused_by_name() -> None:
    with pytest.raises(DataError, match="5 images to train a synthetic-anomaly network on: 16 are the least"):
        watched(images=discs(5))
    with pytest.raises(ConfigError, match=r"\(20, 1, 7, 12\) must have 1 or 3 channels and two or three sides of 8 pixels"):
        watched(images=torch.rand(20, 1, 7, 12))
    with pytest.raises(ConfigError, match="two or three sides of 16 pixels"):
        watched(images=discs(), plan=replace(PLAN, widths=(8, 8, 8, 8, 8)))
    with pytest.raises(ConfigError, match="1 or 3 channels"):
        watched(images=torch.rand(20, 2, 12, 12))
    broken = discs()
    broken[5] = math.nan
    with pytest.raises(DataError, match=r"training images are not finite in rows \[5\]"):
        watched(images=broken)
    with pytest.raises(DataError, match="one value everywhere"):
        watched(images=torch.full((20, 1, 12, 12), 0.5))
    assert "24 training images are few" in watched(plan=replace(PLAN, steps=2))[0].notes[0]


def test_half_precision_starts_the_same() -> None:
    half, full = (watched(plan=replace(PLAN, steps=2, precision=p))[1][0].loss for p in ("bfloat16", "float32"))
    assert half == pytest.approx(full, rel=0.02)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"tasks": ("fbi",)}, "did you mean 'fpi'"),
        ({"held_out_task": "fpi"}, "judged on what the network learns is the last one"),
        ({"tasks": ()}, "one or more"),
        ({"tasks": ("fpi", "fpi")}, "that differ"),
        ({"unaltered": 1.0}, "unaltered"),
        ({"objective": "class", "unaltered": 0.0}, "above 0 where tasks are told apart"),
        ({"widths": (8,)}, "widths"),
        ({"steps": None}, "give steps or minutes"),
    ],
)
def test_values_out_of_range_are_refused(wrong: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        SyntheticAnomalyPlan(**wrong)  # type: ignore[arg-type]
