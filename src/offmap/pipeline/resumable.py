"""Where the checkpoints of a gate's training lie until the gate is there: a folder that holds nothing else."""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from offmap.core.bundle import LITTER
from offmap.core.errors import ConfigError
from offmap.pipeline.inputs import PathLike
from offmap.pipeline.stream import Progress
from offmap.represent.train import checkpoint, log
from offmap.represent.train.parallel import Crew

TRAINED = "trained.json"
"""File with the names of what is trained: no checkpoint says that of a training which keeps its own in another folder."""

OWN = LITTER | {TRAINED} | {name + end for name in (checkpoint.FILE, log.FILE) for end in ("", ".part")}
"""Names of files that may be taken away."""


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """The folder of one fit.

    Args:
        trained: what is, one name a network.
        resume: go on with the training that is there, instead of starting it over.
    """

    folder: Path
    trained: Sequence[str]
    resume: bool

    @classmethod
    def of(cls, folder: PathLike, trained: Sequence[str], *, resume: bool) -> "Checkpoints":
        """Look before anything is read.

        Raises:
            ConfigError: there is something else in the folder, it is a file, or what is to be gone on with trains other networks.
        """
        place = Path(folder)
        require_own(place)
        known = _trained(place) if resume and begun(place) else ""
        wanted = " and ".join(trained)
        if known and known != wanted:
            raise ConfigError(
                f"{place} holds a training of {known}, not of {wanted}: take the recipe of then, or start over, without resume"
            )
        return cls(place, trained, resume)

    def warn(self, progress: Progress) -> None:
        """Say that a training will be started over, while there is still time."""
        if not self.resume and begun(self.folder):
            what = f"the training in {self.folder}, which was interrupted, is started over; with --resume (resume=True) it would go on"
            progress({"event": "warning", "message": what})

    def opened(self, device: torch.device) -> Sequence[Path]:
        """A folder for each training, empty unless they are gone on with; processes that train together wait for the first one.

        Raises:
            ConfigError: the disk is full, or the folder cannot be written to.
        """
        crew = Crew.present()
        if crew.rank == 0:
            if not self.resume:
                clear(self.folder)
            with checkpoint.refused(f"checkpoints cannot be written to {self.folder}"):
                self.folder.mkdir(parents=True, exist_ok=True)
                (self.folder / TRAINED).write_text(json.dumps(list(self.trained)), encoding="utf-8")
        crew.agree(0, device)
        return [self.folder] if len(self.trained) == 1 else [self.folder / name for name in ("first", "second")]


def beside(gate: Path) -> Path:
    """The folder for the checkpoints of a gate, ``GATE.training``."""
    named = gate if gate.name not in ("", "..") else gate.resolve()
    return named.parent / f"{named.name}.training"


def require_own(folder: Path) -> None:
    """Refuse a folder that holds anything but checkpoints, which would be in danger.

    Raises:
        ConfigError: it does, or it is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; the checkpoints of the training need a folder of that name")
    foreign = sorted(path.name for path in folder.rglob("*") if not path.is_dir() and path.name not in OWN)
    if foreign:
        raise ConfigError(
            f"{folder}, where the checkpoints of the training belong, holds {foreign[0]!r}: move it, or name the gate otherwise"
        )


def begun(folder: Path) -> bool:
    """Whether there is a checkpoint to go on from."""
    return any(folder.rglob(checkpoint.FILE))


def _trained(folder: Path) -> str:
    """Names of what was trained there; empty where nothing readable says so."""
    with suppress(OSError, ValueError, TypeError):
        return " and ".join(json.loads((folder / TRAINED).read_text(encoding="utf-8")))
    return ""


def clear(folder: Path) -> None:
    """Take checkpoints and empty folders away, and nothing else."""
    if not folder.is_dir():
        return
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            _without(path)
        elif path.name in OWN:
            path.unlink(missing_ok=True)
    if not folder.is_symlink():
        _without(folder)


def _without(folder: Path) -> None:
    if not any(folder.iterdir()):
        folder.rmdir()
