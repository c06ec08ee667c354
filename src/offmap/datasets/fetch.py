"""Fetching a known data set: resumed, checked while it arrives, complete or not there."""

import contextlib
import errno
import hashlib
import http.client
import json
import os
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from offmap.core.errors import ConfigError, NotAvailableError
from offmap.datasets.catalogue import DataSet, entry

Progress = Callable[[int, int | None], None]
"""Called with the bytes that are there and the bytes in all (None = not known yet)."""

BLOCK = 1 << 16
ATTEMPTS = 4
TIMEOUT = 30.0
AGAIN = (408, 425, 429, 500, 502, 503, 504)
"""HTTP answers after which it is worth to try again."""


def cache_folder() -> Path:
    """``$OFFMAP_CACHE/data``, or ``data`` in the platform's cache folder of offmap."""
    given = os.environ.get("OFFMAP_CACHE")
    if given:
        return Path(given) / "data"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "offmap" / "data"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "offmap" / "data"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "offmap" / "data"


def get(
    name: str,
    *,
    folder: Path | None = None,
    progress: Progress | None = None,
    base_url: str | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Path:
    """A known data set as a file on this machine; fetched if it is not there yet.

    An interrupted download goes on where it stopped at the next call. A file that was put into the folder by hand is
    accepted when its checksum is right.

    Args:
        name: of ``offmap.datasets.catalogue``.
        folder: where it is kept; ``cache_folder()`` if not given.
        progress: called while bytes arrive.
        base_url: a mirror instead of the published place; HTTPS, except on this machine (127.0.0.1, localhost).
        sleep: waits the given seconds before another attempt.

    Raises:
        ConfigError: no such set, the folder cannot be written, or the mirror is not HTTPS.
        NotAvailableError: no network, the disk is full, or what arrived has the wrong checksum (it is removed); says how to put
            the file there by hand.
    """
    wanted = entry(name)
    place = (folder if folder is not None else cache_folder()) / wanted.file
    url = wanted.url if base_url is None else f"{base_url.rstrip('/')}/{wanted.file}"
    _secure(url)
    if place.is_file():
        return _accept(place, wanted)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        _Download(wanted, url, place, progress).run(sleep)
    except OSError as error:
        raise ConfigError(f"{str(place.parent)!r} cannot be written ({error.strerror}); name another folder") from error
    _remember(place, wanted)
    return place


class _Download:
    """One file on its way to ``place``; bytes wait in ``place.part``."""

    def __init__(self, wanted: DataSet, url: str, place: Path, progress: Progress | None) -> None:
        self._wanted, self._url, self._place = wanted, url, place
        self._part = place.with_name(place.name + ".part")
        self._progress = progress
        self._opener = urllib.request.build_opener(_OnlySecure())

    def run(self, sleep: Callable[[float], None]) -> None:
        failure = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                sleep(2.0 ** (attempt - 1))
            resumed = self._part.exists()
            try:
                digest = self._receive()
            except urllib.error.HTTPError as error:
                failure = f"the server answered {error.code} {error.reason}"
                error.close()
                if error.code == 416:
                    self._part.unlink(missing_ok=True)
                elif error.code not in AGAIN:
                    break
                continue
            except (OSError, http.client.HTTPException) as error:
                failure = f"the connection failed ({getattr(error, 'reason', None) or str(error) or type(error).__name__})"
                continue
            if digest == self._wanted.md5:
                self._part.replace(self._place)
                return
            self._part.unlink(missing_ok=True)
            failure = f"what arrived has the MD5 {digest} instead of {self._wanted.md5}, and was removed"
            if not resumed:
                break
        raise NotAvailableError(
            f"{self._wanted.name} could not be fetched from {self._url}: {failure}. {by_hand(self._wanted, self._place)}"
        )

    def _receive(self) -> str:
        """Append what is missing; gives the MD5 of the whole, raises when it ends too early."""
        digest, start = _digest(self._part) if self._part.exists() else (hashlib.md5(usedforsecurity=False), 0)
        request = urllib.request.Request(self._url, headers={"User-Agent": "offmap", "Accept-Encoding": "identity"})  # noqa: S310
        if start:
            request.add_header("Range", f"bytes={start}-")
        with self._opener.open(request, timeout=TIMEOUT) as answer:
            if start and not (answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {start}-")):
                digest, start = hashlib.md5(usedforsecurity=False), 0
            length = answer.headers.get("Content-Length", "")
            total = start + int(length) if length.isdecimal() else None
            with self._disk_errors(), self._part.open("ab" if start else "wb") as file:
                got = self._copy(answer, file, digest, start, total)
        if total is not None and got < total:
            raise _NetworkError(f"it ended after {got:,} of {total:,} bytes")
        return str(digest.hexdigest())

    def _copy(self, answer: http.client.HTTPResponse, file: IO[bytes], digest: Any, got: int, total: int | None) -> int:
        while block := self._read(answer):
            got += len(block)
            if got > self._wanted.bytes_at_most:
                raise _NetworkError(f"the file is larger than {self._wanted.bytes_at_most:,} bytes")
            file.write(block)
            digest.update(block)
            if self._progress is not None:
                self._progress(got, total)
        return got

    def _read(self, answer: http.client.HTTPResponse) -> bytes:
        try:
            return answer.read(BLOCK)
        except (OSError, http.client.HTTPException) as error:
            raise _NetworkError(str(error) or type(error).__name__) from error

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        """Turns a failure of the disk into its message; failures of the network pass."""
        try:
            yield
        except OSError as error:
            if isinstance(error, _NetworkError):
                raise
            self._part.unlink(missing_ok=True)
            raise NotAvailableError(self._disk(error)) from error

    def _disk(self, error: OSError) -> str:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return (
                f"the disk of {str(self._place.parent)!r} is full; {self._wanted.name} needs up to {self._wanted.size.removeprefix('< ')}. "
                "What was fetched is removed; free space, or set OFFMAP_CACHE to another folder"
            )
        return f"{str(self._place)!r} cannot be written ({error.strerror}); set OFFMAP_CACHE to another folder"


class _NetworkError(ConnectionError):
    """What came over the network ended or was wrong."""


def by_hand(wanted: DataSet, place: Path) -> str:
    """How to bring the file to a machine without a network."""
    return f"By hand: save {wanted.url} as {str(place)!r}; its MD5 must be {wanted.md5}"


def _accept(place: Path, wanted: DataSet) -> Path:
    """A file that is there already: checked once, then known by size and time."""
    if _note(place) == _state(place, wanted):
        return place
    digest, _ = _digest(place)
    if digest.hexdigest() != wanted.md5:
        raise NotAvailableError(f"{str(place)!r} has the MD5 {digest.hexdigest()} instead of {wanted.md5}; remove it and fetch it again")
    _remember(place, wanted)
    return place


def _remember(place: Path, wanted: DataSet) -> None:
    note = place.with_name(f".{place.name}.checked")
    try:
        note.write_text(json.dumps(_state(place, wanted)), encoding="utf-8")
    except OSError:
        note.unlink(missing_ok=True)


def _note(place: Path) -> Any:
    try:
        return json.loads(place.with_name(f".{place.name}.checked").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _state(place: Path, wanted: DataSet) -> dict[str, Any]:
    found = place.stat()
    return {"md5": wanted.md5, "size": found.st_size, "mtime_ns": found.st_mtime_ns}


def _digest(path: Path) -> tuple[Any, int]:
    """MD5 object and number of bytes of a file."""
    digest, size = hashlib.md5(usedforsecurity=False), 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            size += len(block)
    return digest, size


def _secure(url: str) -> None:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost", "::1")):
        return
    raise ConfigError(f"{url!r}: data are fetched over https only")


class _OnlySecure(urllib.request.HTTPRedirectHandler):
    """Follows no redirect to an address that is not secure."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> urllib.request.Request | None:
        try:
            _secure(newurl)
        except ConfigError as error:
            raise urllib.error.URLError(f"the server redirects to {newurl!r}, which is not https") from error
        return super().redirect_request(req, fp, code, msg, headers, newurl)
