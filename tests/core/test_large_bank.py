"""A bank larger than memory: nearest neighbours read it chunk by chunk from a mapped file, in memory that does not grow with it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from offmap.core.neighbours import k_nearest, kth_distance

CODE = """
import sys
import numpy as np, torch
from offmap.core.neighbours import kth_distance

def private():
    return sum(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon"))

rows, width = int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(1)
bank = torch.from_numpy(np.memmap(sys.argv[1], dtype=np.float32, mode="c", shape=(rows, width)))
queries = torch.randn(300, width, generator=torch.Generator().manual_seed(0))
kth_distance(queries, bank[:4096], 5, query_chunk=128, bank_chunk=1024)
before = private()
kth_distance(queries, bank, 5, query_chunk=128, bank_chunk=1024)
print(private() - before)
"""
"""Prints by how many KB the process's own memory grows; pages of a mapped file that are only read belong to the file."""


def mapped(path: Path, rows: int, width: int) -> Tensor:
    """A bank in a file, written in parts."""
    rng = np.random.default_rng(0)
    with path.open("wb") as file:
        for first in range(0, rows, 4096):
            file.write(rng.standard_normal((min(4096, rows - first), width), dtype=np.float32).tobytes())
    return torch.from_numpy(np.memmap(path, dtype=np.float32, mode="c", shape=(rows, width)))


def test_a_mapped_bank_gives_what_one_in_memory_does(tmp_path: Path) -> None:
    bank = mapped(tmp_path / "bank.bin", 5000, 16)
    queries = torch.randn(40, 16, generator=torch.Generator().manual_seed(1))
    expected = torch.cdist(queries.double(), bank.double()).topk(7, largest=False)
    for exact in (True, False):
        distances, index = k_nearest(queries, bank, 7, exact=exact, query_chunk=16, bank_chunk=512)
        torch.testing.assert_close(distances.double(), expected.values, rtol=1e-4, atol=1e-6)
        assert torch.equal(index, expected.indices)
    last = kth_distance(queries, bank, 7, query_chunk=16, bank_chunk=512)
    torch.testing.assert_close(last.double(), expected.values[:, -1], rtol=1e-4, atol=1e-6)


def test_copies_of_the_bank_are_at_distance_zero_however_it_is_found() -> None:
    bank = torch.randn(300, 8, generator=torch.Generator().manual_seed(2)) + 100
    assert float(kth_distance(bank, bank, 1).max()) == 0
    assert float(k_nearest(bank, bank, 3, exact=False)[0][:, 0].max()) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_bank(tmp_path: Path) -> None:
    rows, width = 65_536, 512
    mapped(tmp_path / "bank.bin", rows, width)
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path / "bank.bin"), str(rows), str(width)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 20_000 < rows * width * 4 / 1024
