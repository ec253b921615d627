"""Task `conversations`: dialogues word by word from files, with ready crops and the inquiry of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from vilavt_components.common.answers.scoring import score_answer
from vilavt_components.tasks.files.conversation_rows import has_plain_reply, read_conversation
from vilavt_components.tasks.files.tiny_files import tiny_conversations
from vilavt_toolkit.contracts import Sample
from vilavt_toolkit.data.fields import Fields
from vilavt_toolkit.data.file_task import FilesConfig, FileTask
from vilavt_toolkit.data.named_originals import ORIGINAL_KEYS
from vilavt_toolkit.registry import tasks
from vilavt_toolkit.settings import setting


@dataclass(frozen=True, kw_only=True)
class ConversationsConfig(FilesConfig):
    """Settings of task `conversations`."""

    replies: Literal["as_given", "answer"] = setting(
        "as_given",
        help="as_given learns replies word by word, and answer puts the dialogue's form around plain ones: it asks the "
        "questions, and writes the replies as its answers",
    )


@tasks.register("conversations", ConversationsConfig)
class Conversations(FileTask):
    """Conversations in the paper's format for supervised training, or LLaVA's and ShareGPT's: JSON, JSON lines, shards.

    In `train` a sample is learned from word by word. In the other splits its first question is asked about the images
    of its first message. The right answer is the text in <answer> of the last message, or else the first reply.
    """

    name: ClassVar[str] = "conversations"
    config: ConversationsConfig
    known_fields: ClassVar[tuple[str, ...]] = (
        *("id", "conversations", "messages", *ORIGINAL_KEYS, "queries", "image_to_query_mapping", "max_pixels"),
        "mask_history",
    )

    @classmethod
    def tiny(cls) -> ConversationsConfig:
        """Return settings of made-up files in a temporary folder."""
        folder = tiny_conversations()
        return ConversationsConfig(files=f"{folder}/train.jsonl", test_files=f"{folder}/test.json", val_share=0.3)

    @classmethod
    def recognises(cls, row: Mapping[str, Any]) -> bool:
        """Return True if a row holds messages."""
        return "conversations" in row or "messages" in row

    def read_sample(self, fields: Fields, training: bool) -> Sample:
        """Read the sample of a row; adds what is wrong with it to `fields.problems`."""
        return read_conversation(fields, training, led=self.config.replies == "answer")

    def is_unreadable(self, sample: Sample) -> bool:
        """Return True if a sample teaches replies in which no dialogue finds an answer."""
        return has_plain_reply(sample)

    def score(self, sample: Sample, answer: str | None) -> float:
        """Return 1 if the answer is right but for case, spaces and quotes, else 0."""
        return score_answer(sample, answer)
