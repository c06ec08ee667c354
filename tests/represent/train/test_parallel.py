"""Two processes train the network that one would."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.represent.train.test_diffusion import PLAN, blobs

from offmap.represent.train.diffusion import train_diffusion
from offmap.represent.train.parallel import Crew, joined

pytest.importorskip("monai", reason="needs the extra [generative]")
pytest.importorskip("einops", reason="needs the extra [generative]")

SCRIPT = """
import sys
from pathlib import Path
import torch
from tests.represent.train.test_diffusion import PLAN, blobs
from offmap.represent.diffusion import DiffusionEncoder
from offmap.represent.train.diffusion import train_diffusion
from offmap.represent.train.parallel import Crew, joined

torch.set_num_threads(1)
with joined("cpu") as device:
    found = train_diffusion(blobs(), PLAN, out=Path(sys.argv[1]), device=device)
    assert Crew.present().size == 2
    if Crew.present().rank == 0:
        DiffusionEncoder(found.net, PLAN.size).save(Path(sys.argv[1]) / "model")
"""


@pytest.mark.slow
def test_two_processes_train_the_network_that_one_would(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    root = Path(__file__).resolve().parents[3]
    known = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    known |= {"PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}"}
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(tmp_path)],
            env={**os.environ, **known, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    told = [run.communicate(timeout=240)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], told
    losses: list[float] = []
    alone = train_diffusion(blobs(), PLAN, progress=lambda now: losses.append(now.loss))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines] == pytest.approx(losses, rel=1e-3)
    from safetensors.torch import load_file

    together = load_file(tmp_path / "model" / "model.safetensors")
    assert all(torch.allclose(v, together[k], atol=1e-3) for k, v in alone.net.state_dict().items())


def test_a_process_alone_is_the_whole_crew() -> None:
    with joined("cpu") as device:
        assert (device, Crew.present()) == ("cpu", Crew(0, 1))
    assert torch.equal(Crew(1, 2).part(torch.arange(5)), torch.tensor([1, 3]))
    assert Crew().mean(3.0, torch.device("cpu")) == 3.0
    assert PLAN.batch % 2 == 0
