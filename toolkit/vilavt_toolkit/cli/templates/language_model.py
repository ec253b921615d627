"""The language model 'my_part': a small transformer from scratch that reads and writes bytes.

Use it in a recipe that stands beside this file:

    plugins: [./my_part.py]
    model:
      language_model: {name: my_part, width: 128, depth: 3}
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vilavt_toolkit.contracts import CacheView, LanguageModel, TurnTemplate
from vilavt_toolkit.registry import language_models, setting


@dataclass(frozen=True, kw_only=True)
class MyPartConfig:
    """The keys that a recipe may set, each with its type, default and help."""

    width: int = setting(128, help="width of the hidden states, a multiple of heads", minimum=1)
    depth: int = setting(3, help="layers", minimum=1)
    heads: int = setting(4, help="attention heads", minimum=1)
    context: int = setting(2048, help="longest dialogue in tokens", minimum=1)


class _Bytes:
    """A tokenizer whose ids are the bytes of UTF-8, and two ids that no text has."""

    end_of_turn, placeholder = 256, 257

    def encode(self, text: str) -> list[int]:
        """Return the bytes of a text."""
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of bytes, without the special ids."""
        return bytes(each for each in ids if each < 256).decode(errors="replace")


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, mask: Tensor, cache: CacheView | None, index: int) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        k, v = (k, v) if cache is None else cache.update(index, k, v)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v, mask.to(q.dtype)).transpose(1, 2).flatten(2))
        return x + cast("Tensor", self.mlp(self.norm2(x)))


@language_models.register("my_part", MyPartConfig)
class MyPart(LanguageModel):
    """Read and write bytes with a small transformer."""

    turn_template = TurnTemplate("", None, "\n", "\n")
    end_of_turn, placeholder, vocab_size = _Bytes.end_of_turn, _Bytes.placeholder, 258

    def __init__(self, config: MyPartConfig) -> None:
        super().__init__()
        self.tokenizer, width = _Bytes(), config.width
        self.width, self.layers, self.context_length = width, config.depth, config.context
        self.tokens, self.places = nn.Embedding(self.vocab_size, width), nn.Embedding(config.context, width)
        self.stack = nn.ModuleList(_Layer(width, config.heads) for _ in range(config.depth))
        self.norm, self.output = nn.LayerNorm(width), nn.Linear(width, self.vocab_size)

    @property
    def head(self) -> nn.Module:
        """The module that turns hidden states into logits."""
        return self.output

    def embed(self, ids: Tensor) -> Tensor:
        """Return token embeddings; [...] -> [..., D]."""
        return F.embedding(ids, self.tokens.weight)

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
        """Return logits [B, L, V] of columns [B, L, D] at positions [1, B, L]; `mask` [B, L] is True on real ones."""
        x = self._run(embeddings, positions, mask, cache)
        return self.compute_logits(x if last is None else x[:, -last:])

    def run_layers(self, embeddings: Tensor, positions: Tensor, mask: Tensor, *unused: Any, **packed: Any) -> Tensor:
        """Return the last hidden states [B, L, D], of which training takes those that predict produced tokens."""
        return self._run(embeddings, positions, mask, None)

    def compute_logits(self, states: Tensor) -> Tensor:
        """Return the logits [..., V] of hidden states [..., D]."""
        logits: Tensor = self.output(states)
        # The placeholder stands for a feature and is never written.
        logits[..., self.placeholder] = float("-inf")
        return logits

    def _run(self, embeddings: Tensor, positions: Tensor, mask: Tensor, cache: CacheView | None) -> Tensor:
        x = embeddings + self.places(positions[0])
        causal = mask.new_ones(mask.shape[1], mask.shape[1]).tril()
        # A large finite number, not -inf: a padding column that sees nothing would give NaN.
        seen = torch.where(causal & mask[:, None, None], 0.0, -1e4) if cache is None else cache.mask
        for index, layer in enumerate(self.stack):
            x = layer(x, seen, cache, index)
        return cast("Tensor", self.norm(x))

    def save_assets(self, folder: Path) -> None:
        """Write what a checkpoint needs beside settings and weights. Here nothing: the tokenizer is code."""

    @classmethod
    def from_saved(cls, config: Any, folder: Path) -> MyPart:
        """Build the model of a checkpoint, whose weights are loaded later."""
        return cls(config)

    @classmethod
    def tiny(cls) -> MyPartConfig:
        """Return the settings of a small instance, which the contract tests build."""
        return MyPartConfig(width=32, depth=2, heads=2, context=512)
