"""A checked recipe to a model: widths, sites and modalities agree before a weight is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from vilavt_toolkit.errors import BadConfig, RecipeErrors, VilavtError
from vilavt_toolkit.model import VisualChatModel
from vilavt_toolkit.registry import Part
from vilavt_toolkit.schema import ModelSection
from vilavt_toolkit.vision.dynamic_encoder import DynamicEncoder
from vilavt_toolkit.vision.integration import integrated_blocks

T = TypeVar("T")


class Collector:
    """Builds part after part and keeps every error with the path of its part."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.errors: list[VilavtError] = []

    def build(self, path: str, make: Callable[[], T]) -> T | None:
        """What `make` builds, or None with its error kept."""
        try:
            return make()
        except RecipeErrors as errors:  # these name their paths
            self.errors += errors.errors
        except VilavtError as error:
            self.errors.append(type(error)(f"{self.label}: {path}: {error}"))
        return None

    def fits(self, path: str, check: Callable[[], None]) -> bool:
        """Whether `check` raises nothing; its error is kept."""
        before = len(self.errors)
        self.build(path, check)
        return len(self.errors) == before

    def finish(self) -> None:
        """Raise everything that went wrong."""
        if self.errors:
            raise RecipeErrors(self.errors)


def assemble(section: ModelSection, label: str = "recipe", saved: Path | None = None) -> VisualChatModel:
    """Build the model of a recipe, its weights at random; raises RecipeErrors with all that does not fit.

    With `saved`, the language model's architecture and tokenizer come from a checkpoint's folder. Under
    `torch.device("meta")` nothing is allocated.
    """
    collect = Collector(label)
    language = section.language_model
    language_model = collect.build("model.language_model", lambda: _language_model(language, saved))
    encoder = collect.build("model.encoder", lambda: _made(section.encoder))
    dialogue = collect.build("model.dialogue", lambda: _made(section.dialogue))
    stopping = collect.build("model.stopping", lambda: [_made(part) for part in section.stopping])
    if encoder is not None:
        collect.build("model.source", lambda: _agree_on_modality(section, encoder.spec.modality))
    collect.finish()
    assert language_model is not None and encoder is not None and dialogue is not None and stopping is not None

    inquiry_encoder = collect.build("model.inquiry_encoder", lambda: _made(section.inquiry_encoder, language_model))
    collect.finish()
    modulators = [(part.entry.cls, part.config) for part in section.modulator]
    blocks = collect.build("model.integration", lambda: integrated_blocks(section.integration, encoder.spec))
    vision = None
    if blocks is not None:
        chosen = blocks
        vision = collect.build("model.modulator", lambda: DynamicEncoder(encoder, modulators, chosen, inquiry_encoder))
    projector = collect.build(
        "model.projector", lambda: _made(section.projector, encoder.spec.out_width, language_model.width)
    )
    collect.finish()
    assert vision is not None and projector is not None
    return VisualChatModel(
        vision, projector, language_model, dialogue, section.source.entry.cls, section.source.config, stopping
    )


def load_weights(model: VisualChatModel) -> None:
    """Load the pretrained weights that the parts' settings name; raises InputError."""
    model.language_model.load_weights()
    model.encoder.encoder.load_weights()
    if model.encoder.inquiry_encoder is not None:
        model.encoder.inquiry_encoder.load_weights()


def _made(part: Part, *context: Any) -> Any:
    return part.entry.cls(part.config, *context)


def _language_model(part: Part, saved: Path | None) -> Any:
    return _made(part) if saved is None else part.entry.cls.from_saved(part.config, saved)


def _agree_on_modality(section: ModelSection, wanted: str) -> None:
    given = section.source.entry.cls.modality
    if given != wanted:
        raise BadConfig(
            f"source '{section.source.name}' gives crops of modality '{given}', but encoder "
            f"'{section.encoder.name}' takes '{wanted}'; choose a source or an encoder of the same modality."
        )
