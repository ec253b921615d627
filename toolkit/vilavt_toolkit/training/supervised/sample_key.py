"""The key of prepared samples: equal for two runs that would prepare the same ones, and for no others."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from vilavt_toolkit.config.recipe import CheckedRecipe
from vilavt_toolkit.contracts import Sample, Task
from vilavt_toolkit.contracts.language_model import ByteTokenizer
from vilavt_toolkit.data.file_task import FileTask
from vilavt_toolkit.data.row_budget import RowBudget
from vilavt_toolkit.models.model import VisualChatModel
from vilavt_toolkit.registry import REGISTRIES
from vilavt_toolkit.utils.embedded import EmbeddedFile
from vilavt_toolkit.utils.versions import collect_versions

_FORMAT = 1
"""Number of the way in which samples are kept."""
_NOT_PREPARED_BY = ("modulator", "integration", "stopping", "cudnn_attention")
"""Settings of the model that no prepared sample depends on, so that runs that compare them share theirs."""
_PROBED_TEXTS = 256
"""Texts by whose tokens two tokenizers are told apart."""


def build_sample_key(recipe: CheckedRecipe, model: VisualChatModel, task: Task, budget: RowBudget | None) -> str:
    """Return a key of all that training samples are prepared from, but for the files that they name."""
    section = {name: value for name, value in recipe.resolved["model"].items() if name not in _NOT_PREPARED_BY}
    encodes_inquiries = model.vision.inquiry_encoder is not None
    if not encodes_inquiries:
        section.pop("inquiry_encoder", None)
    facts = {
        "format": _FORMAT,
        "model": section,
        # A model may have got its inquiry encoder and its tokenizer from a run that it starts from.
        "encodes_inquiries": encodes_inquiries,
        "tokens": _probe_tokenizers(model, task),
        "context": model.language_model.context_length,
        "task": recipe.resolved["task"],
        "samples": task.length("train"),
        "data": task.fingerprint("train"),
        "rows": None if budget is None else [budget.tokens, budget.patches, budget.long_samples],
        "versions": collect_versions(),
        "code": list(_list_code()),
        "plugins": [[plugin.name, plugin.digest] for plugin in recipe.plugins],
    }
    text = json.dumps(facts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _probe_tokenizers(model: VisualChatModel, task: Task) -> str:
    """Return a hash of the tokens of some texts, and of the vocabulary where the tokenizer tells it."""
    language_model, digest = model.language_model, hashlib.sha256()
    texts = [*model.dialogue.fixed_strings("box"), *islice(task.corpus(), _PROBED_TEXTS)]
    for text in texts:
        ids = [language_model.tokenizer.encode(text), model.tokenize_inquiry(text)]
        digest.update(json.dumps(ids).encode())
    ends = [language_model.vocab_size, language_model.placeholder, language_model.end_of_turn]
    digest.update(repr([ends, language_model.turn_template]).encode())
    if isinstance(language_model.tokenizer, ByteTokenizer):
        digest.update(repr(list(language_model.tokenizer.token_bytes())).encode())
    return digest.hexdigest()


def _list_code() -> Iterator[tuple[str, int, int]]:
    """Yield path, size and time of all code of the packages that bring components, which a researcher may edit."""
    names = {"vilavt_toolkit"}
    for registry in REGISTRIES.values():
        names.update(entry.cls.__module__.partition(".")[0] for entry in registry.snapshot().values())
    for name in sorted(names):
        module = sys.modules.get(name)
        folders = list(getattr(module, "__path__", ()))
        files = [file for folder in folders for file in Path(folder).rglob("*.py")]
        single = getattr(module, "__file__", None)
        # A plugin of one file is no package, and has no path.
        if not folders and single:
            files = [Path(single)]
        for file in sorted(files):
            found = file.stat()
            yield str(file), found.st_size, found.st_mtime_ns


def names_files(task: Task, sample: Sample) -> bool:
    """Return True if samples like this one may change though no setting of the task does, as those of files may."""
    return any(isinstance(part, FileTask) for part in task.parts()) or bool(describe_files(sample)["files"])


def describe_files(sample: Sample) -> dict[str, Any]:
    """Return what changes with a sample's words and with the files that it shows, as plain data."""
    # Tags are for evaluations, and originals follow one by one.
    words = repr(replace(sample, originals=(), tags={}))
    files = [described for original in sample.originals if (described := _describe_original(original)) is not None]
    return {"words": hashlib.sha256(words.encode(errors="surrogatepass")).hexdigest(), "files": files}


def _describe_original(original: Any) -> list[Any] | None:
    """Return path, size and time of an original, or a hash of its bytes; None for one that is made in memory."""
    span: tuple[int, int] = (0, 0)
    if isinstance(original, EmbeddedFile):
        if isinstance(original.content, bytes):
            return [hashlib.sha256(original.content).hexdigest()]
        original, span = original.content
    if not isinstance(original, str | os.PathLike):
        return None
    path = os.path.abspath(os.fspath(original))
    try:
        found = os.stat(path)
    # A file that is missing is told where the sample is read. Here it is only another key.
    except (OSError, ValueError):
        return [path, None]
    return [path, found.st_size, found.st_mtime_ns, *span]


def is_same(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Return True if two descriptions of a sample are equal, one of which may have been JSON."""
    plain: dict[str, Any] = json.loads(json.dumps(now))
    return dict(before) == plain
