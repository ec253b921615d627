"""Limits of the machine that a stage may meet: open files and memory, told in a sentence."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

from vilavt_toolkit.errors import TrainingError, VilavtError


@contextmanager
def explained_limits(section: str) -> Iterator[None]:
    """Raise TrainingError in place of an error that is a limit of the machine; `section` is the recipe's."""
    try:
        yield
    except (OSError, MemoryError, RuntimeError, VilavtError) as error:
        if limit := describe_limit(error, section):
            raise TrainingError(limit) from error
        raise


def describe_limit(error: BaseException, section: str) -> str | None:
    """Return what to do if an error, or one that it comes from, is a limit on open files or on memory, else None."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in (errno.EMFILE, errno.ENFILE):
            fewer = ", or lower train.workers" if section == "train" else ""
            return f"more files have to be open{_format_file_limit()}. Raise the limit with `ulimit -n 4096`{fewer}."
        seen = seen.__cause__ or seen.__context__
    # A sentence for a user, which may name the sample that is too large, is left as it is.
    if not isinstance(error, VilavtError) and _is_memory_limit(error):
        fewer = " or train.workers" if section == "train" else ""
        return f"there is not enough memory. Lower {section}.micro_batch{fewer}."
    return None


def _is_memory_limit(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # On the CPU torch raises a plain RuntimeError.
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def _format_file_limit() -> str:
    # The module is missing where there is no such limit.
    with suppress(ImportError):
        import resource

        return f" than the {resource.getrlimit(resource.RLIMIT_NOFILE)[0]} that this process may open"
    return ""
