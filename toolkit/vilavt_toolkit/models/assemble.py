"""From a checked recipe to a model: widths, sites and modalities agree before a weight is loaded."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from vilavt_toolkit.config.layers import split_key
from vilavt_toolkit.config.limits import MOST_MODULATORS
from vilavt_toolkit.config.parsing import Location
from vilavt_toolkit.config.schema import ModelSection
from vilavt_toolkit.contracts import NEEDS, Dialogue, Encoder, LanguageModel, StoppingPolicy
from vilavt_toolkit.errors import BadConfig, RecipeErrors, VilavtError
from vilavt_toolkit.models.meta import build_on_meta
from vilavt_toolkit.models.model import VisualChatModel
from vilavt_toolkit.packed.varlen import allow_cudnn_attention
from vilavt_toolkit.registry import Part
from vilavt_toolkit.vision.dynamic_encoder import DynamicEncoder
from vilavt_toolkit.vision.integration import integrated_blocks

T = TypeVar("T")
STOPPING = "stopping"
"""Prefix in the state dict of the weights that stopping policies learn."""
LANGUAGE_MODEL, INQUIRY_ENCODER = "language_model", "inquiry_encoder"
"""Folders of a checkpoint in which these parts save their assets."""


class ErrorCollector:
    """Builds part after part, and collects every error with the path of its part in the recipe.

    `where` is the recipe's `CheckedRecipe.where`, or a name for what holds the parts.
    """

    def __init__(self, where: str | Location) -> None:
        self._where = where
        self.errors: list[VilavtError] = []

    def try_build(self, path: str, make: Callable[[], T]) -> T | None:
        """Return what `make` builds; on an error, collect it and return None."""
        try:
            return make()
        except RecipeErrors as errors:
            # Parts within parts have named their paths already.
            self.errors += errors.errors
        except VilavtError as error:
            place = f"{self._where}: {path}" if isinstance(self._where, str) else self._where(split_key(path))
            self.errors.append(type(error)(f"{place}: {error}"))
        return None

    def check_fits(self, path: str, check: Callable[[], None]) -> bool:
        """Return True if `check` raises nothing; collect its error if it does."""
        before = len(self.errors)
        self.try_build(path, check)
        return len(self.errors) == before

    def raise_errors(self) -> None:
        """Raise all collected errors together, if there are any."""
        if self.errors:
            raise RecipeErrors(self.errors)


def assemble_model(
    section: ModelSection,
    where: str | Location = "recipe",
    saved: Path | None = None,
    filled: frozenset[str] = frozenset(),
) -> VisualChatModel:
    """Build the model of a recipe with random weights; raises RecipeErrors with everything that does not fit.

    With `saved`, the folder of a checkpoint, the language model's architecture and all tokenizers come from there, and
    the files of pretrained weights are not needed any more. Parts whose kinds are in `filled` get their weights from a
    checkpoint afterwards, so they are built on the meta device. Under `torch.device("meta")` all parts are.
    `cudnn_attention` is a switch of the whole process: the model assembled last decides.
    """
    collect = ErrorCollector(where)

    def build(kind: str, make: Callable[[], T]) -> T | None:
        # A part that a checkpoint fills would otherwise draw random weights only to throw them away.
        light = (lambda: build_on_meta(make)) if kind in filled else make
        return collect.try_build(f"model.{kind}", light)

    language = section.language_model
    language_model = build("language_model", lambda: _build_language_model(language, saved))
    encoder = build("encoder", section.encoder.build)
    dialogue = collect.try_build("model.dialogue", section.dialogue.build)
    if encoder is not None:
        if collect.check_fits("model.source", lambda: _check_modality(section, encoder.spec.modality)):
            collect.try_build("model.source", lambda: _check_channels(section, encoder.spec.channels))
        if saved is None:
            collect.try_build("model.encoder", encoder.check_weights)
    if encoder is not None and dialogue is not None:
        collect.try_build("model.dialogue", lambda: _check_units(section, dialogue, encoder))
    # The parts below need these three, so everything found so far is raised first.
    collect.raise_errors()
    assert language_model is not None and encoder is not None and dialogue is not None

    inquiry_encoder = build(
        "inquiry_encoder", lambda: _build_inquiry_encoder(section.inquiry_encoder, language_model, saved)
    )
    if inquiry_encoder is not None and saved is None:
        collect.try_build("model.inquiry_encoder", inquiry_encoder.check_weights)
    collect.raise_errors()
    blocks = collect.try_build("model.integration", lambda: integrated_blocks(section.integration, encoder.spec))
    vision = None
    if blocks is not None:
        collect.check_fits("model.modulator", lambda: _check_modulators(len(section.modulator) * len(blocks)))
        collect.raise_errors()
        modulators, chosen = [(part.entry.cls, part.config) for part in section.modulator], blocks
        vision = build("modulator", lambda: DynamicEncoder(encoder, modulators, chosen, inquiry_encoder))
    projector = build("projector", lambda: section.projector.build(encoder.spec.out_width, language_model.width))
    # Last, so that a policy with weights changes no random number that another part draws.
    stopping = build("stopping", lambda: _build_stopping_policies(section.stopping, language_model.width))
    collect.raise_errors()
    assert vision is not None and projector is not None and stopping is not None
    allow_cudnn_attention(section.cudnn_attention)
    return VisualChatModel(
        vision, projector, language_model, dialogue, section.source.entry.cls, section.source.config, stopping
    )


def load_weights(model: VisualChatModel) -> None:
    """Load the pretrained weights that the configs of the parts name; raises InputError."""
    model.language_model.load_weights()
    model.vision.backbone.load_weights()
    if model.vision.inquiry_encoder is not None:
        model.vision.inquiry_encoder.load_weights()


def _build_stopping_policies(parts: Sequence[Part], width: int) -> list[StoppingPolicy]:
    return [_build_stopping_policy(part, width) for part in parts]


def _build_stopping_policy(part: Part, width: int) -> StoppingPolicy:
    """Build a stopping policy; raises BadConfig if it does not keep its contract."""
    # Users write policies in their own files, so their mistakes get an error that names the file.
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
        raise BadConfig(f"{name} requests {unknown[0]!r}, which is not available. `needs` may contain {known}.")
    return policy


def _build_language_model(part: Part, saved: Path | None) -> Any:
    return part.build() if saved is None else part.entry.cls.from_saved(part.config, saved / LANGUAGE_MODEL)


def _build_inquiry_encoder(part: Part, language_model: LanguageModel, saved: Path | None) -> Any:
    if saved is None:
        return part.build(language_model)
    return part.entry.cls.from_saved(part.config, language_model, saved / INQUIRY_ENCODER)


def _check_units(section: ModelSection, dialogue: Dialogue, encoder: Encoder) -> None:
    if not dialogue.units_per_side and type(encoder).extent is Encoder.extent:
        raise BadConfig(
            f"dialogue '{section.dialogue.name}' writes boxes in pixels of a view, which views of encoder "
            f"'{section.encoder.name}' do not have. Choose another dialogue or an encoder of images."
        )


def _check_modulators(number: int) -> None:
    if number > MOST_MODULATORS:
        raise BadConfig(
            f"{number:,} modulators in all blocks are more than {MOST_MODULATORS:,}. Name fewer, or fewer blocks in "
            "model.integration."
        )


def _check_modality(section: ModelSection, wanted: str) -> None:
    given = section.source.entry.cls.modality
    if given != wanted:
        raise BadConfig(
            f"source '{section.source.name}' gives crops of modality '{given}', but encoder "
            f"'{section.encoder.name}' takes '{wanted}'. Choose a source and an encoder of the same modality."
        )


def _check_channels(section: ModelSection, wanted: int | None) -> None:
    given = section.source.entry.cls.channels(section.source.config)
    if None not in (given, wanted) and given != wanted:
        raise BadConfig(
            f"source '{section.source.name}' gives {given} channels, coordinates included, but encoder "
            f"'{section.encoder.name}' takes {wanted}. Change the settings of one of them."
        )
