"""Checks of what a detector says of itself."""

import dataclasses
import inspect
import json

from offmap.core.detector import Detector
from offmap.core.errors import ConfigError
from offmap.testing.subject import Check, Subject, demand


def is_frozen(subject: Subject) -> None:
    """A detector is a frozen dataclass, so it can be shared between threads."""
    cls = type(subject.detector)
    frozen = dataclasses.is_dataclass(cls) and cls.__dataclass_params__.frozen
    demand(frozen, "write @dataclass(frozen=True, kw_only=True) above the class")


def parameters_survive_json(subject: Subject) -> None:
    """Hyper-parameters are JSON values from which an equal detector is built."""
    detector = subject.detector
    text = json.dumps(detector.params(), allow_nan=False)
    again = type(detector).from_params(json.loads(text))
    demand(again == detector, f"from_params of {text} gives {again!r} instead of {detector!r}")


def unknown_parameter_is_refused(subject: Subject) -> None:
    """A mistyped parameter is refused with the nearest name, not ignored."""
    known = [f.name for f in dataclasses.fields(subject.detector)]  # type: ignore[arg-type]
    wrong = f"{known[0]}s_" if known else "nonsense_"
    try:
        type(subject.detector).from_params({wrong: 1})
    except ConfigError as error:
        demand(not known or known[0] in str(error), f"the message does not name {known[0] if known else ''!r}: {error}")
    else:
        demand(False, f"from_params accepted the unknown parameter {wrong!r}")


def is_documented(subject: Subject) -> None:
    """The docstring explains every parameter, and ``reference`` names the source."""
    cls: type[Detector] = type(subject.detector)
    text = inspect.cleandoc(cls.__doc__ or "")
    demand(len(text) > 80 and not text.startswith(f"{cls.__name__}("), "the class has no docstring")
    demand(bool(cls.reference), "the class variable reference is empty: author et al., venue year, arXiv or DOI")
    _, _, entries = text.partition("Args:")
    for field in dataclasses.fields(subject.detector):  # type: ignore[arg-type]
        demand(f"\n    {field.name}:" in entries, f"the docstring has no entry for {field.name!r} under Args:")


def states_its_passes(subject: Subject) -> None:
    """``passes`` says what scoring an image costs, such as 1F, 2F+1B, S·F."""
    passes = type(subject.detector).passes
    demand("F" in passes or "B" in passes, f"passes = {passes!r} names neither F (forward) nor B (backward)")


CHECKS: tuple[Check, ...] = (is_frozen, parameters_survive_json, unknown_parameter_is_refused, is_documented, states_its_passes)
