"""Foreign `.pt`, `.pth` and `.bin` weights become safetensors, in a process of their own with limits.

Such files are pickles. torch's restricted unpickler (``weights_only=True``) was got round more than once (CVE-2025-32434,
CVE-2026-24747), hence the separate process; a file that is not trusted at all should not be imported at all.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from offmap.core.errors import ConfigError, NotAvailableError

WITHIN = ("state_dict", "model_state_dict", "model", "module", "net", "weights", "teacher", "student")
"""Keys of a training checkpoint under which the weights lie."""

SECONDS = 600.0
"""Time limit of the reading process."""

MEMORY = 2 << 30
"""Bytes that the reading process may take beside four times the size of the file."""


def import_weights(src: Path, out: Path, *, seconds: float = SECONDS) -> Mapping[str, tuple[int, ...]]:
    """Write the tensors of a foreign file as safetensors.

    Only named tensors are kept; the prefix ``module.`` of parallel training is taken off.

    Args:
        src: a file of `torch.save`.
        out: the safetensors file to write; replaced only when everything went well.
        seconds: time limit.

    Returns:
        Shapes by name.

    Raises:
        NotAvailableError: there is no such file.
        ConfigError: the file needs code to load, holds no tensors or not finite ones, or goes beyond the limits.
    """
    if not src.is_file():
        raise NotAvailableError(f"{src}: there is no such file")
    if out.suffix != ".safetensors":
        raise ConfigError(f"{out} must end in .safetensors")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".import-") as folder:
        made = Path(folder) / "weights.safetensors"
        shapes = _in_a_process(src, made, seconds)
        os.replace(made, out)
    return shapes


def _in_a_process(src: Path, made: Path, seconds: float) -> dict[str, tuple[int, ...]]:
    command = [sys.executable, "-m", "offmap.represent.import_weights", str(src.resolve()), str(made.resolve())]
    try:
        done = subprocess.run(command, capture_output=True, timeout=seconds, check=False, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"{src} took longer than {seconds:g} seconds to read") from error
    try:
        answer = json.loads(done.stdout)
    except ValueError as error:
        raise ConfigError(
            f"{src} was not read: the reading process ended with code {done.returncode} (damaged, or beyond its memory limit)"
        ) from error
    if "error" in answer:
        raise ConfigError(f"{src} {answer['error']}")
    return {name: tuple(shape) for name, shape in answer["shapes"].items()}


def _main(src: Path, made: Path) -> dict[str, Any]:
    import torch
    from safetensors.torch import save_file

    _limit(4 * src.stat().st_size + MEMORY)
    try:
        content = torch.load(src, map_location="cpu", weights_only=True)  # the one place; noqa: house
    except MemoryError:
        return {"error": "does not fit into the memory limit"}
    except Exception as error:
        kind = type(error).__name__
        return {"error": f"needs code to load, or is damaged ({kind}): ask its authors for safetensors, or save its state_dict alone"}
    for key in WITHIN:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping):
        return {"error": f"holds a {type(content).__name__}; a mapping of names to tensors expected"}
    tensors = {str(k).removeprefix("module."): v for k, v in content.items() if isinstance(v, torch.Tensor)}
    if not tensors:
        return {"error": f"holds no tensors under its keys {', '.join(map(str, list(content)[:8])) or '(none)'}"}
    odd = [k for k, v in tensors.items() if v.layout != torch.strided or v.is_quantized or v.is_complex()]
    bad = [k for k, v in tensors.items() if k not in odd and v.is_floating_point() and not bool(torch.isfinite(v).all())]
    if odd or bad:
        return {
            "error": f"holds sparse, quantised or complex tensors: {', '.join(odd[:4])}"
            if odd
            else f"holds values that are not finite: {', '.join(bad[:4])}"
        }
    save_file({k: v.detach().clone().contiguous() for k, v in tensors.items()}, made)
    return {"shapes": {k: list(v.shape) for k, v in tensors.items()}}


def _limit(further: int) -> None:
    """Bound the address space at what is taken now and ``further`` bytes; only where the system can."""
    try:
        import resource

        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + further, taken + further))
    except (ImportError, OSError, ValueError):
        return


if __name__ == "__main__":
    print(json.dumps(_main(Path(sys.argv[1]), Path(sys.argv[2]))))
