"""What every test shares: few threads, and a cache of its own."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests neither read nor fill the user's cache."""
    os.environ["OFFMAP_CACHE"] = str(Path(tmp_path_factory.mktemp("cache")))
