"""Places are checked before the work starts."""

import os
from pathlib import Path

import pytest

from offmap.cli import outputs
from offmap.core.errors import ConfigError


def test_a_folder_that_can_be_made_is_not_made_yet(tmp_path: Path) -> None:
    assert outputs.folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert not (tmp_path / "a").exists()


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "gate").write_text("")
    with pytest.raises(ConfigError, match="gate is a file, a folder is needed"):
        outputs.folder(tmp_path / "gate")
    with pytest.raises(ConfigError, match="cannot be written"):
        outputs.folder(tmp_path / "gate" / "below")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_closed_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match="cannot be written"):
        outputs.folder(tmp_path / "gate")


def test_a_gate_is_replaced_and_anything_else_is_not(tmp_path: Path) -> None:
    assert outputs.gate(tmp_path / "new") == tmp_path / "new"
    assert outputs.gate(tmp_path) == tmp_path
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ConfigError, match=r"not only a gate \(it holds 'notes.txt'\)"):
        outputs.gate(tmp_path)


def test_a_page_lies_beside_what_holds_nothing_else(tmp_path: Path) -> None:
    gate, training = tmp_path / "gate", tmp_path / "gate.training"
    assert outputs.apart(tmp_path / "gate-report", gate, training) == tmp_path / "gate-report"
    for page in (gate, gate / "report", training, tmp_path / "x" / ".." / "gate"):
        with pytest.raises(ConfigError, match="may hold nothing else"):
            outputs.apart(page, gate, training)
