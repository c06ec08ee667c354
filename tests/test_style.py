"""The rules of the house, as far as a program can see them. A line with ``# noqa: house`` is an agreed exception."""

import ast
import dataclasses
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from offmap.core import registry
from offmap.core.detector import Detector

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}
Function = ast.FunctionDef | ast.AsyncFunctionDef

LONGEST_FILE = 400
LONGEST_BODY = 40
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "misc", "common"}
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
UNSAFE_CALLS = {"eval", "exec", "torch.load", "torch.jit.load", "yaml.load", "yaml.unsafe_load", "pickle.load", "pickle.loads", "os.system"}
GLOBAL_SEEDS = {"torch.manual_seed", "np.random.seed", "numpy.random.seed", "random.seed", "torch.seed"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def agreed(path: Path) -> set[int]:
    """Lines with the mark of an agreed exception."""
    return {i for i, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1) if "noqa: house" in line}


def nodes(path: Path) -> Iterator[ast.AST]:
    """Every node of a file outside its agreed exceptions."""
    free = agreed(path)
    return (node for node in ast.walk(TREES[path]) if getattr(node, "lineno", 0) not in free)


def dotted(node: ast.expr) -> str:
    """``torch.load`` of the call ``torch.load(...)``."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def body_lines(function: Function) -> int:
    """Lines of a function without its signature and docstring."""
    first = function.body[1:] if ast.get_docstring(function) else function.body
    return (function.end_lineno or 0) - first[0].lineno + 1 if first else 0


def test_files_are_short() -> None:
    lengths = {name_of(p): len(p.read_text(encoding="utf-8").splitlines()) for p in SOURCES}
    assert {name: n for name, n in lengths.items() if n > LONGEST_FILE} == {}


def test_functions_are_short() -> None:
    long = [
        f"{name_of(path)}:{node.lineno} {node.name} {body_lines(node)}"
        for path in SOURCES
        for node in nodes(path)
        if isinstance(node, Function) and body_lines(node) > LONGEST_BODY
    ]
    assert long == []


def test_file_names_say_something() -> None:
    assert [name_of(p) for p in SOURCES if p.stem in VAGUE_NAMES or p.parent.name in VAGUE_NAMES] == []


def test_no_assert_in_the_package() -> None:
    assert [f"{name_of(p)}:{n.lineno}" for p in SOURCES for n in nodes(p) if isinstance(n, ast.Assert)] == []


def test_nothing_that_runs_code_from_a_file() -> None:
    found = []
    for path in SOURCES:
        for node in nodes(path):
            if isinstance(node, ast.Import):
                found += [f"{name_of(path)}:{node.lineno} {a.name}" for a in node.names if a.name.partition(".")[0] in UNSAFE_MODULES]
            elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in UNSAFE_MODULES:
                found.append(f"{name_of(path)}:{node.lineno} {node.module}")
            elif isinstance(node, ast.Call) and dotted(node.func) in UNSAFE_CALLS:
                found.append(f"{name_of(path)}:{node.lineno} {dotted(node.func)}")
    assert found == []


def test_devices_and_seeds_are_passed() -> None:
    calls = [(p, n) for p in SOURCES for n in nodes(p) if isinstance(n, ast.Call)]
    assert [f"{name_of(p)}:{n.lineno}" for p, n in calls if isinstance(n.func, ast.Attribute) and n.func.attr == "cuda"] == []
    assert [f"{name_of(p)}:{n.lineno}" for p, n in calls if dotted(n.func) in GLOBAL_SEEDS] == []


def test_annotations_can_be_checked_at_run_time() -> None:
    imports = [(p, n) for p in SOURCES for n in nodes(p) if isinstance(n, ast.ImportFrom)]
    assert [name_of(p) for p, n in imports if n.module == "__future__"] == []
    assert [name_of(p) for p, n in imports if n.module == "typing" and any(a.name == "Self" for a in n.names)] == []


def test_public_signatures_name_their_arguments() -> None:
    loose = [
        f"{name_of(path)}:{node.lineno} {node.name}"
        for path in SOURCES
        for node in nodes(path)
        if isinstance(node, Function) and node.args.kwarg is not None and not node.name.startswith("_")
    ]
    assert loose == []


def test_public_things_have_a_docstring() -> None:
    bare = []
    for path in SOURCES:
        if not ast.get_docstring(TREES[path]):
            bare.append(name_of(path))
        for owner in ast.walk(TREES[path]):
            if not isinstance(owner, ast.Module | ast.ClassDef) or getattr(owner, "name", "").startswith("_"):
                continue
            members = [n for n in owner.body if isinstance(n, Function | ast.ClassDef) and not n.name.startswith("_")]
            bare += [f"{name_of(path)}:{n.lineno} {n.name}" for n in members if not ast.get_docstring(n) and not inherits(owner, n)]
    assert bare == []


def inherits(owner: ast.AST, member: Function | ast.ClassDef) -> bool:
    """A method of a subclass may leave its docstring to the contract that it answers."""
    return isinstance(owner, ast.ClassDef) and bool(owner.bases) and isinstance(member, Function)


def test_nothing_is_left_for_later() -> None:
    word = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
    lines = [(p, i, line) for p in SOURCES for i, line in enumerate(p.read_text(encoding="utf-8").splitlines(), 1)]
    assert [f"{name_of(p)}:{i}" for p, i, line in lines if word.search(line)] == []


@pytest.mark.parametrize("name", registry.names("score"))
def test_a_score_has_a_test_and_is_described(name: str) -> None:
    """``score/<name>.py`` + ``tests/score/test_<name>.py``, a reference, and a meaning for each of its fields."""
    assert (ROOT / "tests" / "score" / f"test_{name}.py").exists()
    module = registry.module("score", name)
    classes = [c for c in vars(module).values() if inspect.isclass(c) and issubclass(c, Detector) and c.__module__ == module.__name__]
    for cls in classes:
        described = inspect.getdoc(cls) or ""
        assert cls.reference, f"{cls.__name__} names no reference"
        for field in dataclasses.fields(cls):
            assert re.search(rf"^\s+(\w+, )*{field.name}(, \w+)*:", described, re.M), f"{cls.__name__}.{field.name} is not described"


@pytest.mark.parametrize("stage", ["read", "prepare"])
def test_decode_workers_do_not_load_torch(stage: str) -> None:
    code = f"""
import importlib, pkgutil, sys
import offmap.{stage} as stage
for found in pkgutil.walk_packages(stage.__path__, stage.__name__ + "."):
    importlib.import_module(found.name)
print(sorted({{"torch", "sklearn", "monai", "transformers"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
