"""Recipes that train their network: from labelled images to a gate that holds it."""

import csv
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from typer.testing import CliRunner

import offmap
from offmap.cli import app
from offmap.core.errors import BundleError, ConfigError, DataError
from offmap.core.trainer import Examples
from offmap.core.types import Frame, Image
from offmap.pipeline import recipe as recipes
from offmap.pipeline.collect import Collected
from offmap.pipeline.saved import read_card
from offmap.pipeline.toml import to_toml
from offmap.pipeline.training import Pixels, shares
from offmap.represent.open import open_encoder
from offmap.represent.trained import TrainedEncoder
from offmap.represent.trainers.multi_exit import MultiExit
from offmap.score.mecam import MECAM

SMALL = {"train.size": "32", "train.width": "4", "train.epochs": "3", "train.batch": "8", "train.rate": "0.05"}
FLAGS = [text for key, value in SMALL.items() for text in ("--set", f"{key}={value}")]


def picture(seed: int) -> np.ndarray:
    """A disc on the left, on the right, or in the middle."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:48, :48] / 48 - 0.5
    disc = np.hypot(y - 0.05 * rng.standard_normal(), x - (-0.25, 0.25, 0)[seed % 3]) < 0.18
    return np.asarray(255 * np.clip(0.1 + 0.7 * disc + 0.05 * rng.standard_normal((48, 48)), 0, 1), dtype=np.uint8)


def name(seed: int) -> str:
    return ("left", "right", "middle")[seed % 3]


@pytest.fixture(scope="module")
def discs3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 pictures of three kinds and the table of their labels."""
    folder = tmp_path_factory.mktemp("discs3")
    with (folder / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "label"])
        for i in range(60):
            Pillow.fromarray(picture(i)).save(folder / f"{i:02d}.png")
            table.writerow([f"{i:02d}.png", name(i)])
    return folder


@pytest.fixture(scope="module")
def fitted(discs3: Path) -> offmap.Gate:
    gate: offmap.Gate = offmap.fit(discs3, recipe="mecam", settings=SMALL, labels=discs3 / "labels.csv", jobs=0)
    return gate


def test_a_gate_with_its_own_network_comes_back_without_it(
    fitted: offmap.Gate, discs3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offmap.pipeline.card.KEPT_BYTES", 10)
    fitted.save(tmp_path / "gate")
    again = offmap.load(tmp_path / "gate")
    assert again.id == fitted.id
    rows = fitted.score(discs3, jobs=0, use_cache=False).rows
    assert again.score(discs3, jobs=0, use_cache=False).rows == rows
    assert len(rows) == 60
    assert all(r["status"] == "ok" and r["score.mecam"] <= 0 for r in rows)
    shown, same = (each.explain(discs3 / "00.png").map for each in (fitted, again))
    assert shown is not None
    assert shown.shape == (48, 48)
    np.testing.assert_array_equal(shown, same)
    with pytest.raises(BundleError, match="keeps its network train:multi_exit"):
        offmap.load(tmp_path / "gate", encoder="builtin")


def test_the_card_tells_how_it_was_trained(fitted: offmap.Gate, discs3: Path) -> None:
    training = fitted.card["training"]
    count = training["images"]
    assert count["train"] + count["checkpoint"] + count["gate"] == 60
    assert count["gate"] == 24
    assert sum(training["classes"].values()) == 36
    assert set(training["classes"]) == {"left", "right", "middle"}
    assert training["epochs"] == 3 == len(training["validation_auroc"])
    assert training["validation_auroc"][training["kept_epoch"] - 1] == max(training["validation_auroc"])
    assert fitted.card["calibration"]["n"] == 24
    assert fitted.card["data"]["n_used"] == 60
    assert isinstance(fitted.encoder, TrainedEncoder)
    assert (fitted.encoder.class_names, fitted.encoder.classes) == (("left", "middle", "right"), 3)
    assert set(fitted.score(discs3, jobs=0).arrow.column("predicted").to_pylist()) <= {"left", "middle", "right"}


def test_the_same_seed_trains_the_same_network_whatever_the_order_of_calls(fitted: offmap.Gate, discs3: Path) -> None:
    one = offmap.fit(discs3, recipe="mecam", settings=SMALL, labels=discs3 / "labels.csv", jobs=0)
    other = offmap.fit(discs3, recipe="mecam", settings=SMALL, labels=discs3 / "labels.csv", jobs=0, seed=1)
    assert one.encoder.sha256 == fitted.encoder.sha256 != other.encoder.sha256
    assert one.score(discs3, jobs=0).rows == fitted.score(discs3, jobs=0).rows
    same = {key: value for key, value in one.facts.items() if key not in ("created", "training")}
    assert same == {key: value for key, value in fitted.facts.items() if key not in ("created", "training")}
    assert {**one.facts["training"], "seconds": 0} == {**fitted.facts["training"], "seconds": 0}


def test_on_the_command_line(discs3: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke
    given = ["fit", str(discs3), "--recipe", "mecam", "--labels", str(discs3 / "labels.csv"), *FLAGS, "--jobs", "1", "--limit", "48"]
    done = run(app, [*given, "--out", str(tmp_path / "gate"), "--json"])
    assert done.exit_code == 0, done.output
    events = [json.loads(line) for line in done.stdout.splitlines()]
    epochs = [e for e in events if e["event"] == "train" and e["total"]]
    assert [(e["done"], e["total"]) for e in epochs] == [(1, 3), (2, 3), (3, 3)]
    assert all(0 <= e["validation_auroc"] <= 1 and e["loss"] > 0 for e in epochs)
    assert events[-1]["n_used"] == 48
    shown = run(app, ["inspect", str(tmp_path / "gate")])
    assert "Training of the network" in shown.stdout
    assert "Validation AUROC by epoch" in shown.stdout
    assert "made the gate and trained nothing" in shown.stdout
    assert read_card(tmp_path / "gate")["training"]["epochs"] == 3
    scored = run(app, ["score", str(tmp_path / "gate"), str(discs3), "--out", str(tmp_path / "s.csv"), "--maps", str(tmp_path / "maps")])
    assert scored.exit_code == 0, scored.output
    assert np.load(tmp_path / "maps" / "0000000.npy").shape == (48, 48)


def test_labels_of_a_manifest_and_of_arrays(fitted: offmap.Gate, discs3: Path, tmp_path: Path) -> None:
    with (tmp_path / "all.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "label"], *([str(discs3 / f"{i:02d}.png"), name(i)] for i in range(60))])
    by_manifest = offmap.fit(tmp_path / "all.csv", recipe="mecam", settings=SMALL, jobs=0)
    assert set(by_manifest.card["training"]["classes"]) == {"left", "right", "middle"}
    pixels = np.stack([picture(i) for i in range(60)])
    for labels in (np.arange(60) % 3, torch.arange(60) % 3):
        gate = offmap.fit(pixels, axes="NHW", recipe="mecam", settings={**SMALL, "train.epochs": "1"}, labels=labels, jobs=0)
        assert sum(gate.card["training"]["classes"].values()) == 36
    assert set(gate.card["training"]["classes"]) == {"0", "1", "2"}


def test_a_limit_draws_from_all_of_an_array(discs3: Path) -> None:
    order = np.argsort(np.arange(60) % 3, kind="stable")
    pixels = np.stack([picture(i) for i in order])
    settings = {**SMALL, "train.epochs": "1"}
    gate = offmap.fit(pixels, axes="NHW", recipe="mecam", settings=settings, labels=[name(i) for i in order], jobs=0, limit=45)
    assert len(gate.card["training"]["classes"]) == 3
    assert gate.card["data"]["n_used"] == 45


def test_bad_labels_are_named(discs3: Path, tmp_path: Path) -> None:
    pixels = np.stack([picture(i) for i in range(30)])

    def fit(labels: object) -> None:
        offmap.fit(pixels, axes="NHW", recipe="mecam", settings=SMALL, labels=labels, jobs=0)

    with pytest.raises(ConfigError, match="multi_exit needs labels"):
        fit(None)
    with pytest.raises(ConfigError, match="30 images have the label 'a'; a classifier needs two classes"):
        fit(["a"] * 30)
    with pytest.raises(ConfigError, match="1 of 30 images have no label"):
        fit(["a"] * 15 + ["b"] * 14 + [""])
    with pytest.raises(DataError, match="class 'b' has 2 images; to train and to test a network at least 5"):
        fit(["a"] * 28 + ["b"] * 2)
    with pytest.raises(ConfigError, match="30 images, 29 labels"):
        fit(["a"] * 29)
    with pytest.raises(ConfigError, match=r"labels hold 0\.5, a float"):
        fit([0.5] * 30)
    (tmp_path / "few.csv").write_text("path,label\n00.png,left\n")
    with pytest.raises(ConfigError, match="labels: none of the 60 images is in the table"):
        offmap.fit(discs3, recipe="mecam", settings=SMALL, labels=tmp_path / "few.csv", jobs=0)
    (tmp_path / "few.csv").write_text(f"path,label\n{discs3 / '00.png'},left\n")
    with pytest.raises(ConfigError, match="59 of 60 images have no label"):
        offmap.fit(discs3, recipe="mecam", settings=SMALL, labels=tmp_path / "few.csv", jobs=0)
    with pytest.raises(DataError, match="8 of 20 images are left to make the gate"):
        offmap.fit(pixels[:20], axes="NHW", recipe="mecam", settings=SMALL, labels=["a", "b"] * 10, jobs=0)


def test_what_does_not_go_together_is_named_before_a_file_is_read(tmp_path: Path) -> None:
    nothing = tmp_path / "nothing"
    with pytest.raises(ConfigError, match="--volumes does not go with"):
        offmap.fit(nothing, recipe="mecam", volumes=True)
    with pytest.raises(ConfigError, match=r"\[encoder\] layers does not go with"):
        offmap.fit(nothing, recipe="mecam", layers=["layer4"])
    with pytest.raises(ConfigError, match=r"set train\.epochs changes nothing"):
        offmap.fit(nothing, recipe="mecam", settings={"train.epochs": "2"}, encoder="builtin")
    with pytest.raises(ConfigError, match="Add exits to the network first"):
        offmap.fit(nothing, recipe="mecam", encoder="builtin")
    with pytest.raises(ConfigError, match="no trainer 'multi_exits'; did you mean 'multi_exit'"):
        offmap.fit(nothing, encoder="train:multi_exits")
    with pytest.raises(ConfigError, match=r"\[train\] has no parameter 'epoch'; did you mean 'epochs'"):
        recipes.read("mecam", {"train.epoch": "3"})
    with pytest.raises(ConfigError, match=r"depth = 34 must be 18 or 50"):
        recipes.read("mecam", {"train.depth": "34"})
    with pytest.raises(ConfigError, match=r"share = 0\.95 must lie in"):
        recipes.read("mecam", {"train.share": "0.95"})
    with pytest.raises(ConfigError, match=r"\[train\] needs \[encoder\] spec"):
        recipes.read("standard", {"train.epochs": "3"})
    with pytest.raises(ConfigError, match="is trained while a gate is fitted"):
        open_encoder("train:multi_exit")


def test_a_network_that_is_given_takes_the_place_of_training(discs3: Path) -> None:
    trained = TrainedEncoder(MultiExit(size=32, width=4), ("a", "b"))
    gate = offmap.fit(sorted(discs3.glob("*.png")), recipe="mecam", encoder=trained.inner, jobs=0)
    assert "training" not in gate.card
    assert gate.recipe.train is None
    assert gate.card["calibration"]["n"] == 60


def test_a_recipe_with_training_goes_through_json_and_toml(tmp_path: Path) -> None:
    plan = recipes.read("mecam", {"train.depth": "50", "train.precision": "bfloat16"})
    assert recipes.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    (tmp_path / "mecam.toml").write_text(to_toml(plan))
    assert recipes.read(str(tmp_path / "mecam.toml")) == plan
    assert plan.train == MultiExit(depth=50, precision="bfloat16", batch=32, epochs=60, augment="strong")


def test_training_that_goes_astray_or_learns_nothing_is_told() -> None:
    rng = torch.Generator().manual_seed(0)
    data = Examples(torch.rand(40, 1, 32, 32, generator=rng), torch.arange(40) % 2, torch.arange(10))
    place = torch.device("cpu")
    small = MultiExit(size=32, width=2, channels=1, epochs=2, batch=8)
    with pytest.raises(ConfigError, match=r"went astray: the loss of epoch \d is (nan|inf); lower --set train\.rate"):
        replace(small, rate=1e30).train(data, seed=0, device=place)
    with pytest.raises(ConfigError, match="needs a label for each image"):
        small.train(replace(data, labels=None), seed=0, device=place)
    (warning,) = small.train(data, seed=0, device=place).warnings
    assert warning.startswith("The network hardly learnt its classes: validation AUROC 0.")


def collected(groups: list[str], labels: list[str]) -> Collected:
    kept = [
        Image(np.zeros((1, 0, 0), dtype=np.float32), str(i), Frame.whole((4, 4)), digest=f"{i:064d}", group=group)
        for i, group in enumerate(groups)
    ]
    return Collected(kept, labels=labels)


def test_patients_copies_and_classes_are_divided_as_they_should() -> None:
    patients = [f"p{i // 2}" for i in range(120)]
    labels = ["a" if i < 90 else "b" for i in range(120)]
    data, copies = collected(patients, labels), [(0, 5), (92, 99)]
    parts = shares(MultiExit(), data, copies, 3)
    rows = [set(part.tolist()) for part in (parts.train, parts.check, parts.gate)]
    assert sorted(set.union(*rows)) == list(range(120))
    assert sum(map(len, rows)) == 120
    for stay in [*copies, *((i, i + 1) for i in range(0, 120, 2))]:
        assert sum(bool(part & set(stay)) for part in rows) == 1
    assert [sum(i >= 90 for i in part) for part in rows] == pytest.approx([0.51 * 30, 0.09 * 30, 0.4 * 30], abs=2.5)
    assert min(sum(i >= 90 for i in part) for part in rows) > 0
    again = shares(MultiExit(), data, copies, 3)
    np.testing.assert_array_equal(parts.gate, again.gate)
    assert parts.gate.tolist() != shares(MultiExit(), data, copies, 4).gate.tolist()


def test_a_class_of_copies_is_one_image() -> None:
    data = collected([""] * 60, ["a"] * 30 + ["b"] * 30)
    with pytest.raises(DataError, match=r"class 'b' has 30 images of 1 patients \(or clusters of copies\)"):
        shares(MultiExit(), data, [tuple(range(30, 60))], 0)


def test_images_of_several_sizes_are_named() -> None:
    pixels = Pixels()
    pixels.append({"image": torch.zeros(2, 1, 8, 8)})
    pixels.append({"image": torch.ones(1, 3, 8, 8)})
    assert pixels.take(np.array([0, 2])).shape == (2, 3, 8, 8)
    with pytest.raises(ConfigError, match="images of one size"):
        pixels.append({"image": torch.zeros(1, 1, 8, 9)})


def test_weights_that_do_not_fit_are_a_damaged_gate() -> None:
    encoder = TrainedEncoder(MultiExit(size=32, width=4), ("a", "b"))
    state = encoder.trainer.open(2, None, device=torch.device("cpu")).base._module.state_dict()  # type: ignore[attr-defined]
    encoder = TrainedEncoder(encoder.trainer, ("a", "b"), state)
    again = TrainedEncoder.from_bundle(encoder.config(), encoder.state())
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for key, value in encoder.encode(images, MECAM().needs | {"logits"}).items():
        torch.testing.assert_close(again.encode(images, MECAM().needs | {"logits"})[key], value)
    for config in ({**encoder.config(), "trainer": "os"}, {**encoder.config(), "params": {"depth": 19}}, {"trainer": "multi_exit"}):
        with pytest.raises(BundleError, match="cannot be built again"):
            TrainedEncoder.from_bundle(config, encoder.state())
    with pytest.raises(BundleError, match="cannot be built again: weights do not fit"):
        TrainedEncoder.from_bundle(encoder.config(), {})
    with pytest.raises(BundleError, match="it was damaged"):
        TrainedEncoder.from_bundle(encoder.config(), {**state, "exits.3.bias": state["exits.3.bias"] + 1})


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_an_interrupt_while_training_leaves_nothing(discs3: Path, tmp_path: Path) -> None:
    flags = [text.replace("epochs=3", "epochs=100000") for text in FLAGS]
    command = [sys.executable, "-c", "from offmap.cli import main; main()", "fit", str(discs3), "--recipe", "mecam", *flags]
    command += ["--labels", str(discs3 / "labels.csv"), "--out", str(tmp_path / "out" / "gate"), "--jobs", "1", "--json"]
    running = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    )
    assert running.stdout is not None
    while json.loads(running.stdout.readline())["event"] != "train":
        pass
    running.stdout.readline()
    running.send_signal(signal.SIGINT)
    _, error = running.communicate(timeout=60)
    assert running.returncode == 130, error
    assert "interrupted" in error
    assert not list(tmp_path.rglob("manifest.json"))
    assert not (tmp_path / "out" / "gate").exists()
