"""The contract of a checkpoint format: folders of weights that another project writes and reads."""

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


class CheckpointFormat(Component, ABC):
    """Folders of weights that another project writes and reads, with a config.json. `__init__(config)`.

    A folder is complete: what comes from a hub has been fetched. Only for `read_section` its weights may be missing.
    """

    @abstractmethod
    def build_example(self) -> VisualChatModel:
        """Build a small model that the format can write, with new weights, for the contract tests."""

    @abstractmethod
    def can_read(self, config: Mapping[str, Any]) -> bool:
        """Return True if a folder with this config.json is of the format."""

    @abstractmethod
    def read_section(self, folder: Path) -> dict[str, Any]:
        """Return the section `model` of a recipe that a folder stands for, with every shape written out.

        It may name the folder for tokenizers only, which are saved with a run: a trained run no longer needs the
        folder. Raises InputError, and MissingWeights if the shapes can only be read off the weights.
        """

    def describe_published(self, name: str, folder: Path) -> bool:
        """Write config files and a tokenizer with the shapes of a published model into `folder`, which is empty.

        Returns False if the format knows no model of that hub name. A plan is made from shapes alone, and so works
        where no hub is in reach.
        """
        return False

    @abstractmethod
    def filled_parts(self, section: ModelSection, folder: Path) -> frozenset[str]:
        """Return the parts of a recipe's model that `load` fills; the others have new weights, or their own."""

    @abstractmethod
    def check_weights(self, folder: Path) -> None:
        """Check that the folder's weight files exist and are whole, without reading a tensor; raises InputError."""

    @abstractmethod
    def load(self, model: VisualChatModel, folder: Path, parts: frozenset[str], dtype: torch.dtype | None) -> None:
        """Load the folder's weights into `parts` of a model, which may be on the meta device; raises InputError.

        The weights get `dtype`, or keep the type that they are stored in if it is None. They are loaded on the CPU
        without a second copy. One error names every key that is missing, unexpected or of another shape.
        """

    @abstractmethod
    def save(self, model: VisualChatModel, folder: Path) -> None:
        """Write a model into `folder`, which exists and is empty; raises InputError if the format cannot hold it."""
