"""Inquiry encoders: turn the text of an inquiry into packed features."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vilavt_toolkit.contracts.component import Component
from vilavt_toolkit.contracts.language_model import LanguageModel


class InquiryEncoder(nn.Module, Component, ABC):
    """Text to packed features. `__init__(config, language_model)`."""

    width: int

    @abstractmethod
    def tokenize(self, text: str) -> list[int]:
        """Token ids of an inquiry, which then live in the trajectory; [] for an empty text."""

    @abstractmethod
    def words(self, ids: Sequence[int]) -> list[str]:
        """The text of every token of an inquiry, for people to read."""

    @abstractmethod
    def forward(self, ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Encode the inquiries of G groups: features of all tokens [T, D], pooled [G, D] (zero where empty)."""

    def check_weights(self) -> None:
        """Hold that the files of weights that the settings name are there, and read no tensor; raises InputError."""

    def load_weights(self) -> None:
        """Load pretrained weights where the settings name some; raises InputError."""

    def save_assets(self, folder: Path) -> None:
        """Write what building it again needs beside its settings into `folder`, which is there: nothing, usually."""

    @classmethod
    def from_saved(cls, config: Any, language_model: LanguageModel, folder: Path) -> InquiryEncoder:
        """Build it from what `save_assets` wrote, weights still to come; `folder` may be missing. Raises InputError."""
        make: Any = cls
        made: InquiryEncoder = make(config, language_model)
        return made
