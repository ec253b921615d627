"""The contracts: what each kind of component is, and the one legend of dimension letters.

Legend: B dialogues, G inquiry groups, R regions, S packed vision tokens, D width, H heads, T inquiry tokens,
L text length, P position axes; K context keys, F features handed to the language model, V vocabulary.

Words: a *source* is an original (image file, video, cloud); a *region* names a source and a box of it; a *crop* is what
is cut out; a *view* is a crop made ready for one encoder. An *inquiry group* is what is encoded together under one
inquiry. A component is one file, one class, one frozen dataclass of settings; it is built from its settings and what
its kind's ``__init__`` below is given. Building one reads at most a configuration or a tokenizer, never a weight:
`load_weights` does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vilavt_toolkit.contracts.component import Component

if TYPE_CHECKING:
    from vilavt_toolkit.config.schema import ModelSection
    from vilavt_toolkit.models.model import VisualChatModel

# --- Checkpoints of others -----------------------------------------------------------------------------------------


class CheckpointFormat(Component, ABC):
    """Folders of weights that others write and read, with a config.json. `__init__(config)`.

    A folder is complete: what comes from a hub has been fetched, though perhaps without its weights where only
    `section` is asked for.
    """

    @abstractmethod
    def build_example(self) -> VisualChatModel:
        """A small model that it can write, with weights drawn anew, for the contract tests."""

    @abstractmethod
    def can_read(self, config: Mapping[str, Any]) -> bool:
        """Whether a folder with this config.json is of the format."""

    @abstractmethod
    def read_section(self, folder: Path) -> dict[str, Any]:
        """The section `model` of a recipe that the folder is, every shape in it spelled out; raises InputError.

        Of the folder it may name the tokenizers, which are saved with a run: what is trained needs it no more.
        """

    @abstractmethod
    def filled_parts(self, section: ModelSection, folder: Path) -> frozenset[str]:
        """The kinds of parts of a recipe's model whose weights `load` fills; those of others are new, or their own."""

    @abstractmethod
    def check_weights(self, folder: Path) -> None:
        """Hold that the folder's files of weights are there and whole, reading no tensor; raises InputError."""

    @abstractmethod
    def load(self, model: VisualChatModel, folder: Path, parts: frozenset[str], dtype: torch.dtype | None) -> None:
        """Put the folder's weights into the `parts` of a model, which may be on the meta device; raises InputError.

        In `dtype`, or in the type they are stored in. On the CPU, with no second copy of them. Every key that is
        missing, unexpected or of another shape is named in one error.
        """

    @abstractmethod
    def save(self, model: VisualChatModel, folder: Path) -> None:
        """Write a model into `folder`, which is there and empty; raises InputError where it cannot be written so."""
