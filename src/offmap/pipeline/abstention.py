"""The user's risk limit: a rule of abstention that `offmap evaluate` found for a gate, read back and applied to one image."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offmap.core.component import nearest
from offmap.core.errors import ConfigError
from offmap.pipeline.inputs import PathLike
from offmap.report.answer import COLUMNS, Believed
from offmap.report.row import Row

if TYPE_CHECKING:
    from offmap.pipeline.gate import Gate

FILE = "abstention.json"
METHOD = "learn_then_test"
DIRECTIONS = ("above", "below", "always", "never")
_LARGEST = 64 * 2**20


@dataclass(frozen=True, slots=True)
class RiskLimit:
    """A rule of one evaluation.

    Args:
        column: of the score table: ``max_probability``, ``negative_entropy``, ``score`` or ``score.<name>``.
        accepted: ``above`` or ``below`` the limit, ``always`` or ``never``.
        limit: of the column; 0 where it is not needed.
        rule, promise: in words.
        risk, probability, coverage: of the promise.
    """

    column: str
    accepted: str
    limit: float
    rule: str
    promise: str
    risk: float
    probability: float
    coverage: float

    def on(self, row: Row) -> Row:
        """The row, its answer with the decision of this rule; an answer that is not finite is never believed."""
        if row.answer is None:
            return row
        value = _value(self.column, row)
        sure = value is not None and row.answer.finite
        kept = {"above": (value or 0.0) > self.limit, "below": (value or 0.0) < self.limit, "always": True, "never": False}[self.accepted]
        promised = self.rule, self.promise, self.risk, self.probability, self.coverage
        found = Believed(not (sure and kept), self.column, value, *promised, never=self.accepted == "never")
        return replace(row, answer=replace(row.answer, believed=found))


def read(gate: "Gate", evaluation: PathLike, column: str = "") -> RiskLimit:
    """The rule of an evaluation for this gate.

    Args:
        evaluation: the folder that `offmap evaluate --gate` wrote, or its ``abstention.json``.
        column: which number decides; ``max_probability`` where the evaluation has it, else ``score``, when empty.

    Raises:
        ConfigError: no such file, damaged, of another gate or of none, without this column, or the gate has no classifier.
    """
    from offmap.pipeline.answers import signal_of

    if not signal_of(gate.encoder):
        raise ConfigError(
            f"abstain: this gate is on {gate.encoder.name}, which is no classifier of two classes or more, so there is no answer to "
            "believe or not. Fit a gate on the classifier itself (--encoder classifier:FILE, or a module from Python)"
        )
    place = Path(evaluation)
    path = place / FILE if place.is_dir() else place
    content = _content(path)
    _same_gate(gate, content, path)
    rules = _rules(content, path)
    known = ("max_probability", "negative_entropy", "score", *(f"score.{name}" for name in gate.recipe.parts))
    usable = [name for name in known if name in rules]
    chosen = column or next(iter(name for name in ("max_probability", "score") if name in rules), "")
    if chosen not in usable:
        asked = f"has no rule for {chosen!r}{nearest(chosen, usable)}" if chosen else "has no rule for a number that the gate gives"
        raise ConfigError(
            f"{path} {asked}. Its columns: {', '.join(rules) or 'none'}; this gate gives: {', '.join(known)}. Choose one with --abstain-by"
        )
    return rules[chosen]


def _content(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError("too large")
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file; give the folder that `offmap evaluate --gate GATE --out DIR` wrote") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is damaged or no file of `offmap evaluate` ({type(error).__name__}); evaluate again") from None
    if not isinstance(content, Mapping) or not isinstance(content.get("rules"), list):
        raise ConfigError(f"{path} is damaged or no file of `offmap evaluate` (it has no list of rules); evaluate again")
    return content


def _same_gate(gate: "Gate", content: Mapping[str, Any], path: Path) -> None:
    named = content.get("gate")
    found = named.get("id") if isinstance(named, Mapping) else None
    if not isinstance(found, str):
        raise ConfigError(
            f"{path} does not say of which gate it is, so its limits cannot be trusted here; evaluate again with --gate and this gate"
        )
    if found != gate.id:
        raise ConfigError(
            f"{path} was made for the gate {found[:80]}, this is {gate.id}: its limits mean nothing here. Evaluate this gate's own scores"
        )


def _rules(content: Mapping[str, Any], path: Path) -> dict[str, RiskLimit]:
    """By column."""
    out = {}
    for i, rule in enumerate(content["rules"]):
        try:
            if rule["method"] != METHOD:
                continue
            accepted, limit = str(rule["accepted"]), rule["limit"]
            numbers = [float(rule[key]) for key in ("guaranteed_risk", "probability", "coverage")]
            number = float(limit) if accepted in ("above", "below") else 0.0
            if accepted not in DIRECTIONS or not math.isfinite(number) or not all(0 <= x <= 1 for x in numbers):
                raise ValueError("a value is out of range")
            name = str(rule["confidence"])
            out[name] = RiskLimit(name, accepted, number, str(rule["accepts"]), str(rule["promise"]), *numbers)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"{path} is damaged: rule {i} lacks or garbles {error}; evaluate again with this version") from None
    return out


def _value(column: str, row: Row) -> float | None:
    if column in COLUMNS:
        found: float | None = getattr(row.answer, column)
        return found
    if column == "negative_entropy":
        entropy = None if row.answer is None else row.answer.entropy
        return None if entropy is None else -entropy
    return row.score if column == "score" else row.parts.get(column.removeprefix("score."))
