"""The hidden states of a language model, which its forward does not return."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from vilavt_toolkit.contracts import LanguageModel


@contextmanager
def hidden_states(language_model: LanguageModel) -> Iterator[list[Tensor]]:
    """Collect the last hidden states [B, L, D] of every forward inside, as they go into the head."""
    seen: list[Tensor] = []
    hook = language_model.head.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        yield seen
    finally:
        hook.remove()
