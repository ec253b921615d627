"""Task `nlvr`: NLVR v1 as published, sentences about three boxes of shapes, true or false; nothing of a name leaks."""

from __future__ import annotations

import functools
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vilavt_components.sources.image import ImageConfig, ImageSource
from vilavt_components.tasks.published.published import (
    chance,
    check_split,
    digest,
    folder_of,
    held_out,
    mixed,
    names_in,
    read_text,
    select,
)
from vilavt_components.tasks.published.tiny_corpora import tiny_nlvr
from vilavt_toolkit.contracts import GivenTurn, Sample, Task
from vilavt_toolkit.errors import InputError, UsageError
from vilavt_toolkit.registry import tasks
from vilavt_toolkit.settings import setting

PERMUTATIONS = 6
"""Images of every pair: the orders of its three boxes."""
_IDENTIFIER = re.compile(r"([0-9]+)-[0-9]+")
_DIRECTORY = re.compile(r"[0-9A-Za-z_]+")


@dataclass(frozen=True)
class NLVRConfig:
    """Settings of task `nlvr`."""

    root: str = setting(help="folder of the corpus as published, with train/ and the test folder")
    test: Literal["dev", "test"] = setting("dev", help="published folder that is split test")
    seed: int = setting(0, help="decides the order of samples and which sentences are held out for val", minimum=0)
    val: float = setting(
        0.1, help="share of the published train sentences held out as split val", minimum=0, maximum=0.5
    )
    blind: float = setting(
        0.0, help="share of training samples without an image: the answer is a guess", minimum=0, maximum=1
    )
    tool: bool = setting(False, help="whether the model may look closer; no trace shows how")


@dataclass(frozen=True)
class Pair:
    """A sentence and the images it is said of."""

    folder: str
    """Published split."""
    group: str
    """What the sentence was first written about: up to four pairs share it."""
    identifier: str
    directory: str
    sentence: str
    label: str

    def image(self, permutation: int) -> Path:
        """The image of a permutation, relative to the corpus."""
        name = f"{self.folder}-{self.identifier}-{permutation}.png"
        return Path(self.folder, "images", self.directory, name)


Item = tuple[Pair, int]
"""A pair and one of its permutations."""


@tasks.register("nlvr", NLVRConfig)
class NLVR(Task):
    """NLVR v1 as published; one sample per PNG. Official metrics: accuracy, and consistency of a sentence's images.

    File names, identifiers and the order of rows give labels away: none of them is in a sample. Images come as pixels,
    ids are digests, and the order is the seed's, a sentence's samples one after the other. `val` is cut from the
    published train split by sentence.
    """

    def __init__(self, config: NLVRConfig) -> None:
        self.config = config

    @classmethod
    def tiny(cls) -> NLVRConfig:
        """Return settings of a made-up corpus of a few sentences, in a temporary folder."""
        return NLVRConfig(root=tiny_nlvr(), val=0.3, blind=0.1)

    def length(self, split: str) -> int:
        """Number of samples of a split; raises UsageError for an unknown one, InputError for a damaged corpus."""
        check_split("nlvr", split, self.config.val)
        return len(self._splits[split])

    def sample(self, split: str, index: int) -> Sample:
        """The sample at `index`, its image uint8 [h, w, 3]; IndexError beyond the split's end, InputError."""
        check_split("nlvr", split, self.config.val)
        (pair, permutation), config = select(self._splits, "nlvr", split, index), self.config
        name = _sample_id(pair, permutation)
        blind = split == "train" and chance(config.seed, "blind", name) < config.blind
        group = digest("group", pair.folder, pair.group)
        return Sample(
            id=name,
            question=f"{pair.sentence}\nTrue or false?",
            answer=pair.label,
            originals=() if blind else (_pixels(self._root / pair.image(permutation)),),
            trace=(GivenTurn("", answer=pair.label),),
            tool=config.tool and not blind,
            tags={"group": group, "group_items": self._sizes[pair.folder, pair.group], "answer_kind": "yes_no"},
        )

    def file_of(self, sample_id: str) -> Path:
        """The published image of a sample, for people who look into results; raises UsageError."""
        if sample_id not in self._images:
            raise UsageError(f"task 'nlvr' has no sample '{sample_id}'; take the id from an evaluation of this corpus.")
        return self._root / self._images[sample_id]

    def corpus(self) -> Iterator[str]:
        """Questions and answers of the training split, every sentence once for each of its pairs."""
        for pair, permutation in self._splits["train"]:
            if permutation == 0:
                yield from (f"{pair.sentence}\nTrue or false?", pair.label)

    def score(self, sample: Sample, answer: str | None) -> float:
        """1 where the answer is the right one of true and false but for case and outer spaces, else 0."""
        return float(answer is not None and answer.strip().lower() == sample.answer)

    def metrics(self, samples: Sequence[Sample], scores: Sequence[float]) -> Mapping[str, Sequence[float]]:
        """Consistency: whether every image of every pair of a sentence is right, of sentences asked whole."""
        found: defaultdict[str, list[float]] = defaultdict(list)
        whole: dict[str, int] = {}
        for sample, score in zip(samples, scores, strict=True):
            found[sample.tags["group"]].append(score)
            whole[sample.tags["group"]] = sample.tags["group_items"]
        return {"consistency": [min(those) for group, those in found.items() if len(those) == whole[group]]}

    @functools.cached_property
    def _root(self) -> Path:
        return folder_of(self.config.root, "nlvr")

    @functools.cached_property
    def _published(self) -> dict[str, list[Pair]]:
        """The pairs of the two published splits in the order of their files."""
        return {folder: read_pairs(self._root, folder) for folder in ("train", self.config.test)}

    @functools.cached_property
    def _sizes(self) -> Mapping[tuple[str, str], int]:
        """Number of samples of every sentence group."""
        sizes: defaultdict[tuple[str, str], int] = defaultdict(int)
        for folder, pairs in self._published.items():
            for pair in pairs:
                sizes[folder, pair.group] += PERMUTATIONS
        return sizes

    @functools.cached_property
    def _images(self) -> Mapping[str, Path]:
        """The image of every sample by its id, relative to the corpus."""
        items = (item for split in self._splits.values() for item in split)
        return {_sample_id(*item): item[0].image(item[1]) for item in items}

    @functools.cached_property
    def _splits(self) -> dict[str, list[Item]]:
        seed, pairs = self.config.seed, self._published["train"]
        out = held_out((pair.group for pair in pairs), self.config.val, seed)
        cut = {
            "train": [pair for pair in pairs if pair.group not in out],
            "val": [pair for pair in pairs if pair.group in out],
            "test": self._published[self.config.test],
        }
        return {split: _in_order(found, seed) for split, found in cut.items()}


def _sample_id(pair: Pair, permutation: int) -> str:
    return f"nlvr/{digest(pair.folder, pair.identifier, permutation)}"


def _in_order(pairs: Sequence[Pair], seed: int) -> list[Item]:
    """Sentences in an order of their own, and in each of them images likewise: a label's neighbours say nothing."""
    of_group: defaultdict[str, list[Item]] = defaultdict(list)
    for pair in pairs:
        of_group[pair.group] += [(pair, permutation) for permutation in range(PERMUTATIONS)]
    groups = mixed(of_group, str, seed)
    return [item for group in groups for item in mixed(of_group[group], lambda item: _sample_id(*item), seed)]


def _pixels(file: Path) -> Any:
    # Not the path: a source's name may be shown to a model, and this one says more than the picture.
    return ImageSource.open(file, ImageConfig()).pixels


# --- Reading ----------------------------------------------------------------------------------------


def read_pairs(root: Path, folder: str) -> list[Pair]:
    """Read ROOT/FOLDER/FOLDER.json; raises InputError naming the file, the line, and what is wrong with it."""
    file = root / folder / f"{folder}.json"
    images: dict[str, set[str]] = {}
    line_of: dict[str, int] = {}
    pairs = []
    # Only line feeds end a row: a sentence may hold what else splits lines.
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            pair = _read_pair(line, folder)
            if pair.directory not in images:
                images[pair.directory] = names_in(root / folder / "images" / pair.directory)
            _check_images(root, pair, images[pair.directory])
            if pair.identifier in line_of:
                raise _BadRow(f"its identifier {pair.identifier} is that of line {line_of[pair.identifier]} too")
        except _BadRow as problem:
            raise InputError(f"{file}, line {number}: {problem}; mend the row or get the corpus again.") from None
        line_of[pair.identifier] = number
        pairs.append(pair)
    if not pairs:
        raise InputError(f"{file} holds no row; get the corpus again.")
    return pairs


class _BadRow(Exception):
    """What is wrong with a row."""


def _read_pair(line: str, folder: str) -> Pair:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _BadRow("it is no valid JSON") from error
    if not isinstance(row, dict):
        raise _BadRow("it is no JSON object")
    if row.get("label") is None:
        raise _BadRow('it has no "label", and without answers nothing can be learned or scored')
    label = _text(row, "label").lower()
    if label not in ("true", "false"):
        raise _BadRow(f'its "label" {label[:40]!r} is neither true nor false')
    identifier, directory = _text(row, "identifier"), _text(row, "directory")
    numbers = _IDENTIFIER.fullmatch(identifier)
    if numbers is None:
        raise _BadRow(f'its "identifier" {identifier[:40]!r} is not two numbers, like 72-0')
    if not _DIRECTORY.fullmatch(directory):
        raise _BadRow(f'its "directory" {directory[:40]!r} is not the name of a folder')
    return Pair(folder, numbers[1], identifier, directory, _text(row, "sentence"), label)


def _text(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise _BadRow(f'its "{key}" is missing, empty or no text')
    return value.strip()


def _check_images(root: Path, pair: Pair, names: set[str]) -> None:
    for permutation in range(PERMUTATIONS):
        image = pair.image(permutation)
        if image.name not in names:
            raise _BadRow(f"its image {root / image} does not exist")
