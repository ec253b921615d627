"""Inquiry encoders: the text of an inquiry to packed features."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vilavt_toolkit.contracts.component import Component
from vilavt_toolkit.contracts.language_model import LanguageModel


class InquiryEncoder(nn.Module, Component, ABC):
    """Turns the texts of inquiries into packed features. `__init__(config, language_model)`."""

    width: int
    """Width D of its features."""

    @abstractmethod
    def tokenize(self, text: str) -> list[int]:
        """Return the token ids of an inquiry, which the trajectory then keeps; [] for an empty text."""

    @abstractmethod
    def token_texts(self, ids: Sequence[int]) -> list[str]:
        """Return the text of every token of an inquiry, for people to read."""

    @abstractmethod
    def forward(self, ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Encode the inquiries of G groups: features of all tokens [T, D], pooled [G, D] (zero where empty)."""

    def check_weights(self) -> None:
        """Check that the weight files named by the settings exist, without reading a tensor; raises InputError."""

    def load_weights(self) -> None:
        """Load the pretrained weights that the settings name, if any; raises InputError."""

    def save_assets(self, folder: Path) -> None:
        """Write what a later build needs besides the config, usually nothing, into the existing `folder`."""

    @classmethod
    def from_saved(cls, config: Any, language_model: LanguageModel, folder: Path) -> InquiryEncoder:
        """Build it from what `save_assets` wrote, without its weights; `folder` may be missing. Raises InputError."""
        # Most have nothing of their own to read. One with a tokenizer of its own overrides this.
        build: Any = cls
        encoder: InquiryEncoder = build(config, language_model)
        return encoder
