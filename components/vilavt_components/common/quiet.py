"""transformers without its advice, where what it remarks on is meant."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def quietly() -> Iterator[None]:
    """Keep transformers' warnings from the user; errors are raised all the same.

    It remarks on ViLaVT's model type, which it does not know, and on rotary settings of three axes, which it reads.
    """
    from transformers.utils import logging as untyped

    logging: Any = untyped
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
