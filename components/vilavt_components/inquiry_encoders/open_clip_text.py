"""Inquiries read by the text tower of an open_clip model, in the space that it shares with images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vilavt_components.common.hf_errors import explained
from vilavt_components.common.open_clip import OpenClipModel, OpenClipSettings, resolve
from vilavt_toolkit.contracts import InquiryEncoder, LanguageModel
from vilavt_toolkit.errors import BadConfig
from vilavt_toolkit.packed.tokens import runs, to_device
from vilavt_toolkit.registry import inquiry_encoders

# In a checkpoint of open_clip's older class the text tower's tensors stand by themselves, among these of other parts.
_OTHERS = ("visual.", "text_decoder.", "logit_scale", "logit_bias")
_CONTEXT = 77
_TOKENIZER_SETTINGS = ("clean", "strip_sep_token", "language")


@dataclass(frozen=True)
class OpenClipTextConfig(OpenClipSettings):
    """Settings of inquiry encoder `open_clip_text`; without `model`, `file` or `config` a small tower at random."""


@inquiry_encoders.register("open_clip_text", OpenClipTextConfig)
class OpenClipTextInquiryEncoder(InquiryEncoder):
    """The text tower of an open_clip model; token and pooled features through its projection, not normalised."""

    def __init__(self, config: OpenClipTextConfig, language_model: LanguageModel) -> None:
        super().__init__()
        self.config = config
        self._origin = resolve(config)
        part = self._origin.section("text_cfg")
        _check(self._origin, part)
        self._tokenizer, self._pad = _tokenizer(self._origin, part, config.local_files_only)
        self.text = self._origin.build("text", part)
        self.causal = self.text.attn_mask is not None
        # Made anew in every call: as a buffer it is in no checkpoint, and without values on the meta device.
        self.text.attn_mask = None
        self.width: int = self.text.width if self.text.text_projection is None else self.text.output_dim

    @classmethod
    def tiny(cls) -> OpenClipTextConfig:
        """Return settings of one block of width 16."""
        return OpenClipTextConfig(config={"embed_dim": 12, "text_cfg": {"width": 16, "heads": 2, "layers": 1}})

    @classmethod
    def variants(cls) -> Mapping[str, OpenClipTextConfig]:
        """Return settings of towers that read both ways, and that append a token of their own."""
        small = {"width": 16, "heads": 2, "layers": 1, "context_length": 12}
        both_ways = {"no_causal_mask": True, "pool_type": "last", "proj_bias": True, "ls_init_value": 0.5}
        return {
            "both_ways": OpenClipTextConfig(config={"embed_dim": 12, "text_cfg": small | both_ways}),
            "class_token": OpenClipTextConfig(config={"embed_dim": 12, "text_cfg": small | {"embed_cls": True}}),
            "no_projection": OpenClipTextConfig(config={"embed_dim": 12, "text_cfg": small | {"proj_type": "none"}}),
        }

    def tokenize(self, text: str) -> list[int]:
        """Token ids of the stripped text with the tower's marks, without padding.

        Of a text longer than the tower's context the rest is cut, as open_clip's tokenizer does; the mark at its end
        stays.
        """
        text = text.strip()
        if not text:
            return []
        ids: list[int] = self._tokenizer([text])[0].tolist()
        while ids and ids[-1] == self._pad:
            ids.pop()
        return ids

    def words(self, ids: Sequence[int]) -> list[str]:
        """The text of every token."""
        decode = getattr(self._tokenizer, "tokenizer", self._tokenizer).decode
        return [decode([token]).strip() for token in ids]

    def forward(self, ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Features of all tokens [T, D] and of what the tower pools per group [G, D], zero where empty."""
        text = self.text
        device = text.token_embedding.weight.device
        groups = [group for group, tokens in enumerate(ids) if tokens]
        if not groups:
            nothing = text.token_embedding.weight.new_zeros(0, self.width)
            return nothing, nothing.new_zeros(len(ids), self.width)
        asked = [ids[group] for group in groups]
        hidden = self._read(asked, device)  # [N, L, W]
        length = hidden.shape[1]
        starts = [row * length for row in range(len(asked))]
        rows = runs(starts, [len(tokens) for tokens in asked])
        ends = [start + self._pooled(tokens, length) for start, tokens in zip(starts, asked, strict=True)]
        flat = hidden.flatten(0, 1)
        features, pooled = (self._shared(flat.index_select(0, to_device(index, device))) for index in (rows, ends))
        return features, pooled.new_zeros(len(ids), self.width).index_copy(0, to_device(groups, device), pooled)

    def check_weights(self) -> None:
        """Hold that the weights of `file` are there; raises InputError."""
        self._origin.check_weights(self.config)

    def load_weights(self) -> None:
        """Load the text tower of the named weights; raises InputError."""
        self._origin.fill(self.text, _name)

    @property
    def _whole(self) -> bool:
        # Where tokens see those behind them, or the last place is pooled, padding takes part in what the tower says.
        return not self.causal or self.text.cls_emb is not None or self.text.pool_type == "last"

    def _read(self, ids: Sequence[Sequence[int]], device: torch.device) -> Tensor:
        """Last hidden states of N inquiries, none of them empty; [N, L, W], one more where the tower appends one."""
        text = self.text
        length = text.context_length if self._whole else max(len(tokens) for tokens in ids)
        padded = torch.tensor([[*tokens, *[self._pad] * (length - len(tokens))] for tokens in ids], device="cpu")
        x, mask = text._embeds(padded.to(device, non_blocking=True))
        if self.causal:
            places = x.shape[1]
            later = torch.full((places, places), float("-inf"), dtype=x.dtype, device=device).triu(1)
            mask = later if mask is None else later + mask
        hidden: Tensor = text.transformer(x, attn_mask=mask)
        return hidden

    def _pooled(self, ids: Sequence[int], length: int) -> int:
        """The place of what stands for an inquiry, among `length`."""
        text = self.text
        if text.cls_emb is not None or text.pool_type == "last":
            return length - 1
        if text.pool_type == "eos":
            return list(ids).index(text.eos_id) if text.eos_id in ids else 0
        return 0 if text.pool_type == "first" else max(range(len(ids)), key=ids.__getitem__)

    def _shared(self, hidden: Tensor) -> Tensor:
        """Normed, and in the space shared with images where the tower has a projection; [N, W] -> [N, D]."""
        normed: Tensor = self.text.ln_final(hidden)
        projection = self.text.text_projection
        if projection is None:
            return normed
        shared: Tensor = projection(normed) if isinstance(projection, nn.Linear) else normed @ projection
        return shared


def _check(origin: OpenClipModel, part: Mapping[str, Any]) -> None:
    theirs = part.get("hf_model_name")
    if theirs:
        raise BadConfig(
            f"The text tower of {origin.name} is transformers' {theirs}; take inquiry encoder `hf_text` with "
            f"`path: {theirs}`, or a model with a text tower of open_clip's own, such as ViT-B-32."
        )
    if part.get("pool_type") == "none":
        raise BadConfig("Inquiry encoder 'open_clip_text' needs a pooled vector; set `pool_type` to argmax or last.")
    if part.get("scaled_cosine_attn"):
        raise BadConfig("open_clip's own scaled cosine attention fails; leave out `scaled_cosine_attn`.")
    if part.get("tokenizer_mode"):
        raise BadConfig(
            f"Inquiry encoder 'open_clip_text' has no tokenizer mode '{part['tokenizer_mode']}', which puts a token "
            "behind the padding; name a model without `tokenizer_mode`."
        )


def _tokenizer(origin: OpenClipModel, part: Mapping[str, Any], local_files_only: bool) -> tuple[Any, int]:
    """open_clip's tokenizer of a text tower, and the id it pads with; raises BadConfig and InputError."""
    from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

    context, source = part.get("context_length", _CONTEXT), part.get("hf_tokenizer_name")
    more = _tokenizer_settings(part)
    if source:
        source = str(origin.folder or source)
        advice = "give a hub name in reach or cached, or a folder with the tokenizer's files."
        with explained(f"tokenizer '{source}' of {origin.name} cannot be loaded", advice, source):
            theirs = HFTokenizer(source, context_length=context, local_files_only=local_files_only, **more)
            return theirs, int(theirs.tokenizer.pad_token_id)
    try:
        made = SimpleTokenizer(context_length=context, **more)
    except (TypeError, AssertionError) as error:
        raise BadConfig(f"open_clip's tokenizer does not take tokenizer_kwargs {more}: {error}") from error
    size = part.get("vocab_size", made.vocab_size)
    if size < made.vocab_size:
        raise BadConfig(
            f"`vocab_size` {size} of {origin.name} is below the {made.vocab_size} of its tokenizer; raise it."
        )
    return made, 0


def _tokenizer_settings(part: Mapping[str, Any]) -> dict[str, Any]:
    """tokenizer_kwargs, of which a published model may use those that clean a text, and none that loads code."""
    given = dict(part.get("tokenizer_kwargs") or {})
    wrong = next((name for name in given if name not in _TOKENIZER_SETTINGS), None)
    if wrong == "reduction_mask":
        raise BadConfig(
            "`reduction_mask` draws what is left of a long text at random; leave it out of tokenizer_kwargs."
        )
    if wrong is not None:
        raise BadConfig(
            f"`tokenizer_kwargs` has {wrong!r}, and only {', '.join(_TOKENIZER_SETTINGS)} are passed on; leave it out."
        )
    return given


def _name(key: str) -> str | None:
    """A checkpoint's name of a tensor without `text.`; None where it is of another part."""
    return None if key.startswith(_OTHERS) else key.removeprefix("text.")
