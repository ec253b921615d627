"""Models, images, videos and scripted dialogues of the chat's benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from vilavt_components.dialogues.vilavt import VilavtDialogue, VilavtDialogueConfig
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
"""Pixels along a side of a crop, and of its largest view."""
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
    """Frames of the video."""
    side: int
    """Pixels along a side of a frame, and of the image of a chat of many."""
    zooms: tuple[int, int]
    """Numbers of zooms into the image and into the video."""
    chats: int
    alone: int
    """Number of the chats that are run one by one."""
    decoded: int
    """Tokens that decoding is timed over."""
    row: int
    """Number of chats in a row, for the measurement of memory."""
    copied: int
    """Bytes that the copy bandwidth is measured over."""
    repeats: int
    long_repeats: int
    """Repeats of cases that take a minute."""


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


class CachedViewsModel(VisualChatModel):
    """A model that prepares every view once, so that no side pays for resizing."""

    def prepare(self, region: Region) -> View:
        """Return the view of a region, with its data on the CPU."""
        # Sources are kept with their views, since Python reuses the id of a source that is gone.
        key = (id(region.source), region.box, region.overview)
        if key not in self._cached_views:
            self._cached_views[key] = region.source, super().prepare(region)
        return self._cached_views[key][1]

    @property
    def _cached_views(self) -> dict[Any, tuple[Source, View]]:
        found: dict[Any, tuple[Source, View]] = self.__dict__.setdefault("_views_by_region", {})
        return found

    def forget_views(self) -> None:
        """Forget the views."""
        self._cached_views.clear()


def build_chat_model(size: Size, device: torch.device) -> CachedViewsModel:
    """Build a model with random weights, float32: Qwen2.5-VL's parts under the paper's modulation, `late`."""
    torch.manual_seed(0)
    dialogue = VilavtDialogue(VilavtDialogueConfig())
    with torch.device(device):
        language_model = Qwen25VLLanguageModel(Qwen25VLLanguageConfig(config=size.language, vocab_size=size.vocab_size))
        language_model.fit_tokenizer(_tokenizer_corpus(dialogue), dialogue.fixed_strings("bbox_2d"))
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
        model = CachedViewsModel(dynamic, projector, language_model, dialogue, ImageSource, ImageConfig(), stopping)
    return model.to(device).eval()


def _tokenizer_corpus(dialogue: VilavtDialogue) -> list[str]:
    """Return texts for a small tokenizer that gives turns about as many tokens as one of real size."""
    turns = [dialogue.write(_call_turn(1, [(n, n, 2 * n, 3 * n)], " ".join(_WORDS))) for n in range(10, 999, 7)]
    return [*dialogue.texts.values(), QUESTION, INQUIRY, *turns] * 2


_WORDS = ("look", "at", "the", "door", "of", "each", "house", "once", "more", "and", "read", "it")


def noise_image(size: tuple[int, int], seed: int = 0) -> ImageSource:
    """Make an image of noise, `size` (width, height)."""
    return ImageSource(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def noise_video(frames: int, side: int) -> VideoSource:
    """Make a video of noise with all its frames as overviews."""
    pixels = np.random.default_rng(0).integers(0, 256, (frames, side, side, 3), dtype=np.uint8)
    return VideoSource.open(pixels, VideoConfig(frames=frames, pixels=frames * side * side))


def open_session(model: VisualChatModel, source: Source) -> Session:
    """Open a session and ask the question about a source."""
    session = Session(model, [source])
    session.ask(QUESTION)
    return session


@dataclass(frozen=True)
class Script:
    """A dialogue with given replies: a session with its question, and the ids of every reply."""

    session: Session
    replies: Sequence[Sequence[int]] = field(default_factory=list)


def write_script(
    model: VisualChatModel, source: Source, zooms: Sequence[Sequence[tuple[int, Box]]], tokens: int
) -> Script:
    """Write the script of a dialogue with one call for each of `zooms`, (region, box) pairs, and an answer.

    Every reply is `tokens` long, or as long as its call needs.
    """
    session = open_session(model, source)
    within = source.overviews()
    calls = []
    for zoom in zooms:
        regions = []
        for index, box in zoom:
            units = model.vision.backbone.extent(session.views[index])
            written = source.write_box(box, within[index], units)
            regions.append(RegionCall(index, written))
        calls.append(Turn(call=ToolCall(tuple(regions), INQUIRY)))
    return Script(session, [_turn_ids(model, turn, tokens) for turn in (*calls, Turn(answer="12"))])


def _call_turn(index: int, boxes: Sequence[tuple[int, ...]], thought: str) -> Turn:
    regions = tuple(RegionCall(index, {"bbox_2d": list(box)}) for box in boxes)
    return Turn(thought, call=ToolCall(regions, INQUIRY))


def _turn_ids(model: VisualChatModel, turn: Turn, tokens: int) -> list[int]:
    """Return the ids of a turn, with a thought so long that there are at least `tokens` of them."""
    thought: list[str] = []
    while True:
        text = model.dialogue.write(Turn(" ".join(thought), turn.call, turn.answer))
        ids = model.language_model.tokenizer.encode(text)
        if len(ids) >= tokens:
            return ids
        thought.append(_WORDS[len(thought) % len(_WORDS)])


def image_zooms(size: tuple[int, int], count: int) -> list[list[tuple[int, Box]]]:
    """Make `count` zooms of two square crops each, into the overview."""
    side = min(ZOOM, size[0] // 4, size[1] // 3)
    places = [(x * side, y * side) for y in range(3) for x in range(4)]
    boxes = [(float(x), float(y), float(x + side), float(y + side)) for x, y in places]
    return [[(0, boxes[2 * n]), (0, boxes[2 * n + 1])] for n in range(count)]


def frame_zooms(frames: int, side: int, count: int) -> list[list[tuple[int, Box]]]:
    """Make `count` zooms of one crop each, half as wide as a frame, enlarged to a frame's size."""
    half = float(side // 2)
    return [[(n % frames, (float(n % frames), 0.0, 0.0, half, half))] for n in range(count)]


def corner_zooms(side: int, count: int) -> list[list[tuple[int, Box]]]:
    """Make `count` zooms of one crop each, half as wide as an image, enlarged to the image's size."""
    half = float(side // 2)
    return [[(0, (n % 2 * half, n // 2 * half, n % 2 * half + half, n // 2 * half + half))] for n in range(count)]
