"""A gate is written whole and read with suspicion: every kind of damage is refused by name."""

import hashlib
import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load
from torch import Tensor

from offmap.core import bundle
from offmap.core.bundle import read, write
from offmap.core.errors import BundleError, ConfigError
from offmap.core.manifest import _canonical

STAGES: dict[str, dict[str, Tensor]] = {
    "score.knn": {"bank": torch.arange(6.0).reshape(2, 3), "k": torch.tensor(3), "none": torch.empty(0, 4)},
    "calibrate": {
        "scores": torch.tensor([0.5, 1.5], dtype=torch.float64),
        "flag": torch.tensor([True, False]),
        "h": torch.ones(2).bfloat16(),
    },
}
MANIFEST: dict[str, Any] = {
    "stages": {
        "score.knn": {"method": "knn", "params": {"k": 3}, "layer": "last"},
        "calibrate": {"method": "conformal", "params": {}},
        "decide": {"method": "verdict", "params": {"alpha": 0.05}},
    },
    "date": "2026-01-01",
    "note": "Ω",
}
EXTRA = {"neighbours/0000000.png": b"\x89PNG rest", "card.txt": b"hello"}


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    write(tmp_path / "gate", MANIFEST, STAGES, extra=EXTRA)
    return tmp_path / "gate"


def reseal(gate: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """A forger's manifest: changed, and its checksum made again."""
    manifest = json.loads((gate / "manifest.json").read_bytes())
    change(manifest)
    manifest.pop("checksum", None)
    manifest["checksum"] = hashlib.sha256(_canonical(manifest)).hexdigest()
    (gate / "manifest.json").write_bytes(_canonical(manifest))


def replace(gate: Path, name: str, content: bytes) -> None:
    """A forger's file: exchanged, and listed with its new size and SHA-256."""
    (gate / name).write_bytes(content)
    entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    reseal(gate, lambda manifest: manifest["files"].update({name: entry}))


def safetensors(header: Any, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def test_round_trip(gate: Path) -> None:
    found = read(gate)
    assert found.manifest["stages"]["score.knn"]["layer"] == "last"
    assert found.manifest["stages"]["score.knn"]["tensors"]["bank"] == ["float32", 2, 3]
    assert found.manifest["note"] == "Ω"
    assert set(found.stages) == {"score.knn", "calibrate", "decide"}
    for stage, tensors in STAGES.items():
        oracle = load((gate / f"{stage}.safetensors").read_bytes())
        for name, tensor in tensors.items():
            assert found.stages[stage][name].dtype == tensor.dtype
            assert torch.equal(found.stages[stage][name], tensor)
            assert torch.equal(oracle[name], tensor)
    assert found.extra == ("card.txt", "neighbours/0000000.png")
    assert found.read_extra("neighbours/0000000.png") == EXTRA["neighbours/0000000.png"]


def test_id_is_the_sha256_of_the_manifest_and_expect_holds_it(gate: Path) -> None:
    identity = read(gate).id
    assert identity == "sha256:" + hashlib.sha256((gate / "manifest.json").read_bytes()).hexdigest()
    assert read(gate, expect=identity).id == identity
    assert read(gate, expect=identity.removeprefix("sha256:")).id == identity
    with pytest.raises(BundleError, match="not the gate that was asked for"):
        read(gate, expect="sha256:" + "0" * 64)
    with pytest.raises(ConfigError, match="64 hexadecimal"):
        read(gate, expect="sha256:12")


def test_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    assert bundle.identity(MANIFEST, STAGES, extra=EXTRA) == write(tmp_path / "c", MANIFEST, STAGES, extra=EXTRA)
    turned = {name: dict(reversed(tensors.items())) for name, tensors in reversed(STAGES.items())}
    assert write(tmp_path / "a", MANIFEST, STAGES, extra=EXTRA) == write(tmp_path / "b", MANIFEST, turned, extra=EXTRA)
    for path in (tmp_path / "a").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()


def test_views_and_shared_tensors_are_written_as_they_look(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    write(tmp_path / "g", {"stages": {"s": {"method": "m", "params": {}}}}, {"s": {"a": base.T, "b": base[0].expand(2, 4), "c": base}})
    found = read(tmp_path / "g").stages["s"]
    assert torch.equal(found["a"], base.T)
    assert torch.equal(found["b"], base[0].expand(2, 4))


# writing


def test_a_gate_is_replaced_and_nothing_is_left_beside(gate: Path) -> None:
    write(gate, MANIFEST, {"calibrate": {"scores": torch.ones(3)}})
    assert read(gate).stages["calibrate"]["scores"].tolist() == [1, 1, 1]
    assert sorted(p.name for p in gate.parent.iterdir()) == ["gate"]
    assert sorted(p.name for p in gate.iterdir()) == ["calibrate.safetensors", "manifest.json"]


@pytest.mark.parametrize("foreign", ["notes.txt", ".git", "sub/thesis.tex"])
def test_a_gate_with_foreign_files_is_left_alone(gate: Path, foreign: str) -> None:
    (gate / foreign).parent.mkdir(exist_ok=True)
    (gate / foreign).write_text("mine")
    with pytest.raises(ConfigError, match="left as it is"):
        write(gate, MANIFEST, STAGES)
    assert (gate / foreign).read_text() == "mine"
    read(gate)


def test_what_is_no_gate_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"x")
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"holds 'a\.jpg'"):
        write(tmp_path / "photos", MANIFEST, STAGES)
    with pytest.raises(ConfigError, match="is a file"):
        write(tmp_path / "file", MANIFEST, STAGES)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "photos"]


def test_an_empty_folder_and_missing_parents_are_fine(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty", MANIFEST, STAGES)
    write(tmp_path / "a" / "b" / ("gate 'ä' " + "x" * 200), MANIFEST, STAGES)
    read(tmp_path / "a" / "b" / ("gate 'ä' " + "x" * 200))


@pytest.mark.parametrize("moment", ["_write_file", "_sync_folders", "_put_in_place"])
def test_interruption_leaves_what_was_there(gate: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    before = read(gate).id

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bundle, moment, interrupt)
    for target in (gate, gate.parent / "new"):
        with pytest.raises(KeyboardInterrupt):
            write(target, {**MANIFEST, "date": "2027"}, STAGES)
    assert [p.name for p in gate.parent.iterdir()] == ["gate"]
    assert read(gate).id == before


def test_interruption_between_the_two_renames_puts_the_old_gate_back(gate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, rename = read(gate).id, Path.rename

    def once(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", once)
    with pytest.raises(KeyboardInterrupt):
        write(gate, {**MANIFEST, "date": "2027"}, STAGES)
    assert [p.name for p in gate.parent.iterdir()] == ["gate"]
    assert read(gate).id == before


def test_a_disk_that_refuses_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match="cannot be written"):
        write(tmp_path / "file" / "gate", MANIFEST, STAGES)


@pytest.mark.parametrize(
    ("manifest", "stages", "extra", "message"),
    [
        ({"stages": {}}, STAGES, {}, "must describe the stages"),
        ({**MANIFEST, "files": {}}, STAGES, {}, "must not hold"),
        ({**MANIFEST, "x": float("nan")}, STAGES, {}, "not JSON"),
        ({**MANIFEST, "x": Path()}, STAGES, {}, "not JSON"),
        ({"stages": {"s": 3}}, {}, {}, "not JSON"),
        ({"stages": {"s": {"method": "m"}}}, {}, {}, "method and params"),
        ({"stages": {"../s": {"method": "m", "params": {}}}}, {}, {}, "not allowed"),
        ({"stages": {"a": {"method": "m", "params": {}}, "A": {"method": "m", "params": {}}}}, {}, {}, "but for its case"),
        (MANIFEST, STAGES, {"../x": b""}, "not allowed"),
        (MANIFEST, STAGES, {"manifest.json": b""}, "twice"),
        (MANIFEST, STAGES, {"calibrate.safetensors": b""}, "name of a stage's file"),
        (MANIFEST, {"calibrate": {"a": torch.tensor([float("nan")])}}, {}, "not finite"),
        (MANIFEST, {"calibrate": {"a": torch.ones(2, 2).to_sparse()}}, {}, "of a kind"),
        (MANIFEST, {"calibrate": {"a": torch.ones(2, dtype=torch.complex64)}}, {}, "of a kind"),
        (MANIFEST, {"calibrate": {"__metadata__": torch.ones(2)}}, {}, "list of dtype"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path: Path, manifest: Any, stages: Any, extra: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        write(tmp_path / "g", manifest, stages, extra=extra)
    assert list(tmp_path.iterdir()) == []


# reading


def test_a_missing_gate_or_file_is_named(gate: Path) -> None:
    with pytest.raises(BundleError, match="no such folder"):
        read(gate / "nothing")
    (gate / "calibrate.safetensors").unlink()
    with pytest.raises(BundleError, match=r"calibrate\.safetensors cannot be read"):
        read(gate)
    (gate / "manifest.json").unlink()
    with pytest.raises(BundleError, match=r"manifest\.json cannot be read"):
        read(gate)


def test_files_that_are_not_listed_are_not_read(gate: Path) -> None:
    (gate / "evil.safetensors").write_bytes(pickle.dumps({"a": 1}))
    (gate / "fifo").symlink_to("/dev/zero")
    assert "evil" not in read(gate).stages


def test_truncated_and_changed_files_are_refused(gate: Path) -> None:
    path = gate / "score.knn.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(BundleError, match="truncated or changed"):
        read(gate)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(BundleError, match="SHA-256"):
        read(gate)
    path.write_bytes(whole)
    (gate / "neighbours" / "0000000.png").write_bytes(b"\x89PNG rust")
    with pytest.raises(BundleError, match="SHA-256"):
        read(gate)


def test_an_extra_file_changed_after_reading_is_refused(gate: Path) -> None:
    found = read(gate)
    (gate / "card.txt").write_bytes(b"jello")
    with pytest.raises(BundleError, match="SHA-256"):
        found.read_extra("card.txt")
    with pytest.raises(BundleError, match="lists no file"):
        found.read_extra("../secret")


def test_an_edited_manifest_is_refused(gate: Path) -> None:
    path = gate / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"k": 3', b'"k": 4'))
    with pytest.raises(BundleError, match="changed after it was written"):
        read(gate)


def test_a_newer_format_is_refused_naming_the_versions(gate: Path) -> None:
    reseal(gate, lambda m: m.update(format=2, offmap="7.1.0"))
    with pytest.raises(BundleError, match=r"format 2, written by offmap 7\.1\.0; this is offmap 0\.\d.*Upgrade"):
        read(gate)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b"null", b"\xff\xfe", b'{"a":1,"a":2}', b'{"format": NaN}', b"[" * 100_000, b'{"a":' * 50_000]
)
def test_a_manifest_that_is_no_json_object_is_refused(gate: Path, content: bytes) -> None:
    (gate / "manifest.json").write_bytes(content)
    with pytest.raises(BundleError, match=r"manifest\.json"):
        read(gate)


def test_a_huge_manifest_is_refused_before_it_is_parsed(gate: Path) -> None:
    with (gate / "manifest.json").open("ab") as stream:
        stream.truncate(5 * 2**20)
    with pytest.raises(BundleError, match="larger than"):
        read(gate)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(format="1"),
        lambda m: m.update(format=0),
        lambda m: m.update(format=True),
        lambda m: m.update(offmap="\x1b[31m"),
        lambda m: m.pop("stages"),
        lambda m: m.update(stages=[]),
        lambda m: m.update(files=3),
        lambda m: m["stages"].update(x=1),
        lambda m: m["stages"]["decide"].update(method=None),
        lambda m: m["stages"]["decide"].update(params=[]),
        lambda m: m["stages"]["decide"].update(tensors=None),
        lambda m: m["stages"]["decide"].update(tensors={"a": ["float32", 1]}),
        lambda m: m["stages"]["calibrate"].update(tensors={}),
        lambda m: m["stages"]["calibrate"]["tensors"].update(scores=["float64", 3]),
        lambda m: m["stages"]["calibrate"]["tensors"].update(scores=["float32", 2]),
        lambda m: m["stages"]["calibrate"]["tensors"].update(scores=["object", 2]),
        lambda m: m["stages"]["calibrate"]["tensors"].update(scores=["float64", -2]),
        lambda m: m["stages"]["calibrate"]["tensors"].update(scores=["float64", True]),
        lambda m: m["stages"]["calibrate"]["tensors"].update(more=["float64", 2]),
        lambda m: m["stages"]["calibrate"]["tensors"].pop("scores"),
        lambda m: m["stages"].update({"../evil": {"method": "m", "params": {}, "tensors": {}}}),
        lambda m: m["files"].update({"../evil.png": {"bytes": 1, "sha256": "0" * 64}}),
        lambda m: m["files"].update({"/etc/passwd": {"bytes": 1, "sha256": "0" * 64}}),
        lambda m: m["files"].update({"a/b/c": {"bytes": 1, "sha256": "0" * 64}}),
        lambda m: m["files"].update({"nul\0": {"bytes": 1, "sha256": "0" * 64}}),
        lambda m: m["files"].update({"x.png": {"bytes": -1, "sha256": "0" * 64}}),
        lambda m: m["files"].update({"x.png": {"bytes": 1, "sha256": "0"}}),
        lambda m: m["files"].update({"x.png": {"bytes": 1}}),
        lambda m: m["files"].update({"x.png": {"bytes": 2**39, "sha256": "0" * 64}}),
        lambda m: m["files"].update({"MANIFEST.json": {"bytes": 1, "sha256": "0" * 64}}),
        lambda m: m["files"].update({"x.safetensors": {"bytes": 1, "sha256": "0" * 64}}),
    ],
)
def test_a_manifest_of_wrong_form_is_refused(gate: Path, change: Callable[[dict[str, Any]], None]) -> None:
    reseal(gate, change)
    with pytest.raises(BundleError, match="gate"):
        read(gate)


ONE = {"dtype": "F64", "shape": [2], "data_offsets": [0, 16]}
TWO = {"dtype": "F64", "shape": [2], "data_offsets": [16, 32]}
NUMBERS = struct.pack("<4d", 1, 2, 3, 4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (safetensors({"a": ONE, "b": {**TWO, "data_offsets": [0, 16]}}, NUMBERS), "overlaps"),
        (safetensors({"a": ONE, "b": {**TWO, "data_offsets": [24, 40]}}, NUMBERS + bytes(8)), "leaves a gap"),
        (safetensors({"a": ONE, "b": {**TWO, "data_offsets": [8, 24]}}, NUMBERS), "overlaps"),
        (safetensors({"a": ONE, "b": {**TWO, "data_offsets": [16, 40]}}, NUMBERS), "do not fit its shape"),
        (safetensors({"a": ONE, "b": {**TWO, "data_offsets": [16, -1]}}, NUMBERS), "no valid offsets"),
        (safetensors({"a": ONE, "b": {**TWO, "data_offsets": "x"}}, NUMBERS), "no valid offsets"),
        (safetensors({"a": ONE, "b": {**TWO, "shape": [2, 1]}}, NUMBERS), "as the manifest says"),
        (safetensors({"a": ONE, "b": {**TWO, "dtype": "I64"}}, NUMBERS), "as the manifest says"),
        (safetensors({"a": ONE, "b": 7}, NUMBERS), "as the manifest says"),
        (safetensors({"a": ONE}, NUMBERS[:16]), "differ in the tensor 'b'"),
        (safetensors({"a": ONE, "b": TWO}, NUMBERS[:24]), "truncated or forged"),
        (safetensors({"a": ONE, "b": TWO}, NUMBERS + bytes(8)), "truncated or forged"),
        (safetensors([1], NUMBERS), "not a JSON object"),
        (safetensors(b"{" * 64, NUMBERS), "not valid JSON"),
        (struct.pack("<Q", 2**63) + NUMBERS, "impossible length"),
        (b"\x01", "impossible length"),
        (b"", "impossible length"),
        (pickle.dumps({"a": [1.0, 2.0]}), "Python pickle"),
        (safetensors({"a": ONE, "b": TWO}, struct.pack("<4d", 1, float("nan"), 3, 4)), "NaN or infinity"),
        (safetensors({"a": ONE, "b": TWO}, struct.pack("<4d", 1, 2, 3, float("inf"))), "NaN or infinity"),
    ],
)
def test_a_forged_tensor_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    gate = tmp_path / "g"
    tensors = {"a": torch.ones(2, dtype=torch.float64), "b": torch.ones(2, dtype=torch.float64)}
    write(gate, {"stages": {"s": {"method": "m", "params": {}}}}, {"s": tensors})
    replace(gate, "s.safetensors", content)
    with pytest.raises(BundleError, match=message) as caught:
        read(gate)
    assert caught.value.exit_code == 4


def test_a_bool_that_is_neither_is_refused(gate: Path) -> None:
    content = bytearray((gate / "calibrate.safetensors").read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    content[start + header["flag"]["data_offsets"][0]] = 7
    replace(gate, "calibrate.safetensors", bytes(content))
    with pytest.raises(BundleError, match="neither true nor false"):
        read(gate)


@pytest.mark.parametrize("name", ["manifest.json", "calibrate.safetensors", "neighbours/0000000.png", "neighbours"])
def test_links_out_of_the_folder_are_not_followed(gate: Path, name: str) -> None:
    outside = gate.parent / "outside"
    shutil.move(gate / name, outside)
    (gate / name).symlink_to(outside)
    with pytest.raises(BundleError, match="symbolic link"):
        read(gate)


def test_a_pipe_does_not_hang(gate: Path) -> None:
    (gate / "card.txt").unlink()
    os.mkfifo(gate / "card.txt")
    with pytest.raises(BundleError, match=r"card\.txt"):
        read(gate)


def content_of(found: bundle.Bundle) -> tuple[Any, ...]:
    tensors = {(s, n): t.float().tolist() for s, ts in found.stages.items() for n, t in ts.items()}
    return found.manifest, tensors, [found.read_extra(name) for name in found.extra]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    gate = tmp_path_factory.mktemp("bundle") / "gate"
    write(gate, MANIFEST, STAGES, extra=EXTRA)
    return gate


@contextmanager
def restored(gate: Path) -> Iterator[None]:
    """Whatever is done to the gate's files is undone."""
    before = {path: path.read_bytes() for path in gate.rglob("*") if path.is_file()}
    yield
    for path, content in before.items():
        path.write_bytes(content)


@given(where=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255), file=st.integers(0, 4), seal=st.booleans())
@settings(max_examples=300, deadline=None)
def test_any_changed_byte_is_refused_or_harmless(pristine: Path, where: float, flip: int, file: int, seal: bool) -> None:
    before = content_of(read(pristine))
    with restored(pristine):
        path = sorted(p for p in pristine.rglob("*") if p.is_file())[file]
        content = bytearray(path.read_bytes())
        content[int(where * len(content))] ^= flip
        path.write_bytes(content)
        if seal and path.name != "manifest.json":
            replace(pristine, path.relative_to(pristine).as_posix(), bytes(content))
        try:
            after = read(pristine)
        except BundleError as error:
            message = str(error)
        else:
            message = path.name
            assert seal or content_of(after) == before
        assert path.name in message


@given(st.binary(max_size=400))
@settings(max_examples=200, deadline=None)
def test_any_bytes_as_tensor_file_are_refused(pristine: Path, content: bytes) -> None:
    with restored(pristine):
        replace(pristine, "calibrate.safetensors", content)
        with pytest.raises(BundleError, match=r"calibrate\.safetensors"):
            read(pristine)
