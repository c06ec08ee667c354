"""The child's side of ``workers``: a process that reads files, can be killed at any time, and never imports torch.

Standard input brings the work and batches of sources (pickled by the parent, which is trusted); a private copy of
standard output takes messages back. What decoders print goes nowhere, since it may quote the file.
"""

import logging
import os
import pickle  # from parent to child only, never back; noqa: house
import signal
import struct
import warnings
from collections.abc import Callable, Iterator
from io import BufferedReader, BufferedWriter, FileIO

from offmap.core.types import Source
from offmap.read.messages import Message, encode

Work = Callable[[Source], Iterator[Message]]

LENGTH = struct.Struct("<Q")


def main() -> None:
    """Serve requests until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    requests, replies = _private_streams()
    try:
        work, memory_bytes, seconds = pickle.loads(_request(requests) or b"")  # noqa: S301  sent by the parent; noqa: house
    except Exception as error:
        _reply(replies, {"failed": f"{type(error).__name__}: {error}"}, None)
        return
    _limit(memory_bytes)
    _reply(replies, {"ready": True}, None)
    try:
        while request := _request(requests):
            for index, source in enumerate(pickle.loads(request)):  # noqa: S301  sent by the parent; noqa: house
                _serve(_bounded(work, seconds), source, index, replies)
    except BrokenPipeError:
        os._exit(0)


def _bounded(work: Work, seconds: float) -> Work:
    """``work`` that ends the process when one message takes far too long: the parent, who would kill it first, is gone."""

    def go(source: Source) -> Iterator[Message]:
        messages = iter(work(source))
        while True:
            _alarm(2 * seconds + 5)
            try:
                message = next(messages, None)
            finally:
                _alarm(0)
            if message is None:
                return
            yield message

    return go


def _alarm(seconds: float) -> None:
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)


def _serve(work: Work, source: Source, index: int, replies: BufferedWriter) -> None:
    try:
        for message in work(source):
            _reply(replies, {"task": index}, message)
    except BrokenPipeError:
        raise
    except MemoryError:
        detail = "reading needs more memory than the limit"
        _reply(replies, {"task": index}, ({"item": source.item, "reason": "bomb", "detail": detail}, []))
    except Exception as error:
        detail = f"an unexpected {type(error).__name__}"
        _reply(replies, {"task": index}, ({"item": source.item, "reason": "failed", "detail": detail}, []))
    _reply(replies, {"task": index, "end": True}, None)


def _private_streams() -> tuple[BufferedReader, BufferedWriter]:
    """Copies of standard input and output; the originals and standard error then lead nowhere."""
    requests = os.fdopen(os.dup(0), "rb")
    replies: BufferedWriter = BufferedWriter(FileIO(os.dup(1), "wb"), 1 << 20)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nowhere, number)
    return requests, replies


def _limit(memory_bytes: int) -> None:
    try:
        import resource
    except ImportError:  # Windows has no such limits
        return
    for kind, size in ((resource.RLIMIT_AS, memory_bytes), (resource.RLIMIT_CORE, 0)):
        try:
            hard = resource.getrlimit(kind)[1]
            resource.setrlimit(kind, (size if hard == resource.RLIM_INFINITY else min(size, hard), hard))
        except (OSError, ValueError):  # macOS refuses an address-space limit
            continue


def _request(requests: BufferedReader) -> bytes:
    head = requests.read(LENGTH.size)
    return requests.read(LENGTH.unpack(head)[0]) if len(head) == LENGTH.size else b""


def _reply(replies: BufferedWriter, envelope: dict[str, object], message: Message | None) -> None:
    for piece in encode(envelope, message):
        replies.write(piece)
    replies.flush()
