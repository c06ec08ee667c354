"""Two processes train the network that one would."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.conformance.test_trainers import trained
from tests.conformance.trainers import TRAINERS, tiny
from tests.represent.train.test_diffusion import PLAN, blobs

from offmap.core.errors import ConfigError
from offmap.represent.train.diffusion import train_diffusion
from offmap.represent.train.parallel import Crew, joined
from offmap.represent.train.shared_norm import SharedNorm, share_norms

pytest.importorskip("monai", reason="needs the extra [generative]")
pytest.importorskip("einops", reason="needs the extra [generative]")

ROOT = Path(__file__).resolve().parents[3]

DIFFUSION = """
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

EVERY = """
import sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from tests.conformance.test_trainers import trained
from tests.conformance.trainers import TRAINERS, tiny
from offmap.core.errors import ConfigError
from offmap.represent.train.parallel import Crew, joined

torch.set_num_threads(1)
with joined("cpu") as device:
    for name in TRAINERS:
        try:
            found = trained(tiny(name), Path(sys.argv[1]) / name)
        except ConfigError as error:
            assert not TRAINERS[name].in_step, error
            continue
        assert TRAINERS[name].in_step, name
        save_file(found.state, Path(sys.argv[1]) / f"{name}.{Crew.present().rank}.safetensors")
    Crew.present().leave(torch.device("cpu"))
assert Crew.present().size == 1
(Path(sys.argv[1]) / "first").touch()
"""

FAILING = """
import os
from offmap.represent.train.parallel import joined
import torch
from tests.conformance.test_trainers import trained
from tests.conformance.trainers import tiny
from offmap.represent.train import reconstruction

own = reconstruction._Run.step_loss

def failing(self, net, step):
    if os.environ["RANK"] == "1" and step == 2:
        os._exit(7)
    return own(self, net, step)

reconstruction._Run.step_loss = failing
with joined("cpu"):
    trained(tiny("dae"), None)
"""


def together(arguments: list[str], **options: Any) -> list[tuple[int, str]]:
    """Start Python twice as torchrun does; exit codes and what is said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    known = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    known |= {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    runs = [
        subprocess.Popen(
            [sys.executable, *arguments],
            env={**os.environ, **known, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    told = [run.communicate(timeout=240)[1] for run in runs]
    return list(zip([run.returncode for run in runs], told, strict=True))


@pytest.mark.slow
def test_two_processes_train_the_network_that_one_would(tmp_path: Path) -> None:
    told = together(["-c", DIFFUSION, str(tmp_path)])
    assert [code for code, _ in told] == [0, 0], told
    losses: list[float] = []
    alone = train_diffusion(blobs(), PLAN, progress=lambda now: losses.append(now.loss))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines] == pytest.approx(losses, rel=1e-3)
    found = load_file(tmp_path / "model" / "model.safetensors")
    assert all(torch.allclose(v, found[k], atol=1e-3) for k, v in alone.net.state_dict().items())


@pytest.mark.slow
def test_every_trainer_trains_in_step_or_refuses(tmp_path: Path) -> None:
    told = together(["-c", EVERY, str(tmp_path)])
    assert [code for code, _ in told] == [0, 0], told
    assert (tmp_path / "first").exists()
    assert [name for name in TRAINERS if not TRAINERS[name].in_step] == ["multi_exit"]
    for name, kind in TRAINERS.items():
        if not kind.in_step:
            continue
        alone = trained(tiny(name), tmp_path / f"{name}.alone").state
        first, second = (load_file(tmp_path / f"{name}.{rank}.safetensors") for rank in range(2))
        for key, value in first.items():
            assert torch.equal(value, second[key]), (name, key)
            torch.testing.assert_close(value, alone[key], rtol=1e-2, atol=5e-3, msg=lambda text, at=(name, key): f"{at}: {text}")
        for path in (tmp_path / name).rglob("log.jsonl"):
            logs = [path, tmp_path / f"{name}.alone" / path.relative_to(tmp_path / name)]
            losses = [[json.loads(line)["loss"] for line in log.read_text().splitlines()] for log in logs]
            assert losses[0] == pytest.approx(losses[1], rel=2e-3, abs=1e-4), (name, path.parent.name)


@pytest.mark.slow
def test_the_end_of_one_process_ends_the_other() -> None:
    (code, told), (other, _) = together(["-c", FAILING])
    assert (code, other) == (1, 7)
    assert "another of the 2 processes that train together has ended" in told


def test_a_process_alone_is_the_whole_crew() -> None:
    with joined("cpu") as device:
        assert (device, Crew.present()) == ("cpu", Crew(0, 1))
    with joined() as device:
        assert device == "auto"
    assert torch.equal(Crew(1, 2).part(torch.arange(5)), torch.tensor([1, 3]))
    whole = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Crew(1, 3).normal((2, 3), torch.Generator().manual_seed(0)), whole[1::3])
    assert Crew().mean(3.0, torch.device("cpu")) == 3.0
    Crew().leave(torch.device("cpu"))
    assert PLAN.batch % 2 == 0


def test_what_cannot_be_shared_is_refused() -> None:
    Crew().require_share(5, 1.0)
    Crew(0, 2).require_share(4, None)
    with pytest.raises(ConfigError, match=r"2 processes train in step.*batch = 5"):
        Crew(0, 2).require_share(5, None)
    with pytest.raises(ConfigError, match="give steps and no minutes"):
        Crew(0, 2).require_share(4, 1.0)


def test_a_shared_norm_is_that_of_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that both processes are given has the statistics of the two together."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(6, 3, 4, 5, generator=rng, requires_grad=True)
    plain, shared = torch.nn.BatchNorm2d(3), torch.nn.Sequential(torch.nn.BatchNorm2d(3))
    share_norms(shared)
    assert not isinstance(shared[0], SharedNorm)
    monkeypatch.setattr(Crew, "present", lambda: Crew(0, 2))
    monkeypatch.setattr(Crew, "shared", lambda self, value: value)
    share_norms(shared)
    assert isinstance(shared[0], SharedNorm)
    weights = torch.randn(x.shape, generator=rng)
    found = []
    for net, seen in ((plain, torch.cat([x, x])), (shared, x)):
        loss = (net(seen) * weights.repeat(len(seen) // len(x), 1, 1, 1)).sum() * len(x) / len(seen)
        found.append((net(seen)[: len(x)], *torch.autograd.grad(loss, [x, *net.parameters()])))
    for expected, given in zip(*found, strict=True):
        torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-5)
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(shared.state_dict()[f"0.{key}"], value)
    torch.testing.assert_close(shared.eval()(x), plain.eval()(x))
