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
        self._lengths = torch.zeros(rows, dtype=torch.long, device=device)

    def extend(self, embeddings: Tensor, valid: Tensor) -> Tensor:
        """Add columns [B, L, D] where `valid` [B, L]; logits [B, V] of the last column."""
        positions = self._lengths[:, None] + valid.cumsum(1) - 1
        self._mask = torch.cat([self._mask, valid], dim=1)
        self._lengths = self._lengths + valid.sum(1)
        logits: Tensor = self._language_model(embeddings, positions.clamp(min=0), self._mask, cache=self._cache, last=1)
        return logits[:, -1]

    def select(self, rows: Tensor) -> None:
        """Keep only `rows`, in their order."""
        self._language_model.select_cache(self._cache, rows)
        self._mask, self._lengths = self._mask.index_select(0, rows), self._lengths.index_select(0, rows)
