"""Limits of the machine that a program may meet: open files, memory, threads, disk space, told in a sentence."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from vilavt_toolkit.errors import LimitError, VilavtError

_MEMORY_WORDS = ("can't allocate memory", "could not create a primitive")


@contextmanager
def explained_limits(section: str = "") -> Iterator[None]:
    """Raise LimitError in place of an error that is a limit of the machine; `section` is the recipe's that runs."""
    try:
        yield
    except (OSError, MemoryError, RuntimeError, VilavtError) as error:
        if limit := describe_limit(error, section):
            raise LimitError(limit) from error
        raise


def describe_limit(error: BaseException, section: str = "") -> str | None:
    """Return what to do if an error is a limit of the machine, or comes from one on open files, else None."""
    has_workers = section == "train"
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in (errno.EMFILE, errno.ENFILE):
            fewer = ", or lower train.workers" if has_workers else ""
            return f"more files have to be open{_format_file_limit()}. Raise the limit with `ulimit -n 4096`{fewer}."
        seen = seen.__cause__ or seen.__context__
    # A sentence for a user, which may name the sample that is too large, is left as it is.
    if isinstance(error, VilavtError):
        return None
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full{f' at {error.filename}' if error.filename else ''}. Free some space."
    if _is_memory_limit(error):
        remedy = "Free some"
        if section:
            rows = f"{section}.micro_batch{',' if has_workers else ' or'} {section}.pack_tokens"
            remedy = f"Lower {rows}{' or train.workers' if has_workers else ''}"
        return f"there is not enough memory. {remedy}."
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return "a thread cannot be started. Free memory, or raise the limit with `ulimit -u`."
    return None


def _is_memory_limit(error: BaseException) -> bool:
    # On a GPU torch raises a class of its own, which is told by its name since torch takes seconds to import.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    # On the CPU it raises a plain RuntimeError, in its own words or in oneDNN's.
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _MEMORY_WORDS)


def _format_file_limit() -> str:
    # The module is missing where there is no such limit.
    with suppress(ImportError):
        import resource

        return f" than the {resource.getrlimit(resource.RLIMIT_NOFILE)[0]} that this process may open"
    return ""
