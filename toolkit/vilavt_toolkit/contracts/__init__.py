"""The contracts: what each kind of component promises, and the one legend of dimension letters.

Legend: B dialogues, G inquiry groups, R regions, S packed vision tokens, D width, H heads, d width of a head,
T inquiry tokens, L text length, P position axes, K context keys, F features handed to the language model,
V vocabulary.

Words: a *source* is an original (an image file, a video, a point cloud). A *region* names a source and a box of it. A
*crop* is the part that is cut out. A *view* is a crop that is ready for one encoder. An *inquiry group* holds the
regions that are encoded together under one inquiry. docs/glossary.md has the other words.

A component is one class in a file or a folder of its own, and one frozen dataclass of settings, its config. It is built
from its config and from what the `__init__` of its kind names. Building it reads at most a configuration or a
tokenizer, never a weight. `load_weights` reads weights.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vilavt_toolkit.contracts.component import Box, Component
from vilavt_toolkit.contracts.dialogue import AnnouncedRegion, BoxSchema, Dialogue, RegionCall, Slot, ToolCall, Turn
from vilavt_toolkit.contracts.encoder import Attend, Bias, BlockSpec, Encoder, EncoderSpec, SiteHook, View
from vilavt_toolkit.contracts.inquiry_encoder import InquiryEncoder
from vilavt_toolkit.contracts.language_model import (
    ByteTokenizer,
    CacheView,
    LanguageModel,
    ProtectingTokenizer,
    Tokenizer,
    TurnTemplate,
    protect_text,
)
from vilavt_toolkit.contracts.modulator import Context, Inquiry, Modulator
from vilavt_toolkit.contracts.optimizer import DECAYS, Optimizer
from vilavt_toolkit.contracts.pixel_budget import PixelBudget, PixelBudgetConfig, view_size
from vilavt_toolkit.contracts.projector import Projector
from vilavt_toolkit.contracts.reinforcement import Advantage, PolicyLoss, Reward, RewardConfig
from vilavt_toolkit.contracts.source import Crop, Region, ShownAs, Source, position_in_source
from vilavt_toolkit.contracts.stopping import GO_ON, NEEDS, Decision, LoopState, Probe, StoppingPolicy, Usage
from vilavt_toolkit.contracts.task import Conversation, Message, Sample, Task, TraceTurn
from vilavt_toolkit.contracts.trajectory import AskedQuestion, InquiryTokens, ShownRegion, Trajectory
from vilavt_toolkit.packed.tokens import Grid, Layout, Tokens

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Return the contract of checkpoint formats, which lives on a floor above."""
        # It names the sections of a recipe and the model, so it cannot stand here. It is imported when it is asked
        # for, since whoever writes a component looks for every contract in one place. Type checkers do not see this
        # function, or every misspelt name would pass them: for them, import it from `vilavt_toolkit.formats`.
        if name == "CheckpointFormat":
            return import_module("vilavt_toolkit.formats").CheckpointFormat
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "DECAYS",
    "GO_ON",
    "NEEDS",
    "Advantage",
    "AnnouncedRegion",
    "AskedQuestion",
    "Attend",
    "Bias",
    "BlockSpec",
    "Box",
    "BoxSchema",
    "ByteTokenizer",
    "CacheView",
    "Component",
    "Context",
    "Conversation",
    "Crop",
    "Decision",
    "Dialogue",
    "Encoder",
    "EncoderSpec",
    "Grid",
    "Inquiry",
    "InquiryEncoder",
    "InquiryTokens",
    "LanguageModel",
    "Layout",
    "LoopState",
    "Message",
    "Modulator",
    "Optimizer",
    "PixelBudget",
    "PixelBudgetConfig",
    "PolicyLoss",
    "Probe",
    "Projector",
    "ProtectingTokenizer",
    "Region",
    "RegionCall",
    "Reward",
    "RewardConfig",
    "Sample",
    "ShownAs",
    "ShownRegion",
    "SiteHook",
    "Slot",
    "Source",
    "StoppingPolicy",
    "Task",
    "Tokenizer",
    "Tokens",
    "ToolCall",
    "TraceTurn",
    "Trajectory",
    "Turn",
    "TurnTemplate",
    "Usage",
    "View",
    "position_in_source",
    "protect_text",
    "view_size",
]
