"""Reads files in processes that may die: a hostile file costs one worker and one row, never the run.

Each worker process has a thread here that hands it batches of sources and takes its messages. Results come out in
input order; the number of sources and bytes under way is bounded, so that memory does not grow with the input.
"""

import json
import math
import os
import pickle  # from parent to child only, never back; noqa: house
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from offmap.core.allocator import ENVIRONMENT
from offmap.core.errors import ConfigError
from offmap.core.types import Source
from offmap.read.limits import DEFAULT, Limits
from offmap.read.messages import Message, decode
from offmap.read.worker import LENGTH, Work

_BATCH = 8
_AHEAD = 24
_BUFFER = 64 << 20
_START_SECONDS = 60.0
_BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from offmap.read.worker import main; main()"
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "NUMEXPR_NUM_THREADS")
_CANCELLED = "cancelled"
_DETAILS = {"crashed": "the reader's process died on this file", "timeout": "reading took longer than {:g} seconds"}


@dataclass(eq=False)
class _Task:
    """One source under way."""

    source: Source
    messages: deque[Message] = field(default_factory=deque)
    done: bool = False
    cancelled: bool = False


class _DeadError(Exception):
    """A worker's stream ended, or made no sense."""


class _Process:
    """One worker process and its pipes."""

    def __init__(self, setup: bytes, limit: int) -> None:
        paths = json.dumps([path or os.getcwd() for path in sys.path if isinstance(path, str)])
        self._limit = limit
        self._popen = subprocess.Popen(
            [sys.executable, "-c", _BOOT, paths],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env={**os.environ, **dict.fromkeys(_ONE_THREAD, "1"), **ENVIRONMENT},
            start_new_session=True,
        )
        if self._popen.stdin is None or self._popen.stdout is None:
            raise _DeadError
        self._requests, self._replies = self._popen.stdin, self._popen.stdout
        _widen(self._replies.fileno())
        self.send(setup)

    def send(self, request: bytes) -> None:
        data = memoryview(LENGTH.pack(len(request)) + request)
        while data:
            data = data[self._requests.write(data) :]

    def receive(self) -> tuple[dict[str, Any], Message]:
        """The next message.

        Raises:
            _DeadError: there is none, or it is malformed.
        """
        try:
            received = decode(self._fill, limit=self._limit)
        except (ValueError, KeyError, TypeError, RecursionError, OSError) as error:
            raise _DeadError from error
        if received is None:
            raise _DeadError
        return received

    def _fill(self, buffer: memoryview) -> bool:
        while buffer:
            count = self._replies.readinto(buffer)  # type: ignore[attr-defined]
            if not count:
                return False
            buffer = buffer[count:]
        return True

    def alive(self) -> bool:
        return self._popen.poll() is None

    def kill(self) -> None:
        self._popen.kill()

    def discard(self) -> None:
        self._popen.kill()
        self._popen.wait()
        self._requests.close()
        self._replies.close()


def _widen(descriptor: int) -> None:
    """A pipe of 1 MiB where the system allows it: a picture then crosses in one piece."""
    try:
        import fcntl

        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, 1 << 20)
    except (ImportError, AttributeError, OSError):
        return


@dataclass(eq=False)
class _Slot:
    """The place of one worker: its process may be replaced, its thread stays."""

    process: _Process | None = None
    waiting_since: float = math.inf
    reason: str = "crashed"


class Workers:
    """Runs ``work`` on sources in spawned processes that are limited, watched, and replaced when they die.

    Args:
        work: top-level function (or ``functools.partial`` of one) that gives the messages of one source. It is
            imported in the workers by its module's name, so it cannot live in a script or a notebook cell.
        jobs: number of processes; 0 runs everything in this one, without time and memory limits.
        limits: ``seconds`` a message, ``memory_bytes`` a process.

    A source whose worker dies, runs out of memory or is too slow gets a last message
    ``{"item", "reason": "crashed" | "bomb" | "timeout", "detail"}``; its earlier messages stay.

    Raises:
        ConfigError: ``jobs`` is negative, or ``work`` cannot be imported by the workers.
    """

    def __init__(self, work: Work, *, jobs: int, limits: Limits = DEFAULT) -> None:
        if jobs < 0:
            raise ConfigError(f"jobs = {jobs} must not be negative")
        self._work, self._jobs, self._limits = work, jobs, limits
        self._changed = threading.Condition()
        self._waiting: deque[_Task] = deque()
        self._order: deque[_Task] = deque()
        self._buffered = 0
        self._closed = False
        self._error: ConfigError | None = None
        self._slots: list[_Slot] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> "Workers":
        if self._jobs and not self._slots:
            setup = pickle.dumps((self._work, self._limits.memory_bytes, self._limits.seconds))
            self._slots = [_Slot() for _ in range(self._jobs)]
            self._threads = [threading.Thread(target=self._serve, args=(slot, setup), daemon=True) for slot in self._slots]
            for thread in self._threads:
                thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End all processes, at once."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._cancel()
        for thread in self._threads:
            thread.join()

    def run(self, sources: Iterable[Source]) -> Iterator[tuple[Source, Message]]:
        """Messages of all sources, in input order; ``sources`` is pulled no further than needed.

        Raises:
            ConfigError: used outside ``with``, or ``work`` cannot be imported by the workers.
        """
        if not self._jobs:
            yield from self._run_here(sources)
            return
        if self._closed or not self._slots:
            raise ConfigError("workers are closed: use them inside a with block")
        if self._order:
            raise ConfigError("workers are at work already: finish one run before the next")
        pulled = iter(sources)
        try:
            while self._top_up(pulled):
                task = self._order[0]
                while (message := self._next(task)) is not None:
                    yield task.source, message
                with self._changed:
                    self._order.popleft()
                    self._changed.notify_all()
        finally:
            self._cancel()

    def _run_here(self, sources: Iterable[Source]) -> Iterator[tuple[Source, Message]]:
        for source in sources:
            try:
                for message in self._work(source):
                    yield source, message
            except MemoryError:
                yield source, ({"item": source.item, "reason": "bomb", "detail": "reading needs more memory than there is"}, [])
            except Exception as error:
                yield source, ({"item": source.item, "reason": "failed", "detail": f"an unexpected {type(error).__name__}"}, [])

    def _top_up(self, pulled: Iterator[Source]) -> bool:
        """Keep enough sources under way; whether any is."""
        while len(self._order) < _AHEAD * self._jobs:
            source = next(pulled, None)
            if source is None:
                break
            task = _Task(source)
            with self._changed:
                self._order.append(task)
                self._waiting.append(task)
                self._changed.notify_all()
        return bool(self._order)

    def _next(self, task: _Task) -> Message | None:
        """The task's next message, or None after its last; meanwhile workers that are too slow are killed."""
        with self._changed:
            while True:
                if self._error is not None:
                    raise self._error
                if task.messages:
                    message = task.messages.popleft()
                    self._buffered -= _size(message)
                    self._changed.notify_all()
                    return message
                if task.done:
                    return None
                self._changed.wait(self._kill_overdue())

    def _kill_overdue(self) -> float:
        """Seconds until the next worker is due."""
        now, due = time.monotonic(), 1.0
        for slot in self._slots:
            left = slot.waiting_since + self._limits.seconds - now
            if left <= 0 and slot.process is not None:
                slot.reason, slot.waiting_since = "timeout", math.inf
                slot.process.kill()
            else:
                due = min(due, max(left, 0.01))
        return due

    def _cancel(self) -> None:
        """Forget what is under way; busy processes are killed."""
        with self._changed:
            busy = bool(self._order)
            for task in self._order:
                task.cancelled = True
            self._order.clear()
            self._waiting.clear()
            self._buffered = 0
            for slot in self._slots:
                if slot.process is not None and (busy or self._closed):
                    slot.reason = _CANCELLED
                    slot.process.kill()
            self._changed.notify_all()

    def _serve(self, slot: _Slot, setup: bytes) -> None:
        """The thread of one slot."""
        try:
            while batch := self._take():
                while batch:
                    batch = self._attempt(slot, setup, batch)
        except Exception as error:
            with self._changed:
                self._error = (
                    error if isinstance(error, ConfigError) else ConfigError(f"no reader process: {type(error).__name__}: {error}")
                )
                self._changed.notify_all()
        finally:
            if slot.process is not None:
                slot.process.discard()

    def _take(self) -> list[_Task]:
        """The next batch: several small files, or one volume; nothing when closed."""
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            if self._closed:
                return []
            batch = [self._waiting.popleft()]
            most = min(_BATCH, len(self._waiting) // self._jobs)
            while len(batch) < most and not (batch[0].source.volume or self._waiting[0].source.volume):
                batch.append(self._waiting.popleft())
            return batch

    def _attempt(self, slot: _Slot, setup: bytes, batch: list[_Task]) -> list[_Task]:
        """Give a batch to the slot's process; what is left of it when the process dies."""
        index = 0
        try:
            process = self._started(slot, setup, batch)
            while index < len(batch):
                slot.waiting_since = time.monotonic()
                envelope, message = process.receive()
                slot.waiting_since = math.inf
                if envelope.get("task") != index:
                    raise _DeadError
                if envelope.get("end") is True:
                    self._finish(batch[index])
                    index += 1
                else:
                    self._deliver(batch[index], message)
            return []
        except (_DeadError, OSError):
            self._bury(slot)
            if self._closed or batch[index].cancelled:
                return []
            item, reason = batch[index].source.item, slot.reason
            detail = _DETAILS[reason].format(self._limits.seconds)
            self._deliver(batch[index], ({"item": item, "reason": reason, "detail": detail}, []))
            self._finish(batch[index])
            return batch[index + 1 :]

    def _started(self, slot: _Slot, setup: bytes, batch: list[_Task]) -> _Process:
        """The slot's process with the batch sent; a new one where there is none, it died while idle, or was given up."""
        request = pickle.dumps([task.source for task in batch])
        if slot.process is not None and slot.reason != _CANCELLED and slot.process.alive():
            try:
                slot.process.send(request)
                return slot.process
            except OSError:
                pass
        self._bury(slot)
        try:
            process = _Process(setup, self._limits.max_pixels * 8)
        except OSError as error:
            raise ConfigError(f"a reader process could not start ({error.strerror}); try fewer jobs") from error
        with self._changed:
            slot.process, slot.reason = process, "crashed"
            if self._closed or batch[0].cancelled:
                slot.reason = _CANCELLED
                process.kill()
        slot.waiting_since = time.monotonic() + _START_SECONDS
        try:
            envelope, _ = process.receive()
        except _DeadError as error:
            if slot.reason == _CANCELLED:
                raise
            raise ConfigError("a reader process could not start; try fewer jobs or a higher memory limit") from error
        finally:
            slot.waiting_since = math.inf
        if "ready" not in envelope:
            raise ConfigError(f"a reader process cannot load the work: {envelope.get('failed')}. Define it in a module, not in a script")
        process.send(request)
        return process

    def _bury(self, slot: _Slot) -> None:
        with self._changed:
            process, slot.process, slot.waiting_since = slot.process, None, math.inf
        if process is not None:
            process.discard()

    def _deliver(self, task: _Task, message: Message) -> None:
        """Hand a message over; waits while much is buffered, but never for the task that is wanted next."""
        size = _size(message)
        with self._changed:
            while self._buffered + size > _BUFFER and not task.cancelled and not self._wanted(task):
                self._changed.wait()
            if not task.cancelled:
                task.messages.append(message)
                self._buffered += size
                self._changed.notify_all()

    def _wanted(self, task: _Task) -> bool:
        return bool(self._order) and self._order[0] is task and not task.messages

    def _finish(self, task: _Task) -> None:
        with self._changed:
            task.done = True
            self._changed.notify_all()


def _size(message: Message) -> int:
    return sum(array.nbytes for array in message[1])
