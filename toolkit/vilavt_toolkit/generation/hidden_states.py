"""Hidden states of a language model, collected by a hook because its forward does not return them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from vilavt_toolkit.contracts import LanguageModel


@contextmanager
def collect_hidden_states(language_model: LanguageModel) -> Iterator[list[Tensor]]:
    """Collect the last hidden states [B, L, D] of every forward inside the context, as they enter the head."""
    captured: list[Tensor] = []
    hook = language_model.head.register_forward_pre_hook(lambda _, given: captured.append(given[0]))
    try:
        yield captured
    finally:
        hook.remove()
