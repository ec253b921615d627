"""Reader of rows of the conversation format: messages, the originals they show, and the inquiry of each original."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from vilavt_components.tasks.files.questions import TAG, replace_tags
from vilavt_toolkit.contracts import Conversation, Message, Sample
from vilavt_toolkit.data.fields import Fields
from vilavt_toolkit.data.named_originals import NamedOriginal, OriginalKind, is_video, read_by_kind
from vilavt_toolkit.utils.text import format_value

Role = Literal["system", "user", "assistant"]

ROLES: Mapping[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
}
_ANSWER_TAGS = "<answer>", "</answer>"


@dataclass(frozen=True)
class RowMessage:
    """A message as written in the row, with its tags."""

    number: int
    """Its index in the row's list."""
    role: Role
    text: str


def read_conversation(fields: Fields, training: bool, led: bool = False) -> Sample:
    """Read the sample of a row, its originals `NamedOriginal`; adds what is wrong with it to `fields.problems`.

    With `training` the sample is the whole conversation, else only its first question. With `led`, its replies are
    answers that the dialogue puts into its own form.
    """
    key = "messages" if "messages" in fields.row and "conversations" not in fields.row else "conversations"
    messages = _read_messages(fields, key)
    named = read_by_kind(fields)
    if not messages:
        # Unusable, but the check of the files can still look for its originals.
        return Sample(fields.read_name("id"), "", "", tuple(original for those in named.values() for original in those))
    shown = _match_tags(fields, messages, key, named)
    originals = [original for message_tags in shown for group in message_tags for original in group]
    first_learned = _first_learned_number(fields, key, messages)
    first = next((place for place, message in enumerate(messages) if message.role == "user"), 0)
    tags: dict[str, Any] = {"answer_kind": "text"}
    if originals:
        tags["group"] = originals[0].identity
    counts = [len(group) for message_tags in shown for group in message_tags]
    inquiries, groups = _read_inquiries(fields, counts)
    content = tuple((_ask_questions if led else _number_originals)(messages, shown, first_learned))
    if led and inquiries:
        fields.add_problem(
            "queries", "cannot stand in a row with task.replies=answer, which shows no crops. Remove it."
        )
    first_originals = [original for group in shown[first] for original in group]
    return Sample(
        id=fields.read_name("id"),
        question=replace_tags(messages[first].text),
        answer=_find_answer(fields, key, messages),
        originals=tuple(originals if training else first_originals),
        tags=tags,
        tool=not led,
        conversation=Conversation(content, inquiries, groups, led) if training else None,
        max_pixels=fields.read_int("max_pixels", 1),
    )


# --- Messages ---------------------------------------------------------------------------------------


def _read_messages(fields: Fields, key: str) -> list[RowMessage]:
    """Read the messages of a row, [] if one of them cannot be read; their order is checked too."""
    value = fields.row.get(key)
    if not isinstance(value, list) or not value:
        what = "is missing" if value is None else "is empty" if value == [] else f"is {format_value(value)}"
        fields.add_problem(key, f"{what}. It must be a list of messages.")
        return []
    read = [_read_message(fields, f"{key}[{number}]", number, item) for number, item in enumerate(value)]
    messages = [message for message in read if message is not None]
    # Without one of them, roles and tags would be compared with the wrong neighbours.
    if len(messages) < len(value):
        return []
    _check_order(fields, key, messages)
    return messages


def _read_message(fields: Fields, where: str, number: int, item: Any) -> RowMessage | None:
    if not isinstance(item, Mapping):
        fields.add_problem(
            where, f"is {format_value(item)}. It must be an object with from and value, or role and content."
        )
        return None
    named_by, said_by = ("from", "value") if "from" in item else ("role", "content")
    role = item.get(named_by)
    if not isinstance(role, str) or role not in ROLES:
        known = ", ".join(ROLES)
        fields.add_problem(
            f"{where}.{named_by}", f"is the unknown role {format_value(role)}. It must be one of {known}."
        )
        return None
    before = len(fields.problems)
    # A system message may be empty, but not what a person or the model says.
    text = fields.check_text(f"{where}.{said_by}", item.get(said_by), required=ROLES[role] != "system")
    return RowMessage(number, ROLES[role], text) if len(fields.problems) == before else None


def _check_order(fields: Fields, key: str, messages: Sequence[RowMessage]) -> None:
    turns = messages[1:] if messages[0].role == "system" else messages
    for message, wanted in zip(turns, ("user", "assistant") * len(turns), strict=False):
        if message.role != wanted:
            # Only the first one: every message after it would be out of turn as well.
            names = {"user": "human (user)", "assistant": "gpt (assistant)", "system": "system"}
            fields.add_problem(
                f"{key}[{message.number}]",
                f"is of role {names[message.role]} where {names[wanted]} is due. They must take turns, after one "
                "system message at most.",
            )
            return
    if not turns or turns[-1].role != "assistant":
        fields.add_problem(
            f"{key}[{messages[-1].number}]", "is the last, and not the model's. End with what gpt answers."
        )


def _first_learned_number(fields: Fields, key: str, messages: Sequence[RowMessage]) -> int:
    """Read `mask_history`: the number of the first message that is learned from."""
    value = fields.row.get("mask_history")
    # True masks everything before the last reply; a number is the first message that is learned from.
    if isinstance(value, bool):
        last = max((message.number for message in messages if message.role == "assistant"), default=0)
        return last if value else 0
    first = fields.read_int("mask_history", 0) or 0
    if messages and messages[-1].number < first:
        fields.add_problem(
            "mask_history", f"is {first}, and {key} has {messages[-1].number + 1} messages: nothing would be learned. "
            "Lower it.",
        )  # fmt: skip
    return first


def _find_answer(fields: Fields, key: str, messages: Sequence[RowMessage]) -> str:
    """Find the right answer: in the last message's <answer>, else the whole first reply."""
    replies = [message for message in messages if message.role == "assistant"]
    if not replies:
        return ""
    # A dialogue with zooms has its answer in the last reply. Plain ones answer their question in the first.
    # Not a regular expression: over a long text without the closing tag, `.*` would run once for every opening one.
    begin, end = _ANSWER_TAGS
    _, opened, rest = replies[-1].text.partition(begin)
    answer, closed, _ = rest.rpartition(end)
    if not opened or not closed:
        return replies[0].text.strip()
    if not answer.strip():
        fields.add_problem(f"{key}[{replies[-1].number}]", "has an empty <answer>. Write it or remove the sample.")
    return answer.strip()


# --- What is shown ----------------------------------------------------------------------------------


TagOriginals = list[tuple[NamedOriginal, ...]]
"""The originals of each tag of a message: one image, or the frames of a video."""


def _match_tags(
    fields: Fields,
    messages: Sequence[RowMessage],
    key: str,
    named: Mapping[OriginalKind, tuple[NamedOriginal, ...]],
) -> list[TagOriginals]:
    """Return the originals of every message's tags, in order; another number of tags than originals is a problem."""
    kinds = [TAG.findall(message.text) if message.role == "user" else [] for message in messages]
    # A tag of a kind that the row does not name stands for the first kind that it does: <video> for images, say.
    other: OriginalKind = next((kind for kind in named if named[kind]), "image")
    meant: list[list[str]] = [[kind if named.get(kind) else other for kind in found] for found in kinds]
    counts = Counter(kind for found in meant for kind in found)
    waiting: dict[str, deque[tuple[NamedOriginal, ...]]] = {other: deque()}
    for kind, originals in named.items():
        waiting[kind] = deque(_group_frames(originals, counts[kind]) if kind == "video" else [(o,) for o in originals])
    for shown, groups in waiting.items():
        _check_tags(fields, key, shown, counts[shown], groups)
    return [[waiting[kind].popleft() for kind in found if waiting[kind]] for found in meant]


def _group_frames(videos: Sequence[NamedOriginal], tags: int) -> list[tuple[NamedOriginal, ...]]:
    """Return the videos one by one, or all images as the frames of one video if there is one tag for them."""
    if tags == 1 and len(videos) > 1 and not any(is_video(each.name) for each in videos):
        return [tuple(replace(each, kind="image") for each in videos)]
    return [(each,) for each in videos]


def _check_tags(fields: Fields, key: str, kind: str, tags: int, shown: Sequence[tuple[NamedOriginal, ...]]) -> None:
    there, kind = len(shown), "image" if kind == "any" else kind
    if tags == there:
        return
    noun = kind.replace("_", " ")
    more = f"more <{kind}> tags than {noun}s" if tags > there else f"fewer <{kind}> tags than {noun}s"
    fields.add_problem(
        shown[0][0].field.partition("[")[0] if shown else key,
        f"there are {more}: {tags} in the human messages, {there} named. Give each {noun} one tag.",
    )


def _read_inquiries(fields: Fields, counts: Sequence[int]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Read the inquiries, and for every original the index of its own; `counts` are the originals of each tag."""
    queries = fields.row.get("queries")
    mapping = fields.read_ints("image_to_query_mapping")
    if queries is not None and not isinstance(queries, list):
        fields.add_problem("queries", f"is {format_value(queries)}. It must be a list of texts.")
        return (), ()
    texts = tuple(
        fields.check_text(f"queries[{number}]", text, required=False) for number, text in enumerate(queries or ())
    )
    before = len(fields.problems)
    if not mapping and not fields.has_value("image_to_query_mapping"):
        if texts and len(texts) != len(counts):
            fields.add_problem(
                "image_to_query_mapping",
                f"is missing, but the number of queries is {len(texts)} and that of images {len(counts)}. Add it.",
            )
        # Without a mapping every image has a query of its own.
        mapping = tuple(range(len(texts)))
    elif len(fields.problems) == before and _is_mapping_readable(fields):
        _check_mapping(fields, mapping, texts, len(counts))
    if len(fields.problems) > before or not texts:
        return (), ()
    # The frames of a video share the query of its tag, so a tag's query counts once for each frame.
    return texts, tuple(query for query, count in zip(mapping, counts, strict=False) for _ in range(count))


def _is_mapping_readable(fields: Fields) -> bool:
    """Return True if every item of the mapping could be read."""
    return not any(name.startswith("image_to_query_mapping") for name, _ in fields.problems)


def _check_mapping(fields: Fields, mapping: Sequence[int], texts: Sequence[str], images: int) -> None:
    """Check that a mapping has one query for each image, no unknown or unused query, and is contiguous."""
    key = "image_to_query_mapping"
    if len(mapping) != images:
        word = "short" if len(mapping) < images else "long"
        fields.add_problem(
            key,
            f"is too {word}: its length is {len(mapping)}, and the number of images is {images}. "
            "Give one number for each image.",
        )
        return
    begun: set[int] = set()
    for number, query in enumerate(mapping):
        if query >= len(texts):
            fields.add_problem(
                f"{key}[{number}]", f"is {query}, and the number of queries is {len(texts)}. Add the query."
            )
        elif query in begun and mapping[number - 1] != query:
            fields.add_problem(
                f"{key}[{number}]", f"is {query} again after another: not contiguous. Images of one query must be "
                "neighbours.",
            )  # fmt: skip
        begun.add(query)
    # With an unknown query, itself a problem, another one may only seem to be unused.
    unmapped = set(range(len(texts))) - set(mapping) if max(mapping, default=0) < len(texts) else set()
    for unused in sorted(unmapped):
        fields.add_problem(f"queries[{unused}]", "is no image's query. Remove it or map an image to it.")


def _number_originals(messages: Sequence[RowMessage], shown: Sequence[TagOriginals], first: int) -> Iterator[Message]:
    """Yield the messages with the numbers of the originals in place of their tags."""
    number = 0
    for message, groups in zip(messages, shown, strict=False):
        content: list[str | int] = []
        # `split` alternates between texts and the kinds of the tags.
        texts = TAG.split(message.text)[::2] if message.role == "user" else [message.text]
        for place, text in enumerate(texts):
            if text:
                content.append(text)
            if place < len(groups) and place + 1 < len(texts):
                content += range(number, number + len(groups[place]))
                number += len(groups[place])
        yield Message(message.role, tuple(content), learned=message.number >= first)


def _ask_questions(messages: Sequence[RowMessage], shown: Sequence[TagOriginals], first: int) -> Iterator[Message]:
    """Yield the messages for a dialogue that is led: the originals of a message, then its words without their tags."""
    number = 0
    for message, groups in zip(messages, shown, strict=False):
        count = sum(len(group) for group in groups)
        text = replace_tags(message.text, number) if message.role == "user" else message.text
        yield Message(message.role, (*range(number, number + count), text), learned=message.number >= first)
        number += count


def has_plain_reply(sample: Sample) -> bool:
    """Return True if the last reply of a conversation is plain text, in which a dialogue finds no answer."""
    if sample.conversation is None or sample.conversation.led or not sample.conversation.messages:
        return False
    last = "".join(part for part in sample.conversation.messages[-1].content if isinstance(part, str))
    return _ANSWER_TAGS[1] not in last
