"""Foreign weights become safetensors, and what needs code does not."""

from fractions import Fraction
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from offmap.core.errors import ConfigError, NotAvailableError
from offmap.represent.import_weights import import_weights


def test_tensors_arrive_unchanged(tmp_path: Path) -> None:
    shared = torch.arange(6.0).reshape(2, 3)
    saved = {"epoch": 3, "state_dict": {"module.a": shared, "module.b": shared.t(), "c": torch.ones(2, dtype=torch.float16)}}
    torch.save(saved, tmp_path / "net.pth")
    shapes = import_weights(tmp_path / "net.pth", tmp_path / "out" / "net.safetensors")
    assert shapes == {"a": (2, 3), "b": (3, 2), "c": (2,)}
    found = load_file(tmp_path / "out" / "net.safetensors")
    assert torch.equal(found["a"], shared)
    assert torch.equal(found["b"], shared.t())
    assert found["c"].dtype == torch.float16
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["net.safetensors"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": Fraction(1, 2)}, "needs code to load, or is damaged"),
        ({"a": torch.tensor([1.0, float("nan")])}, "not finite: a"),
        ({"epoch": 3}, "holds no tensors under its keys epoch"),
        ([1, 2], "holds a list"),
        ({"a": torch.ones(2, dtype=torch.complex64)}, "sparse, quantised or complex tensors: a"),
    ],
)
def test_what_cannot_be_imported_is_named(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "net.pt")
    with pytest.raises(ConfigError, match=message):
        import_weights(tmp_path / "net.pt", tmp_path / "net.safetensors")
    assert not (tmp_path / "net.safetensors").exists()


def test_limits_and_paths(tmp_path: Path) -> None:
    (tmp_path / "net.pt").write_bytes(b"garbage")
    with pytest.raises(ConfigError, match="or is damaged"):
        import_weights(tmp_path / "net.pt", tmp_path / "net.safetensors")
    with pytest.raises(ConfigError, match=r"longer than 0\.01 seconds"):
        import_weights(tmp_path / "net.pt", tmp_path / "net.safetensors", seconds=0.01)
    with pytest.raises(ConfigError, match=r"must end in \.safetensors"):
        import_weights(tmp_path / "net.pt", tmp_path / "net.bin")
    with pytest.raises(NotAvailableError, match="no such file"):
        import_weights(tmp_path / "none.pt", tmp_path / "net.safetensors")
