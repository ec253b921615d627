"""A checked recipe to a model: widths, sites and modalities agree before a weight is loaded."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from vilavt_toolkit.config.schema import ModelSection
from vilavt_toolkit.contracts import NEEDS, Dialogue, Encoder, LanguageModel, StoppingPolicy
from vilavt_toolkit.errors import BadConfig, RecipeErrors, VilavtError
from vilavt_toolkit.models.meta import build_on_meta
from vilavt_toolkit.models.model import VisualChatModel
from vilavt_toolkit.registry import Part
from vilavt_toolkit.vision.dynamic_encoder import DynamicEncoder
from vilavt_toolkit.vision.integration import integrated_blocks

T = TypeVar("T")
STOPPING = "stopping"
"""The part of the model that holds what stopping policies learn."""
LANGUAGE_MODEL, INQUIRY_ENCODER = "language_model", "inquiry_encoder"
"""The folders of a checkpoint that hold what these parts save."""


class ErrorCollector:
    """Builds part after part and keeps every error with the path of its part."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.errors: list[VilavtError] = []

    def try_build(self, path: str, make: Callable[[], T]) -> T | None:
        """What `make` builds, or None with its error kept."""
        try:
            return make()
        except RecipeErrors as errors:  # these name their paths
            self.errors += errors.errors
        except VilavtError as error:
            self.errors.append(type(error)(f"{self.label}: {path}: {error}"))
        return None

    def check_fits(self, path: str, check: Callable[[], None]) -> bool:
        """Whether `check` raises nothing; its error is kept."""
        before = len(self.errors)
        self.try_build(path, check)
        return len(self.errors) == before

    def raise_errors(self) -> None:
        """Raise everything that went wrong."""
        if self.errors:
            raise RecipeErrors(self.errors)


def assemble_model(
    section: ModelSection, label: str = "recipe", saved: Path | None = None, filled: frozenset[str] = frozenset()
) -> VisualChatModel:
    """Build the model of a recipe, its weights at random; raises RecipeErrors with all that does not fit.

    With `saved`, a checkpoint's folder, the language model's architecture and all tokenizers come from there, and
    files of weights need not be there any more. Under `torch.device("meta")` nothing is allocated; the parts whose
    kinds are in `filled` have their weights on that device anyway.
    """
    collect = ErrorCollector(label)

    def build(kind: str, make: Callable[[], T]) -> T | None:
        light = (lambda: build_on_meta(make)) if kind in filled else make
        return collect.try_build(f"model.{kind}", light)

    language = section.language_model
    language_model = build("language_model", lambda: _language_model(language, saved))
    encoder = build("encoder", lambda: section.encoder.build())
    dialogue = collect.try_build("model.dialogue", lambda: section.dialogue.build())
    if encoder is not None:
        if collect.check_fits("model.source", lambda: _agree_on_modality(section, encoder.spec.modality)):
            collect.try_build("model.source", lambda: _agree_on_channels(section, encoder.spec.channels))
        if saved is None:
            collect.try_build("model.encoder", encoder.check_weights)
    if encoder is not None and dialogue is not None:
        collect.try_build("model.dialogue", lambda: _agree_on_units(section, dialogue, encoder))
    collect.raise_errors()
    assert language_model is not None and encoder is not None and dialogue is not None

    inquiry_encoder = build("inquiry_encoder", lambda: _inquiry_encoder(section.inquiry_encoder, language_model, saved))
    if inquiry_encoder is not None and saved is None:
        collect.try_build("model.inquiry_encoder", inquiry_encoder.check_weights)
    collect.raise_errors()
    modulators = [(part.entry.cls, part.config) for part in section.modulator]
    blocks = collect.try_build("model.integration", lambda: integrated_blocks(section.integration, encoder.spec))
    vision = None
    if blocks is not None:
        chosen = blocks
        vision = build("modulator", lambda: DynamicEncoder(encoder, modulators, chosen, inquiry_encoder))
    projector = build("projector", lambda: section.projector.build(encoder.spec.out_width, language_model.width))
    # Last, so that one that learns takes no random number that another part would have drawn.
    stopping = build("stopping", lambda: [_stopping(part, language_model.width) for part in section.stopping])
    collect.raise_errors()
    assert vision is not None and projector is not None and stopping is not None
    return VisualChatModel(
        vision, projector, language_model, dialogue, section.source.entry.cls, section.source.config, stopping
    )


def load_weights(model: VisualChatModel) -> None:
    """Load the pretrained weights that the parts' settings name; raises InputError."""
    model.language_model.load_weights()
    model.vision.backbone.load_weights()
    if model.vision.inquiry_encoder is not None:
        model.vision.inquiry_encoder.load_weights()


def _stopping(part: Part, width: int) -> StoppingPolicy:
    """A stopping policy; raises BadConfig for one that does not keep its contract."""
    cls, name = part.entry.cls, f"{part} ({part.entry.location})"
    try:
        inspect.signature(cls).bind(part.config, width)
    except TypeError:
        raise BadConfig(f"{name} must be built as __init__(self, config, width).") from None
    policy: StoppingPolicy = cls(part.config, width)
    if "_parameters" not in vars(policy):
        raise BadConfig(f"{name} must call super().__init__() in its own __init__.")
    if unknown := sorted(policy.needs - NEEDS):
        known = ", ".join(sorted(NEEDS))
        raise BadConfig(f"{name} needs {unknown[0]!r}, which no loop finds out; it may need {known}.")
    return policy


def _language_model(part: Part, saved: Path | None) -> Any:
    return part.build() if saved is None else part.entry.cls.from_saved(part.config, saved / LANGUAGE_MODEL)


def _inquiry_encoder(part: Part, language_model: LanguageModel, saved: Path | None) -> Any:
    if saved is None:
        return part.build(language_model)
    return part.entry.cls.from_saved(part.config, language_model, saved / INQUIRY_ENCODER)


def _agree_on_units(section: ModelSection, dialogue: Dialogue, encoder: Encoder) -> None:
    if not dialogue.units_per_side and type(encoder).extent is Encoder.extent:
        raise BadConfig(
            f"dialogue '{section.dialogue.name}' writes boxes in pixels of what was shown, which views of encoder "
            f"'{section.encoder.name}' do not have; choose another dialogue or an encoder of images."
        )


def _agree_on_modality(section: ModelSection, wanted: str) -> None:
    given = section.source.entry.cls.modality
    if given != wanted:
        raise BadConfig(
            f"source '{section.source.name}' gives crops of modality '{given}', but encoder "
            f"'{section.encoder.name}' takes '{wanted}'; choose a source or an encoder of the same modality."
        )


def _agree_on_channels(section: ModelSection, wanted: int | None) -> None:
    given = section.source.entry.cls.channels(section.source.config)
    if None not in (given, wanted) and given != wanted:
        raise BadConfig(
            f"source '{section.source.name}' gives {given} channels, coordinates included, but encoder "
            f"'{section.encoder.name}' takes {wanted}; change the settings of one of them."
        )
