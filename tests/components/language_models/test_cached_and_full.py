"""However a dialogue is read into the KV cache, its logits are those of one forward over all of it."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vilavt_components.language_models import qwen2_5_vl
from vilavt_toolkit.contracts import LanguageModel
from vilavt_toolkit.generation.kv_cache import KVCache
from vilavt_toolkit.registry import language_models
from vilavt_toolkit.registry.plugins import load_builtin
from vilavt_toolkit.testing import bench

load_builtin()
LENGTH, ROWS = 14, 3
INSTANCES = {instance.name: instance for entry in language_models.entries() for instance in bench.list_instances(entry)}
# (new columns of every row, in a random order of the rows) of each forward; what is left is read at the end.
ROUNDS = st.lists(
    st.one_of(
        st.tuples(st.tuples(*[st.integers(0, 5)] * ROWS), st.permutations(range(ROWS))),
        st.tuples(st.integers(1, 5).map(lambda count: (count,) * ROWS), st.just(range(ROWS))),
    ),
    max_size=5,
)


@cache
def prepared(name: str) -> tuple[LanguageModel, torch.Tensor, torch.Tensor]:
    """A model, embeddings of features and texts, and the logits of all columns at once."""
    instance = INSTANCES[name]
    model = bench.build_language_model(instance.entry, instance.config)
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(ROWS, LENGTH, model.width, generator=generator)
    positions = torch.arange(LENGTH).expand(model.axes, ROWS, -1)
    with torch.no_grad():
        whole = model(embeddings, positions, torch.ones(ROWS, LENGTH, dtype=torch.bool))
    return model, embeddings, whole


@torch.no_grad()
def read(model: LanguageModel, embeddings: torch.Tensor, rounds) -> torch.Tensor:
    cache, found = KVCache(ROWS, torch.device("cpu")), [[] for _ in range(ROWS)]
    for wanted, order in [*rounds, ((LENGTH,) * ROWS, range(ROWS))]:
        counts = {row: min(wanted[row], LENGTH - cache.lengths[row]) for row in order}
        rows = [row for row in order if counts[row]]
        if not rows:
            continue
        new, firsts = [counts[row] for row in rows], [cache.lengths[row] for row in rows]
        length = max(new)
        columns = torch.zeros(len(rows), length, model.width)
        for index, (row, first, count) in enumerate(zip(rows, firsts, new, strict=True)):
            columns[index, length - count :] = embeddings[row, first : first + count]
        mask = torch.arange(length) >= length - torch.tensor(new)[:, None]
        positions = (mask.cumsum(1) - 1).clamp(min=0) + torch.tensor(firsts)[:, None]
        update = cache.prepare_update(rows, new, columns.dtype)
        logits = model(columns, positions.expand(model.axes, -1, -1), mask, update)
        cache.commit(rows, new, [first + count for first, count in zip(firsts, new, strict=True)])
        for row, row_logits, count in zip(rows, logits, new, strict=True):
            found[row].append(row_logits[length - count :])
    return torch.stack([torch.cat(parts) for parts in found])


@pytest.mark.parametrize(
    ("name", "kernels"),
    [*((name, ()) for name in INSTANCES), *((name, ("cpu",)) for name in INSTANCES if name.startswith("qwen2_5_vl"))],
)
def test_any_way_of_reading_gives_the_logits_of_one_forward(name, kernels):
    """With `kernels`, the CPU takes the branch for causal attention that otherwise only a GPU takes."""
    model, embeddings, whole = prepared(name)

    @settings(max_examples=25, deadline=None)
    @given(ROUNDS)
    def check(rounds):
        found = read(model, embeddings, rounds)
        said = whole.isfinite()
        assert torch.equal(found.isfinite(), said)
        bench.assert_close(found[said], whole[said], name, 1e-4)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qwen2_5_vl, "_CAUSAL_KERNELS", kernels)
        check()


def test_the_kernels_of_a_gpu_are_among_the_branches_that_are_taken(monkeypatch):
    import torch.nn.attention.bias as bias

    taken: list[tuple[int, int]] = []
    plain = bias.causal_lower_right
    monkeypatch.setattr(bias, "causal_lower_right", lambda *sizes: taken.append(sizes) or plain(*sizes))
    monkeypatch.setattr(qwen2_5_vl, "_CAUSAL_KERNELS", ("cpu",))
    model, embeddings, _ = prepared("qwen2_5_vl, windows")
    read(model, embeddings, [((4,) * ROWS, range(ROWS)), ((3,) * ROWS, range(ROWS))])
    assert taken == [(3, 7), (7, 14)]
