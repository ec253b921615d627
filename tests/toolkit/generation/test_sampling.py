"""The sampler: what it keeps, what it draws, and that rows do not depend on each other; and where turns end."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from vilavt_toolkit.errors import UsageError
from vilavt_toolkit.generation import sampling as decoding
from vilavt_toolkit.generation.sampling import Decoding, RowSampling, StopCriteria, sample_tokens


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(*seeds: int | None, seen: tuple[int, ...] = ()) -> list[RowSampling | None]:
    return [None if seed is None else RowSampling(generator(seed), seen) for seed in seeds]


def random_logits(rows: int, size: int = 50, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(rows, size, generator=generator(seed))


class Only:
    """A constraint that allows some tokens."""

    def __init__(self, *tokens: int) -> None:
        self.tokens = list(tokens)

    def allowed_tokens(self, size: int) -> torch.Tensor:
        mask = torch.zeros(size, dtype=torch.bool)
        mask[self.tokens] = True
        return mask

    def accept_token(self, token: int) -> None:
        raise AssertionError("accepting is the caller's")


# --- What is drawn -------------------------------------------------------------------------------------------------


def test_the_tokens_of_a_seed_stay_what_they_have_been():
    """Drawn before the sampler had top-p, top-k or a penalty; recorded runs rely on them."""
    logits, row = random_logits(1, 300, seed=7), rows(123)
    drawn = [sample_tokens(logits, row, Decoding(temperature=0.8))[0][0] for _ in range(12)]
    assert drawn == [261, 107, 261, 261, 261, 35, 261, 261, 261, 261, 287, 105]


def test_draws_follow_the_distribution_at_the_temperature():
    logits, row = torch.tensor([[1.0, 0.0, -1.0, 2.0]]), rows(0)
    counts = torch.zeros(4)
    for _ in range(4000):
        counts[sample_tokens(logits, row, Decoding(temperature=1.5))[0][0]] += 1
    assert torch.allclose(counts / 4000, (logits[0] / 1.5).softmax(-1), atol=0.03)


@settings(deadline=None)
@given(
    st.floats(0.2, 3),
    st.one_of(st.just(1e-9), st.floats(0.05, 1)),
    st.integers(0, 60),
    st.floats(0.5, 2),
    st.integers(0, 10**6),
    st.lists(st.integers(0, 49), max_size=30),
)
def test_what_is_kept_and_how_likely_it_is_are_those_of_transformers(temperature, top_p, top_k, penalty, seed, seen):
    """The race is replaced by one that a chosen token wins, so that every token's weight shows."""
    logits = random_logits(1, seed=seed)
    expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([seen]), logits.clone()) if seen else logits
    expected = TemperatureLogitsWarper(temperature)(None, expected)
    if top_k:
        expected = TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(None, expected)
    chosen = Decoding(temperature=temperature, top_p=top_p, top_k=top_k, repetition_penalty=penalty)
    (row,) = rows(0, seen=tuple(seen))
    own = (logits / temperature).log_softmax(-1)
    weights = decoding._restrict_weights(logits, own, [row], chosen)
    assert torch.equal(weights.isfinite(), expected.isfinite())
    assert torch.allclose(weights.softmax(-1), expected.softmax(-1), atol=1e-5)


@settings(deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([{}, {"top_p": 0.7}, {"top_k": 5}, {"repetition_penalty": 1.7}]))
def test_a_row_draws_the_same_whatever_its_neighbours_do(seed, options):
    logits, chosen = random_logits(4, seed=seed), Decoding(temperature=1.0, **options)
    draws = rows(1, None, 3, 4, seen=(1, 2, 3))
    draws[3].greedy = True
    draws[3].constraint = Only(7, 8)
    tokens, logprobs = sample_tokens(logits, draws, chosen)
    alone_draws = rows(1, None, 3, 4, seen=(1, 2, 3))
    alone_draws[3].greedy, alone_draws[3].constraint = True, Only(7, 8)
    alone = [sample_tokens(logits[n : n + 1], alone_draws[n : n + 1], chosen) for n in range(4)]
    assert [token for (token,), _ in alone] == tokens
    assert [logprob for _, (logprob,) in alone] == pytest.approx(logprobs, abs=1e-5)
    assert (tokens[1], logprobs[1]) == (0, 0.0)


def test_rows_that_draw_nothing_leave_their_generators_alone():
    asleep, probe, cold = generator(1), generator(2), generator(3)
    before = [one.get_state() for one in (asleep, probe, cold)]
    sample_tokens(random_logits(2), [None, RowSampling(probe, (), greedy=True)], Decoding(temperature=1.0))
    sample_tokens(random_logits(1), [RowSampling(cold, ())], Decoding())
    assert all(torch.equal(one.get_state(), state) for one, state in zip((asleep, probe, cold), before, strict=True))


def test_the_log_probability_is_the_models_own_before_anything_is_kept_out():
    logits = random_logits(3).bfloat16()
    draws = rows(1, 2, 3, seen=(4, 5, 6))
    draws[1].constraint, draws[2].greedy = Only(9), True
    tokens, logprobs = sample_tokens(
        logits, draws, Decoding(temperature=0.7, top_p=0.5, top_k=3, repetition_penalty=1.5)
    )
    assert tokens[1] == 9
    full = logits.float() / torch.tensor([[0.7], [0.7], [1.0]])
    assert logprobs == full.log_softmax(-1)[range(3), tokens].tolist()


def test_a_probe_takes_the_likeliest_token_that_is_allowed_and_not_worn_out():
    logits = torch.tensor([[5.0, 4.0, 3.9, 1.0]])
    chosen = Decoding(temperature=2.0, repetition_penalty=1.2)
    assert sample_tokens(logits, [RowSampling(generator(0), (), greedy=True)], chosen)[0] == [0]
    assert sample_tokens(logits, [RowSampling(generator(0), (0, 1), greedy=True)], chosen)[0] == [0]
    assert sample_tokens(logits, [RowSampling(generator(0), (0, 1), Only(1, 2), greedy=True)], chosen)[0] == [2]


def test_the_nucleus_is_of_what_the_grammar_allows():
    logits = torch.tensor([[9.0, 8.0, 1.0, 1.0]])
    decoding = Decoding(temperature=1.0, top_p=0.9, top_k=2)
    drawn = {
        sample_tokens(logits, [RowSampling(generator(seed), (), Only(2, 3))], decoding)[0][0] for seed in range(40)
    }
    assert drawn == {2, 3}


def test_placeholders_are_never_drawn_however_often_they_have_been_seen():
    logits = torch.full((1, 6), -2.0)
    logits[0, 3] = -math.inf
    for penalty in (0.5, 3.0):
        decoding = Decoding(temperature=1.0, repetition_penalty=penalty)
        tokens = {sample_tokens(logits, rows(seed, seen=(3, 3)), decoding)[0][0] for seed in range(60)}
        assert tokens == {0, 1, 2, 4, 5}


def test_a_row_of_no_numbers_says_so_and_spoils_no_other():
    logits = random_logits(2)
    logits[0] = math.nan
    tokens, logprobs = sample_tokens(logits, rows(1, 2), Decoding(temperature=1.0, top_p=0.9, top_k=9))
    assert math.isnan(logprobs[0])
    assert [tokens[1]] == sample_tokens(logits[1:], rows(2), Decoding(temperature=1.0, top_p=0.9, top_k=9))[0]


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_new_tokens", 0), ("temperature", -0.1), ("temperature", math.nan), ("temperature", math.inf), ("top_p", 0.0),
     ("top_p", 1.1), ("top_p", math.nan), ("top_k", -1), ("repetition_penalty", 0.0), ("repetition_penalty", math.inf),
     ("seed", 10**20), ("max_new_tokens", 1.5), ("max_new_tokens", "8"), ("temperature", "1"), ("top_p", None),
     ("top_k", True)],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_by_its_name(name, value):
    with pytest.raises(UsageError, match=name):
        Decoding(**{name: value})


# --- Where turns end -----------------------------------------------------------------------------------------------


class Pieces:
    """A tokenizer of given pieces of bytes."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = pieces
        self.decoded = 0

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids) -> str:
        self.decoded += len(ids)
        return b"".join(self.pieces[token] for token in ids).decode(errors="replace")


@settings(deadline=None)
@given(
    st.data(), st.sampled_from([("</tool>", "</answer>"), ("»",), ("→»",)]), st.text(max_size=8), st.text(max_size=3)
)
def test_a_turn_ends_at_the_token_that_completes_a_stop_string_however_it_is_split(data, stops, before, after):
    text = (before + data.draw(st.sampled_from(stops)) + after).encode(errors="surrogatepass")
    places = range(1, len(text) + 1)
    cuts = sorted(data.draw(st.one_of(st.just({*places}), st.sets(st.sampled_from(places)))) | {len(text)})
    pieces = [text[start:end] for start, end in zip([0, *cuts], cuts, strict=False)]
    endings = StopCriteria(Pieces(*pieces), stops, end_of_turn=-1)
    ended = next((n for n in range(len(pieces)) if endings.is_complete(range(n + 1))), None)
    whole = [any(s in b"".join(pieces[: n + 1]).decode(errors="replace") for s in stops) for n in range(len(pieces))]
    assert ended == whole.index(True)


def test_the_end_of_turn_token_ends_a_turn_and_nothing_is_no_turn():
    endings = StopCriteria(Pieces(b"a", b"b"), ("</tool>",), end_of_turn=1)
    assert endings.is_complete([0, 1]) and not endings.is_complete([0]) and not endings.is_complete([])


def test_the_text_is_looked_at_only_where_a_token_can_end_a_stop_string():
    pieces = Pieces(b"word", b" more", b"5 > 3", b"ol>", b"</to")
    endings = StopCriteria(pieces, ("</tool>",), end_of_turn=-1)
    turn = [0, 1, 2] * 300
    assert not any(endings.is_complete(turn[: n + 1]) for n in range(len(turn)))
    assert pieces.decoded == 3, "each token once"
    assert endings.is_complete([*turn, 4, 3])


def test_a_grammar_is_wanted_or_not():
    with pytest.raises(UsageError, match="grammar must be True or False, not 'yes'"):
        Decoding(grammar="yes")
