"""The language model's cache over a ragged batch: rows grow by different lengths, columns are shared."""

from __future__ import annotations

import torch
from torch import Tensor

from vilavt_toolkit.contracts import LanguageModel


class RaggedCache:
    """Keys and values of B rows. A row without a token in a column has a hole there, masked and without position."""

    def __init__(self, language_model: LanguageModel, rows: int, device: torch.device) -> None:
        self._language_model = language_model
        self._cache = language_model.new_cache()
        self._mask = torch.zeros(rows, 0, dtype=torch.bool, device=device)
        self._next = torch.zeros(rows, dtype=torch.long, device=device)  # the first free position of every row

    def extend(self, embeddings: Tensor, valid: Tensor, positions: Tensor | None = None) -> Tensor:
        """Add columns [B, L, D] where `valid` [B, L]; logits [B, V] of the last column.

        `positions` [P, B, L], each row's counted from 0; None: text only.
        """
        if positions is None:
            positions = (valid.cumsum(1) - 1).clamp(min=0).expand(self._language_model.axes, -1, -1)
        placed = self._next[:, None] + positions
        self._next = torch.where(valid, placed + 1, self._next[:, None]).amax((0, 2))
        self._mask = torch.cat([self._mask, valid], dim=1)
        logits: Tensor = self._language_model(embeddings, placed, self._mask, cache=self._cache, last=1)
        return logits[:, -1]

    def select(self, rows: Tensor) -> None:
        """Keep only `rows`, in their order."""
        self._language_model.select_cache(self._cache, rows)
        self._mask, self._next = self._mask.index_select(0, rows), self._next.index_select(0, rows)
