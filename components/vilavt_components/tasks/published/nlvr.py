"""Task `nlvr`: NLVR v1 as published, sentences about three boxes of shapes that are true or false."""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from vilavt_components.sources.image import ImageConfig, ImageSource
from vilavt_components.tasks.published.corpus import (
    PublishedTask,
    cut_validation,
    hash_to_uniform,
    list_file_names,
    read_corpus_text,
    shuffle_by_hash,
)
from vilavt_components.tasks.published.tiny_corpora import tiny_nlvr
from vilavt_toolkit.contracts import Sample, TraceTurn
from vilavt_toolkit.data.fields import hash_parts
from vilavt_toolkit.errors import InputError, UsageError
from vilavt_toolkit.registry import tasks
from vilavt_toolkit.settings import setting
from vilavt_toolkit.utils.json_objects import RepeatedKey, load_unambiguous

PERMUTATIONS = 6
"""Images of every pair, one for each order of its three boxes."""
_IDENTIFIER = re.compile(r"([0-9]+)-[0-9]+")
_DIRECTORY = re.compile(r"[0-9A-Za-z_]+")


@dataclass(frozen=True)
class NLVRConfig:
    """Settings of task `nlvr`."""

    root: str = setting(help="folder of the corpus as published, with train/ and the test folder", is_path=True)
    test: Literal["dev", "test"] = setting("dev", help="published folder that is split test")
    seed: int = setting(0, help="decides the order of samples and which sentences are held out for val", minimum=0)
    val: float = setting(
        0.1, help="share of the published train sentences held out as split val", minimum=0, maximum=0.5
    )
    blind: float = setting(
        0.0, help="share of training samples without an image: the answer is a guess", minimum=0, maximum=1
    )
    tool: bool = setting(False, help="the model may zoom, although no trace shows how, or must answer at once if false")


@dataclass(frozen=True)
class Pair:
    """A sentence with one label and its six images."""

    folder: str
    """The published split."""
    group: str
    """The number of the sentence; up to four pairs share it."""
    identifier: str
    directory: str
    sentence: str
    label: str

    def image_path(self, permutation: int) -> Path:
        """Return the image of a permutation, relative to the corpus."""
        name = f"{self.folder}-{self.identifier}-{permutation}.png"
        return Path(self.folder, "images", self.directory, name)


PairImage = tuple[Pair, int]
"""A pair and one of its permutations."""


@tasks.register("nlvr", NLVRConfig)
class NLVR(PublishedTask[PairImage]):
    """NLVR v1 as published; one sample per PNG. Official metrics: accuracy, and consistency of a sentence's images.

    File names, identifiers and the order of rows give labels away, so none of them is in a sample: images come as
    pixels, ids are hashes, and the seed decides the order, in which a sentence's samples stay together. `val` is cut
    from the published train split by sentence.
    """

    name: ClassVar[str] = "nlvr"
    config: NLVRConfig

    @classmethod
    def tiny(cls) -> NLVRConfig:
        """Return settings of a made-up corpus of a few sentences, in a temporary folder."""
        return NLVRConfig(root=tiny_nlvr(), val=0.3, blind=0.1)

    def sample(self, split: str, index: int) -> Sample:
        """Return the sample at `index`, its image uint8 [h, w, 3]; raises IndexError beyond the split's end."""
        (pair, permutation), config = self._select_item(split, index), self.config
        name = _sample_id(pair, permutation)
        # By the sample's id, not its index: who is blind must not depend on which sentences are held out.
        blind = split == "train" and hash_to_uniform(config.seed, "blind", name) < config.blind
        group = hash_parts("group", pair.folder, pair.group)
        return Sample(
            id=name,
            question=f"{pair.sentence}\nTrue or false?",
            answer=pair.label,
            originals=() if blind else (_read_pixels(self._root / pair.image_path(permutation)),),
            trace=(TraceTurn("", answer=pair.label),),
            tool=config.tool and not blind,
            tags={"group": group, "group_items": self._group_sizes[pair.folder, pair.group], "answer_kind": "yes_no"},
        )

    def image_file(self, sample_id: str) -> Path:
        """Return the published image of a sample, for people who look into results; raises UsageError."""
        if sample_id not in self._image_paths:
            raise UsageError(f"task 'nlvr' has no sample '{sample_id}'. Take the id from an evaluation of this corpus.")
        return self._root / self._image_paths[sample_id]

    def corpus(self) -> Iterator[str]:
        """Yield questions and answers of the training split, every sentence once for each of its pairs."""
        for pair, permutation in self._splits["train"]:
            if permutation == 0:
                yield from (f"{pair.sentence}\nTrue or false?", pair.label)

    def metrics(self, samples: Sequence[Sample], scores: Sequence[float]) -> Mapping[str, Sequence[float]]:
        """Return consistency: 1 for a sentence with all its images right, else 0; only sentences asked whole count."""
        found: defaultdict[str, list[float]] = defaultdict(list)
        sizes: dict[str, int] = {}
        for sample, score in zip(samples, scores, strict=True):
            found[sample.tags["group"]].append(score)
            sizes[sample.tags["group"]] = sample.tags["group_items"]
        return {"consistency": [min(group) for name, group in found.items() if len(group) == sizes[name]]}

    @functools.cached_property
    def _published(self) -> dict[str, list[Pair]]:
        """The pairs of the two published splits in the order of their files."""
        return {folder: read_pairs(self._root, folder) for folder in ("train", self.config.test)}

    @functools.cached_property
    def _group_sizes(self) -> Mapping[tuple[str, str], int]:
        """The number of samples of every sentence, by (folder, group)."""
        sizes: defaultdict[tuple[str, str], int] = defaultdict(int)
        for folder, pairs in self._published.items():
            for pair in pairs:
                sizes[folder, pair.group] += PERMUTATIONS
        return sizes

    @functools.cached_property
    def _image_paths(self) -> Mapping[str, Path]:
        """The image of every sample by its id, relative to the corpus."""
        items = (item for split in self._splits.values() for item in split)
        return {_sample_id(*item): item[0].image_path(item[1]) for item in items}

    @functools.cached_property
    def _splits(self) -> dict[str, list[PairImage]]:
        """The images of train, val and test, shuffled by the seed."""
        seed = self.config.seed
        train, test = self._published["train"], self._published[self.config.test]
        splits = cut_validation(train, test, lambda pair: pair.group, self.config.val, seed)
        return {split: _shuffle_pairs(pairs, seed) for split, pairs in splits.items()}


def _sample_id(pair: Pair, permutation: int) -> str:
    return f"nlvr/{hash_parts(pair.folder, pair.identifier, permutation)}"


def _shuffle_pairs(pairs: Sequence[Pair], seed: int) -> list[PairImage]:
    """Shuffle sentences, and the images within each sentence, so that neighbours say nothing about a label."""
    of_group: defaultdict[str, list[PairImage]] = defaultdict(list)
    for pair in pairs:
        of_group[pair.group] += [(pair, permutation) for permutation in range(PERMUTATIONS)]
    # A sentence stays together, so that an evaluation of the first items asks sentences whole, as consistency needs.
    groups = shuffle_by_hash(of_group, str, seed)
    return [item for group in groups for item in shuffle_by_hash(of_group[group], lambda item: _sample_id(*item), seed)]


def _read_pixels(file: Path) -> Any:
    # Pixels rather than the path: a model may be shown a source's name, and this one gives the label away.
    return ImageSource.open(file, ImageConfig()).pixels


# --- Reading ----------------------------------------------------------------------------------------


def read_pairs(root: Path, folder: str) -> list[Pair]:
    """Read ROOT/FOLDER/FOLDER.json; raises InputError naming the file, the line, and what is wrong with it."""
    file = root / folder / f"{folder}.json"
    images: dict[str, set[str]] = {}
    line_of: dict[str, int] = {}
    pairs = []
    # Not `splitlines`: a sentence may contain other characters that end a line for it.
    for number, line in enumerate(read_corpus_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            pair = _read_pair(line, folder)
            # A folder holds the images of many pairs and is listed once.
            if pair.directory not in images:
                images[pair.directory] = list_file_names(root / folder / "images" / pair.directory)
            _check_images(root, pair, images[pair.directory])
            if pair.identifier in line_of:
                raise _BadRow(f"its identifier {pair.identifier} is that of line {line_of[pair.identifier]} too")
        except _BadRow as problem:
            raise InputError(f"{file}, line {number}: {problem}. Correct the row or get the corpus again.") from None
        line_of[pair.identifier] = number
        pairs.append(pair)
    if not pairs:
        raise InputError(f"{file} holds no row. Get the corpus again.")
    return pairs


class _BadRow(Exception):
    """A row that cannot be read; its text says why."""


def _read_pair(line: str, folder: str) -> Pair:
    try:
        row = load_unambiguous(line)
    except RepeatedKey as error:
        raise _BadRow(str(error)) from error
    except (ValueError, RecursionError) as error:
        raise _BadRow("it is no valid JSON") from error
    if not isinstance(row, dict):
        raise _BadRow("it is no JSON object")
    # NLVR also has a test set without labels, which reads like the others.
    if row.get("label") is None:
        raise _BadRow('it has no "label", and without answers nothing can be learned or scored')
    label = _read_text(row, "label").lower()
    if label not in ("true", "false"):
        raise _BadRow(f'its "label" {label[:40]!r} is neither true nor false')
    identifier, directory = _read_text(row, "identifier"), _read_text(row, "directory")
    numbers = _IDENTIFIER.fullmatch(identifier)
    if numbers is None:
        raise _BadRow(f'its "identifier" {identifier[:40]!r} is not two numbers, like 72-0')
    if not _DIRECTORY.fullmatch(directory):
        raise _BadRow(f'its "directory" {directory[:40]!r} is not the name of a folder')
    return Pair(folder, numbers[1], identifier, directory, _read_text(row, "sentence"), label)


def _read_text(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise _BadRow(f'its "{key}" is missing, empty or no text')
    return value.strip()


def _check_images(root: Path, pair: Pair, names: set[str]) -> None:
    for permutation in range(PERMUTATIONS):
        image = pair.image_path(permutation)
        if image.name not in names:
            raise _BadRow(f"its image {root / image} does not exist")
