"""The errors a user can cause, each one sentence that names the thing and says what to do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar


class VilavtError(Exception):
    """A failure the user can mend; the command line prints no traceback and exits with `exit_code`."""

    exit_code: ClassVar[int] = 1

    def report(self) -> str:
        """Return the error as the command line prints it: class name and message, then any notes."""
        return "\n".join([f"{type(self).__name__}: {self}", *getattr(self, "__notes__", ())])


class UsageError(VilavtError):
    """A command, argument or recipe that cannot be meant."""

    exit_code = 2


class UnknownName(UsageError):
    """A name that no component, kind or recipe has."""


class BadConfig(UsageError):
    """A key that does not exist, is missing, or has a value of the wrong type or range."""


class BadRecipe(UsageError):
    """A recipe, or a plugin it asks for, that cannot be found or read."""


class DuplicateName(UsageError):
    """Two components registered under one name."""


class RecipeErrors(UsageError):
    """Everything that is wrong with a recipe, at once."""

    def __init__(self, errors: Iterable[VilavtError]) -> None:
        self.errors: tuple[VilavtError, ...] = tuple(errors)
        super().__init__("\n".join(error.report() for error in self.errors))

    def report(self) -> str:
        """Return the reports of all errors, one after the other."""
        return "\n".join([str(self), *getattr(self, "__notes__", ())])


class InputError(VilavtError):
    """A file or question that cannot be used: an image, a tokenizer, weights."""


class MissingWeights(InputError):
    """What only its weights tell of a checkpoint, of which but the descriptions are here."""


class RunError(VilavtError):
    """A run folder that cannot be used."""


class TrainingError(VilavtError):
    """Training that cannot go on."""


def error_of(what: str, error: Exception) -> Exception:
    """An error with what it is of; what is a fault of the code stays what it is, with a note."""
    if isinstance(error, VilavtError):
        return type(error)(f"{what}: {error}")
    error.add_note(f"while {what} was asked")
    return error
