"""What a network is built from, as JSON values in a gate's description."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, ClassVar, TypeVar

from offmap.core.errors import ConfigError

A = TypeVar("A", bound="Architecture")


class Architecture:
    """Base of the frozen dataclasses that describe a network; fields are numbers, words, and tuples of numbers."""

    what: ClassVar[str]
    """The network in words, for messages."""

    added: ClassVar[Mapping[str, Any]] = {}
    """Fields that came later, with the value under which they are left out, so that older networks keep their digest."""

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}  # type: ignore[call-overload]
        return {k: v for k, v in values.items() if k not in self.added or v != self.added[k]}

    @classmethod
    def from_json(cls: type[A], values: Mapping[str, Any]) -> A:
        """The inverse of ``to_json``.

        Raises:
            ConfigError: unknown keys, wrong types, or values out of range.
        """
        try:
            return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
        except (TypeError, AttributeError) as error:
            raise ConfigError(f"the description of the {cls.what} makes no sense: {error}") from error
