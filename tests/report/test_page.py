"""The page for people: complete, inert, self-contained, and never in the way of other files."""

import base64
import hashlib
import io
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from offmap.core.errors import ConfigError, SignalError
from offmap.report.histogram import Histogram
from offmap.report.page import Page
from offmap.report.row import Row
from offmap.report.templating import environment

CARD = {
    "id": "sha256:7f3a",
    "recipe": "standard",
    "limits": ["Small lesions may be missed."],
    "calibration": {"kind": "split", "n": 600, "cap_bits": math.log2(601), "review_at": 0.05, "reject_at": 0.005},
}
CAP = math.log2(601)


def row(item: str, bits: float = 2.0, *, score: float = 1.0, extra: float | None = None, **more: object) -> Row:
    verdict = "reject" if bits >= 7.64 else "review" if bits >= 4.32 else "accept"
    return Row(item, score=score, p_value=2.0**-bits, surprise_bits=bits, bits_extrapolated=extra, verdict=verdict, **more)


def picture(seed: int, shape: tuple[int, ...] = (90, 120)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def interrupt(page: Page) -> None:
    page.add(row("new.png"), picture(0))
    raise KeyboardInterrupt


class Seen(HTMLParser):
    """What a browser would see: elements, their attributes, and text outside of style and script."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.raw: dict[str, str] = {}
        self._inside = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside in ("style", "script"):
            self.raw[self._inside] = self.raw.get(self._inside, "") + data
        else:
            self.text += data

    def all(self, tag: str, **wanted: str) -> list[dict[str, str | None]]:
        return [a for t, a in self.tags if t == tag and all(a.get(k.rstrip("_")) == v for k, v in wanted.items())]


def make(folder: Path, rows: list[Row], **options: object) -> Seen:
    scores = np.linspace(0.0, 3.0, 600)
    with Page(folder, CARD, histogram=Histogram(scores, 2.8, 2.99), table="scores.csv", **options) as page:
        for i, r in enumerate(rows):
            page.add(r, picture(i), picture(i, (90, 120, 3)))
    return Seen((folder / "index.html").read_text(encoding="utf-8"))


def test_order_counts_and_words(tmp_path: Path) -> None:
    rows = [row("low.png", 1.0), row("far.png", CAP, extra=20.0), row("cap.png", CAP, extra=11.0), row("mid.png", 5.0)]
    seen = make(tmp_path / "r", [*rows, Row("bad.dcm", status="not_assessed", reason="truncated")])
    cases = seen.all("li", class_=None)
    names = [a["data-name"] for _, a in seen.tags if "data-name" in a]
    assert names == ["far.png", "cap.png", "mid.png", "low.png"]
    assert cases is not None
    for said in (
        "≥ 9.2 bits (cap)",
        "about 20 bits by extrapolation",
        "5.0 bits",
        "1 in 32 in-distribution images",
        "the file ends before its pixels do",
    ):
        assert said in seen.text, said
    assert "if all 4 images were in-distribution, fewer than one image would be flagged" in seen.text
    for term in ("Accept", "Review", "Reject", "Not assessed"):
        assert term in seen.text


def test_hostile_names_are_inert(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>\u202egnp.exe\x1b.png"
    card = CARD | {"recipe": evil, "limits": [evil], "warnings": [evil], "data": {evil: evil}}
    with Page(tmp_path / "r", card, title=evil, table=evil) as page:
        page.add(row(evil, reason=evil, cause=evil, meta={evil: evil}, identifiers={evil: evil}), picture(0))
        page.add(Row(evil, status="not_assessed", reason=evil))
    html = (tmp_path / "r" / "index.html").read_text(encoding="utf-8")
    seen = Seen(html)
    assert len(seen.all("script")) == 1
    assert not [a for _, a in seen.tags if any(key.startswith("on") or key == "style" for key in a)]
    assert [a["src"] for a in seen.all("img") if not str(a["src"]).startswith("data:image/")] == []
    assert "\x1b" not in html


def test_nothing_but_its_own_style_and_script_may_run_or_load(tmp_path: Path) -> None:
    seen = make(tmp_path / "r", [row("a.png")])
    (policy,) = [a["content"] for a in seen.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in str(policy).split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data: 'self'"
    for tag in ("style", "script"):
        digest = base64.b64encode(hashlib.sha256(seen.raw[tag].encode()).digest()).decode()
        assert rules[f"{tag}-src"] == f"'sha256-{digest}'"
    html = (tmp_path / "r" / "index.html").read_text(encoding="utf-8")
    assert not re.findall(r"""(?:src|href)=["'](?!data:|images/|\#)""", html)
    assert "@import" not in html
    assert "url(" not in html


def test_pictures_inside_are_bounded_and_the_rest_lie_beside(tmp_path: Path) -> None:
    seen = make(tmp_path / "r", [row(f"{i}.png", 1.0, score=float(i)) for i in range(8)], inline=6)
    sources = [str(a["src"]) for a in seen.all("img")]
    assert len(sources) == 16
    assert [s.startswith("data:image/jpeg;base64,") for s in sources] == [True] * 6 + [False] * 10
    assert all(a.get("loading") == "lazy" for a in seen.all("img") if not str(a["src"]).startswith("data:"))
    assert sorted(sources[6:]) == sorted(f"images/{p.name}" for p in (tmp_path / "r" / "images").iterdir())
    first = Image.open(io.BytesIO(base64.b64decode(sources[0].split(",")[1])))
    assert first.size == (120, 90)
    error = np.abs(np.asarray(first, dtype=float) - picture(7)).mean()
    assert error < 0.5 * np.abs(picture(6).astype(float) - picture(7)).mean()


def test_rows_beyond_the_limit_are_only_counted(tmp_path: Path) -> None:
    rows = [row(f"{i}.png", bits) for i, bits in enumerate(np.random.default_rng(0).permutation(40) / 10)]
    seen = make(tmp_path / "r", rows, shown=5, inline=2)
    names = [a["data-name"] for _, a in seen.tags if "data-name" in a]
    assert names == [r.item for r in sorted(rows, key=lambda r: r.rank, reverse=True)[:5]]
    assert "The 5 most surprising of 40 assessed images are shown" in " ".join(seen.text.split())
    assert "scores.csv" in seen.text
    assert len(list((tmp_path / "r" / "images").iterdir())) == 8


def test_small_images_keep_their_pixels(tmp_path: Path) -> None:
    pixels = picture(0, (28, 28))
    with Page(tmp_path / "r", {}) as page:
        page.add(row("a"), pixels)
    (img,) = Seen((tmp_path / "r" / "index.html").read_text(encoding="utf-8")).all("img")
    assert img["class"] == "pixelated"
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(str(img["src"]).split(",")[1])))), pixels)


def test_an_interrupted_run_leaves_the_old_report(tmp_path: Path) -> None:
    make(tmp_path / "r", [row("old.png")], inline=0)
    before = {p: p.read_bytes() for p in (tmp_path / "r").rglob("*") if p.is_file()}
    for folder in (tmp_path / "r", tmp_path / "new"):
        with pytest.raises(KeyboardInterrupt), Page(folder, CARD) as page:
            interrupt(page)
    assert {p: p.read_bytes() for p in (tmp_path / "r").rglob("*") if p.is_file()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["r"]


def test_a_second_report_replaces_the_first(tmp_path: Path) -> None:
    make(tmp_path / "r", [row("old.png"), row("old2.png")], inline=0)
    seen = make(tmp_path / "r", [row("new.png")], inline=0)
    assert "old.png" not in seen.text
    assert len(list((tmp_path / "r" / "images").iterdir())) == 2
    make(tmp_path / "r", [row("newest.png")])
    assert sorted(p.name for p in (tmp_path / "r").iterdir()) == ["index.html"]


@pytest.mark.parametrize("name", ["index.html", "images/holiday.jpg"])
def test_files_of_others_are_never_replaced(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    with pytest.raises(ConfigError, match=r"did not write|not written by offmap"):
        Page(tmp_path, CARD)
    assert [p.read_text() for p in tmp_path.rglob("*") if p.is_file()] == ["mine"]


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "r").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        Page(tmp_path / "r", CARD)


def test_pictures_of_another_form_are_refused(tmp_path: Path) -> None:
    with Page(tmp_path / "r", {}) as page:
        for wrong in (np.zeros((4, 4), np.float32), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4), np.uint8)):
            with pytest.raises((SignalError, TypeError)):
                page.add(row("a"), wrong)


@pytest.mark.parametrize(
    "card",
    [
        {},
        CARD,
        {"warnings": True, "id": 3, "calibration": None},
        {"calibration": {"cap_bits": 6.92, "review_at": 0.05, "reject_at": 0.005}},
    ],
)
def test_any_card_and_no_image(card: dict[str, object], tmp_path: Path) -> None:
    with Page(tmp_path / "r", card) as page:
        page.add(Row("bad", status="not_assessed", reason="empty"))
    assert "No image could be assessed" in (tmp_path / "r" / "index.html").read_text(encoding="utf-8")


def test_identifiers_only_where_they_are_given(tmp_path: Path) -> None:
    with Page(tmp_path / "r", {}) as page:
        page.add(row("a", identifiers={"PatientID": "CANARY-1"}))
        page.add(row("b"))
    seen = Seen((tmp_path / "r" / "index.html").read_text(encoding="utf-8"))
    assert seen.text.count("CANARY-1") == 1


def test_paper_is_no_narrow_screen() -> None:
    style = environment().get_template("page.css").render()
    assert "@media print" in style
    assert "@media (max-width" not in style


CHROMIUM = next((found for found in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if found), None)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium")
def test_a_browser_runs_it_without_errors_or_requests(tmp_path: Path) -> None:
    make(tmp_path / "r", [row(f"{i}.png", 1.0, score=float(i)) for i in range(4)], inline=4)
    quiet = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update --disable-sync"
    log = tmp_path / "net.json"
    done = subprocess.run(
        [
            str(CHROMIUM),
            *quiet.split(),
            f"--user-data-dir={tmp_path / 'profile'}",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            "--enable-logging=stderr",
            "--virtual-time-budget=3000",
            f"--log-net-log={log}",
            "--dump-dom",
            (tmp_path / "r" / "index.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0
    assert "CONSOLE" not in done.stderr
    assert "4 shown" in done.stdout
    assert '<div class="controls" id="controls">' in done.stdout
    page_origin = tmp_path.as_uri()
    asked = set(re.findall(r'"(?:url|initiator)":"(https?://[^"]+)"', log.read_text(errors="replace")))
    assert not [url for url in asked if "google" not in url and "gstatic" not in url], page_origin
