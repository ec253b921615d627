"""Reads rows of the conversation format: messages, what they show, and what each image is encoded under."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vilavt_components.tasks.files.questions import TAG, without_tags
from vilavt_toolkit.contracts import Conversation, Message, Sample
from vilavt_toolkit.data.fields import Fields, shown
from vilavt_toolkit.data.originals import Named, is_video, named

Role = Literal["system", "user", "assistant"]

ROLES: Mapping[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
}
_ANSWER = re.compile(r"<answer>(.*)</answer>", re.S)


@dataclass(frozen=True)
class Said:
    """A message as written, its tags still in it."""

    number: int
    """Its place in the row's list."""
    role: Role
    text: str


def read_conversation(fields: Fields, training: bool) -> Sample:
    """The sample of a row, its originals `Named`; with `training` word by word, else what is asked first."""
    key = "messages" if "messages" in fields.row and "conversations" not in fields.row else "conversations"
    said = _messages(fields, key)
    images, videos = _images_and_videos(fields)
    if not said:  # what is shown can still be looked for
        return Sample(fields.name("id"), "", "", (*images, *videos))
    shown_by = _shown(fields, said, key, images, videos)
    originals = [original for tags in shown_by for group in tags for original in group]
    learned_from = _first_learned(fields, key, said)
    first = next((place for place, message in enumerate(said) if message.role == "user"), 0)
    tags: dict[str, Any] = {"answer_kind": "text"}
    if originals:
        tags["group"] = originals[0].name
    inquiries, groups = _inquiries(fields, [len(group) for tags_ in shown_by for group in tags_])
    conversation = Conversation(tuple(_written(said, shown_by, learned_from)), inquiries, groups)
    asked = [original for group in shown_by[first] for original in group]
    return Sample(
        id=fields.name("id"),
        question=without_tags(said[first].text),
        answer=_answer(fields, key, said),
        originals=tuple(originals if training else asked),
        tags=tags,
        conversation=conversation if training else None,
        max_pixels=fields.whole("max_pixels", 1),
    )


# --- Messages ---------------------------------------------------------------------------------------


def _messages(fields: Fields, key: str) -> list[Said]:
    """The messages, none where one of them cannot be read; complains of that, and of their order."""
    value = fields.row.get(key)
    if not isinstance(value, list) or not value:
        what = "is missing" if value is None else "is empty" if value == [] else f"is {shown(value)}"
        fields.complain(key, f"{what}; it must be a list of messages.")
        return []
    said = [_message(fields, f"{key}[{number}]", number, item) for number, item in enumerate(value)]
    whole = [message for message in said if message is not None]
    if len(whole) < len(value):
        return []
    _check_order(fields, key, whole)
    return whole


def _message(fields: Fields, where: str, number: int, item: Any) -> Said | None:
    if not isinstance(item, Mapping):
        fields.complain(where, f"is {shown(item)}; it must be an object with from and value, or role and content.")
        return None
    named_by, said_by = ("from", "value") if "from" in item else ("role", "content")
    role = item.get(named_by)
    if not isinstance(role, str) or role not in ROLES:
        known = ", ".join(ROLES)
        fields.complain(f"{where}.{named_by}", f"is the unknown role {shown(role)}; it must be one of {known}.")
        return None
    before = len(fields.problems)
    text = fields.checked_text(f"{where}.{said_by}", item.get(said_by), required=ROLES[role] != "system")
    return Said(number, ROLES[role], text) if len(fields.problems) == before else None


def _check_order(fields: Fields, key: str, said: Sequence[Said]) -> None:
    turns = said[1:] if said[0].role == "system" else said
    for message, wanted in zip(turns, ("user", "assistant") * len(turns), strict=False):
        if message.role != wanted:
            names = {"user": "human (user)", "assistant": "gpt (assistant)", "system": "system"}
            fields.complain(
                f"{key}[{message.number}]",
                f"is of role {names[message.role]} where {names[wanted]} is due; they must take turns, after one "
                "system message at most.",
            )
            return
    if not turns or turns[-1].role != "assistant":
        fields.complain(f"{key}[{said[-1].number}]", "is the last, and not the model's; end with what gpt answers.")


def _first_learned(fields: Fields, key: str, said: Sequence[Said]) -> int:
    """The place of the first message that is learned from."""
    value = fields.row.get("mask_history")
    if isinstance(value, bool):
        last = max((message.number for message in said if message.role == "assistant"), default=0)
        return last if value else 0
    first = fields.whole("mask_history", 0) or 0
    if said and said[-1].number < first:
        fields.complain(
            "mask_history", f"is {first}, and {key} has {said[-1].number + 1} messages: nothing would be learned; "
            "lower it.",
        )  # fmt: skip
    return first


def _answer(fields: Fields, key: str, said: Sequence[Said]) -> str:
    """What is right: in the last message's <answer>, else the whole first reply."""
    replies = [message for message in said if message.role == "assistant"]
    if not replies:
        return ""
    found = _ANSWER.search(replies[-1].text)
    if found is None:
        return replies[0].text.strip()
    if not found[1].strip():
        fields.complain(f"{key}[{replies[-1].number}]", "has an empty <answer>; write it or remove the sample.")
    return found[1].strip()


# --- What is shown ----------------------------------------------------------------------------------


Shown = list[tuple[Named, ...]]
"""What each tag of a message stands for: one image, or the frames of a video."""


def _images_and_videos(fields: Fields) -> tuple[tuple[Named, ...], tuple[Named, ...]]:
    """What the row names, in both ways of calling the fields."""
    image_key = "images" if fields.given("images") or not fields.given("image") else "image"
    video_key = "video" if fields.given("video") or not fields.given("videos") else "videos"
    # Some data say with true that the images are frames.
    videos = () if isinstance(fields.row.get(video_key), bool) else _named(fields, video_key, video=True)
    return _named(fields, image_key), videos


def _shown(
    fields: Fields, said: Sequence[Said], key: str, images: Sequence[Named], videos: Sequence[Named]
) -> list[Shown]:
    """For every message what its tags stand for, in order; complains where tags and images are not as many."""
    kinds = [TAG.findall(message.text) if message.role == "user" else [] for message in said]
    flat = [kind for found in kinds for kind in found]
    waiting: dict[str, list[tuple[Named, ...]]] = {"image": [(image,) for image in images]}
    waiting["video"] = _videos(videos, flat.count("video")) if videos else waiting["image"]
    if videos:
        _check_tags(fields, key, "video", flat.count("video"), waiting["video"])
    tags = flat.count("image") if videos else len(flat)
    _check_tags(fields, key, "image", tags, waiting["image"])
    return [[waiting[kind].pop(0) for kind in found if waiting[kind]] for found in kinds]


def _named(fields: Fields, key: str, video: bool = False) -> tuple[Named, ...]:
    return named(key, fields.texts(key), isinstance(fields.row.get(key), list), video)


def _videos(videos: Sequence[Named], tags: int) -> list[tuple[Named, ...]]:
    """The videos one by one; or, where one tag stands for several images, these as its frames."""
    if tags == 1 and len(videos) > 1 and not any(is_video(each.name) for each in videos):
        return [tuple(Named(each.field, each.name) for each in videos)]
    return [(each,) for each in videos]


def _check_tags(fields: Fields, key: str, kind: str, tags: int, shown: Sequence[tuple[Named, ...]]) -> None:
    there = len(shown)
    if tags == there:
        return
    more = f"more <{kind}> tags than {kind}s" if tags > there else f"fewer <{kind}> tags than {kind}s"
    fields.complain(
        shown[0][0].field.partition("[")[0] if shown else key,
        f"there are {more}: {tags} in the human messages, {there} named; give each {kind} one tag.",
    )


def _inquiries(fields: Fields, counts: Sequence[int]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The texts that images are encoded under, and which of them each is under; `counts` are the images of each tag."""
    queries = fields.row.get("queries")
    mapping = fields.wholes("image_to_query_mapping")
    if queries is not None and not isinstance(queries, list):
        fields.complain("queries", f"is {shown(queries)}; it must be a list of texts.")
        return (), ()
    texts = tuple(
        fields.checked_text(f"queries[{number}]", text, required=False) for number, text in enumerate(queries or ())
    )
    before = len(fields.problems)
    if not mapping and not fields.given("image_to_query_mapping"):
        if texts and len(texts) != len(counts):
            fields.complain(
                "image_to_query_mapping",
                f"is missing, and {len(texts)} queries are not one for each of {len(counts)} images; add it.",
            )
        mapping = tuple(range(len(texts)))
    elif len(fields.problems) == before and _is_whole(fields):
        _check_mapping(fields, mapping, texts, len(counts))
    if len(fields.problems) > before or not texts:
        return (), ()
    return texts, tuple(query for query, count in zip(mapping, counts, strict=False) for _ in range(count))


def _is_whole(fields: Fields) -> bool:
    """Whether every item of the mapping could be read."""
    return not any(name.startswith("image_to_query_mapping") for name, _ in fields.problems)


def _check_mapping(fields: Fields, mapping: Sequence[int], texts: Sequence[str], images: int) -> None:
    """Complain of a mapping that has not one query for each image, a query for each number, or is not contiguous."""
    key = "image_to_query_mapping"
    if len(mapping) != images:
        word = "short" if len(mapping) < images else "long"
        fields.complain(key, f"is too {word}: it has {len(mapping)} numbers for {images} images; give one for each.")
        return
    for number, query in enumerate(mapping):
        if query >= len(texts):
            fields.complain(f"{key}[{number}]", f"is {query}, and there are {len(texts)} queries; add the query.")
        elif query in mapping[:number] and mapping[number - 1] != query:
            fields.complain(
                f"{key}[{number}]", f"is {query} again behind another: not contiguous; images of one query must be "
                "neighbours.",
            )  # fmt: skip
    unmapped = set(range(len(texts))) - set(mapping) if max(mapping, default=0) < len(texts) else set()
    for unused in sorted(unmapped):
        fields.complain(f"queries[{unused}]", "is no image's query; remove it or map an image to it.")


def _written(said: Sequence[Said], shown_by: Sequence[Shown], first: int) -> Iterator[Message]:
    """The messages with the numbers of the originals in place of their tags."""
    number = 0
    for message, groups in zip(said, shown_by, strict=False):
        content: list[str | int] = []
        texts = TAG.split(message.text)[::2] if message.role == "user" else [message.text]
        for place, text in enumerate(texts):
            if text:
                content.append(text)
            if place < len(groups) and place + 1 < len(texts):
                content += range(number, number + len(groups[place]))
                number += len(groups[place])
        yield Message(message.role, tuple(content), learned=message.number >= first)
