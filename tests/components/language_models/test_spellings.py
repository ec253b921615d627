"""What tokens are spelled with: joined, they are what is decoded, in byte-level vocabularies and in pieces of words."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vilavt_components.language_models.tokenizer import HFTokenizer, train_tokenizer


def byte_level() -> HFTokenizer:
    """Trained as a recipe's, with strings of a grammar as single tokens."""
    corpus = ["what digit is on the red square? é → 日本", "2.5 > 3"]
    return train_tokenizer(corpus, ["<think>", "</think><answer>", '{"index": ', ", 日"], 400, "<|feature|>")


def pieces() -> HFTokenizer:
    """Pieces of words behind a mark for spaces, with bytes to fall back to."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abt<>é", "▁a", "ab", "▁t"]
    vocabulary = {name: index for index, name in enumerate(names)}
    merges = [("▁", "a"), ("a", "b"), ("▁", "t")]
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, unk_token="<unk>"))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    core.add_special_tokens([AddedToken(text, special=True) for text in ("<s>", "</s>")])
    core.add_tokens([AddedToken("<think>", normalized=False)])
    return HFTokenizer(PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>"), "<|feature|>")


@cache
def made(kind: str) -> tuple[HFTokenizer, list[bytes]]:
    tokenizer = {"byte level": byte_level, "pieces": pieces}[kind]()
    return tokenizer, tokenizer.token_bytes()


@pytest.mark.parametrize("kind", ["byte level", "pieces"])
@settings(deadline=None)
@given(text=st.one_of(st.text(), st.text("ab t<>é日→"), st.just("a <think>b</think><answer> 日")))
def test_what_tokens_are_spelled_with_is_what_is_decoded(kind, text):
    tokenizer, spellings = made(kind)
    ids = tokenizer.encode(f"a{text}")
    assert b"".join(spellings[token] for token in ids).decode().removeprefix(" ") == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", ["byte level", "pieces"])
def test_marks_are_spelled_with_nothing_and_grammar_strings_with_themselves(kind):
    tokenizer, spellings = made(kind)
    assert len(spellings) == len(tokenizer)
    assert spellings[tokenizer.placeholder] == spellings[tokenizer.end_of_turn] == b""
    (think,) = tokenizer.encode("<think>")[-1:]
    assert spellings[think] == b"<think>"
