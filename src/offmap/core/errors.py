"""Every error that offmap raises on purpose.

OODError
 |- ConfigError         a recipe, an option or an argument is wrong             exit 2
 |- SignalError         signals lack a name, a shape or finite values           exit 2
 |- NotAvailableError   an optional package or a download is missing            exit 2
 |- ReadError           one file cannot be assessed; carries the reason code    (a row, never an exit)
 |- DataError           nothing usable is left to fit or score                  exit 3
 |- BundleError         a gate is damaged, forged, foreign or too new           exit 4

A message names the thing, the value, the row or file, and the way out. It never holds patient data.
"""

from typing import ClassVar


class OODError(Exception):
    """Base of all errors raised on purpose by offmap."""

    exit_code: ClassVar[int] = 2


class ConfigError(OODError):
    """A recipe, an option or an argument is wrong."""


class SignalError(OODError):
    """Signals lack a name, have a wrong shape, or are not finite."""


class NotAvailableError(OODError):
    """An optional package, file or download is missing."""


class ReadError(OODError):
    """One file cannot be assessed.

    Args:
        reason: code for the score table, one of ``offmap.core.types.REASONS``.
        message: a sentence for people, without patient data.
    """

    exit_code = 3

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class DataError(OODError):
    """Nothing usable is left to fit or to score."""

    exit_code = 3


class BundleError(OODError):
    """A gate is damaged, forged, foreign or of a newer format."""

    exit_code = 4
