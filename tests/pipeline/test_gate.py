"""The gate end to end: what is strange is flagged, what is saved comes back, what is broken is told."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from tests.pipeline.conftest import picture, write

import offmap
from offmap.core.errors import BundleError, ConfigError, DataError
from offmap.pipeline.gate import Gate

PLAIN = '[prepare.window]\n[prepare.crop]\n[prepare.resize]\nsize = "encoder"\n'


def test_strange_images_are_surprising_and_usual_ones_are_not(gate: Gate, tmp_path: Path) -> None:
    usual = gate.score(write(tmp_path / "usual", 40, first=1000), jobs=0)
    strange = gate.score(write(tmp_path / "strange", 5, stripes=True), jobs=0)
    assert all(row["verdict"] != "accept" for row in strange.rows)
    assert min(r["score"] for r in strange.rows) > max(r["score"] for r in usual.rows)
    assert np.mean([r["p_value"] <= 0.05 for r in usual.rows]) <= 0.2
    # calibrated on random forms: of pictures this small they are odder than the files as they are, never less odd
    assert 0.3 <= np.median([r["p_value"] for r in usual.rows]) <= 0.85


def test_rows_keep_their_order_and_bits_follow_p(gate: Gate, discs: Path) -> None:
    rows = gate.score([discs / "003.png", discs / "001.png", discs / "003.png"], jobs=0).rows
    assert [Path(r["item"]).name for r in rows] == ["003.png", "001.png", "003.png"]
    assert rows[0] == rows[2]
    for row in rows:
        assert row["surprise_bits"] == pytest.approx(-np.log2(row["p_value"]))


def test_a_saved_gate_scores_the_same(gate: Gate, tmp_path: Path, discs: Path) -> None:
    identity = gate.save(tmp_path / "gate")
    again = offmap.load(tmp_path / "gate", expect=identity)
    assert identity == gate.id == again.id
    assert again.score(discs, jobs=0).rows == gate.score(discs, jobs=0).rows
    assert again.card == gate.card


def test_one_image_scores_as_in_its_batch(gate: Gate, discs: Path) -> None:
    batch = gate.score(discs, jobs=0, use_cache=False).rows
    alone = gate.score(discs / "007.png", jobs=0, use_cache=False).rows[0]
    assert alone["score"] == pytest.approx(batch[7]["score"], abs=1e-4)


def test_arrays_score_like_files(gate: Gate, discs: Path) -> None:
    stack = np.stack([picture(i) for i in range(3)])
    from_files = gate.score([discs / f"{i:03d}.png" for i in range(3)], jobs=0).rows
    for given in (stack, torch.from_numpy(stack)):
        rows = gate.score(given, axes="NHW").rows
        assert [r["item"] for r in rows] == ["array[0]", "array[1]", "array[2]"]
        assert [r["score"] for r in rows] == pytest.approx([r["score"] for r in from_files], abs=1e-4)
    with pytest.raises(ConfigError, match="does not describe"):
        gate.score(stack, axes="NCHW")


def test_the_same_seed_gives_the_same_gate(discs: Path) -> None:
    first, second = (offmap.fit(discs, jobs=0, seed=3) for _ in range(2))
    probe = discs / "000.png"
    assert first.score(probe, jobs=0).rows == second.score(probe, jobs=0).rows


def test_a_second_run_comes_from_the_cache_and_says_the_same(gate: Gate, discs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = gate.score(discs, jobs=0)

    def fail(*_: object) -> None:
        raise AssertionError("an image was encoded again")

    monkeypatch.setattr(type(gate.encoder), "encode", fail)
    assert gate.score(discs, jobs=0).rows == first.rows


def test_manifest_columns_are_kept_also_from_the_cache(gate: Gate, discs: Path, tmp_path: Path) -> None:
    table = tmp_path / "list.csv"
    table.write_text(f"path,ward\n{discs / '000.png'},A\n{discs / '001.png'},B\n")
    for _ in range(2):
        assert [r["meta.ward"] for r in gate.score(table, jobs=0).rows] == ["A", "B"]


def test_files_appear_whole_with_maps_and_page(gate: Gate, tmp_path: Path) -> None:
    data = write(tmp_path / "in", 3, stripes=True)
    (data / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    summary = gate.score_to(data, tmp_path / "o" / "s.csv", maps=tmp_path / "o" / "maps", report=tmp_path / "o" / "r", jobs=0)
    assert summary.verdicts["not_assessed"] == 1
    assert sum(summary.verdicts.values()) == 4
    heat = np.load(tmp_path / "o" / "maps" / "0000000.npy")
    assert heat.shape == (72, 72)
    assert heat.dtype == np.float32
    assert np.isfinite(heat).all()
    assert not (tmp_path / "o" / "maps" / "0000003.npy").exists()
    with Pillow.open(tmp_path / "o" / "maps" / "0000001.png") as overlay:
        assert overlay.size == (72, 72)
    assert (tmp_path / "o" / "r" / "index.html").stat().st_size > 10_000
    assert len((tmp_path / "o" / "s.csv").read_text().splitlines()) == 5


def test_nothing_to_score_is_told(gate: Gate, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("none")
    (tmp_path / "none.csv").write_text("path\n")
    for inputs in (tmp_path / "empty", tmp_path / "none.csv", []):
        for score in (gate.score, lambda given: gate.score_to(given, tmp_path / "s.csv")):
            with pytest.raises(DataError, match=r"nothing to score.*offmap check"):
                score(inputs)
    assert not (tmp_path / "s.csv").exists()


def test_a_manifest_is_not_overwritten_by_its_own_scores(gate: Gate, discs: Path, tmp_path: Path) -> None:
    table = tmp_path / "list.csv"
    table.write_text(f"path\n{discs / '000.png'}\n")
    with pytest.raises(ConfigError, match="is an input"):
        gate.score_to([discs, table], tmp_path / "." / "list.csv", jobs=0)
    assert table.read_text().startswith("path\n/")


def test_images_too_small_for_a_score_are_refused(gate: Gate) -> None:
    for size in ((3, 3), (15, 40), (40, 15)):
        (row,) = gate.score(np.arange(size[0] * size[1], dtype=np.uint8).reshape(size), axes="HW").rows
        assert row["reason"] == "small"
    assert gate.score(picture(1, size=16), axes="HW").rows[0]["status"] == "ok"


def test_an_interrupted_run_leaves_nothing_half_written(gate: Gate, tmp_path: Path) -> None:
    data = write(tmp_path / "in", 40)

    def interrupt(event: dict[str, object]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gate.score_to(data, tmp_path / "o" / "s.csv", report=tmp_path / "o" / "r", jobs=0, progress=interrupt)
    left = [p for p in (tmp_path / "o").rglob("*") if p.is_file()] if (tmp_path / "o").exists() else []
    assert left == []


def test_explain_gives_map_and_neighbours(discs: Path, tmp_path: Path) -> None:
    gate = offmap.fit(discs, jobs=0, keep_neighbours=True)
    gate.save(tmp_path / "gate")
    odd = picture(5)
    odd[8:20, 50:62] = 255
    Pillow.fromarray(odd).save(tmp_path / "odd.png")
    result = offmap.load(tmp_path / "gate").explain(tmp_path / "odd.png")
    assert len(result.neighbours) == 3
    assert result.map is not None
    y, x = np.unravel_index(np.nanargmax(result.map), result.map.shape)
    assert abs(y - 14) < 12
    assert abs(x - 56) < 12
    page = result.save(tmp_path / "why")
    assert page.read_text(encoding="utf-8").count("<img") >= 5


def test_explain_refuses_several_and_broken(gate: Gate, discs: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="one image"):
        gate.explain(discs)
    (tmp_path / "x.png").write_bytes(b"")
    with pytest.raises(DataError, match="empty"):
        gate.explain(tmp_path / "x.png")


@pytest.mark.parametrize(("n", "message"), [(0, "no image"), (1, "1 image"), (5, "5 images")])
def test_too_few_images_are_refused_with_the_way_out(tmp_path: Path, n: int, message: str) -> None:
    data = write(tmp_path / "few", n)
    (data / "bad.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=rf"^{message} to fit on; 1 could not be used .*at least 10"):
        offmap.fit(data, jobs=0)


def test_twenty_images_make_a_gate_that_says_what_is_out_of_reach(tmp_path: Path) -> None:
    gate = offmap.fit(write(tmp_path / "few", 20), jobs=0)
    assert gate.card["calibration"]["kind"] == "cross"
    assert any("reject" in line and "199" in line for line in gate.card["limits"])
    assert "about 5.0% are flagged" in gate.card["calibration"]["guarantee"]


def test_a_gate_that_can_flag_nothing_promises_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least 10"):
        offmap.fit(tmp_path, limit=6)
    calibration = offmap.fit(write(tmp_path / "few", 10), jobs=0).card["calibration"]
    assert calibration["reachable"] == []
    assert calibration["guarantee"].startswith("No image can be flagged at 0.05: that needs 19")


def test_copies_and_mixed_sizes_are_told(tmp_path: Path) -> None:
    data = write(tmp_path / "mixed", 20)
    shutil.copy(data / "000.png", data / "copy.png")
    Pillow.fromarray(picture(99, size=200)).save(data / "large.png")
    warnings = " ".join(offmap.fit(data, jobs=0).card["warnings"])
    assert "copies of others" in warnings
    assert "sizes are mixed" in warnings


def test_dropped_files_are_counted_and_listed(tmp_path: Path) -> None:
    data = write(tmp_path / "some", 20)
    (data / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    card = offmap.fit(data, jobs=0).card
    assert sum(card["data"]["dropped"].values()) == 1
    assert card["data"]["dropped_items"][0]["item"].endswith("bad.png")


def test_several_parts_are_combined_and_shown_apart(discs: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "two.toml"
    recipe.write_text(PLAIN + '[score.near]\nmethod = "knn"\nk = 3\n[score.far]\nmethod = "residual"\n')
    gate = offmap.fit(discs, recipe=str(recipe), jobs=0)
    gate.save(tmp_path / "gate")
    table = offmap.load(tmp_path / "gate").score(discs, jobs=0)
    assert {"score.near", "score.far"} <= set(table.rows[0])
    assert table.rows == gate.score(discs, jobs=0).rows


def test_what_each_detector_of_a_fusion_contributes_is_shown(discs: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "fused.toml"
    recipe.write_text(PLAIN + '[score.both]\nmethod = "fusion"\nmethods = ["knn", "mahalanobis"]\n')
    gate = offmap.fit(discs, recipe=str(recipe), jobs=0)
    gate.save(tmp_path / "gate")
    strange = write(tmp_path / "strange", 3, stripes=True)
    rows = offmap.load(tmp_path / "gate").score(strange, jobs=0).rows
    assert rows == gate.score(strange, jobs=0).rows
    assert [name for name in rows[0] if name.startswith("score.")] == ["score.both", "score.both.knn", "score.both.mahalanobis"]
    assert min(row[f"score.both.{name}"] for row in rows for name in ("knn", "mahalanobis")) > 3
    gate.explain(next(iter(tmp_path.glob("strange/*.png")))).save(tmp_path / "page")
    page = (tmp_path / "page" / "index.html").read_text()
    assert "both.knn" in page
    assert "both.mahalanobis" in page


def test_a_large_set_is_split_and_promises_an_interval(tmp_path: Path) -> None:
    stack = np.random.default_rng(0).integers(0, 255, (1000, 16, 16), dtype=np.uint8)
    gate = offmap.fit(stack, axes="NHW", settings={"prepare.resize.size": "32", "score.standard.maps": "false"})
    calibration = gate.card["calibration"]
    assert (calibration["kind"], calibration["n"]) == ("split", 200)
    low, high = calibration["false_alarm_interval"]
    assert low < 0.05 < high


def test_what_an_encoder_lacks_is_told_before_a_file_is_read(tmp_path: Path) -> None:
    recipe = tmp_path / "energy.toml"
    recipe.write_text("[score.energy]\n")
    with pytest.raises(ConfigError, match=r"energy needs logits; builtin gives .*--encoder classifier:FILE"):
        offmap.fit(tmp_path / "nowhere", recipe=str(recipe))


def test_what_a_vae_was_not_trained_with_is_told_with_the_setting(tmp_path: Path) -> None:
    recipe = tmp_path / "waic.toml"
    recipe.write_text("[score.waic]\n")
    with pytest.raises(ConfigError, match=r'needs elbo\.members.*"train:vae" with \[train\] members = 5'):
        offmap.fit(tmp_path / "nowhere", recipe=str(recipe))


def test_labels_from_a_table(discs: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("path,label\n" + "".join(f"{discs / f'{i:03d}.png'},{'ab'[i % 2]}\n" for i in range(60)))
    recipe = tmp_path / "r.toml"
    recipe.write_text(PLAIN + "[score.relative_mahalanobis]\n")
    assert offmap.fit(discs, recipe=str(recipe), labels=labels, jobs=0).card["data"]["labels"] == ["a", "b"]
    with pytest.raises(ConfigError, match="give --labels"):
        offmap.fit(discs, recipe=str(recipe), jobs=0)
    labels.write_text(f"path,label\n{discs / '000.png'},a\n")
    with pytest.raises(ConfigError, match="59 of 60 images have no label"):
        offmap.fit(discs, recipe=str(recipe), labels=labels, jobs=0)


def test_a_tampered_gate_is_refused(gate: Gate, tmp_path: Path) -> None:
    gate.save(tmp_path / "gate")
    file = tmp_path / "gate" / "calibrate.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(BundleError, match=r"calibrate\.safetensors"):
        offmap.load(tmp_path / "gate")


def test_a_gate_whose_method_is_unknown_is_refused(gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from offmap.pipeline import saved

    manifest, stages, extra = saved._content(gate)
    changed = json.loads(json.dumps(manifest))
    changed["stages"]["score.standard.0"]["method"] = "os.system"
    monkeypatch.setattr(saved, "_content", lambda _: (changed, stages, extra))
    gate.save(tmp_path / "gate")
    with pytest.raises(BundleError, match=r"no method 'os\.system'"):
        offmap.load(tmp_path / "gate")
