"""Inquiry encoder `language_model`: the language model's own token embeddings, mixed over neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vilavt_toolkit.contracts import InquiryEncoder, LanguageModel, protect_text
from vilavt_toolkit.packed.tokens import concat_ranges, to_device
from vilavt_toolkit.registry import inquiry_encoders
from vilavt_toolkit.settings import setting


@dataclass(frozen=True)
class LanguageModelInquiryConfig:
    """Settings of the `language_model` inquiry encoder."""

    width: int = setting(0, help="width of the features (0: the language model's)", minimum=0)
    max_tokens: int = setting(50, help="most tokens of an inquiry (longer ones are cut)", minimum=1)


@inquiry_encoders.register("language_model", LanguageModelInquiryConfig)
class LanguageModelInquiryEncoder(InquiryEncoder):
    """The language model's token embeddings, each mixed with the one before it; it loads no weights of its own."""

    def __init__(self, config: LanguageModelInquiryConfig, language_model: LanguageModel) -> None:
        super().__init__()
        # In a tuple, so that the language model is not registered, and saved, a second time here.
        self._language_model = (language_model,)
        self.max_tokens = config.max_tokens
        self.width = config.width or language_model.width
        self.norm = nn.LayerNorm(language_model.width)
        # Pairs of neighbours, so that the mean below still knows "left of the red" from "red of the left".
        self.mix = nn.Linear(2 * language_model.width, self.width)

    @classmethod
    def tiny(cls) -> LanguageModelInquiryConfig:
        """Return settings of width 16."""
        return LanguageModelInquiryConfig(width=16)

    def tokenize(self, text: str) -> list[int]:
        """Return token ids of the stripped text, at most `max_tokens`."""
        tokenizer = self._language_model[0].tokenizer
        return tokenizer.encode(protect_text(tokenizer, text.strip()))[: self.max_tokens]

    def token_texts(self, ids: Sequence[int]) -> list[str]:
        """Return the text of every token."""
        return [self._language_model[0].tokenizer.decode([token]) for token in ids]

    def forward(self, ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Return features of all tokens [T, D] and their mean per group [G, D], zero for an empty inquiry."""
        device, dtype = self.mix.weight.device, self.mix.weight.dtype
        lengths = [len(group) for group in ids]
        longest = max([1, *lengths])
        padded = torch.tensor([[*group, *[0] * (longest - len(group))] for group in ids], dtype=torch.long)
        real = torch.arange(longest) < torch.tensor(lengths).unsqueeze(1)
        mask = real.unsqueeze(-1).to(dtype).to(device, non_blocking=True)
        # Padding follows the text, so that no token is mixed with padding; the first one is mixed with zeros.
        embedded = self.norm(self._language_model[0].embed(padded.to(device, non_blocking=True)).to(dtype))
        previous = F.pad(embedded, (0, 0, 1, 0))[:, :-1]
        features = F.gelu(self.mix(torch.cat([embedded, previous], dim=-1))) * mask
        pooled = features.sum(1) / mask.sum(1).clamp(min=1)
        rows = concat_ranges([group * longest for group in range(len(ids))], lengths)
        return features.flatten(0, 1).index_select(0, to_device(rows, device)), pooled
