"""The page of a fit: live, complete, ended early, and never in the place of another's."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offmap.core.errors import ConfigError
from offmap.report.fitting import FitPage
from offmap.report.histogram import Histogram

PICTURE = "data:image/png;base64,AAAA"
SCORES = Histogram(np.linspace(0.0, 1.0, 30))


def train(done: int, loss: float, **more: Any) -> dict[str, Any]:
    return {"event": "train", "done": done, "total": 4000, "loss": loss, "held_out_loss": loss + 0.1, **more}


def test_it_grows_with_the_training_and_is_replaced_by_the_card(tmp_path: Path) -> None:
    told: list[dict[str, Any]] = []
    page = tmp_path / "r" / "index.html"
    with FitPage(tmp_path / "r", "vae") as fit:
        assert "reading images" in page.read_text()
        watch = fit.watching(told.append)
        assert watch is not None
        watch({"event": "train", "done": 0, "total": None})
        assert "checkpoint" not in page.read_text()
        watch(train(250, 3.0))
        assert "At the first checkpoint: Loss 3, Loss on unseen images 3.1. The curves begin at the second one." in page.read_text()
        watch(train(500, 2.0, drawn_anomalies_auroc=0.7))
        live = page.read_text()
        assert "training, step 500 of 4,000" in live
        assert 'http-equiv="refresh"' in live
        assert live.count("<polyline") == 2
        assert "first checkpoint" not in live
        watch(train(10, 1.0, what="codec"))
        assert "training the codec, step 10" in page.read_text()
        watch({"event": "fit", "done": 0, "total": 1})
        fit.close({"recipe": "vae", "warnings": ["few"]}, SCORES, [(PICTURE, "Above <i>; below")])
    last = page.read_text()
    assert "refresh" not in last
    assert "<polyline" not in last
    assert PICTURE in last
    assert "Above &lt;i&gt;; below" in last
    assert "keep this page as you keep them" in last
    assert len(told) == 5
    assert [p.name for p in page.parent.iterdir()] == ["index.html"]


def test_without_pictures_nothing_is_said_of_them(tmp_path: Path) -> None:
    with FitPage(tmp_path, "standard") as fit:
        fit.close({"recipe": "standard"}, SCORES, [])
    assert "images of your data" not in (tmp_path / "index.html").read_text()


def test_a_fit_that_breaks_says_so_and_stops_looking(tmp_path: Path) -> None:
    def broken() -> None:
        with FitPage(tmp_path, "vae") as fit:
            watch = fit.watching(None)
            assert watch is not None
            watch(train(250, 3.0))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        broken()
    left = (tmp_path / "index.html").read_text()
    assert "The fit ended early" in left
    assert "training, step 250 of 4,000" in left
    assert "refresh" not in left


def test_no_folder_no_page_and_a_foreign_page_is_spared(tmp_path: Path) -> None:
    with FitPage(None, "vae") as fit:
        assert fit.watching(None) is None
        fit.close({}, SCORES, [])
    (tmp_path / "index.html").write_text("mine")
    with pytest.raises(ConfigError, match="not written by offmap"):
        FitPage(tmp_path, "vae")
    assert (tmp_path / "index.html").read_text() == "mine"
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        FitPage(tmp_path / "file", "vae")
    (tmp_path / "page" / "index.html").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"index\.html' is a folder"):
        FitPage(tmp_path / "page", "vae")
