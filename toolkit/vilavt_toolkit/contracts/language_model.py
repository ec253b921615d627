"""Language models: embeddings to logits, with a tokenizer and a KV cache."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from vilavt_toolkit.contracts.component import Component
from vilavt_toolkit.packed.tokens import Grid


@dataclass(frozen=True)
class TurnTemplate:
    """Holds the text around turns, read from the model's chat template, or plain text if it has none."""

    first: str
    """Text before the content of the first user turn, without a system prompt."""
    system: tuple[str, str] | None
    """Text before a system prompt, and between it and the first user turn's content; None: no system prompt allowed."""
    reply: str
    """Text between a user turn's content and the assistant's, which ends with `end_of_turn`."""
    following: str
    """Text between the end-of-turn token and the next user turn's content; the model never writes it."""
    opened: str = ""
    """Tag at the end of `reply` that begins the model's turn for it, as `<think>`; empty if the model writes it all."""

    def text_to_write(self, turn: str) -> str:
        """Return what the model still writes of a turn, after the tag that has been opened for it."""
        if not self.opened:
            return turn
        rest = turn.lstrip()
        # A turn without that part leaves it empty.
        return rest.removeprefix(self.opened) if rest.startswith(self.opened) else f"</{self.opened[1:]}\n{turn}"


class Tokenizer(Protocol):
    """Turns text into ids and back, and adds no special tokens."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


@runtime_checkable
class ProtectingTokenizer(Tokenizer, Protocol):
    """A tokenizer with tokens that frame turns, which no text of a user, a file or a model may stand for."""

    def protect(self, text: str) -> str:
        """Return the text so that `encode` reads the names of framing tokens in it as plain letters."""
        ...


def protect_text(tokenizer: Tokenizer, text: str) -> str:
    """Return a text that somebody else wrote so that no part of it is encoded as a token that frames turns."""
    return tokenizer.protect(text) if isinstance(tokenizer, ProtectingTokenizer) else text


@runtime_checkable
class ByteTokenizer(Tokenizer, Protocol):
    """A tokenizer that knows the bytes of its tokens, as decoding under a grammar needs."""

    def token_bytes(self) -> Sequence[bytes]:
        """Return the bytes of every id, as `decode` writes it after other tokens; empty for special and unused ids."""
        ...


class CacheView(Protocol):
    """The part of the KV cache that one forward sees, and adds to."""

    @property
    def mask(self) -> Tensor:
        """[B, 1, L, C], added to attention logits: 0 where a new column sees a cached or new one, -inf elsewhere."""
        ...

    @property
    def prefix_length(self) -> int | None:
        """Number of cached columns if no row has padding, so that a causal kernel needs no mask; else None."""
        ...

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add rotated keys and values [B, H, L, d] of the new columns; return those of all columns [B, H, C, d]."""
        ...


class LanguageModel(nn.Module, Component, ABC):
    """Turns embeddings into logits, with a KV cache that the caller keeps. Owns its tokenizer. `__init__(config)`."""

    width: int
    vocab_size: int
    context_length: int
    tokenizer: Tokenizer
    turn_template: TurnTemplate
    end_of_turn: int
    """Id of the token that ends a turn of the assistant."""
    placeholder: int
    """Id that stands in the place of a feature; it is never sampled and never a target."""
    layers: int = 0
    """Number of layers with attention, for the count of operations."""
    axes: int = 1
    """Number of position axes P: 1 for a plain text model, 3 for M-RoPE (time, row and column)."""
    takes_stems: bool = False
    """True if `forward` takes `stems` beside `documents`."""

    def positions(self, length: int, regions: Sequence[tuple[int, Grid]], first: int = 0) -> Tensor:
        """Return the positions [P, length] of `length` columns, of which the first has the position `first`.

        `regions` are the (column, grid) of the features among them. Columns that follow later start one after the
        largest position. So columns that are added turn by turn get the positions that they would get all at once.
        """
        # On the CPU also under another default device: positions are computed with the batch, in data workers.
        return torch.arange(first, first + length, device="cpu").expand(self.axes, -1)

    @abstractmethod
    def embed(self, ids: Tensor) -> Tensor:
        """Return token embeddings; ids [...] -> [..., D]."""

    @abstractmethod
    def forward(
        self,
        embeddings: Tensor,
        positions: Tensor,
        mask: Tensor,
        cache: CacheView | None = None,
        last: int | None = None,
        documents: Sequence[int] | None = None,
        stems: Sequence[int] | None = None,
    ) -> Tensor:
        """Return the logits [B, L, V] of columns [B, L, D] at positions [P, B, L], or of the `last` columns only.

        `mask` [B, L] is True on real columns, and padding may stand anywhere. With `cache` the columns follow those in
        the cache, `cache.mask` says which columns each one sees, and every layer adds its keys and values to the
        cache. The logit of the placeholder is -inf, in sampling as in training.

        `documents` are the lengths of dialogues that fill a single row [1, L] one after another, each with positions of
        its own. A column sees no other dialogue than its own. Only a model without a packing problem takes them.

        `stems` says for each of them which earlier one it goes on from, as its number, or -1 for none. Its columns see
        those of that stem too, as if they followed it, so that a beginning which dialogues share stands in the row
        once. A stem has no stem itself. Only a model that `takes_stems` takes them.
        """

    def describe_packing_problem(self) -> str:
        """Return why `forward` takes no `documents`, in a few words; empty if it takes them."""
        return "it reads one dialogue a row"

    def run_layers(
        self,
        embeddings: Tensor,
        positions: Tensor,
        mask: Tensor,
        documents: Sequence[int] | None = None,
        stems: Sequence[int] | None = None,
    ) -> Tensor:
        """Return the states [B, L, D] of columns that `compute_logits` makes logits of; arguments as in `forward`.

        Training runs the layers once, and asks for the logits of produced tokens alone, a chunk at a time. A model that
        has only `forward` keeps these two methods: its states are the logits [B, L, V] of all columns, in all their
        size.
        """
        # A model of one dialogue a row need not know the arguments.
        given = {"documents": documents, "stems": stems}
        packed = {name: value for name, value in given.items() if value is not None}
        states: Tensor = self(embeddings, positions, mask, **packed)
        return states

    def compute_logits(self, states: Tensor) -> Tensor:
        """Return the logits [N, V] of states [N, D] that were chosen from those of `run_layers`, as `forward` has them.

        A model with `run_layers` of its own calls `head` here, as a module, and does what follows it. Called again in
        the backward pass with the same states, it gives the same logits.
        """
        return states

    # A module, so that a forward hook on it can read the hidden states without a second forward.
    @property
    @abstractmethod
    def head(self) -> nn.Module:
        """The module that turns the last hidden states [B, L, D] into logits; its input is the hidden state."""

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The layers that `run_layers` calls one after another, so that training may compute them again; () for none.

        A layer's result depends on its arguments, weights and random numbers alone.
        """
        return ()

    def fit_tokenizer(self, corpus: Iterable[str], fixed: Sequence[str]) -> None:
        """Train the tokenizer if the settings ask for it; `fixed` strings become single tokens."""

    @abstractmethod
    def save_assets(self, folder: Path) -> None:
        """Write architecture and tokenizer into `folder`, so that a checkpoint needs nothing else."""

    @classmethod
    @abstractmethod
    def from_saved(cls, config: Any, folder: Path) -> LanguageModel:
        """Build the model from what `save_assets` wrote, without its weights; raises InputError."""

    def load_weights(self) -> None:
        """Load the pretrained weights that the settings name, if any; raises InputError."""
