"""The attention masks of text models of transformers, and the trial that tells which of them a model takes."""

from __future__ import annotations

from collections.abc import Sequence
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
from vilavt_components.common.small_copies import WINDOW
from vilavt_toolkit.errors import InputError

_WINDOWS = ("sliding_window", "local_attention", "attention_window", "window_size")
_TOLERANCE = 1e-3


def build_mask(lengths: Sequence[int], longest: int, causal: bool, dtype: torch.dtype) -> Tensor:
    """Return the mask to be added to attention logits; [N, 1, L, L]."""
    # Four axes, built on the CPU: transformers reads a mask [N, L] to see if anything is padded, which waits for the
    # device. The smallest number stands for -inf, as in transformers' own masks.
    visible = build_padding(lengths, longest).view(-1, 1, 1, longest)
    if causal:
        columns = torch.arange(longest, device="cpu")
        visible = visible & (columns <= columns.unsqueeze(1))
    mask = torch.zeros((), dtype=dtype, device="cpu").masked_fill(~visible, torch.finfo(dtype).min)
    return mask.expand(-1, -1, longest, -1)


def build_padding(lengths: Sequence[int], longest: int) -> Tensor:
    """Return the mask that is True on tokens and False on padding; [N, L]."""
    return torch.arange(longest, device="cpu") < torch.tensor(lengths, device="cpu").unsqueeze(1)


def encode_padded(model: Any, ids: Sequence[Sequence[int]], takes_mask: bool) -> Tensor:
    """Encode N inquiries, none of them empty, padded to one length; last hidden states [N, L, D]."""
    first = next(model.parameters())
    lengths = [len(tokens) for tokens in ids]
    longest, pad = max(lengths), _padding_id(model)
    padded = torch.tensor([[*tokens, *[pad] * (longest - len(tokens))] for tokens in ids], device="cpu")
    if takes_mask:
        mask = build_mask(lengths, longest, is_causal(model), first.dtype)
    else:
        mask = build_padding(lengths, longest).long()
    hidden: Tensor = model(
        input_ids=padded.to(first.device, non_blocking=True), attention_mask=mask.to(first.device, non_blocking=True)
    ).last_hidden_state
    return hidden


def is_causal(model: Any) -> bool:
    """Return True if tokens see only those before them, by the configuration or else by the attention modules."""
    configured = getattr(model.config, "is_causal", None)
    if configured is not None:
        return bool(configured)
    return any(getattr(module, "is_causal", False) for module in model.modules())


def choose_mask(config: Any, max_tokens: int) -> bool:
    """Return True if a text model takes the mask of `build_mask`, False if only padding; raises InputError if neither.

    `max_tokens` is the most tokens of an inquiry.
    """
    windows = [size for name, size in config.to_dict().items() if name in _WINDOWS and isinstance(size, int)]
    # The mask has no window. It is right for inquiries that fit into one on each side.
    fits = all(max_tokens <= size // 2 for size in windows)
    taken, reason = _try_masks(Architecture(config), WINDOW // 2 if windows and fits else 2 * WINDOW)
    if reason:
        raise InputError(
            f"hf_text: models of type {config.model_type!r} cannot be used ({reason}). Choose another text model, such "
            "as BERT or Qwen3-Embedding."
        )
    return taken


@cache
def _try_masks(architecture: Architecture, longest: int) -> tuple[bool, str]:
    return run_trial(lambda: _compare_masks(architecture.config, longest))


def _compare_masks(config: Any, longest: int) -> tuple[bool, str]:
    """Return if a small copy takes a mask, and why it takes nothing."""
    from transformers import AutoModel

    def build(config: Any) -> nn.Module:
        made: Any = AutoModel.from_config  # untyped
        return keep_encoder(made(config, dtype=torch.float32))

    reasons = {}
    try:
        model = build_small_copy(config, build)
        # A short inquiry beside a long one.
        ids = _choose_ids(model, (longest, 2))
        alone = [model(input_ids=torch.tensor([tokens])).last_hidden_state[0] for tokens in ids]
    # Models of other people, of any family: whatever they raise is why they cannot be used.
    except Exception as error:
        return False, describe_failure(error)
    for takes_mask in (True, False):
        try:
            hidden = encode_padded(model, ids, takes_mask)
            found = [row[: len(tokens)] for row, tokens in zip(hidden, ids, strict=True)]
            difference = max((a - b).abs().max().item() for a, b in zip(found, alone, strict=True))
            if difference <= _TOLERANCE * max(1.0, *(part.abs().max().item() for part in alone)):
                return takes_mask, ""
            reasons[takes_mask] = f"a padded inquiry is encoded {difference:.2g} from itself alone"
        # As above. The other way of masking is tried all the same.
        except Exception as error:
            reasons[takes_mask] = describe_failure(error)
    return False, reasons[False]


def _choose_ids(model: Any, lengths: Sequence[int]) -> list[list[int]]:
    """Return ids of tokens that are no padding, which some models leave out of a text."""
    rows: int = model.get_input_embeddings().num_embeddings
    usable = [token for token in range(rows) if token != _padding_id(model)]
    return [[usable[(5 + index) % len(usable)] for index in range(length)] for length in lengths]


def _padding_id(model: Any) -> int:
    return getattr(model.config.get_text_config(), "pad_token_id", None) or 0


def keep_encoder(model: Any) -> nn.Module:
    """Return the part of a model that reads text: of a pair the encoder, and no pooler."""
    # Left in, decoder and pooler would be saved, and counted among the weights that learn, without a gradient.
    if model.config.is_encoder_decoder:
        model = model.get_encoder()
    if getattr(model, "pooler", None) is not None:
        # Not None, since some models call their pooler in any case.
        model.pooler = nn.Identity()
    model.config.use_cache = False
    kept: nn.Module = model
    return kept
