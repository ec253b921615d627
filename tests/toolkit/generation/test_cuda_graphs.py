"""Single tokens with shapes that never change: the same logits as through the cache that grows."""

from __future__ import annotations

import pytest
import torch

from vilavt_toolkit.generation.cuda_graphs import StaticStep
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
