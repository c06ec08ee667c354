"""``torchrun -m offmap fit``: all processes train, the first one makes the gate."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.pipeline.conftest import write
from tests.pipeline.test_resume import SHORT, StopError, command, facts, until

import offmap
from offmap.core.errors import ConfigError
from offmap.pipeline.resumable import beside
from offmap.represent.train.parallel import Crew

pytest.importorskip("monai", reason="needs the extra [generative]")


@pytest.mark.slow
def test_two_processes_go_on_with_a_training_and_make_the_gate_of_one(tmp_path: Path) -> None:
    discs, out = write(tmp_path / "discs", 60), tmp_path / "gate"
    with pytest.raises(StopError):
        offmap.fit(discs, recipe="vae", settings=SHORT, jobs=0, training=beside(out), progress=until(4))
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "offmap"]
    known = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run([*start, *command(discs, out, SHORT, "--resume", "--device", "cpu")], capture_output=True, text=True, env=known)
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("Gate: ") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["discs", "gate"]
    found, alone = offmap.load(out), offmap.fit(discs, recipe="vae", settings=SHORT, jobs=0)
    for key, value in facts(alone).items():
        if key == "sheets":
            continue
        expected = pytest.approx(value, rel=2e-3, abs=1e-3) if isinstance(value, list) else value
        assert facts(found)[key] == expected, key
    rows = [gate.score(discs, jobs=0, use_cache=False).rows for gate in (found, alone)]
    for part in ("score.complexity", "score.reconstruction", "score.dose"):
        np.testing.assert_allclose(*([row[part] for row in some] for some in rows), rtol=5e-3, atol=1e-3)


def test_what_does_not_train_in_step_is_refused_before_a_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Crew, "present", lambda: Crew(0, 2))
    nothing = tmp_path / "nothing"
    with pytest.raises(ConfigError, match="recipe 'standard' trains no network: start one process instead of 2"):
        offmap.fit(nothing)
    with pytest.raises(ConfigError, match="train:multi_exit is trained in one process: start one process instead of 2"):
        offmap.fit(nothing, recipe="mecam")
    with pytest.raises(ConfigError, match=r"a batch that they can share \(batch = 7\)"):
        offmap.fit(nothing, recipe="vae", settings={"train.batch": "7"})
    with pytest.raises(ConfigError, match="give steps and no minutes"):
        offmap.fit(nothing, recipe="vae", settings={"train.minutes": "1"})
