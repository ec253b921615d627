"""Micro-batches whose pixels are copied ahead: the same ones, in order, and on the GPU where there is one."""

from __future__ import annotations

import pytest
import torch

from vilavt_toolkit.training.supervised.copy_ahead import copy_ahead
from vilavt_toolkit.training.supervised.data import StepCollator, TraceDataset


@pytest.fixture(scope="module")
def micro_batches(tiny_model, tiny_task):
    dataset = TraceDataset(tiny_model, tiny_task, 6)
    return StepCollator(2, tiny_model.language_model)([dataset[index] for index in range(6)]).micro_batches


def test_on_the_cpu_nothing_is_copied(micro_batches):
    found = list(copy_ahead(micro_batches, torch.device("cpu")))
    assert len(found) == 3 and all(a is b for a, b in zip(found, micro_batches, strict=True))
    assert list(copy_ahead((), torch.device("cpu"))) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_a_gpu_the_views_are_there_and_the_same(micro_batches):
    for found, given in zip(copy_ahead(micro_batches, torch.device("cuda")), micro_batches, strict=True):
        for view, expected in zip(found.views, given.views, strict=True):
            assert view.data.is_cuda and torch.equal(view.data.cpu(), expected.data) and view.size == expected.size


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_what_workers_deliver_is_in_pinned_memory():
    from vilavt_toolkit.training.supervised.workers import WorkerPool

    with WorkerPool(lambda task, begin: torch.full((1000,), task), 1, 60, pins=True) as pool:
        assert all(result.is_pinned() and int(result[0]) == task for task, result in enumerate(pool.map(range(3))))
