"""Fetching, against a server on this machine that breaks off, lies and redirects."""

import hashlib
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from offmap.core.errors import ConfigError, NotAvailableError
from offmap.datasets import catalogue as known
from offmap.datasets import fetch

NAME = "breastmnist"
CONTENT = bytes(range(256)) * 1500


class Server(ThreadingHTTPServer):
    """Serves CONTENT; ``cut`` ends the first answers early, ``wrong`` changes bytes, ``ranges`` off ignores Range."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.content, self.cut, self.ranges, self.status, self.location = CONTENT, [], True, [], ""
        self.asked: list[str] = []


class Answer(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range", "")
        self.server.asked.append(asked)
        if self.server.status:
            self.send_response(self.server.status.pop(0))
            if self.server.location:
                self.send_header("Location", self.server.location)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.server.ranges else 0
        body = self.server.content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(self.server.content) - 1}/{len(self.server.content)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.server.cut.pop(0)] if self.server.cut else body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    from dataclasses import replace

    found = replace(known.entry(NAME), md5=hashlib.md5(CONTENT, usedforsecurity=False).hexdigest())
    monkeypatch.setattr(fetch, "entry", lambda name: found)
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    served = Server()
    thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield served
    served.shutdown()
    thread.join()
    served.server_close()


@pytest.fixture
def get(server: Server, tmp_path: Path) -> Callable[..., Path]:
    def call(**more: Any) -> Path:
        return fetch.get(
            NAME, folder=tmp_path / "data", base_url=f"http://127.0.0.1:{server.server_port}", **({"sleep": lambda s: None} | more)
        )

    return call


def files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))


def test_a_file_is_fetched_once(get: Callable[..., Path], server: Server) -> None:
    seen: list[tuple[int, int | None]] = []
    path = get(progress=lambda got, total: seen.append((got, total)))
    assert path.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert [g for g, _ in seen] == sorted(g for g, _ in seen)
    assert get() == path
    assert server.asked == [""]
    assert files(path.parent) == ["breastmnist.npz"]


def test_a_broken_connection_is_resumed(get: Callable[..., Path], server: Server) -> None:
    server.cut = [100_000, 200_000]
    waited: list[float] = []
    assert get(sleep=waited.append).read_bytes() == CONTENT
    assert server.asked == ["", "bytes=100000-", "bytes=300000-"]
    assert waited == [1.0, 2.0]


def test_a_later_call_goes_on(get: Callable[..., Path], server: Server, tmp_path: Path) -> None:
    server.cut = [70_000, 0, 0, 0]
    with pytest.raises(NotAvailableError, match="ended after 70,000 of 384,000 bytes"):
        get()
    assert files(tmp_path / "data") == ["breastmnist.npz.part"]
    assert get().read_bytes() == CONTENT
    assert server.asked[-1] == "bytes=70000-"


def test_ctrl_c_keeps_what_is_there(get: Callable[..., Path], server: Server, tmp_path: Path) -> None:
    def stop(got: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        get(progress=stop)
    assert files(tmp_path / "data") == ["breastmnist.npz.part"]
    assert get().read_bytes() == CONTENT
    assert server.asked[-1].startswith("bytes=")


def test_a_server_without_ranges_starts_anew(get: Callable[..., Path], server: Server) -> None:
    server.cut, server.ranges = [100_000], False
    assert get().read_bytes() == CONTENT


def test_a_stale_part_is_thrown_away(get: Callable[..., Path], server: Server, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "breastmnist.npz.part").write_bytes(b"something else")
    assert get().read_bytes() == CONTENT
    assert server.asked == ["bytes=14-", ""]


def test_a_part_beyond_the_end_is_thrown_away(get: Callable[..., Path], server: Server, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "breastmnist.npz.part").write_bytes(b"x" * 10)
    server.status = [416]
    assert get().read_bytes() == CONTENT
    assert server.asked == ["bytes=10-", ""]


def test_wrong_bytes_are_removed(get: Callable[..., Path], server: Server, tmp_path: Path) -> None:
    server.content = b"!" + CONTENT[1:]
    expected = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()
    with pytest.raises(NotAvailableError, match=f"instead of {expected}, and was removed.*By hand: save https://zenodo") as caught:
        get()
    assert str(tmp_path / "data" / "breastmnist.npz") in str(caught.value)
    assert files(tmp_path / "data") == []
    assert len(server.asked) == 1


def test_a_file_without_end_is_cut_off(get: Callable[..., Path], server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.content = b"0" * (known.entry(NAME).bytes_at_most + 1_000_000)
    with pytest.raises(NotAvailableError, match="larger than"):
        get()


@pytest.mark.parametrize(("status", "asked"), [(503, 2), (404, 1)])
def test_answers_that_may_pass_are_tried_again(status: int, asked: int, get: Callable[..., Path], server: Server) -> None:
    server.status = [status]
    if asked > 1:
        assert get().read_bytes() == CONTENT
    else:
        with pytest.raises(NotAvailableError, match=f"{status} .*MD5 must be"):
            get()
    assert len(server.asked) == asked


def test_a_redirect_away_from_https_is_refused(get: Callable[..., Path], server: Server) -> None:
    server.status, server.location = [302] * 9, "http://example.org/file.npz"
    with pytest.raises(NotAvailableError, match="which is not https"):
        get()
    server.location = "file:///etc/hostname"
    with pytest.raises(NotAvailableError):
        get()


@pytest.mark.parametrize("url", ["http://example.org", "ftp://example.org", "file:///tmp"])
def test_only_https(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="https only"):
        fetch.get(NAME, folder=tmp_path, base_url=url)


def test_no_network_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(NotAvailableError, match="connection failed") as caught:
        fetch.get(NAME, folder=tmp_path, base_url="http://127.0.0.1:9", sleep=lambda s: None)
    wanted = known.entry(NAME)
    for said in (wanted.url, wanted.md5, str(tmp_path / "breastmnist.npz")):
        assert said in str(caught.value)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_is_cleaned(get: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.open

    def open_part(self: Path, mode: str = "r", *rest: Any, **more: Any) -> Any:
        if self.suffix == ".part" and "w" in mode:
            self.touch()
            return real(Path("/dev/full"), mode)
        return real(self, mode, *rest, **more)

    monkeypatch.setattr(Path, "open", open_part)
    with pytest.raises(NotAvailableError, match=r"is full; breastmnist needs up to 0\.6 MB"):
        get()
    assert files(tmp_path / "data") == []


def test_files_put_there_by_hand(get: Callable[..., Path], server: Server, tmp_path: Path) -> None:
    place = tmp_path / "data" / "breastmnist.npz"
    place.parent.mkdir()
    place.write_bytes(CONTENT)
    assert get() == place
    place.write_bytes(b"other")
    with pytest.raises(NotAvailableError, match="remove it and fetch it again"):
        get()
    assert server.asked == []
    assert place.read_bytes() == b"other"


def test_a_folder_that_cannot_be_made(get: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        get()


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OFFMAP_CACHE", str(tmp_path))
    assert fetch.cache_folder() == tmp_path / "data"
    monkeypatch.delenv("OFFMAP_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(fetch.sys, "platform", "linux")
    assert fetch.cache_folder() == tmp_path / "xdg" / "offmap" / "data"
    monkeypatch.setattr(fetch.sys, "platform", "darwin")
    monkeypatch.setenv("HOME", "/home/x")
    assert fetch.cache_folder() == Path("/home/x/Library/Caches/offmap/data")
