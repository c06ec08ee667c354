"""Reading in processes: order, limits, deaths, and what crosses the pipe."""

import gc
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from offmap.core.errors import ConfigError
from offmap.core.types import Source
from offmap.read.limits import Limits
from offmap.read.workers import Workers

WORK = """
    import os, sys, time
    import numpy as np

    def serve(source):
        name = source.item
        if name.startswith("crash"):
            yield {"item": name + "#0"}, []
            os._exit(11)
        if name.startswith("signal"):
            os.kill(os.getpid(), 11)
        if name.startswith("sleep"):
            yield {"item": name + "#0"}, []
            time.sleep(600)
        if name.startswith("memory"):
            blocks = [np.ones(1 << 27, np.uint8) for _ in range(1000)]
        if name.startswith("raise"):
            raise RuntimeError("CANARY in a message")
        if name.startswith("print"):
            os.write(1, b"CANARY on standard output"); os.write(2, b"CANARY on standard error"); print("CANARY")
        if name.startswith("garbage"):
            for number in range(3, 10):
                try:
                    os.write(number, b"\\xff" * 4096)
                except OSError:
                    pass
            time.sleep(600)
        parts = int(name.split("x")[1]) if "x" in name else 1
        for part in range(parts):
            yield {"item": f"{name}#{part}", "pid": os.getpid(), "meta": dict(source.meta)}, [np.full((3, 4), part, np.uint16)]

    def environment(source):
        import resource, signal, threading
        yield {
            "torch": "torch" in sys.modules,
            "core": resource.getrlimit(resource.RLIMIT_CORE)[0],
            "memory": resource.getrlimit(resource.RLIMIT_AS)[0],
            "sigint": signal.getsignal(signal.SIGINT) == signal.SIG_IGN,
            "threads": os.environ["OMP_NUM_THREADS"],
            "lazy": [m for m in ("pydicom", "nibabel", "tifffile", "imagecodecs", "scipy") if m in sys.modules],
        }, []

    def big(source):
        yield {"item": source.item}, [np.zeros((64, 1 << 20), np.uint8)]
"""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module that worker processes can import."""
    name = "offmap_test_work"
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(WORK))
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop(name, None)
    return __import__(name)


def _sources(*names: str) -> list[Source]:
    return [Source(Path(name), name, meta={"größe": "ö"}) for name in names]


def _run(
    serve: Callable[..., Any], sources: Iterable[Source], *, jobs: int = 2, limits: Limits | None = None
) -> list[tuple[str, dict[str, Any]]]:
    with Workers(serve, jobs=jobs, limits=limits or Limits()) as workers:
        return [(source.item, header) for source, (header, _) in workers.run(sources)]


@pytest.mark.parametrize("jobs", [0, 1, 3])
def test_order_and_content(work: Any, jobs: int) -> None:
    names = [f"{i}x{i % 4}" for i in range(60)]
    with Workers(work.serve, jobs=jobs) as workers:
        found = list(workers.run(iter(_sources(*names))))
    expected = [(name, part) for name in names for part in range(int(name.split("x")[1]))]
    assert [(source.item, header["item"]) for source, (header, _) in found] == [(n, f"{n}#{p}") for n, p in expected]
    assert all(header["meta"] == {"größe": "ö"} for _, (header, _) in found)
    for (_, part), (_, (_, (array,))) in zip(expected, found, strict=True):
        assert array.dtype == np.uint16
        assert array.flags.writeable
        np.testing.assert_array_equal(array, np.full((3, 4), part))
    assert len({header["pid"] for _, (header, _) in found}) <= max(1, jobs)


@pytest.mark.parametrize(("bad", "reason"), [("crash", "crashed"), ("signal", "crashed"), ("memory", "bomb"), ("raise", "failed")])
def test_a_death_costs_one_row(work: Any, bad: str, reason: str) -> None:
    names = ["a", "b", f"{bad}1", "c", f"{bad}2", f"{bad}3", *(f"d{i}" for i in range(20))]
    found = _run(work.serve, _sources(*names), limits=Limits(memory_bytes=1 << 30))
    finals = {item: header["reason"] for item, header in found if "reason" in header}
    assert finals == {f"{bad}{i}": reason for i in (1, 2, 3)}
    assert list(dict.fromkeys(item for item, _ in found)) == names
    assert "CANARY" not in str(found)
    if bad == "crash":
        assert [header["item"] for item, header in found if item == "crash1"] == ["crash1#0", "crash1"]


def test_too_slow_is_killed_and_what_came_before_stays(work: Any) -> None:
    found = _run(work.serve, _sources("a", "sleep", "b", "c"), jobs=1, limits=Limits(seconds=1.0))
    assert [(item, header.get("reason")) for item, header in found] == [
        ("a", None),
        ("sleep", None),
        ("sleep", "timeout"),
        ("b", None),
        ("c", None),
    ]


def test_garbage_on_the_pipe_is_a_crash(work: Any) -> None:
    found = _run(work.serve, _sources("a", "garbage", "b"), jobs=1, limits=Limits(seconds=5.0))
    assert [(item, header.get("reason")) for item, header in found if item != "garbage"] == [("a", None), ("b", None)]
    assert [header["reason"] for item, header in found if item == "garbage"] == ["crashed"]


def test_a_slow_consumer_is_no_timeout(work: Any) -> None:
    with Workers(work.big, jobs=2, limits=Limits(seconds=0.8)) as workers:
        found = []
        for _, (header, _) in workers.run(_sources(*"abcdef")):
            time.sleep(0.4)
            found.append(header)
    assert [header["item"] for header in found] == list("abcdef")


def test_prints_of_decoders_go_nowhere(work: Any, capfd: pytest.CaptureFixture[str]) -> None:
    found = _run(work.serve, _sources("print"))
    assert len(found) == 1
    assert "CANARY" not in "".join(capfd.readouterr())


def test_worker_environment(work: Any) -> None:
    (found,) = _run(work.environment, _sources("a"), jobs=1, limits=Limits(memory_bytes=2 << 30))
    assert found[1] == {"torch": False, "core": 0, "memory": 2 << 30, "sigint": True, "threads": "1", "lazy": []}


def test_sources_are_pulled_lazily_and_little_is_held(work: Any) -> None:
    pulled = 0

    def endless() -> Iterator[Source]:
        nonlocal pulled
        while True:
            pulled += 1
            yield Source(Path("a"), "a")

    with Workers(work.big, jobs=2) as workers:
        results = workers.run(endless())
        for _ in range(5):
            next(results)
        time.sleep(0.5)
        assert pulled < 100
        assert workers._buffered <= 128 << 20
        results.close()
        assert [header["item"] for _, (header, _) in workers.run(_sources("x", "y"))] == ["x", "y"]


def test_a_run_given_up_early_does_not_harm_the_next(work: Any) -> None:
    with Workers(work.serve, jobs=3) as workers:
        for _ in range(5):
            results = workers.run(_sources("a", "b", "c", "sleep", "d", "sleep"))
            next(results)
            results.close()
        assert [header["item"] for _, (header, _) in workers.run(_sources("u", "v"))] == ["u#0", "v#0"]


def test_processes_end_with_the_block(work: Any) -> None:
    before = {p.pid for p in psutil.Process().children()}
    with Workers(work.serve, jobs=2) as workers:
        results = workers.run(_sources("a", "sleep", "b", "sleep", "c"))
        next(results)
        assert {p.pid for p in psutil.Process().children()} - before
    assert not {p.pid for p in psutil.Process().children()} - before
    gc.collect()


def test_work_that_cannot_be_imported_says_so(work: Any, tmp_path: Path) -> None:
    with Workers(work.serve, jobs=1) as workers:
        (tmp_path / "offmap_test_work.py").write_text("import not_there")
        with pytest.raises(ConfigError, match="cannot load the work"):
            list(workers.run(_sources("a")))


def test_usage_errors(work: Any) -> None:
    with pytest.raises(ConfigError, match="jobs = -1"):
        Workers(work.serve, jobs=-1)
    with pytest.raises(ConfigError, match="with block"):
        next(Workers(work.serve, jobs=1).run([]))
    with Workers(work.serve, jobs=1) as workers:
        results = workers.run(_sources("a", "b"))
        next(results)
        with pytest.raises(ConfigError, match="at work already"):
            next(workers.run(_sources("c")))
        results.close()


def test_error_of_the_source_iterable_is_passed_on(work: Any) -> None:
    def failing() -> Iterator[Source]:
        yield from _sources("a", "b")
        raise LookupError("mine")

    with Workers(work.serve, jobs=1) as workers, pytest.raises(LookupError, match="mine"):
        list(workers.run(failing()))


SCRIPT = """
import sys
sys.path.insert(0, {folder!r})
import offmap_test_work
from pathlib import Path
from offmap.core.types import Source
from offmap.read.workers import Workers
with Workers(offmap_test_work.serve, jobs=2) as workers:
    for source, (header, arrays) in workers.run([Source(Path(n), n) for n in {names!r}]):
        print(header["item"], flush=True)
"""


@pytest.mark.parametrize("how", ["file", "-c", "stdin"])
def test_any_main_module_without_a_guard(work: Any, tmp_path: Path, how: str) -> None:
    script = SCRIPT.format(folder=str(tmp_path), names=["a", "b"])
    (tmp_path / "main.py").write_text(script)
    command = {"file": [str(tmp_path / "main.py")], "-c": ["-c", script], "stdin": ["-"]}[how]
    done = subprocess.run([sys.executable, *command], input=script, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["a#0", "b#0"]


def test_interrupt_ends_the_workers(work: Any, tmp_path: Path) -> None:
    script = SCRIPT.format(folder=str(tmp_path), names=["a", "sleep", "b", "sleep"])
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as main:
        assert main.stdout is not None
        assert main.stdout.readline() == "a#0\n"
        children = psutil.Process(main.pid).children()
        assert children
        os.killpg(main.pid, 2)
        _, errors = main.communicate(timeout=20)
    assert "KeyboardInterrupt" in errors
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


def test_a_killed_parent_leaves_no_workers(work: Any, tmp_path: Path) -> None:
    script = SCRIPT.format(folder=str(tmp_path), names=["a"]) + "    print('ready', flush=True); import time; time.sleep(600)\n"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as main:
        assert main.stdout is not None
        assert [main.stdout.readline() for _ in range(2)] == ["a#0\n", "ready\n"]
        children = psutil.Process(main.pid).children()
        main.kill()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


def test_an_orphan_that_hangs_ends_by_itself(work: Any, tmp_path: Path) -> None:
    script = SCRIPT.format(folder=str(tmp_path), names=["a", "sleep"]).replace("jobs=2", "jobs=2, limits=Limits(seconds=0.2)")
    script = script.replace("import Source", "import Source\nfrom offmap.read.limits import Limits").replace(
        "header[", "header.get('reason') or header["
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as main:
        assert main.stdout is not None
        assert main.stdout.readline() == "a#0\n"
        children = psutil.Process(main.pid).children()
        main.kill()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive


def test_partial_and_threads(work: Any) -> None:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.extend(_run(partial(work.serve), _sources("a", "b"))))
    thread.start()
    thread.join()
    assert [item for item, _ in found] == ["a", "b"]
