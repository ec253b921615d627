"""Errors that a user can cause. Each message names the thing that is wrong and ends in what to do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

INTERRUPTED = 130
"""Exit code of a command that Ctrl-C ended, 128 + SIGINT as shells have it."""
BROKEN_PIPE = 141
"""Exit code of a command whose output nobody reads to its end, 128 + SIGPIPE."""
TERMINATED = 143
"""Exit code of a command that SIGTERM ended, 128 + SIGTERM."""


_MOST_SHOWN = 50
"""Errors of a recipe that are printed."""


class VilavtError(Exception):
    """A failure that the user can correct. The command line prints no traceback and exits with `exit_code`."""

    exit_code: ClassVar[int] = 1

    def report(self) -> str:
        """Return the error as the command line prints it: class name and message, then any notes."""
        return "\n".join([f"{type(self).__name__}: {self}", *getattr(self, "__notes__", ())])


class UsageError(VilavtError):
    """A command, an argument or a recipe that makes no sense."""

    exit_code = 2


class UnknownName(UsageError):
    """A name that no component, kind or recipe has."""


class BadConfig(UsageError):
    """A key that does not exist, is missing, or has a value of the wrong type or range."""


class MissingPackage(BadConfig):
    """A component that a recipe names needs software that is not here."""


class BadRecipe(UsageError):
    """A recipe, or a plugin that it names, that cannot be found or read."""


class UntrustedPlugins(UsageError):
    """Code that a checkpoint brings and that its user has neither run before nor allowed."""


class DuplicateName(UsageError):
    """Two components registered under one name."""


class RecipeErrors(UsageError):
    """All errors of a recipe at once."""

    def __init__(self, errors: Iterable[VilavtError]) -> None:
        self.errors: tuple[VilavtError, ...] = tuple(errors)
        shown = [error.report() for error in self.errors[:_MOST_SHOWN]]
        more = len(self.errors) - len(shown)
        super().__init__("\n".join([*shown, *([f"... and {more} more errors."] if more else [])]))

    def report(self) -> str:
        """Return the reports of all errors, one after the other."""
        return "\n".join([str(self), *getattr(self, "__notes__", ())])


class InputError(VilavtError):
    """A file or question that cannot be used: an image, a tokenizer, weights."""


class MissingWeights(InputError):
    """A question about a checkpoint that only its weights answer, while only its config files are available."""


class RunError(VilavtError):
    """A run folder that cannot be used."""


class LimitError(VilavtError):
    """A limit of the machine: on open files, memory, threads or disk space."""


class TrainingError(VilavtError):
    """Training that cannot continue."""


def add_context(what: str, error: Exception) -> Exception:
    """Return an error that says what it belongs to, `what`.

    A user's error gets it in its message. Any other error is a bug: it keeps its type and traceback, and gets a note.
    """
    if isinstance(error, VilavtError):
        return type(error)(f"{what}: {error}")
    error.add_note(f"while {what} was asked")
    return error
