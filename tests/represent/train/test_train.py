"""Training of the built-in encoder: it learns, goes on exactly, and exports what it learned."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from offmap.core.errors import ConfigError, DataError
from offmap.represent.encoder import BuiltinEncoder
from offmap.represent.layers import map_signals
from offmap.represent.nets.small import SmallNet, Stage
from offmap.represent.train import loop
from offmap.represent.train.loop import Plan, Progress, train
from offmap.represent.train.pool import gather
from offmap.represent.train.procedural import KINDS, draw
from offmap.represent.train.student import export, fold, with_norms
from offmap.represent.train.views import views

transformers = pytest.importorskip("transformers")
PLAN = Plan(steps=20, batch=4, rate=5e-3, warmup=2, procedural=4, held_out=0.25, check_every=5, sample=4, average=0.5)


@pytest.fixture(autouse=True, scope="module")
def _quiet() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic")
    model, rng = transformers.ResNetModel(config), torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=rng)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": 64, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    return folder


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = dict(BuiltinEncoder.shipped().config()["net"])
    config["input"] = config["input"] | {"size": 48}
    config["stem"] = config["stem"] | {"width": 6}
    config["stages"] = [{"width": width, "blocks": 1, "stride": 2} for width in (8, 12, 16)]
    path = tmp_path_factory.mktemp("network") / "config.json"
    path.write_text(json.dumps(config))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i, picture in enumerate(draw(8, 64, rng)):
        Image.fromarray((picture[0] * 255).astype(np.uint8)).save(folder / f"{i}.png")
    Image.fromarray((rng.uniform(size=(40, 50)) * 60000).astype(np.uint16)).save(folder / "deep.png")
    Image.fromarray(rng.integers(0, 255, (30, 20, 3), dtype=np.uint8)).save(folder / "colour.jpg")
    (folder / "broken.png").write_bytes(b"no image")
    (folder / "notes.txt").write_text("no image")
    return folder


def test_training_lowers_the_loss_and_says_so(teacher: Path, network: Path, data: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    done = train([data], tmp_path, teacher=str(teacher), network=network, plan=PLAN, device="cpu", progress=seen.append)
    losses = [p.loss for p in seen]
    assert [p.step for p in seen] == list(range(1, 21))
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:3])
    assert (done.steps, done.images, done.skipped) == (20, 10, 1)
    assert seen[-1].done == 1
    assert done.held_out == min(p.held_out for p in seen[4:])
    logged = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["loss"] for row in logged] == losses
    encoder = BuiltinEncoder.from_folder(tmp_path)
    assert encoder.layers == ("stem", "stages.0", "stages.1", "stages.2")
    assert encoder.input.size == 48


def test_a_resumed_run_equals_one_that_was_not_interrupted(
    teacher: Path, network: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = replace(PLAN, steps=6, check_every=3)
    whole = train([data], tmp_path / "whole", teacher=str(teacher), network=network, plan=plan, device="cpu")

    def interrupt(now: Progress) -> None:
        if now.step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train([data], tmp_path / "parts", teacher=str(teacher), network=network, plan=plan, device="cpu", progress=interrupt)
    assert not (tmp_path / "parts" / "model.safetensors").exists()
    steps: list[int] = []
    parts = train(
        [data],
        tmp_path / "parts",
        teacher=str(teacher),
        network=network,
        plan=plan,
        device="cpu",
        resume=True,
        progress=lambda p: steps.append(p.step),
    )
    assert steps == [4, 5, 6]
    assert parts.held_out == whole.held_out
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(one[k], other[k]) for k in one)
    with pytest.raises(ConfigError, match="made with another seed"):
        train([data], tmp_path / "parts", teacher=str(teacher), network=network, plan=plan, seed=1, device="cpu", resume=True)
    (tmp_path / "parts" / loop.FILE).write_bytes(b"damaged")
    with pytest.raises(ConfigError, match="no readable checkpoint"):
        train([data], tmp_path / "parts", teacher=str(teacher), network=network, plan=plan, device="cpu", resume=True)


def test_it_stops_when_the_held_out_loss_no_longer_falls(teacher: Path, network: Path, data: Path, tmp_path: Path) -> None:
    plan = replace(PLAN, steps=50, rate=1e-12, average=0.0, check_every=1, patience=2)
    done = train([data], tmp_path, teacher=str(teacher), network=network, plan=plan, device="cpu")
    assert done.steps < 50


def trained_student() -> SmallNet:
    rng = torch.Generator().manual_seed(1)
    student = with_norms(SmallNet(3, 4, [Stage(6, 1, 2), Stage(8, 2, 2)]), rng)
    for _ in range(5):
        student(torch.randn(4, 3, 32, 32, generator=rng) + 1)
    for name, value in student.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(value, -1, 2, generator=rng)
    return student.eval()


def test_folding_changes_no_map() -> None:
    student = trained_student()
    plain = SmallNet(3, 4, [Stage(6, 1, 2), Stage(8, 2, 2)])
    plain.load_state_dict(fold(student))
    x = torch.randn(2, 3, 48, 32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        for tap, maps in student(x).items():
            torch.testing.assert_close(plain(x)[tap], maps, rtol=1e-4, atol=1e-4)


def test_the_exported_file_gives_the_features_of_the_unfolded_network(tmp_path: Path) -> None:
    student = trained_student()
    config = BuiltinEncoder.shipped().config()["net"] | {
        "stem": {"width": 4, "stride": 2},
        "stages": [{"width": 6, "blocks": 1, "stride": 2}, {"width": 8, "blocks": 2, "stride": 2}],
    }
    export(student, config, tmp_path)
    encoder = BuiltinEncoder.from_folder(tmp_path)
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = map_signals(student((x - 0.5) / 0.25), encoder.provides, "stages.1")
    found = encoder.encode(x, frozenset({"features.*"}))
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=5e-3, atol=5e-3)


def test_reading_a_folder(data: Path) -> None:
    pool = gather([data], procedural=3, held_out=0.2, seed=0)
    assert (len(pool.train), len(pool.held_out), pool.skipped) == (10, 3, 1)
    again = gather([data], procedural=3, held_out=0.2, seed=0)
    assert torch.equal(pool.train, again.train)
    assert not torch.equal(pool.train, gather([data], procedural=3, held_out=0.2, seed=1).train)
    with pytest.raises(DataError, match="two are the least"):
        gather([data / "broken.png"], procedural=1, held_out=0.2, seed=0)
    with pytest.raises(ConfigError, match="does not exist"):
        gather([data / "gone"], procedural=1, held_out=0.2, seed=0)


@pytest.mark.parametrize("kind", KINDS)
def test_drawn_pictures_are_seeded_and_not_flat(kind: str) -> None:
    one, same, other = (KINDS[kind](48, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert one.dtype == np.float32
    assert one.shape in ((1, 48, 48), (3, 48, 48))
    assert 0 <= one.min() < one.max() <= 1
    assert one.std() > 0.02
    np.testing.assert_array_equal(one, same)
    assert other.shape != one.shape or not np.array_equal(one, other)


def test_views_are_seeded_and_in_range() -> None:
    images = torch.randint(0, 256, (6, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    one, same = (views(images, 32, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(one, same)
    assert one.shape == (6, 3, 32, 32)
    assert 0 <= one.min() < one.max() <= 1
    assert not torch.equal(one, views(images, 32, torch.Generator().manual_seed(6)))


def test_plans_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="give steps or minutes"):
        Plan()
    with pytest.raises(ConfigError, match="batch = 0 must be positive"):
        Plan(steps=1, batch=0)
    plan = Plan(steps=100, warmup=10)
    assert plan.rate_at(0, 0.0) == pytest.approx(2e-4)
    assert plan.rate_at(50, 0.0) == pytest.approx(1e-3)
    assert Plan(minutes=2.0).done(7, 60.0) == 0.5
