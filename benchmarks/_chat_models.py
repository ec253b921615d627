"""What the chat is measured with: models of two sizes, their images and videos, and the replies that are given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from vilavt_components.dialogues.vilavt import Vilavt, VilavtConfig
from vilavt_components.encoders.qwen2_5_vl.encoder import Qwen25VLConfig, Qwen25VLEncoder
from vilavt_components.encoders.qwen2_5_vl.tower import QwenVisionConfig
from vilavt_components.inquiry_encoders.language_model import LanguageModelInquiryConfig, LanguageModelInquiryEncoder
from vilavt_components.language_models.qwen2_5_vl import Qwen25VLLanguageConfig, Qwen25VLLanguageModel
from vilavt_components.modulators.joint_attention import JointAttention
from vilavt_components.projectors.identity import IdentityProjector
from vilavt_components.sources.image import ImageConfig, ImageSource
from vilavt_components.sources.video.source import VideoConfig, VideoSource
from vilavt_components.stopping.model_decides import ModelDecides, ModelDecidesConfig
from vilavt_toolkit.contracts import Box, Region, RegionCall, Source, ToolCall, Turn, View
from vilavt_toolkit.dialogue.session import Session
from vilavt_toolkit.models.model import VisualChatModel
from vilavt_toolkit.settings import NoSettings
from vilavt_toolkit.vision.dynamic_encoder import DynamicEncoder

ZOOM = 512
"""Pixels along a side of a crop, and of the largest view of one."""
TOKENS = 64
"""Tokens of a reply."""
QUESTION = "Which of the houses on the hill has a red door, and what is written on it?"
INQUIRY = "what is written on the red door"


@dataclass(frozen=True)
class Size:
    """A model and the load of one device."""

    vision: QwenVisionConfig
    language: dict[str, Any]
    vocab_size: int
    image: tuple[int, int]
    """Width and height of the image that is zoomed into."""
    frames: int
    """Of the video."""
    side: int
    """Pixels along a side of a frame, and of the image of a chat of many."""
    zooms: tuple[int, int]
    """How often the image and the video are zoomed into."""
    chats: int
    alone: int
    """How many of the chats are held one by one."""
    decoded: int
    """Tokens that decoding is timed over."""
    row: int
    """Chats in a row."""
    copied: int
    """Bytes that the copy bandwidth is measured over."""
    repeats: int
    long_repeats: int
    """Of what takes a minute."""


_SMALL_TOWER = QwenVisionConfig(
    depth=4, hidden_size=64, intermediate_size=176, num_heads=2, out_hidden_size=256, fullatt_block_indexes=(3,)
)
_SMALL_LANGUAGE = {
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
}
_LANGUAGE_7B = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128000,
}
SIZES = {
    "cpu": Size(
        _SMALL_TOWER, _SMALL_LANGUAGE, 2048, (2048, 1536), 32, 448, (3, 9),
        chats=64, alone=64, decoded=256, row=1000, copied=1 << 28, repeats=5, long_repeats=3,
    ),
    "cuda": Size(
        QwenVisionConfig(), _LANGUAGE_7B, 152064, (2048, 1536), 32, 448, (3, 9),
        chats=64, alone=8, decoded=256, row=1000, copied=1 << 32, repeats=5, long_repeats=3,
    ),
}  # fmt: skip
QUICK = {
    "cpu": Size(
        _SMALL_TOWER, _SMALL_LANGUAGE, 2048, (448, 336), 4, 112, (2, 2),
        chats=4, alone=4, decoded=8, row=20, copied=1 << 24, repeats=2, long_repeats=2,
    ),
    "cuda": Size(
        _SMALL_TOWER, _SMALL_LANGUAGE, 2048, (448, 336), 4, 112, (2, 2),
        chats=4, alone=4, decoded=8, row=20, copied=1 << 28, repeats=2, long_repeats=2,
    ),
}  # fmt: skip


class ReadyModel(VisualChatModel):
    """A model that makes every region ready once: resizing is not what is measured, and no side pays for it."""

    def prepare(self, region: Region) -> View:
        """The view of a region, with its data on the CPU."""
        # Sources are kept with their views: an id of one that is gone may be another's.
        key = (id(region.source), region.box, region.overview)
        if key not in self._ready:
            self._ready[key] = region.source, super().prepare(region)
        return self._ready[key][1]

    @property
    def _ready(self) -> dict[Any, tuple[Source, View]]:
        found: dict[Any, tuple[Source, View]] = self.__dict__.setdefault("_views_by_region", {})
        return found

    def forget(self) -> None:
        """Forget the views."""
        self._ready.clear()


def chat_model(size: Size, device: torch.device) -> ReadyModel:
    """A model with random weights, float32: Qwen2.5-VL's parts under the paper's modulation, `late`."""
    torch.manual_seed(0)
    dialogue = Vilavt(VilavtConfig(overviews_together=False))
    with torch.device(device):
        language_model = Qwen25VLLanguageModel(Qwen25VLLanguageConfig(config=size.language, vocab_size=size.vocab_size))
        language_model.fit_tokenizer(_corpus(dialogue), dialogue.fixed_strings("bbox_2d"))
        encoder = Qwen25VLEncoder(
            Qwen25VLConfig(
                config=size.vision,
                overview_pixels=size.image[0] * size.image[1],
                zoom_pixels=ZOOM * ZOOM,
                min_pixels=3_136,
                max_scale=2.0,
            )
        )
        inquiries = LanguageModelInquiryEncoder(LanguageModelInquiryConfig(), language_model)
        dynamic = DynamicEncoder(encoder, [(JointAttention, NoSettings())], "late", inquiries)
        projector = IdentityProjector(NoSettings(), encoder.spec.out_width, language_model.width)
        stopping = [ModelDecides(ModelDecidesConfig(), language_model.width)]
        model = ReadyModel(dynamic, projector, language_model, dialogue, ImageSource, ImageConfig(), stopping)
    return model.to(device).eval()


def _corpus(dialogue: Vilavt) -> list[str]:
    """Texts of the lengths that a tokenizer of real size gives them, about."""
    turns = [dialogue.write(_call(1, [(n, n, 2 * n, 3 * n)], " ".join(_WORDS))) for n in range(10, 999, 7)]
    return [*dialogue.texts.values(), QUESTION, INQUIRY, *turns] * 2


_WORDS = ("look", "at", "the", "door", "of", "each", "house", "once", "more", "and", "read", "it")


def image(size: tuple[int, int], seed: int = 0) -> ImageSource:
    """An image of noise, (width, height)."""
    return ImageSource(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def video(frames: int, side: int) -> VideoSource:
    """A video of noise, all of whose frames are shown first."""
    pixels = np.random.default_rng(0).integers(0, 256, (frames, side, side, 3), dtype=np.uint8)
    return VideoSource.open(pixels, VideoConfig(frames=frames, pixels=frames * side * side))


def opened(model: VisualChatModel, source: Source) -> Session:
    """A session in which the question about a source has been asked."""
    session = Session(model, [source])
    session.open(QUESTION)
    return session


@dataclass(frozen=True)
class Script:
    """A dialogue whose replies are given: the question asked, and the ids of every reply."""

    session: Session
    replies: Sequence[Sequence[int]] = field(default_factory=list)


def script(model: VisualChatModel, source: Source, zooms: Sequence[Sequence[tuple[int, Box]]], tokens: int) -> Script:
    """The script of a dialogue with one call for each of `zooms`, (region, box of the source) pairs; then an answer.

    Every reply is `tokens` long, or as long as its call needs.
    """
    session = opened(model, source)
    within = source.overviews()
    calls = []
    for zoom in zooms:
        regions = []
        for index, box in zoom:
            units = model.encoder.encoder.extent(session.views[index])
            written = source.write_box(box, within[index], units)
            regions.append(RegionCall(index, written))
        calls.append(Turn(call=ToolCall(tuple(regions), INQUIRY)))
    return Script(session, [_ids(model, turn, tokens) for turn in (*calls, Turn(answer="12"))])


def _call(index: int, boxes: Sequence[tuple[int, ...]], thought: str) -> Turn:
    regions = tuple(RegionCall(index, {"bbox_2d": list(box)}) for box in boxes)
    return Turn(thought, call=ToolCall(regions, INQUIRY))


def _ids(model: VisualChatModel, turn: Turn, tokens: int) -> list[int]:
    """The ids of a turn, its thought as long as makes `tokens` of it."""
    thought: list[str] = []
    while True:
        text = model.dialogue.write(Turn(" ".join(thought), turn.call, turn.answer))
        ids = model.language_model.tokenizer.encode(text)
        if len(ids) >= tokens:
            return ids
        thought.append(_WORDS[len(thought) % len(_WORDS)])


def image_zooms(size: tuple[int, int], count: int) -> list[list[tuple[int, Box]]]:
    """`count` zooms of two square crops each, into the first view."""
    side = min(ZOOM, size[0] // 4, size[1] // 3)
    places = [(x * side, y * side) for y in range(3) for x in range(4)]
    boxes = [(float(x), float(y), float(x + side), float(y + side)) for x, y in places]
    return [[(0, boxes[2 * n]), (0, boxes[2 * n + 1])] for n in range(count)]


def frame_zooms(frames: int, side: int, count: int) -> list[list[tuple[int, Box]]]:
    """`count` zooms of one crop each, half as wide as a frame, enlarged to a frame's size."""
    half = float(side // 2)
    return [[(n % frames, (float(n % frames), 0.0, 0.0, half, half))] for n in range(count)]


def corner_zooms(side: int, count: int) -> list[list[tuple[int, Box]]]:
    """`count` zooms of one crop each, half as wide as an image, enlarged to the image's size."""
    half = float(side // 2)
    return [[(0, (n % 2 * half, n // 2 * half, n % 2 * half + half, n // 2 * half + half))] for n in range(count)]
