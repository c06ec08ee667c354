"""The contract of a detector, check by check."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from offmap.core.component import nearest
from offmap.core.detector import Detector
from offmap.core.errors import ConfigError
from offmap.testing import declaration, refusal, scoring, surviving
from offmap.testing.subject import Check, ContractError, Subject
from offmap.testing.world import FakeEncoder, World

CHECKS: Mapping[str, Check] = MappingProxyType(
    {check.__name__: check for module in (declaration, scoring, refusal, surviving) for check in module.CHECKS}
)
"""Every check of a detector by name; the first line of its docstring says what it demands."""


def check_detector(
    detector: type[Detector] | Detector, *, world: World | None = None, only: Sequence[str] = (), device: str | None = None
) -> None:
    """Try a detector against the contract that every method of offmap keeps.

    Args:
        detector: the class (its defaults are tried) or an instance.
        world: where its signals come from; a fake encoder with features, maps and a head if not given. The checks of few
            images, one dimension and the like run on variants of the fake encoder, and only where none is given.
        only: names of checks to run; all of ``CHECKS`` if empty.
        device: further device to try, such as ``cuda``.

    Raises:
        ContractError: one or more checks failed; the message lists each with what was expected.
        ConfigError: ``only`` names a check that does not exist.
    """
    unknown = [name for name in only if name not in CHECKS]
    if unknown:
        raise ConfigError(f"there is no check {unknown[0]!r}{nearest(unknown[0], list(CHECKS))}. There are: {', '.join(CHECKS)}")
    made = detector() if isinstance(detector, type) else detector
    subject = Subject(made, world or FakeEncoder(), own=world is not None, device=device)
    broken = [problem for name in (only or CHECKS) for problem in _problems(CHECKS[name], subject)]
    if broken:
        raise ContractError(f"{made.method()} breaks the contract of a detector:\n" + "\n".join(broken))


def _problems(check: Check, subject: Subject) -> list[str]:
    try:
        check(subject)
    except ContractError as error:
        return [f"  {check.__name__}: {error}"]
    except Exception as error:  # an author wants every broken check listed, whatever it raised
        return [f"  {check.__name__}: {type(error).__name__}: {error}"]
    return []
