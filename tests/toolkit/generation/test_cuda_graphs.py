"""Single tokens with shapes that never change: the same logits as through the cache that grows."""

from __future__ import annotations

import logging
from contextlib import contextmanager

import pytest
import torch

from vilavt_toolkit.generation import cuda_graphs
from vilavt_toolkit.generation.cuda_graphs import CudaGraphs, StaticStep
from vilavt_toolkit.generation.kv_cache import KVCache


@pytest.fixture(params=["tiny_model", "mrope_model"])
def language_model(request):
    return request.getfixturevalue(request.param).language_model


@pytest.fixture(
    params=["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
)
def device(request):
    return torch.device(request.param)


def read(language_model, cache, rows, new):
    """Logits behind new ids [B, L] of rows, through a forward of their own."""
    free = torch.tensor([cache.next_positions[row] for row in rows])
    positions = (free[:, None] + torch.arange(new.shape[1])).expand(language_model.axes, -1, -1).to(new.device)
    counts = [new.shape[1]] * len(rows)
    embedded = language_model.embed(new)
    extension = cache.prepare_update(rows, counts, embedded.dtype)
    return language_model(embedded, positions, torch.ones_like(new, dtype=torch.bool), extension, last=1)[:, -1]


@torch.inference_mode()
def test_a_static_step_gives_the_logits_of_the_growing_cache(language_model, device):
    language_model = language_model.to(device)
    try:
        cache = KVCache(4, device)
        ids = torch.randint(1, 200, (3, 9), generator=torch.Generator().manual_seed(0)).to(device)
        for row, length in enumerate((5, 9, 7)):
            read(language_model, cache, [row], ids[row : row + 1, :length])
            cache.commit([row], [length], [length])
        static = StaticStep(language_model, cache, 4)
        for token in (3, 17, 40):
            expected = read(language_model, cache, [0, 1, 2], torch.full((3, 1), token, device=device))
            found = static.run_step([token] * 3, capture=device.type == "cuda")
            said = expected.isfinite()
            assert (found[said] - expected[said]).abs().max() < 1e-4
            cache.commit([0, 1, 2], [1, 1, 1], [free + 1 for free in cache.next_positions[:3]])
    finally:
        language_model.to("cpu")


# --- Capturing, with a pretended GPU ---------------------------------------------------------------------------------


class PretendedGPU:
    """The calls of torch.cuda that a capture makes. A replay runs the step again, or nothing if graphs are empty."""

    def __init__(self, patch, empty: bool) -> None:
        self.calls, self.current, self.steps, self.empty = [], None, [], empty
        patch.setattr(cuda_graphs, "_DEVICES", ("cpu",))
        for name in ("device", "stream", "graph"):
            patch.setattr(torch.cuda, name, getattr(self, name))
        patch.setattr(torch.cuda, "Stream", lambda: self.new_stream())
        patch.setattr(torch.cuda, "current_stream", lambda: self.new_stream())
        patch.setattr(torch.cuda, "CUDAGraph", lambda: self)
        capture = StaticStep._capture_graph
        patch.setattr(StaticStep, "_capture_graph", lambda step: self.steps.append(step) or capture(step))

    @contextmanager
    def device(self, device):
        before, self.current = self.current, device
        yield
        self.current = before

    def new_stream(self):
        self.wait_stream = lambda other: None
        self.calls.append(("stream", self.current))
        return self

    @contextmanager
    def stream(self, stream):
        yield

    @contextmanager
    def graph(self, graph, stream, capture_error_mode):
        self.calls.append(("graph", self.current, stream is self, capture_error_mode))
        yield

    def replay(self):
        self.calls.append(("replay", self.current))
        if not self.empty:
            self.steps[-1]._logits.copy_(self.steps[-1]._run_forward())


def opened_cache(language_model):
    cache, ids = KVCache(2, torch.device("cpu")), torch.arange(3, 12)[None]
    for row in (0, 1):
        read(language_model, cache, [row], ids[:, : 5 + row])
        cache.commit([row], [5 + row], [5 + row])
    return cache


@torch.inference_mode()
def test_a_graph_is_captured_and_replayed_on_the_caches_own_device(language_model, monkeypatch):
    gpu, cache = PretendedGPU(monkeypatch, empty=False), opened_cache(language_model)
    graphs = CudaGraphs(language_model, cache)
    for token in (3, 17):
        expected = StaticStep(language_model, cache, 2).run_step([token] * 2, capture=False)
        torch.testing.assert_close(graphs.run_step([token] * 2), expected)
        cache.commit([0, 1], [1, 1], [free + 1 for free in cache.next_positions])
    captures = [call for call in gpu.calls if call[0] == "graph"]
    assert captures == [("graph", cache.device, True, "thread_local")], "captured once, in a stream of its own"
    assert {call[1] for call in gpu.calls} == {cache.device}


@torch.inference_mode()
def test_an_empty_graph_is_refused_once_and_tokens_are_sampled_without(language_model, monkeypatch, caplog):
    PretendedGPU(monkeypatch, empty=True)
    cache = opened_cache(language_model)
    graphs = CudaGraphs(language_model, cache)
    with caplog.at_level(logging.WARNING):
        assert graphs.run_step([3, 3]) is None and graphs.run_step([4, 4]) is None
    assert [record.message for record in caplog.records] == [
        "tokens are sampled without a CUDA graph, which is slower: the captured graph is empty"
    ]


@torch.inference_mode()
def test_no_graph_is_captured_under_autocast(language_model, monkeypatch):
    gpu, cache = PretendedGPU(monkeypatch, empty=False), opened_cache(language_model)
    with torch.autocast("cpu", torch.bfloat16):
        assert CudaGraphs(language_model, cache).run_step([3, 3]) is None
    assert not gpu.calls
