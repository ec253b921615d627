"""A trial of an architecture: a small copy must give transformers' own logits, at once and from the KV cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from vilavt_components.common.architecture_trials import (
    Architecture,
    build_small_copy,
    describe_failure,
    run_trial,
)
from vilavt_components.language_models.causal_base import OTHER_FAMILY, CausalConfig, CausalModel, LogitScaling
from vilavt_components.language_models.layer_windows import read_layer_windows
from vilavt_components.language_models.tokenizer import HFTokenizer, train_tokenizer
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.generation.kv_cache import KVCache

_LENGTH, _PADDING = 12, 4
# (rows, new columns of each): a row joins late, one pauses, and they come in another order.
_ROUNDS: tuple[tuple[list[int], tuple[int, ...]], ...] = (
    ([0, 1], (4, 1)),
    ([0, 1], (1, 1)),
    ([1, 0], (8, 2)),
    ([0], (4,)),
    ([0, 1], (1, 2)),
)
_TOLERANCE = 1e-3
_LARGE = 30.0
"""A logit at which Gemma's caps, of 30 and more, can be seen."""


class SmallCopy(CausalModel):
    """A language model around a small copy of a transformers model, to try its architecture."""

    label = "hf_causal"

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.config = self.tiny()
        self._use_tokenizer(_tiny_tokenizer())
        self.model = model
        self._read_sizes(model.config.get_text_config())

    @classmethod
    def tiny(cls) -> CausalConfig:
        """Return settings that name nothing: the model is given."""
        return CausalConfig()


@cache
def _tiny_tokenizer() -> HFTokenizer:
    return train_tokenizer(["a"], [], 300, "<|feature|>")


@dataclass(frozen=True)
class _Trial:
    """The result of trying a small copy of an architecture."""

    problem: str
    """Difference between transformers' logits and the toolkit's; empty if there is none."""
    logit_scaling: LogitScaling = "unknown"


def refuse_disagreement(label: str, config: Any, attention: str | None) -> None:
    """Raise InputError if the toolkit cannot read with the model of transformers' `config` as transformers does."""
    if reason := _try_once(Architecture(config), _tried_attention(attention)).problem:
        raise InputError(f"{label}: models of type {config.model_type!r} cannot be used ({reason}). {OTHER_FAMILY}")


def find_logit_scaling(config: Any, attention: str | None) -> LogitScaling:
    """Return what the model of transformers' `config` does with the logits of its head, which then is called alone."""
    return _try_once(Architecture(config), _tried_attention(attention)).logit_scaling


def describe_mixing(config: Any, attention: str | None) -> str:
    """Return why a row of several dialogues cannot be read with the model of transformers' `config`, or nothing."""
    return _find_mixing(Architecture(config), _tried_attention(attention))


@cache
def _find_mixing(architecture: Architecture, attention: str | None) -> str:
    return run_trial(lambda: _try_packing(architecture.config, attention))


def _try_packing(config: Any, attention: str | None) -> str:
    """Return what differs between the logits of dialogues in one row and alone, in a small copy, or an empty text."""
    try:
        copy = _build_copy(config, attention)
        whole = copy.embed((torch.arange(3, 3 + _LENGTH) % copy.vocab_size).view(1, _LENGTH))
        parts = [whole, whole[:, : _LENGTH // 2], whole.flip(1)]
        alone = [copy.model(inputs_embeds=part, use_cache=False).logits for part in parts]
        row, positions = torch.cat(parts, dim=1), torch.cat([_count_columns(part) for part in parts], dim=2)
        mask, lengths = row.new_ones(row.shape[:2], dtype=torch.bool), [part.shape[1] for part in parts]
        problem = _compare(copy(row, positions, mask, documents=lengths), torch.cat(alone, dim=1))
    # Models of other people, of any family: whatever they raise is why they cannot be used.
    except Exception as error:
        problem = f"fail: {describe_failure(error)}"
    return f"its logits of several dialogues in a row {problem}" if problem else ""


def _count_columns(part: Tensor) -> Tensor:
    return torch.arange(part.shape[1])[None, None]


def _tried_attention(attention: str | None) -> str | None:
    # Kernels for GPUs cannot be tried here. They differ in speed only.
    return attention if attention in ("eager", "sdpa") else None


@cache
def _try_once(architecture: Architecture, attention: str | None) -> _Trial:
    return run_trial(lambda: _try_architecture(architecture.config, attention))


def _try_architecture(config: Any, attention: str | None) -> _Trial:
    """Compare transformers' logits with the toolkit's in a small copy."""
    try:
        read_layer_windows(config.get_text_config(decoder=True))
        copy = _build_copy(config, attention)
        ids = (torch.arange(3, 3 + 2 * _LENGTH) % copy.vocab_size).view(2, _LENGTH)
        embedded = copy.embed(ids)
        # Columns of features are the embeddings of no token.
        features = embedded + 0.5 * torch.randn_like(embedded)
        plain = copy.model(input_ids=ids, use_cache=False).logits
        expected = copy.model(inputs_embeds=features, use_cache=False).logits
    # Models of other people, of any family: whatever they raise is why they cannot be used.
    except Exception as error:
        return _Trial(describe_failure(error))
    trials = {
        "of padded text": (_read_padded, embedded, plain),
        "of features": (_read_padded, features, expected),
        "from the KV cache": (_read_in_rounds, features, expected),
    }
    for what, (read, columns, wanted) in trials.items():
        try:
            problem = _compare(read(copy, columns), wanted)
        # As above.
        except Exception as error:
            problem = f"fail: {describe_failure(error)}"
        if problem:
            return _Trial(f"its logits {what} {problem}")
    kinds: tuple[LogitScaling, ...] = ("by_settings", "none")
    for copy.logit_scaling in kinds:
        if _splits_at_its_head(copy, features):
            return _Trial("", copy.logit_scaling)
    return _Trial("")


def _splits_at_its_head(copy: SmallCopy, columns: Tensor) -> bool:
    """Return True if logits made of hidden states, a few at a time, are those of the model's own forward."""
    mask = torch.ones(columns.shape[:2], dtype=torch.bool)
    positions = (mask.cumsum(1) - 1)[None]
    # Small logits hide caps: the states are enlarged on their way into the head, in the model's own forward too.
    try:
        plain = copy(columns, positions, mask)
        factor = _LARGE / plain[plain.isfinite()].abs().max()
        hook = copy.head.register_forward_pre_hook(lambda _, given: (factor * given[0], *given[1:]))
        try:
            expected = copy(columns, positions, mask).flatten(0, 1)
        finally:
            hook.remove()
        states = factor * copy.run_layers(columns, positions, mask).flatten(0, 1)
        found = torch.cat([copy.compute_logits(part) for part in torch.split(states, 5)])
        is_same_choice = torch.equal(found.isfinite(), expected.isfinite())
        return is_same_choice and not _compare(found, expected.nan_to_num(neginf=0.0))
    # Models of other people: whatever they raise, their forward as a whole is right.
    except Exception:
        return False


def _build_copy(config: Any, attention: str | None) -> SmallCopy:
    from transformers import AutoModelForCausalLM

    def build(config: Any) -> nn.Module:
        made: Any = AutoModelForCausalLM.from_config  # untyped
        model: nn.Module = made(config, attn_implementation=attention, dtype=torch.float32)
        return model

    return SmallCopy(build_small_copy(config, build))


def _compare(found: Tensor, expected: Tensor) -> str:
    if not expected.isfinite().all():
        return "are not finite in transformers either"
    if found.shape != expected.shape:
        return f"have the shape {list(found.shape)} instead of {list(expected.shape)}"
    # Of the tokens that can be written: the toolkit rules the others out.
    sayable = found.isfinite()
    error = (found[sayable] - expected[sayable]).abs().max().item() if sayable.any() else float("inf")
    allowed = _TOLERANCE * max(1.0, expected.abs().max().item())
    return "" if error <= allowed else f"are {error:.2g} from transformers' own"


def _read_padded(model: CausalModel, columns: Tensor) -> Tensor:
    """Return the logits of columns [2, L, D] that are read at once, with padding in different places of the rows."""
    mask = torch.ones(2, _LENGTH + _PADDING, dtype=torch.bool)
    mask[0, _LENGTH:] = False
    mask[1, :2] = mask[1, 6:8] = False
    padded = columns.new_zeros(*mask.shape, columns.shape[-1])
    padded[mask] = columns.flatten(0, 1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)[None]
    logits: Tensor = model(padded, positions, mask)
    last: Tensor = model(padded, positions, mask, last=1)
    if last.shape[1] != 1:
        raise ValueError(f"there are {last.shape[1]} for the last column")
    return logits[mask].view(2, _LENGTH, -1)


def _read_in_rounds(model: CausalModel, columns: Tensor) -> Tensor:
    """Return the logits of columns [2, L, D] that are read little by little into a KV cache."""
    kept = KVCache(2, torch.device("cpu"))
    found: list[list[Tensor]] = [[], []]
    for rows, counts in _ROUNDS:
        for row, logits in zip(rows, _read_round(model, kept, columns, rows, counts), strict=True):
            found[row].append(logits)
    return torch.stack([torch.cat(parts) for parts in found])


def _read_round(
    model: nn.Module, kept: KVCache, columns: Tensor, rows: Sequence[int], counts: Sequence[int]
) -> list[Tensor]:
    """Read the next columns of some rows of the cache; returns their logits [L, V] per row."""
    # Padded on the left, as in the loop, so that the last column of every row is its newest one.
    length, first = max(counts), [kept.lengths[row] for row in rows]
    mask = torch.arange(length) >= length - torch.tensor(counts)[:, None]
    new = columns.new_zeros(*mask.shape, columns.shape[-1])
    for index, (row, start, count) in enumerate(zip(rows, first, counts, strict=True)):
        new[index, length - count :] = columns[row, start : start + count]
    positions = ((mask.cumsum(1) - 1).clamp(min=0) + torch.tensor(first)[:, None])[None]
    logits = model(new, positions, mask, kept.prepare_update(rows, counts, new.dtype))
    kept.commit(rows, counts, [start + count for start, count in zip(first, counts, strict=True)])
    return [row[length - count :] for row, count in zip(logits, counts, strict=True)]
