"""Language models: embeddings in, logits out, with a tokenizer and a KV cache."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from vilavt_toolkit.contracts.component import Component, Grid


@dataclass(frozen=True)
class Frames:
    """The text around turns: read off the model's chat template, or plain where it has none."""

    first: str
    """Before the first user turn's content, without a system prompt."""
    system: tuple[str, str] | None
    """Before a system prompt, and between it and the first user turn's content; None: the template refuses one."""
    reply: str
    """Between a user turn's content and the assistant's; the assistant's ends with `end_of_turn`."""
    following: str
    """Between the end-of-turn token and the next user turn's content; never the model's own."""


class Tokenizer(Protocol):
    """Text to ids and back, without special tokens added on the way."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


@runtime_checkable
class SpelledTokenizer(Tokenizer, Protocol):
    """A tokenizer that says how its tokens are spelled, as decoding under a grammar must know."""

    def spellings(self) -> Sequence[bytes]:
        """The bytes of every token as `decode` writes it behind others; empty for marks, and for ids without one."""
        ...


class CacheView(Protocol):
    """What one forward sees of a cache, and adds to it."""

    @property
    def mask(self) -> Tensor:
        """[B, 1, L, C] to be added to attention logits: 0 where a new column sees a kept one, -inf elsewhere."""
        ...

    @property
    def kept(self) -> int | None:
        """Columns before the new ones, if all rows hold as many and none is padding: what is causal needs no mask."""
        ...

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add keys and values [B, H, L, d] of the new columns, rotated; return those of all columns, [B, H, C, d]."""
        ...


class LanguageModel(nn.Module, Component, ABC):
    """Embeddings in, logits out, with a cache the chat keeps. Owns its tokenizer. `__init__(config)`."""

    width: int
    vocab_size: int
    context_length: int
    tokenizer: Tokenizer
    frames: Frames
    end_of_turn: int
    """Id of the token that ends the assistant's turn."""
    placeholder: int
    """Id that stands where a feature goes; never sampled, never a target."""
    layers: int = 0
    """Layers with attention, for the count of operations."""
    axes: int = 1
    """Position axes P: 1 of a plain text model; time, row and column of one with M-RoPE."""

    def positions(self, length: int, regions: Sequence[tuple[int, Grid]], first: int = 0) -> Tensor:
        """Positions of `length` columns behind which others may follow, `first` being the first one free; [P, length].

        `regions` are the (column, grid) of the features among them. What follows starts one behind the largest
        position, so that columns added turn by turn stand where they would had they come at once.
        """
        return torch.arange(first, first + length, device="cpu").expand(self.axes, -1)

    @abstractmethod
    def embed(self, ids: Tensor) -> Tensor:
        """Token embeddings; [...] -> [..., D]."""

    @abstractmethod
    def forward(
        self,
        embeddings: Tensor,
        positions: Tensor,
        mask: Tensor,
        cache: CacheView | None = None,
        last: int | None = None,
    ) -> Tensor:
        """Logits [B, L, V] (of the `last` columns only, if given) of columns [B, L, D] at positions [P, B, L].

        `mask` [B, L] is True on real columns; holes are allowed anywhere. With `cache` they follow what it holds,
        `cache.mask` says what each sees, and every layer adds its keys and values to it.
        The placeholder's logit is -inf, in sampling as in training.
        """

    @property
    @abstractmethod
    def head(self) -> nn.Module:
        """The module that turns last hidden states [B, L, D] into logits: what goes into it is the hidden state."""

    def fit_tokenizer(self, corpus: Iterable[str], fixed: Sequence[str]) -> None:
        """Train the tokenizer where the settings ask for it; `fixed` strings become single tokens."""

    @abstractmethod
    def save_assets(self, folder: Path) -> None:
        """Write the architecture and the tokenizer into `folder`, so that a checkpoint needs nothing else."""

    @classmethod
    @abstractmethod
    def from_saved(cls, config: Any, folder: Path) -> LanguageModel:
        """Build the model from what `save_assets` wrote, weights still to come; raises InputError."""

    def load_weights(self) -> None:
        """Load pretrained weights where the settings name some; raises InputError."""
