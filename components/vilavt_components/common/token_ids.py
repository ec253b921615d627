"""Checks of the token ids of a transformers tokenizer, against damage and against the model that reads them."""

from __future__ import annotations

from typing import Any

_GAPS = 100_000
"""Ids without a token that a vocabulary may have in any case."""


def check_token_ids(tokenizer: Any) -> None:
    """Raise ValueError for token ids that no model can have rows for."""
    vocabulary = tokenizer.get_vocab()
    # Ids may have gaps, but a table with a row for each id should not be mostly empty.
    most = 2 * len(vocabulary) + _GAPS
    wrong = next((name for name, token in vocabulary.items() if not 0 <= token < most), None)
    if wrong is not None:
        raise ValueError(f"its token {wrong[:40]!r} has the id {vocabulary[wrong]} among {len(vocabulary):,} tokens")


def check_tokens_have_rows(tokenizer: Any, rows: int) -> None:
    """Raise ValueError if texts have tokens for which a table of `rows` embeddings has no row."""
    # Tokens that were added, as one for padding, often have no row. They are in no text, unless the tokenizer puts
    # them around it.
    added = set(tokenizer.added_tokens_decoder) - set(tokenizer.encode("a"))
    ids = tokenizer.get_vocab().values()
    beyond = [token for token in ids if token >= rows and token not in added]
    if beyond:
        raise ValueError(
            f"its tokenizer has {len(ids):,} tokens, {len(beyond):,} of them beyond the {rows:,} that the model has "
            "weights for"
        )
