"""Samples that go into the cache, and those that come out of it and are still what would be prepared now."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vilavt_toolkit.errors import InputError
from vilavt_toolkit.training.supervised.sample_cache import Facts, PreparedSample, SampleCache
from vilavt_toolkit.training.supervised.sample_key import describe_files, is_same, names_files

if TYPE_CHECKING:
    from vilavt_toolkit.training.supervised.data import TraceDataset

log = logging.getLogger(__name__)

_PREPARED_TWICE = 3
"""Samples of the cache that are prepared again, to see that they are still what they were."""


def store_samples(dataset: TraceDataset, samples: Mapping[int, PreparedSample], cache: SampleCache) -> None:
    """Put prepared samples into the cache, with the facts by which it is seen later that their files have changed."""
    task, indices = dataset.task, list(samples)
    facts: dict[int, Facts] = {}
    # Samples without files are drawn, which can take longer than all else, so that one of them stands for all.
    if indices and names_files(task, task.sample("train", indices[0])):
        facts = {index: describe_files(task.sample("train", index)) for index in indices}
    cache.store(samples, facts)


def load_samples(dataset: TraceDataset, indices: Sequence[int], cache: SampleCache) -> dict[int, PreparedSample]:
    """Return the samples that the cache has. It is emptied if those that are prepared again to compare are others."""

    def is_current(index: int, facts: Facts) -> bool:
        try:
            return not facts or is_same(facts, describe_files(dataset.task.sample("train", index)))
        except InputError:
            # Prepared again, the sample is told or left out as the recipe says.
            return False

    found = cache.load(indices, is_current)
    loaded = sorted(found)
    compared = loaded[:: max(1, len(loaded) // _PREPARED_TWICE)][:_PREPARED_TWICE]
    # The key names all that samples are known to depend on. A component of somebody else may read more than that.
    if all(_is_prepared_alike(dataset, index, found[index]) for index in compared):
        return found
    log.warning("samples that an earlier run has prepared are no longer the same: they are prepared again.")
    cache.discard()
    return {}


def _is_prepared_alike(dataset: TraceDataset, index: int, before: PreparedSample) -> bool:
    try:
        trajectory, views = dataset[index]
    except InputError:
        return False
    if trajectory != before[0] or [view.size for view in views] != [view.size for view in before[1]]:
        return False
    return all(_is_equal(new.data, old.data) for new, old in zip(views, before[1], strict=True))


def _is_equal(new: Tensor, old: Tensor) -> bool:
    """Return True if two tensors have the same bytes: a NaN in them equals itself."""
    if new.dtype != old.dtype or new.shape != old.shape:
        return False
    one, other = (tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (new, old))
    return torch.equal(one, other)
