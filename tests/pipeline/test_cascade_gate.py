"""A gate with a cascade: the dear network runs where the cheap one is undecided, and nothing else changes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.pipeline.conftest import picture, write
from torch import Tensor

import offmap
from offmap.core.encoder import Encoder, Input
from offmap.core.errors import ConfigError
from offmap.core.types import Signals
from offmap.pipeline import recipe as recipes
from offmap.pipeline.gate import Gate
from offmap.pipeline.inputs import images as images_of
from offmap.pipeline.toml import to_toml
from offmap.represent.deferred import RAN, Deferred
from offmap.represent.encoder import BuiltinEncoder
from offmap.represent.pair import Pair

SIZES: list[int] = []
"""Batches that the dear network saw."""


class Dear(Encoder):
    """Gives how rough an image is; counts what it sees."""

    name, layers, provides, sha256 = "dear", (), frozenset({"image", "msma.norms"}), "dear"
    input = Input(24, 1, (0.0,), (1.0,))

    def encode(self, images: Tensor, needs: frozenset[str]) -> Signals:
        grey = images.mean(dim=1)
        SIZES.append(len(images))
        rough = grey.diff(dim=-1).abs().flatten(1)
        return {name: torch.stack([rough.mean(1), rough.std(1), rough.amax(1)], dim=1) for name in needs}

    def to(self, device: torch.device | str) -> "Dear":
        return self

    def state(self) -> dict[str, Tensor]:
        return {"one": torch.ones(1)}

    def config(self) -> dict[str, Any]:
        return {"kind": "dear"}


TOML = """
[prepare.window]
[prepare.crop]
[prepare.resize]
size = "encoder"
[score.near]
method = "mahalanobis"
[score.msma]
components = 1
[cascade]
first = "near"
then = "msma"
undecided = [0.02, 0.5]
"""


@pytest.fixture(scope="module")
def cascade(discs: Path, tmp_path_factory: pytest.TempPathFactory) -> Gate:
    file = tmp_path_factory.mktemp("recipe") / "two.toml"
    file.write_text(TOML)
    return offmap.fit(discs, recipe=str(file), encoder=Pair(BuiltinEncoder.shipped(), Dear()), jobs=0, use_cache=False)


def test_the_dear_network_sees_the_undecided_images_alone(cascade: Gate, discs: Path) -> None:
    SIZES.clear()
    rows = cascade.score(discs, jobs=0, use_cache=False).rows
    ran = [row["score.msma"] is not None for row in rows]
    assert 0 < sum(ran) < len(ran)
    assert sum(SIZES) == sum(ran)
    assert cascade.card["cascade"]["first"] == "near"
    assert 0.2 < cascade.card["cascade"]["share"] < 0.9
    assert cascade.card["cascade"]["ms_mean"] > 0


def test_one_image_scores_as_in_its_batch_and_as_when_everything_runs(cascade: Gate, discs: Path) -> None:
    files = sorted(discs.iterdir())[:20]
    together = cascade.score(files, jobs=0, use_cache=False).rows
    alone = [cascade.score(file, jobs=0, use_cache=False).rows[0] for file in files]
    stream = cascade.stream(0, maps=False, use_cache=False)
    assert isinstance(stream.encoder, Deferred)
    images = np.stack([picture(i) for i in range(20)])
    everything = cascade.encoder
    assert isinstance(everything, Pair)
    for one, other in zip(together, alone, strict=True):
        assert one["score"] == pytest.approx(other["score"], rel=1e-4, abs=1e-4)
        assert one["p_value"] == other["p_value"]
        assert (one["score.msma"] is None) == (other["score.msma"] is None)
    prepared = next(iter(cascade.stream(0, use_cache=False).over_images(images_of(images, axes="NHW"))))
    full = cascade.encoder.encode(torch.from_numpy(np.stack([i.pixels for i in prepared.images])), cascade.scorer.needs)
    torch.testing.assert_close(cascade.scorer(prepared.signals).score, cascade.scorer(full).score, rtol=1e-4, atol=1e-4)
    assert RAN in prepared.signals


def test_a_run_that_goes_on_from_kept_features_gives_the_same(cascade: Gate, discs: Path, tmp_path: Path) -> None:
    files = sorted(discs.iterdir())
    fresh = cascade.score(files, jobs=0, use_cache=False).rows
    half = cascade.score(files[:37], jobs=0).rows
    SIZES.clear()
    rest = cascade.score(files, jobs=0).rows
    assert sum(SIZES) == sum(row["score.msma"] is not None for row in fresh[37:])
    for rows in (rest, [*half, *rest[37:]]):
        assert [row["p_value"] for row in rows] == [row["p_value"] for row in fresh]
        assert [row["score"] for row in rows] == pytest.approx([row["score"] for row in fresh], rel=1e-4, abs=1e-4)
    summary = cascade.score_to(discs, tmp_path / "out.csv", jobs=0)
    assert summary.passed_on == sum(row["score.msma"] is not None for row in fresh)
    assert (tmp_path / "out.csv").read_text().splitlines()[0].endswith("score.near,score.msma")


def test_two_detectors_of_one_encoder_and_a_gate_on_disk(discs: Path, tmp_path: Path) -> None:
    gate = offmap.fit(discs, cascade=("knn", "mahalanobis"), settings={"cascade.rule": "second"}, jobs=0, use_cache=False)
    assert gate.recipe.name == "knn-mahalanobis"
    identity = gate.save(tmp_path / "gate")
    again = offmap.load(tmp_path / "gate")
    assert again.id == identity
    odd = write(tmp_path / "odd", 6, stripes=True)
    assert again.score(odd, jobs=0, use_cache=False).rows == gate.score(odd, jobs=0, use_cache=False).rows
    assert min(row["surprise_bits"] for row in again.score(odd, jobs=0).rows) > 4
    file = tmp_path / "again.toml"
    file.write_text(to_toml(gate.recipe))
    assert recipes.read(str(file)).to_json() == {**gate.recipe.to_json(), "name": "again"}


def test_recipes_are_put_together() -> None:
    settings = {"second.train.steps": "60", "cascade.undecided": "[0.1, 0.3]", "score.msma.levels": "5"}
    plan = recipes.read(cascade=("standard", "diffusion"), settings=settings)
    assert list(plan.parts) == ["standard", "msma"]
    assert plan.encoder.spec == "builtin"
    assert plan.second is not None
    assert plan.second.spec == "train:diffusion"
    assert plan.second_train is not None
    assert (plan.second_train.params()["steps"], plan.second_train.params()["size"]) == (60, 32)
    assert plan.cascade is not None
    assert plan.cascade.undecided == (0.1, 0.3)
    assert recipes.from_json(plan.to_json()).to_json() == plan.to_json()
    same = recipes.read("diffusion", cascade=("msma", "ddpm_ood"))
    assert same.second is None
    assert same.train is not None


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("standard",), "two names are needed"),
        (("standard", "difusion"), "there is no recipe 'difusion'; did you mean 'diffusion'"),
        (("knn", "msma"), r"\[score.msma\] msma needs msma.norms.*builtin gives"),
    ],
)
def test_what_is_wrong_is_named(discs: Path, names: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        offmap.fit(discs, cascade=names, jobs=0, use_cache=False)


def test_a_cascade_needs_its_two_parts(tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text('[score.knn]\n[score.vim]\n[cascade]\nfirst = "knn"\nthen = "energy"\n')
    with pytest.raises(ConfigError, match=r"goes from 'knn' to 'energy'; the recipe's parts are knn, vim"):
        recipes.read(str(file))


def test_networks_that_give_the_same_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"both give msma\.norms"):
        Pair(Dear(), Dear())
