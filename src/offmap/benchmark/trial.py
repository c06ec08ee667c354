"""One detector fitted on one division and scored on its sets, with what that cost; failures become a reason, never a NaN."""

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float32, Int

from offmap.core.detector import Detector, Fitted
from offmap.core.errors import OODError
from offmap.core.types import Signals

Status = Literal["ok", "not_run"]


@dataclass(frozen=True, slots=True)
class Cost:
    """What a detector took.

    Args:
        fit_s: seconds to fit, on signals that are there already.
        score_ms_per_item: milliseconds to score an image, on signals that are there already.
        peak_mb: memory above that before fitting and scoring, at its highest, in MB; NaN where the system does not tell.
        state_mb: learned tensors, in MB.
    """

    fit_s: float
    score_ms_per_item: float
    peak_mb: float
    state_mb: float


@dataclass(frozen=True, eq=False)
class Trial:
    """Scores of one detector, one in-distribution set and one seed.

    Args:
        status: ``ok``, or ``not_run`` with a reason.
        scores: by set, one number for each row of the set; the in-distribution test rows under ``own``.
        cost: absent where it was not run.
        key: what the numbers depend on; a trial with the same key need not be run again.
    """

    status: Status
    reason: str = ""
    scores: Mapping[str, Float32[np.ndarray, " _"]] = field(default_factory=dict)
    cost: Cost | None = None
    key: str = ""

    def save(self, path: Path) -> None:
        """One file, whole or not at all."""
        from safetensors.numpy import save_file

        path.parent.mkdir(parents=True, exist_ok=True)
        note = {"status": self.status, "reason": self.reason, "key": self.key, "cost": None if self.cost is None else asdict(self.cost)}
        part = path.with_suffix(".part")
        save_file({f"s.{name}": np.ascontiguousarray(v) for name, v in self.scores.items()}, part, {"note": json.dumps(note)})
        part.replace(path)

    @classmethod
    def load(cls, path: Path) -> "Trial | None":
        """What ``save`` wrote; None where there is no such file, or no whole one."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="np") as file:
                note = json.loads(file.metadata()["note"])
                scores = {name.removeprefix("s."): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            return None
        cost = None if note["cost"] is None else Cost(**note["cost"])
        return cls(note["status"], note["reason"], scores, cost, note["key"])


@dataclass
class Running:
    """A detector that is fitted, and what it has scored so far.

    Args:
        fitted: by ``fit``.
        fit_s, peak_mb: of the fit.
    """

    fitted: Fitted
    fit_s: float
    peak_mb: float
    seconds: float = 0.0
    count: int = 0
    scores: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def score(self, name: str, batches: Iterable[Signals]) -> None:
        """Scores of further images of a set; images of several calls are put in one row after another.

        Raises:
            OODError: the detector refuses the signals.
        """
        parts = self.scores.setdefault(name, [])
        with peak() as highest:
            for batch in batches:
                start = time.perf_counter()
                found = self.fitted.score(batch).cpu().numpy()
                self.seconds += time.perf_counter() - start
                self.count += len(found)
                parts.append(found)
        self.peak_mb = float(np.fmax(self.peak_mb, highest()))

    def finish(self, key: str, order: Mapping[str, Int[np.ndarray, " _"]] = MappingProxyType({})) -> Trial:
        """The trial, with all scores.

        Args:
            order: of the scores of a set, where they came in another one.
        """
        state = sum(t.numel() * t.element_size() for t in self.fitted.state.values()) / 1e6
        cost = Cost(self.fit_s, 1e3 * self.seconds / max(1, self.count), self.peak_mb, state)
        joined = {name: np.concatenate(parts).astype(np.float32) for name, parts in self.scores.items() if parts}
        scores = {name: values[order[name]] if name in order else values for name, values in joined.items()}
        return Trial("ok", scores=scores, cost=cost, key=key)


def fit(detector: Detector, batches: Iterable[Signals], held_out: Iterable[Signals], *, seed: int) -> Running:
    """Fit a detector and measure it.

    Raises:
        OODError: the detector refuses the signals.
    """
    generator = torch.Generator().manual_seed(seed)
    with peak() as highest:
        start = time.perf_counter()
        fitted = detector.fit(batches, held_out=held_out, generator=generator)
        seconds = time.perf_counter() - start
    return Running(fitted, seconds, highest())


def failure(error: Exception, key: str) -> Trial:
    """A trial that came to nothing, in words for the table."""
    reason = str(error) if isinstance(error, OODError) else f"unexpected {type(error).__name__}"
    return replace(Trial("not_run", key=key), reason=" ".join(reason.split()))


@contextmanager
def peak() -> Iterator[Callable[[], float]]:
    """Highest memory of this process inside the block above that at its beginning, in MB; NaN where Linux's counters are not there."""
    before = _status("VmRSS") if _reset() else float("nan")
    found: dict[str, float] = {}

    def highest() -> float:
        return found.get("value", float("nan"))

    try:
        yield highest
    finally:
        found["value"] = max(0.0, _status("VmHWM") - before) if before == before else float("nan")


def _reset() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _status(name: str) -> float:
    """A line of the process's status, in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return float(line.split()[1]) / 1e3
    return float("nan")


def settings(detector: Detector) -> dict[str, Any]:
    """Name, hyper-parameters and source, for keys."""
    return {"method": detector.method(), **detector.params(), "source": source(type(detector))}


def source(method: type[Detector]) -> str:
    """Digest of the files that a method is written in, so that its trials are run anew when one is edited.

    They are those of the class and its bases, and of every module of the same packages that these name at their top.
    """
    waiting = [each.__module__ for each in method.__mro__]
    packages = {"offmap", method.__module__.partition(".")[0]}
    found: dict[str, str] = {}
    while waiting:
        name = waiting.pop()
        module = sys.modules.get(name)
        if name in found or name.partition(".")[0] not in packages or module is None:
            continue
        file = getattr(module, "__file__", None)
        found[name] = hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else ""
        waiting += [
            value.__name__ if isinstance(value, ModuleType) else str(getattr(value, "__module__", "")) for value in vars(module).values()
        ]
    return hashlib.sha256(json.dumps(sorted(found.items())).encode()).hexdigest()
