"""A way to silence transformers' warnings where we do on purpose what it warns about."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' warnings inside; errors are still raised.

    It warns about ViLaVT's model type, which it does not know, and about rotary settings of three axes, which it reads.
    """
    from transformers.utils import logging as untyped

    # The verbosity is global: it is put back even if the code inside raises.
    logging: Any = untyped
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
