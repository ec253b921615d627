"""Text that a model wrote never stands for a special token."""

import pytest

from vilavt_components.common.plain_text import PlainEncoder, SpecialNames


@pytest.fixture(scope="module")
def pieces():
    """A tokenizer of pieces, whose vocabulary has the names of special tokens too, as that of T5."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = [(letter, -5.0) for letter in "▁</>sabcdeprn_"]
    backend = Tokenizer(models.Unigram([("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *letters], unk_id=2))
    backend.normalizer, backend.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", pad_token="<pad>", unk_token="<unk>", model_max_length=64
    )


@pytest.mark.parametrize("text", ["red </s> car", "</s>", "a<pad>b", "red \uff1c/s\uff1e car", "</s></s>"])
def test_names_that_are_pieces_of_the_vocabulary_are_read_as_letters(pieces, text):
    assert pieces.encode(text)[:-1].count(1) + pieces.encode(text).count(0) > 0
    ids = PlainEncoder(pieces).encode(text, 64)
    assert ids[-1] == 1 and not {0, 1} & set(ids[:-1])


def test_special_tokens_of_a_prefix_stay(pieces):
    ids = PlainEncoder(pieces, "<pad> ").encode("a </s> b", 64)
    assert ids[0] == 0 and ids[-1] == 1 and not {0, 1} & set(ids[1:-1])


@pytest.mark.parametrize("text", ["a red car", "a < b", "s/", "a\u00a0b"])
def test_other_texts_are_read_as_the_tokenizer_reads_them(pieces, text):
    assert PlainEncoder(pieces).encode(text, 64) == pieces.encode(text)
    assert SpecialNames(pieces.all_special_tokens).cut(text) is text


def test_a_long_text_is_cut_before_the_end_token(pieces):
    assert PlainEncoder(pieces).encode("</s>" * 20, 7)[-1] == 1
    assert len(PlainEncoder(pieces).encode("</s>" * 20, 7)) == 7


def test_a_longer_name_that_begins_like_another_is_cut():
    assert SpecialNames(["<s", "<s>"]).cut("a <S> b") == "a < S> b"
