"""The inquiry encoder 'my_part': learned vectors of the bytes of an inquiry.

Use it in a recipe that stands beside this file:

    plugins: [./my_part.py]
    model:
      inquiry_encoder: {name: my_part, width: 128}
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vilavt_toolkit.contracts import InquiryEncoder, LanguageModel
from vilavt_toolkit.registry import inquiry_encoders, setting


@dataclass(frozen=True, kw_only=True)
class MyPartConfig:
    """The keys that a recipe may set, each with its type, default and help."""

    width: int = setting(64, help="width of the features", minimum=1)
    max_bytes: int = setting(200, help="bytes of an inquiry that are read, longer ones are cut", minimum=1)


@inquiry_encoders.register("my_part", MyPartConfig)
class MyPart(InquiryEncoder):
    """Encode an inquiry as one learned vector per UTF-8 byte."""

    def __init__(self, config: MyPartConfig, language_model: LanguageModel) -> None:
        """Build the encoder; this one does not use the language model, whose embeddings another may share."""
        super().__init__()
        self.width, self.max_bytes = config.width, config.max_bytes
        self.embedding = nn.Embedding(256, config.width)
        self.layer = nn.Sequential(nn.LayerNorm(config.width), nn.Linear(config.width, config.width), nn.GELU())

    def tokenize(self, text: str) -> list[int]:
        """Return the bytes of an inquiry; none for a blank text, which stands for no inquiry."""
        return list(text.strip().encode()[: self.max_bytes])

    def token_texts(self, ids: Sequence[int]) -> list[str]:
        """Return the text of every byte, for the pictures that explain an answer."""
        return [bytes([each]).decode("latin-1") for each in ids]

    def forward(self, ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Encode the inquiries of G groups: features of all their tokens [T, D], and their means [G, D]."""
        weight = self.embedding.weight
        packed = torch.tensor([each for group in ids for each in group], dtype=torch.long, device="cpu")
        features: Tensor = self.layer(self.embedding(packed.to(weight.device, non_blocking=True)))
        # Lengths are known on the CPU, so splitting does not wait for the device.
        parts = features.split_with_sizes([len(group) for group in ids])
        empty = features.new_zeros(self.width)
        pooled = torch.stack([part.mean(0) if len(part) else empty for part in parts])
        return features, pooled

    @classmethod
    def tiny(cls) -> MyPartConfig:
        """Return the settings of a small instance, which the contract tests build."""
        return MyPartConfig(width=16)
