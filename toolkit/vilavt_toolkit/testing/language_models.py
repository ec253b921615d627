"""The claims that every registered language model must meet."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from vilavt_toolkit.contracts import Grid, LanguageModel, ProtectingTokenizer, protect_text
from vilavt_toolkit.generation.hidden_states import collect_hidden_states
from vilavt_toolkit.generation.kv_cache import KVCache
from vilavt_toolkit.registry import language_models
from vilavt_toolkit.testing import bench
from vilavt_toolkit.testing.adapters import assert_adapters_learn
from vilavt_toolkit.testing.bench import Instance

_TOLERANCE = 1e-4
# (rows, new tokens of each) of every forward.
_READING_ROUNDS: tuple[tuple[tuple[list[int], tuple[int, ...]], ...], ...] = (
    # Rows join late, pause, and come in another order.
    (([0, 1, 2], (4, 1, 3)), ([0, 1, 2], (1, 1, 1)), ([2, 0], (5, 2)), ([0, 1], (2, 7))),
    # All rows are equally long, so that a model may take its kernels for causal attention after a prefix.
    (([0, 1, 2], (4, 4, 4)), ([0, 1, 2], (3, 3, 3)), ([0, 1, 2], (1, 1, 1)), ([0, 1, 2], (1, 1, 1))),
)
_for_every_instance = bench.for_every_instance(language_models)


def _build(instance: Instance[LanguageModel]) -> LanguageModel:
    """Build the small language model and fit its tokenizer to a few words."""
    return bench.build_language_model(instance.entry, instance.config)


def _ragged_batch(model: LanguageModel) -> tuple[Tensor, Tensor]:
    """Return ids [3, 9] and their mask: a row padded right, one padded left, one with holes."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, min(model.vocab_size, 200), (3, 9), generator=generator)
    mask = torch.ones(3, 9, dtype=torch.bool)
    mask[0, 6:] = False
    mask[1, :3] = False
    mask[2, 2:5] = False
    return ids, mask


def _text_positions(model: LanguageModel, mask: Tensor) -> Tensor:
    """Return the positions [P, B, L] of text under a mask."""
    return (mask.cumsum(1) - 1).clamp(min=0).expand(model.axes, -1, -1)


def _compute_logits(model: LanguageModel, ids: Tensor, mask: Tensor) -> Tensor:
    logits: Tensor = model(model.embed(ids), _text_positions(model, mask), mask)
    return logits


def _read_rows(model: LanguageModel, cache: KVCache, rows: Sequence[int], new: Sequence[Tensor]) -> list[Tensor]:
    """Read new ids [L] of some cache rows in one forward; returns their logits [L, V] per row."""
    # Padded on the left, as in the loop, so that the last column of every row is its newest token.
    counts = [len(ids) for ids in new]
    length = max(counts)
    padded = torch.stack([functional.pad(ids, (length - len(ids), 0), value=1) for ids in new])
    mask = torch.arange(length) >= length - torch.tensor(counts)[:, None]
    free = torch.tensor([cache.next_positions[row] for row in rows])[:, None]
    embedded, positions = model.embed(padded), _text_positions(model, mask) + free
    logits = model(embedded, positions, mask, cache.prepare_update(rows, counts, embedded.dtype))
    cache.commit(rows, counts, [cache.next_positions[row] + count for row, count in zip(rows, counts, strict=True)])
    return [row[length - count :] for row, count in zip(logits, counts, strict=True)]


def _assert_same(found: Tensor, expected: Tensor, what: str) -> None:
    # -inf - -inf is NaN, so tokens that are ruled out are compared exactly, and only the others with a tolerance.
    finite = expected.isfinite()
    assert torch.equal(found.isfinite(), finite), f"{what}: different tokens are ruled out"
    bench.assert_close(found[finite], expected[finite], what, _TOLERANCE)


@_for_every_instance
def builds_quickly_and_on_the_meta_device(instance: Instance[LanguageModel]) -> None:
    """Building reads nothing, and takes no memory on the meta device."""
    bench.assert_builds_quickly(lambda: bench.build(instance.entry, config=instance.config))


@_for_every_instance
def ignores_masked_columns(instance: Instance[LanguageModel]) -> None:
    """Padding on the left or right, and holes, change no logit of a real column."""
    model = _build(instance)
    ids, mask = _ragged_batch(model)
    with torch.no_grad():
        logits = _compute_logits(model, ids, mask)
        # Each row alone and without padding is the reference: no mask takes part in it.
        for row in range(len(ids)):
            kept = ids[row, mask[row]].unsqueeze(0)
            alone = _compute_logits(model, kept, torch.ones_like(kept, dtype=torch.bool))
            _assert_same(logits[row, mask[row]], alone[0], f"row {row} padded and alone")


@_for_every_instance
def keeps_dialogues_of_a_row_apart(instance: Instance[LanguageModel]) -> None:
    """Dialogues in one row have the logits and the gradient that each has alone, if the model takes such rows."""
    model = _build(instance)
    if model.describe_packing_problem():
        return
    ids, mask = _ragged_batch(model)
    rows = [ids[row, mask[row]].unsqueeze(0) for row in range(len(ids))]
    embedded = model.embed(torch.cat(rows, dim=1)).detach().requires_grad_()
    masks = [torch.ones_like(part, dtype=torch.bool) for part in rows]
    positions, lengths = [_text_positions(model, part) for part in masks], [part.shape[1] for part in rows]
    alone = torch.cat(
        [model(*each) for each in zip(torch.split(embedded, lengths, dim=1), positions, masks, strict=True)], dim=1
    )
    together = model(embedded, torch.cat(positions, dim=2), torch.cat(masks, dim=1), documents=lengths)
    _assert_same(together, alone, "dialogues in one row and alone")
    # Tokens that are ruled out are minus infinity on both sides, and their squares no numbers.
    sums = [logits.masked_fill(logits == float("-inf"), 0).square().sum() for logits in (together, alone)]
    found, expected = (torch.autograd.grad(total, embedded)[0] for total in sums)
    bench.assert_close(found, expected, "gradients of dialogues in one row and alone", _TOLERANCE)


@_for_every_instance
def reads_a_shared_beginning_once(instance: Instance[LanguageModel]) -> None:
    """Dialogues that go on from one stem in a row have the logits and gradients of each with its beginning alone."""
    model = _build(instance)
    if not model.takes_stems:
        return
    ids, mask = _ragged_batch(model)
    parts = [model.embed(ids[row, mask[row]].unsqueeze(0)).detach() for row in range(len(ids))]
    stem, *others = (part.requires_grad_() for part in parts)
    whole = [torch.cat([stem, part], dim=1) for part in (*others, others[0])]
    positions = [_text_positions(model, torch.ones(part.shape[:2], dtype=torch.bool)) for part in whole]
    start = stem.shape[1]
    alone = [
        model(part, own, torch.ones(part.shape[:2], dtype=torch.bool))
        for part, own in zip(whole, positions, strict=True)
    ]
    # The first of them is a dialogue without a stem, before which the stem of the others stands.
    row = torch.cat([whole[0], stem, *(part[:, start:] for part in whole[1:])], dim=1)
    places = torch.cat([positions[0], positions[0][..., :start], *(own[..., start:] for own in positions[1:])], dim=2)
    lengths = [whole[0].shape[1], start, *(part.shape[1] - start for part in whole[1:])]
    stems = [-1, -1, *[1] * (len(whole) - 1)]
    together = model(row, places, torch.ones(row.shape[:2], dtype=torch.bool), documents=lengths, stems=stems)
    expected = torch.cat([alone[0], alone[0][:, :start], *(part[:, start:] for part in alone[1:])], dim=1)
    _assert_same(together, expected, "dialogues behind a shared beginning and alone")
    sums = [logits.masked_fill(logits == float("-inf"), 0).square().sum() for logits in (together, expected)]
    found, wanted = (torch.autograd.grad(total, [stem, *others], retain_graph=True) for total in sums)
    for name, first, second in zip(("stem", *["branch"] * len(others)), found, wanted, strict=True):
        bench.assert_close(first, second, f"gradient of the {name}", _TOLERANCE)


@_for_every_instance
def splits_into_layers_and_head(instance: Instance[LanguageModel]) -> None:
    """`compute_logits` of the states of `run_layers` gives the logits and the gradient of `forward`, when called twice.

    Training applies the head to some states at a time, and again in the backward pass.
    """
    model = _build(instance)
    ids, mask = _ragged_batch(model)
    embedded, positions = model.embed(ids).detach().requires_grad_(), _text_positions(model, mask)
    # Masked columns have logits of their own, which nothing asks for.
    columns = mask.flatten().nonzero()[:, 0]
    whole = model(embedded, positions, mask).flatten(0, 1)[columns]
    states = model.run_layers(embedded, positions, mask).flatten(0, 1)[columns]
    model.compute_logits(states.detach().clone())
    parts = torch.cat([model.compute_logits(part) for part in torch.split(states, 5)])
    _assert_same(parts, whole, "the head on some states and forward")
    sums = [logits.masked_fill(logits == float("-inf"), 0).square().sum() for logits in (parts, whole)]
    found, expected = (torch.autograd.grad(total, embedded)[0] for total in sums)
    bench.assert_close(found, expected, "gradients through layers and head and through forward", _TOLERANCE)


@_for_every_instance
def continues_from_its_cache(instance: Instance[LanguageModel]) -> None:
    """Logits from the KV cache equal those of one full forward, with rows that grow at their own pace."""
    model = _build(instance)
    ids, _ = _ragged_batch(model)
    whole = torch.ones_like(ids, dtype=torch.bool)
    with torch.no_grad():
        full = _compute_logits(model, ids, whole)
        for rounds in _READING_ROUNDS:
            cache = KVCache(3, torch.device("cpu"))
            # Rows that stand still in a round would show a mask that counts columns and not tokens.
            for rows, counts in rounds:
                starts = [cache.lengths[row] for row in rows]
                new = [ids[row, start : start + count] for row, start, count in zip(rows, starts, counts, strict=True)]
                for row, start, found in zip(rows, starts, _read_rows(model, cache, rows, new), strict=True):
                    _assert_same(found, full[row, start : start + len(found)], f"row {row} from its cache and in full")
            assert cache.lengths == [9, 9, 9], "the rounds are not whole"


@_for_every_instance
def continues_after_its_cache_was_truncated(instance: Instance[LanguageModel]) -> None:
    """After a row was truncated, and in a copy of a row, it continues as if the removed columns had never been."""
    model = _build(instance)
    ids, _ = _ragged_batch(model)
    with torch.no_grad():
        full = _compute_logits(model, ids, torch.ones_like(ids, dtype=torch.bool))
        cache = KVCache(2, torch.device("cpu"))
        _read_rows(model, cache, [0, 1], [torch.cat([ids[0, :5], ids[1, :4]]), ids[1, :2]])
        cache.truncate_row(0, 5)
        cache.copy_row(cache, 0, 1)
        for row, found in enumerate(_read_rows(model, cache, [0, 1], [ids[0, 5:], ids[0, 5:7]])):
            _assert_same(found, full[0, 5 : 5 + len(found)], f"row {row} after its cache was truncated")


@_for_every_instance
def exposes_its_hidden_states(instance: Instance[LanguageModel]) -> None:
    """The input of `head` is one vector per column, of the model's width."""
    model = _build(instance)
    ids, mask = _ragged_batch(model)
    # The learned stopping policy reads these states; a model that computes logits elsewhere would hide them.
    with torch.no_grad(), collect_hidden_states(model) as seen:
        _compute_logits(model, ids, mask)
    assert [list(states.shape) for states in seen] == [[3, 9, model.width]], "the head takes no hidden states"


@_for_every_instance
def computes_logits_of_chosen_columns(instance: Instance[LanguageModel]) -> None:
    """Logits made of chosen states of `run_layers` are those of `forward`, in any order and number, twice the same."""
    model = _build(instance)
    ids, mask = _ragged_batch(model)
    chosen = mask.flatten().nonzero()[:, 0].flip(0)
    # Training wants the gradient, and logits may be written to while it is recorded.
    states = model.run_layers(model.embed(ids), _text_positions(model, mask), mask).flatten(0, 1)[chosen]
    with torch.no_grad():
        full = _compute_logits(model, ids, mask).flatten(0, 1)[chosen]
    for count in (5, len(chosen), 5):
        found = [model.compute_logits(part) for part in torch.split(states, count)]
        _assert_same(torch.cat(found).detach(), full, f"logits of {count} columns at once and in full")
    assert len(model.compute_logits(states[:0])) == 0, "no column has logits"


@_for_every_instance
def positions_turns_like_the_whole(instance: Instance[LanguageModel]) -> None:
    """Columns that are added turn by turn, with regions among them, get the positions of adding them at once."""
    model, grid = _build(instance), (2, 3)
    # (columns, regions as (column where it begins, grid)) of each turn.
    turns: list[tuple[int, list[tuple[int, Grid]]]] = [(4, []), (9, [(1, grid)]), (1, []), (14, [(0, grid), (8, grid)])]
    first, column = 0, 0
    parts, regions = [], []
    for length, placed in turns:
        parts.append(model.positions(length, placed, first))
        first = int(parts[-1].max()) + 1
        regions += [(column + start, size) for start, size in placed]
        column += length
    whole = model.positions(column, regions)
    assert whole.shape == (model.axes, column), f"positions of {column} columns are {list(whole.shape)}"
    assert torch.equal(torch.cat(parts, dim=1), whole), "turn by turn and at once differ"


@_for_every_instance
def never_samples_the_placeholder(instance: Instance[LanguageModel]) -> None:
    """The placeholder's logit is -inf; `last` limits the logits to the last columns."""
    model = _build(instance)
    ids, mask = _ragged_batch(model)
    with torch.no_grad():
        logits = _compute_logits(model, ids, mask)
        last = model(model.embed(ids), _text_positions(model, mask), mask, last=2)
    assert logits.shape == (3, 9, model.vocab_size), f"logits are {list(logits.shape)}"
    assert (logits[..., model.placeholder] == float("-inf")).all(), "the placeholder can be sampled"
    real = mask[:, -2:]
    _assert_same(last[real], logits[:, -2:][real], "the last two columns")


@_for_every_instance
def round_trips_text_through_its_tokenizer(instance: Instance[LanguageModel]) -> None:
    """Text is the same after encoding and decoding, and what others wrote is no token that frames turns."""
    model = _build(instance)
    tokenizer = model.tokenizer
    for text in bench.TEXTS:
        found = tokenizer.decode(tokenizer.encode(text))
        assert found == text, f"{text!r} comes back as {found!r}"
    if isinstance(tokenizer, ProtectingTokenizer):
        framing = [model.end_of_turn, model.placeholder]
        names = "".join(tokenizer.decode([token]) for token in framing)
        ids = tokenizer.encode(protect_text(tokenizer, names))
        assert tokenizer.decode(ids) == names, f"{names!r} is not the same once it is protected"
        assert not set(framing) & set(ids), f"{names!r} frames turns in a text that is protected"


@_for_every_instance
def reloads_what_it_saved(instance: Instance[LanguageModel]) -> None:
    """Saved assets and a state dict give the same model: tokens, special ids and logits."""
    model = _build(instance)
    with tempfile.TemporaryDirectory() as folder:
        model.save_assets(Path(folder))
        other = instance.entry.cls.from_saved(instance.config, Path(folder)).eval()
    # Assets are the tokenizer and its kin; the weights travel in the state dict, as in our own checkpoints.
    other.load_state_dict(model.state_dict())
    for text in bench.TEXTS:
        assert other.tokenizer.encode(text) == model.tokenizer.encode(text), f"{text!r} is tokenised differently"
    special = (other.end_of_turn, other.placeholder, other.turn_template)
    assert special == (model.end_of_turn, model.placeholder, model.turn_template), (
        f"special ids or frames are {special}"
    )
    ids, mask = _ragged_batch(model)
    with torch.no_grad():
        _assert_same(
            _compute_logits(other, ids, mask)[mask], _compute_logits(model, ids, mask)[mask], "saved and loaded"
        )


@_for_every_instance
def trains_adapters_on_its_linear_layers(instance: Instance[LanguageModel]) -> None:
    """A low-rank adapter on a linear layer gets a gradient wherever the layer's weight would, and can be merged."""
    model = _build(instance)
    ids, mask = _ragged_batch(model)

    def compute() -> Tensor:
        # Padding may hold anything, and tokens that are ruled out have no finite logit.
        logits = _compute_logits(model, ids, mask)[mask]
        return logits.where(logits.isfinite(), 0)

    assert_adapters_learn(model, compute, _TOLERANCE)


CLAIMS = (
    builds_quickly_and_on_the_meta_device,
    ignores_masked_columns,
    keeps_dialogues_of_a_row_apart,
    reads_a_shared_beginning_once,
    splits_into_layers_and_head,
    continues_from_its_cache,
    continues_after_its_cache_was_truncated,
    exposes_its_hidden_states,
    computes_logits_of_chosen_columns,
    positions_turns_like_the_whole,
    never_samples_the_placeholder,
    round_trips_text_through_its_tokenizer,
    reloads_what_it_saved,
    trains_adapters_on_its_linear_layers,
)
