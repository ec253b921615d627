"""Inquiry encoder `open_clip_text`: the text tower of an open_clip model, in the space that it shares with images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vilavt_components.common.hf_errors import as_input_error
from vilavt_components.common.library_errors import LIBRARY_ERRORS
from vilavt_components.common.open_clip import OpenClipModel, OpenClipSettings, resolve_model
from vilavt_components.common.plain_text import SpecialNames
from vilavt_toolkit.contracts import InquiryEncoder, LanguageModel
from vilavt_toolkit.errors import BadConfig
from vilavt_toolkit.packed.tokens import concat_ranges, to_device
from vilavt_toolkit.registry import inquiry_encoders

# In a checkpoint of open_clip's older class the text tower's tensors have no prefix, and lie beside these.
_OTHERS = ("visual.", "text_decoder.", "logit_scale", "logit_bias")
_CONTEXT = 77
_TOKENIZER_SETTINGS = ("clean", "strip_sep_token", "language")


@dataclass(frozen=True)
class OpenClipTextConfig(OpenClipSettings):
    """Settings of inquiry encoder `open_clip_text`; without `model`, `path` or `config` a small tower at random."""


@inquiry_encoders.register("open_clip_text", OpenClipTextConfig)
class OpenClipTextInquiryEncoder(InquiryEncoder):
    """The text tower of an open_clip model; token and pooled features through its projection, not normalised."""

    def __init__(self, config: OpenClipTextConfig, language_model: LanguageModel) -> None:
        super().__init__()
        self.config = config
        self._clip = resolve_model(config)
        text_config = self._clip.tower_config("text_cfg")
        _check_text_config(self._clip, text_config)
        self._tokenizer, self._pad = _build_tokenizer(self._clip, text_config, config.local_files_only)
        self.text = self._clip.build_tower("text", text_config)
        self.is_causal = self.text.attn_mask is not None
        # Built in every call instead: this buffer is in no checkpoint, so a model built on the meta device lacks it.
        self.text.attn_mask = None
        self.width: int = self.text.width if self.text.text_projection is None else self.text.output_dim

    @classmethod
    def tiny(cls) -> OpenClipTextConfig:
        """Return settings of one block of width 16."""
        return OpenClipTextConfig(config={"embed_dim": 12, "text_cfg": {"width": 16, "heads": 2, "layers": 1}})

    @classmethod
    def variants(cls) -> Mapping[str, OpenClipTextConfig]:
        """Return settings of towers without a causal mask, with a class token, and without a projection."""
        small = {"width": 16, "heads": 2, "layers": 1, "context_length": 12}
        both_ways = {"no_causal_mask": True, "pool_type": "last", "proj_bias": True, "ls_init_value": 0.5}
        return {
            "both_ways": OpenClipTextConfig(config={"embed_dim": 12, "text_cfg": small | both_ways}),
            "class_token": OpenClipTextConfig(config={"embed_dim": 12, "text_cfg": small | {"embed_cls": True}}),
            "no_projection": OpenClipTextConfig(config={"embed_dim": 12, "text_cfg": small | {"proj_type": "none"}}),
        }

    def tokenize(self, text: str) -> list[int]:
        """Return token ids of the stripped text with the tower's special tokens, without padding.

        A text longer than the tower's context is cut as open_clip's tokenizer does it: the end token stays.
        """
        text = text.strip()
        if not text:
            return []
        ids: list[int] = self._tokenizer([text])[0].tolist()
        while ids and ids[-1] == self._pad:
            ids.pop()
        return ids

    def token_texts(self, ids: Sequence[int]) -> list[str]:
        """Return the text of every token."""
        decode = getattr(self._tokenizer, "tokenizer", self._tokenizer).decode
        return [decode([token]).strip() for token in ids]

    def forward(self, ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Return features of all tokens [T, D], and the pooled one per group [G, D], zero for an empty inquiry."""
        text = self.text
        device = text.token_embedding.weight.device
        groups = [group for group, tokens in enumerate(ids) if tokens]
        if not groups:
            nothing = text.token_embedding.weight.new_zeros(0, self.width)
            return nothing, nothing.new_zeros(len(ids), self.width)
        # Only groups with an inquiry are encoded, N of the G. Of their padded hidden states [N, L, W] the rows of
        # tokens and of what is pooled are gathered first, so that norm and projection run on these alone.
        given = [ids[group] for group in groups]
        hidden = self._encode_padded(given, device)
        length = hidden.shape[1]
        starts = [row * length for row in range(len(given))]
        rows = concat_ranges(starts, [len(tokens) for tokens in given])
        ends = [start + self._pooled_index(tokens, length) for start, tokens in zip(starts, given, strict=True)]
        flat = hidden.flatten(0, 1)
        features, pooled = (
            self._project_shared(flat.index_select(0, to_device(index, device))) for index in (rows, ends)
        )
        return features, pooled.new_zeros(len(ids), self.width).index_copy(0, to_device(groups, device), pooled)

    def check_weights(self) -> None:
        """Check that the weights of `path` exist; raises InputError."""
        self._clip.check_weights(self.config)

    def load_weights(self) -> None:
        """Load the text tower of the named weights; raises InputError."""
        self._clip.load_weights_into(self.text, _text_tensor_name)

    @property
    def _needs_full_context(self) -> bool:
        # If tokens see those after them, or the last column is pooled, padding changes the result. The tower was
        # trained with texts padded to its context, so these must be too.
        return not self.is_causal or self.text.cls_emb is not None or self.text.pool_type == "last"

    def _encode_padded(self, ids: Sequence[Sequence[int]], device: torch.device) -> Tensor:
        """Encode N inquiries, none of them empty; last hidden states [N, L, W], with a class token [N, L + 1, W]."""
        text = self.text
        length = text.context_length if self._needs_full_context else max(len(tokens) for tokens in ids)
        padded = torch.tensor([[*tokens, *[self._pad] * (length - len(tokens))] for tokens in ids], device="cpu")
        x, mask = text._embeds(padded.to(device, non_blocking=True))
        # `_embeds` returns the mask of padding, if the tower has one; open_clip adds the causal one to it.
        if self.is_causal:
            columns = x.shape[1]
            causal = torch.full((columns, columns), float("-inf"), dtype=x.dtype, device=device).triu(1)
            mask = causal if mask is None else causal + mask
        hidden: Tensor = text.transformer(x, attn_mask=mask)
        return hidden

    def _pooled_index(self, ids: Sequence[int], length: int) -> int:
        """Return the column, of `length`, that open_clip's `text_global_pool` takes for the whole inquiry."""
        text = self.text
        if text.cls_emb is not None or text.pool_type == "last":
            return length - 1
        if text.pool_type == "eos":
            return list(ids).index(text.eos_id) if text.eos_id in ids else 0
        # "argmax": CLIP's end token has the largest id.
        return 0 if text.pool_type == "first" else max(range(len(ids)), key=ids.__getitem__)

    def _project_shared(self, hidden: Tensor) -> Tensor:
        """Apply the final norm, and the projection into the space shared with images, if any; [N, W] -> [N, D]."""
        normed: Tensor = self.text.ln_final(hidden)
        projection = self.text.text_projection
        if projection is None:
            return normed
        shared: Tensor = projection(normed) if isinstance(projection, nn.Linear) else normed @ projection
        return shared


def _check_text_config(clip: OpenClipModel, text_config: Mapping[str, Any]) -> None:
    """Raise BadConfig for a text tower that this inquiry encoder cannot run."""
    hf_name = text_config.get("hf_model_name")
    if hf_name:
        raise BadConfig(
            f"The text tower of {clip.name} is transformers' {hf_name}. Take inquiry encoder `hf_text` with "
            f"`path: {hf_name}`, or a model with a text tower of open_clip's own, such as ViT-B-32."
        )
    if text_config.get("pool_type") == "none":
        raise BadConfig("Inquiry encoder 'open_clip_text' needs a pooled vector. Set `pool_type` to argmax or last.")
    if text_config.get("scaled_cosine_attn"):
        # open_clip's own forward of it fails too.
        raise BadConfig("Inquiry encoder 'open_clip_text' has no scaled cosine attention. Remove `scaled_cosine_attn`.")
    if text_config.get("tokenizer_mode"):
        raise BadConfig(
            f"Inquiry encoder 'open_clip_text' has no tokenizer mode '{text_config['tokenizer_mode']}', which puts a "
            "token after the padding. Choose a model without `tokenizer_mode`."
        )


def _build_tokenizer(clip: OpenClipModel, text_config: Mapping[str, Any], local_files_only: bool) -> tuple[Any, int]:
    """Build open_clip's tokenizer of a text tower; returns it and its padding id. Raises BadConfig and InputError."""
    from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

    context, source = text_config.get("context_length", _CONTEXT), text_config.get("hf_tokenizer_name")
    more = _tokenizer_settings(text_config)
    if source:
        source = str(clip.folder or source)
        advice = "Give a hub name in reach or cached, or a folder with the tokenizer's files."
        with as_input_error(f"tokenizer '{source}' of {clip.name} cannot be loaded", advice, source):
            wrapped = HFTokenizer(source, context_length=context, local_files_only=local_files_only, **more)
            inner = wrapped.tokenizer
            added = [str(each) for each in inner.added_tokens_decoder.values() if each.special]
            _read_names_as_text(wrapped, [*added, *inner.all_special_tokens])
            return wrapped, int(inner.pad_token_id)
    try:
        simple = SimpleTokenizer(context_length=context, **more)
    except LIBRARY_ERRORS as error:
        raise BadConfig(
            f"open_clip's tokenizer does not take tokenizer_kwargs {more} ({error}). Remove what it names."
        ) from error
    # The other way, an id without a row in the table would fail in training, on a GPU without a readable error.
    size = text_config.get("vocab_size", simple.vocab_size)
    if size < simple.vocab_size:
        raise BadConfig(
            f"`vocab_size` {size} of {clip.name} is below the {simple.vocab_size} of its tokenizer. Set it to "
            f"{simple.vocab_size}."
        )
    _read_names_as_text(simple, [simple.decoder[token] for token in simple.all_special_ids])
    return simple, 0


def _read_names_as_text(tokenizer: Any, names: Sequence[str]) -> None:
    """Let one of open_clip's tokenizers read the names of special tokens in a text as words."""
    clean, special = tokenizer.clean_fn, SpecialNames(names)
    # After cleaning, which turns `&lt;` into `<`.
    tokenizer.clean_fn = lambda text: special.cut(clean(text))


def _tokenizer_settings(text_config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the model's tokenizer_kwargs; raises BadConfig for others than those that clean a text."""
    # An allow-list, since kwargs go on to transformers, and some of its own load code.
    given = dict(text_config.get("tokenizer_kwargs") or {})
    wrong = next((name for name in given if name not in _TOKENIZER_SETTINGS), None)
    if wrong == "reduction_mask":
        raise BadConfig(
            "`reduction_mask` cuts a long text at random, and an inquiry must be read the same way every time. Remove "
            "it from tokenizer_kwargs."
        )
    if wrong is not None:
        raise BadConfig(
            f"`tokenizer_kwargs` has {wrong!r}, and only {', '.join(_TOKENIZER_SETTINGS)} are passed on. Remove it."
        )
    return given


def _text_tensor_name(key: str) -> str | None:
    """Return a checkpoint's name of a text tensor without `text.`, or None for a tensor of another part."""
    return None if key.startswith(_OTHERS) else key.removeprefix("text.")
