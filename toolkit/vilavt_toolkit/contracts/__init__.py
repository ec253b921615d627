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

from vilavt_toolkit.contracts.component import Box, Component, Grid
from vilavt_toolkit.contracts.dialogue import BoxSchema, Dialogue, RegionCall, Shown, Slot, ToolCall, Turn
from vilavt_toolkit.contracts.encoder import At, Attend, Bias, BlockSpec, Encoder, EncoderSpec, View
from vilavt_toolkit.contracts.inquiry_encoder import InquiryEncoder
from vilavt_toolkit.contracts.language_model import CacheView, Frames, LanguageModel, SpelledTokenizer, Tokenizer
from vilavt_toolkit.contracts.modulator import Context, Inquiry, Modulator
from vilavt_toolkit.contracts.optimizer import Optimizer
from vilavt_toolkit.contracts.pixel_budget import PixelBudget, view_size
from vilavt_toolkit.contracts.projector import Projector
from vilavt_toolkit.contracts.reinforcement import Advantage, PolicyLoss, Reward, RewardSettings
from vilavt_toolkit.contracts.source import Crop, Region, Source
from vilavt_toolkit.contracts.stopping import GO_ON, NEEDS, Decision, LoopState, Probe, Spent, StoppingPolicy
from vilavt_toolkit.contracts.task import Conversation, GivenTurn, Message, Sample, Task
from vilavt_toolkit.contracts.trajectory import Asked, GroupInquiry, PlacedRegion, Trajectory
from vilavt_toolkit.packed.tokens import Layout, Tokens

__all__ = [
    "GO_ON",
    "NEEDS",
    "Advantage",
    "Asked",
    "At",
    "Attend",
    "Bias",
    "BlockSpec",
    "Box",
    "BoxSchema",
    "CacheView",
    "Component",
    "Context",
    "Conversation",
    "Crop",
    "Decision",
    "Dialogue",
    "Encoder",
    "EncoderSpec",
    "Frames",
    "GivenTurn",
    "Grid",
    "GroupInquiry",
    "Inquiry",
    "InquiryEncoder",
    "LanguageModel",
    "Layout",
    "LoopState",
    "Message",
    "Modulator",
    "Optimizer",
    "PixelBudget",
    "PlacedRegion",
    "PolicyLoss",
    "Probe",
    "Projector",
    "Region",
    "RegionCall",
    "Reward",
    "RewardSettings",
    "Sample",
    "Shown",
    "Slot",
    "Source",
    "SpelledTokenizer",
    "Spent",
    "StoppingPolicy",
    "Task",
    "Tokenizer",
    "Tokens",
    "ToolCall",
    "Trajectory",
    "Turn",
    "View",
    "view_size",
]
