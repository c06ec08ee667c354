"""The package as others get it."""

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import offmap

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "numpy", "scipy", "sklearn", "pyarrow", "pydicom", "PIL"}


def test_importing_offmap_is_quick() -> None:
    code = f"import offmap, sys; print(sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_are_there() -> None:
    assert [name for name in offmap.__all__ if not hasattr(offmap, name)] == []
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        offmap.nonsense  # noqa: B018


def test_one_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == offmap.__version__
    assert f"version: {offmap.__version__}" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"## [{offmap.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_pins_cover_every_requirement() -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = project["project"]["dependencies"] + project["dependency-groups"]["dev"]
    for extra in project["project"]["optional-dependencies"].values():
        wanted += extra
    for text in wanted:
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        assert name in pins, f"{name} is not pinned in constraints.txt"
        assert requirement.specifier.contains(pins[name]), f"{text} does not allow the pinned {pins[name]}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("offmap-*.whl"))


@pytest.mark.slow
def test_the_wheel_holds_everything_and_nothing_else(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    package = ROOT / "src" / "offmap"
    source = {f"offmap/{p.relative_to(package).as_posix()}" for p in package.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert source <= inside
    assert {name for name in inside if not name.startswith("offmap")} == set()
    assert "offmap/py.typed" in inside
    assert any(name.endswith(".safetensors") for name in inside)
    assert any(name.startswith("offmap/report/") and name.endswith((".html", ".j2")) for name in inside)
    assert any(name.startswith("offmap/pipeline/recipes/") for name in inside)


@pytest.mark.slow
def test_the_wheel_runs(wheel: Path, tmp_path: Path) -> None:
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(tmp_path), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    code = "import offmap; from offmap.cli import main; print(offmap.__file__)"
    where = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert Path(where.stdout.strip()).is_relative_to(tmp_path)
    done = subprocess.run([str(tmp_path / "bin" / "offmap"), "methods"], env=environment, capture_output=True, text=True, check=True)
    assert "multilayer_mahalanobis" in done.stdout
