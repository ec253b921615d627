"""What every registered language model and dialogue must do."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from vilavt_toolkit.contracts import Dialogue, Grid, LanguageModel, RegionCall, Shown, Slot, Source, ToolCall, Turn
from vilavt_toolkit.generation.hidden_states import hidden_states
from vilavt_toolkit.generation.kv_cache import KeyValues
from vilavt_toolkit.registry import Entry, dialogues, language_models, sources
from vilavt_toolkit.testing import bench

_TOLERANCE = 1e-4
_TWO_REGIONS = (RegionCall(0, {"bbox_2d": [0, 0, 1, 1]}), RegionCall(12, {"bbox_2d": [2, 0, 4, 8]}))
_TURNS = (
    Turn("I see a red square 1 2.", answer="7"),
    Turn("", answer="two words"),
    Turn("closer", call=ToolCall((RegionCall(0, {"bbox_2d": [1, 2, 3, 4]}),), "red square")),
    Turn("both", call=ToolCall(_TWO_REGIONS, 'what is "é"?')),
)
_GARBAGE = (
    "",
    "<think>",
    "</tool>",
    "<think>a</think><tool>{</tool>",
    "\x00<answer>",
    "[" * 2000,
    "<think>x</think>",
)


@dataclass(frozen=True)
class _Small:
    """A small instance of a language model: its tiny one, or one of its variants."""

    entry: Entry[LanguageModel]
    config: Any

    def build(self) -> LanguageModel:
        """Build it, with a tokenizer."""
        return bench.tiny_language_model(self.entry, self.config)


def _of_every_language_model(claim: Callable[[_Small], None]) -> Callable[[str], None]:
    """Make a claim about one small language model one about the tiny one of a name and all its variants."""

    @wraps(claim)
    def claim_of_all(name: str) -> None:
        entry = language_models.get(name)
        for variant, config in {"": entry.cls.tiny(), **entry.cls.variants()}.items():
            try:
                claim(_Small(entry, config))
            except AssertionError as error:
                raise AssertionError(f"{name}, {variant}: {error}" if variant else str(error)) from error

    return claim_of_all


def _ragged(model: LanguageModel) -> tuple[Tensor, Tensor]:
    """Ids [3, 9] and their mask: padded right, padded left, with holes."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, min(model.vocab_size, 200), (3, 9), generator=generator)
    mask = torch.ones(3, 9, dtype=torch.bool)
    mask[0, 6:] = False
    mask[1, :3] = False
    mask[2, 2:5] = False
    return ids, mask


def _positions(model: LanguageModel, mask: Tensor) -> Tensor:
    """Positions [P, B, L] of text."""
    return (mask.cumsum(1) - 1).clamp(min=0).expand(model.axes, -1, -1)


def _logits(model: LanguageModel, ids: Tensor, mask: Tensor) -> Tensor:
    logits: Tensor = model(model.embed(ids), _positions(model, mask), mask)
    return logits


@_of_every_language_model
def language_model_builds_on_the_meta_device(small: _Small) -> None:
    """Building it reads nothing and can be free of memory."""
    bench.assert_builds_quickly(lambda: bench.build(small.entry, config=small.config))


@_of_every_language_model
def language_model_ignores_what_is_masked(small: _Small) -> None:
    """Padding left or right and holes change no logit of a real column."""
    model = small.build()
    ids, mask = _ragged(model)
    with torch.no_grad():
        logits = _logits(model, ids, mask)
        for row in range(len(ids)):
            kept = ids[row, mask[row]].unsqueeze(0)
            alone = _logits(model, kept, torch.ones_like(kept, dtype=torch.bool))
            _assert_same(logits[row, mask[row]], alone[0], f"row {row} padded and alone")


def _read(model: LanguageModel, cache: KeyValues, rows: Sequence[int], new: Sequence[Tensor]) -> list[Tensor]:
    """Logits [L, V] of new ids [L] of each of some rows, read together behind what the cache holds of them."""
    counts = [len(ids) for ids in new]
    length = max(counts)
    padded = torch.stack([functional.pad(ids, (length - len(ids), 0), value=1) for ids in new])
    mask = torch.arange(length) >= length - torch.tensor(counts)[:, None]
    free = torch.tensor([cache.free[row] for row in rows])[:, None]
    embedded, positions = model.embed(padded), _positions(model, mask) + free
    logits = model(embedded, positions, mask, cache.extension(rows, counts, embedded.dtype))
    cache.commit(rows, counts, [cache.free[row] + count for row, count in zip(rows, counts, strict=True)])
    return [row[length - count :] for row, count in zip(logits, counts, strict=True)]


@_of_every_language_model
def language_model_goes_on_from_its_cache(small: _Small) -> None:
    """Logits from the cache, piece by piece, equal those of one full forward; rows go on at their own pace."""
    model = small.build()
    ids, _ = _ragged(model)
    whole = torch.ones_like(ids, dtype=torch.bool)
    rounds = [([0, 1, 2], (4, 1, 3)), ([0, 1, 2], (1, 1, 1)), ([2, 0], (5, 2)), ([0, 1], (2, 7))]
    with torch.no_grad():
        full, cache = _logits(model, ids, whole), KeyValues(3, torch.device("cpu"))
        for rows, counts in rounds:
            starts = [cache.lengths[row] for row in rows]
            new = [ids[row, start : start + count] for row, start, count in zip(rows, starts, counts, strict=True)]
            for row, start, found in zip(rows, starts, _read(model, cache, rows, new), strict=True):
                _assert_same(found, full[row, start : start + len(found)], f"row {row} from its cache and in full")
    assert cache.lengths == [9, 9, 9], "the rounds are not whole"


@_of_every_language_model
def language_model_takes_back_what_it_read(small: _Small) -> None:
    """Behind columns that were taken back, and in a row copied from another, it goes on as if they had never been."""
    model = small.build()
    ids, _ = _ragged(model)
    with torch.no_grad():
        full = _logits(model, ids, torch.ones_like(ids, dtype=torch.bool))
        cache = KeyValues(2, torch.device("cpu"))
        _read(model, cache, [0, 1], [torch.cat([ids[0, :5], ids[1, :4]]), ids[1, :2]])
        cache.truncate(0, 5)
        cache.copy_row(cache, 0, 1)
        for row, found in enumerate(_read(model, cache, [0, 1], [ids[0, 5:], ids[0, 5:7]])):
            _assert_same(found, full[0, 5 : 5 + len(found)], f"row {row} behind what was taken back")


@_of_every_language_model
def language_model_shows_its_hidden_states(small: _Small) -> None:
    """What goes into `head` is one vector a column, of its width."""
    model = small.build()
    ids, mask = _ragged(model)
    with torch.no_grad(), hidden_states(model) as seen:
        _logits(model, ids, mask)
    assert [list(states.shape) for states in seen] == [[3, 9, model.width]], "the head takes no hidden states"


@_of_every_language_model
def language_model_places_turns_as_it_places_the_whole(small: _Small) -> None:
    """Columns added turn by turn stand where they would had they come at once, features of regions among them."""
    model, grid = small.build(), (2, 3)
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


@_of_every_language_model
def language_model_never_says_the_placeholder(small: _Small) -> None:
    """The placeholder's logit is -inf; `last` keeps the last columns only."""
    model = small.build()
    ids, mask = _ragged(model)
    with torch.no_grad():
        logits = _logits(model, ids, mask)
        last = model(model.embed(ids), _positions(model, mask), mask, last=2)
    assert logits.shape == (3, 9, model.vocab_size), f"logits are {list(logits.shape)}"
    assert (logits[..., model.placeholder] == float("-inf")).all(), "the placeholder can be sampled"
    real = mask[:, -2:]
    _assert_same(last[real], logits[:, -2:][real], "the last two columns")


@_of_every_language_model
def language_model_tokenizer_round_trips(small: _Small) -> None:
    """Text survives encoding and decoding."""
    tokenizer = small.build().tokenizer
    for text in bench.TEXTS:
        found = tokenizer.decode(tokenizer.encode(text))
        assert found == text, f"{text!r} comes back as {found!r}"


@_of_every_language_model
def language_model_comes_back_from_what_it_saved(small: _Small) -> None:
    """Saved assets and state dict make the same model: tokens, special ids and logits."""
    model = small.build()
    with tempfile.TemporaryDirectory() as folder:
        model.save_assets(Path(folder))
        other = small.entry.cls.from_saved(small.config, Path(folder)).eval()
    other.load_state_dict(model.state_dict())
    for text in bench.TEXTS:
        assert other.tokenizer.encode(text) == model.tokenizer.encode(text), f"{text!r} is tokenised differently"
    special = (other.end_of_turn, other.placeholder, other.frames)
    assert special == (model.end_of_turn, model.placeholder, model.frames), f"special ids or frames are {special}"
    ids, mask = _ragged(model)
    with torch.no_grad():
        _assert_same(_logits(other, ids, mask)[mask], _logits(model, ids, mask)[mask], "saved and loaded")


def _assert_same(found: Tensor, expected: Tensor, what: str) -> None:
    # -inf - -inf is nan; what cannot be said must agree exactly, the rest nearly.
    finite = expected.isfinite()
    assert torch.equal(found.isfinite(), finite), f"{what}: different tokens are ruled out"
    bench.assert_close(found[finite], expected[finite], what, _TOLERANCE)


def _dialogue(name: str) -> Dialogue:
    made: Dialogue = bench.build(dialogues.get(name))
    return made


def dialogue_parses_what_it_writes(name: str) -> None:
    """`parse` undoes `write`, and a written turn ends with a stop string."""
    dialogue = _dialogue(name)
    for turn in _TURNS:
        text = dialogue.write(turn)
        assert dialogue.parse(text) == turn, f"{text!r} is read as {dialogue.parse(text)}"
        assert text.endswith(dialogue.stop_strings), f"{text!r} ends with none of {dialogue.stop_strings}"


def dialogue_explains_what_it_cannot_read(name: str) -> None:
    """Whatever the model writes, `parse` does not raise, and what is neither call nor answer says why."""
    dialogue = _dialogue(name)
    for text in _GARBAGE:
        turn = dialogue.parse(text)
        assert turn.problem or turn.call or turn.answer is not None, f"nothing is said about {text[:40]!r}"
        assert not turn.problem or dialogue.feedback(turn.problem), "a problem has no feedback"


def dialogue_shows_every_region_once(name: str) -> None:
    """Openings and observations hold one slot for every region that is shown, in order."""
    dialogue, source = _dialogue(name), _example_source()
    shown = [Shown(0, source, (4, 4), True), Shown(1, source, (2, 4), False)]
    for pieces in (dialogue.opening("what is it?", shown, True), dialogue.observation(shown, "the digit")):
        slots = [piece.region for piece in pieces if isinstance(piece, Slot)]
        assert slots == [0, 1], f"slots are {slots}"
    asked = [piece for piece in dialogue.opening("what is it?", shown, True) if isinstance(piece, str)]
    assert any("what is it?" in piece for piece in asked), "the question is not in the opening"


def _example_source() -> Source:
    for entry in bench.entries(sources):
        original = bench.example_original(entry.cls.modality)
        if original is not None:
            return entry.cls.open(original, entry.cls.tiny())
    raise AssertionError("no registered source has an example")


LANGUAGE_MODEL_CLAIMS = (
    language_model_builds_on_the_meta_device,
    language_model_ignores_what_is_masked,
    language_model_goes_on_from_its_cache,
    language_model_takes_back_what_it_read,
    language_model_shows_its_hidden_states,
    language_model_places_turns_as_it_places_the_whole,
    language_model_never_says_the_placeholder,
    language_model_tokenizer_round_trips,
    language_model_comes_back_from_what_it_saved,
)
DIALOGUE_CLAIMS = (
    dialogue_parses_what_it_writes,
    dialogue_explains_what_it_cannot_read,
    dialogue_shows_every_region_once,
)
