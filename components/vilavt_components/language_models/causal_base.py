"""The base of language models around transformers: settings, tokenizer, KV cache, and tokens that are never written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from vilavt_components.common.hf_errors import as_input_error
from vilavt_components.common.precision import Float32RotaryFrequencies
from vilavt_components.language_models.chat_templates import save_turn_template
from vilavt_components.language_models.document_attention import (
    DocumentRow,
    describe_unpackable,
    inner_attention,
    no_mask,
    register_document_attention,
)
from vilavt_components.language_models.layer_windows import CHUNKED, causal_mask, number_columns, read_layer_windows
from vilavt_components.language_models.logits import rule_out_in_place, scale_logits
from vilavt_components.language_models.norms import Norms, choose_present_norms, require_norms
from vilavt_components.language_models.tokenizer import HFTokenizer, load_tokenizer, train_tokenizer
from vilavt_toolkit.contracts import CacheView, LanguageModel, TurnTemplate
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.settings import setting

LogitScaling = Literal["by_settings", "none", "unknown"]
"""A family's treatment of its head's logits: scaled as its settings say, none, or one that is not known."""
# Attention that takes a mask [B, 1, L, C]. Other implementations take padding [B, L], and slide windows themselves.
_MASKED = ("eager", "sdpa")
OTHER_FAMILY = "Choose one that docs/language-models.md lists."
"""The end of errors about a family of models that the toolkit cannot read with."""


@dataclass(frozen=True)
class CausalConfig:
    """Settings of a language model of transformers: `path` for a pretrained one, or `config` for one from scratch."""

    path: str | None = setting(
        None, help="hub name or local folder of a pretrained causal LM", replaces=("config",), is_path=True
    )
    config: dict[str, Any] = setting(
        factory=dict,
        help="from scratch instead: `model_type` and that family's transformers settings",
        replaces=("path", "revision"),
    )
    vocab_size: int = setting(1024, help="from scratch: most tokens of the tokenizer trained on the task", minimum=300)
    tokenizer: str | None = setting(
        None, help="folder or hub name of a tokenizer to use instead of `path`'s or a trained one", is_path=True
    )
    chat_template: str | None = setting(
        None, help="name of the chat template, of a tokenizer with several (null: its default; plain: none of them)"
    )
    placeholder: str = setting("<|feature|>", help="token in place of each feature (added if missing)")
    attention: str | None = setting(None, help="transformers' attention implementation (null: its own choice)")
    norms: Norms = setting(
        "own",
        help="what computes RMS norms: own (the model's own modules), or apex_rms_norm (NVIDIA apex's kernel, on CUDA)",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = setting("float32", help="type of pretrained weights")
    revision: str | None = setting(None, help="hub revision of `path`")
    local_files_only: bool = setting(False, help="never ask the hub")


class CausalModel(Float32RotaryFrequencies, LanguageModel):
    """A language model around transformers' `model`, with a tokenizer that is loaded or trained on the task.

    The `__init__` of a subclass calls `_check_config`, then `_load_tokenizer_and_sizes` with transformers' text
    configuration, then builds `model`: the tokenizer may enlarge the vocabulary that the model is built for.
    """

    label: ClassVar[str]
    """The registered name, for errors."""
    template: ClassVar[str | None] = None
    """A chat template for tokenizers that have none and know its special tokens."""
    logit_scaling: LogitScaling = "by_settings"
    """Treatment of the output of `head`. If it is not known, the head is never called without the whole model."""
    config: CausalConfig
    model: Any

    def _check_config(self, config: CausalConfig) -> None:
        if bool(config.path) == bool(config.config):
            raise InputError(f"{self.label}: set exactly one of `path` (pretrained) and `config` (from scratch).")
        require_norms(config.norms)
        self.config = config

    def _load_tokenizer_and_sizes(self, text: Any) -> None:
        """Load the tokenizer if one is named, and take widths and lengths from transformers' configuration `text`."""
        config = self.config
        source = config.tokenizer or config.path
        if source is not None:
            tokenizer = load_tokenizer(
                source,
                config.placeholder,
                config.revision,
                config.local_files_only,
                self.template,
                None if config.tokenizer else self._tokenizer_config(),
                config.chat_template,
                text.vocab_size if config.path is not None else None,
            )
            self._use_tokenizer(tokenizer)
            # The placeholder may be new, and needs a row in the table of embeddings.
            text.vocab_size = max(text.vocab_size, len(self.tokenizer))
        self._read_sizes(text)

    def _read_sizes(self, text: Any) -> None:
        """Take widths, lengths and windows from transformers' configuration `text`; raises InputError."""
        with as_input_error(f"{self.label}: models of type {text.model_type!r} cannot be used", OTHER_FAMILY):
            self.width: int = text.hidden_size
            self.layers = int(getattr(text, "num_hidden_layers", 0))
            self.vocab_size: int = text.vocab_size
            self.context_length = int(getattr(text, "max_position_embeddings", None) or 1 << 20)
            self._windows = read_layer_windows(text)
        heads, shared = (getattr(text, f"num_{kind}_heads", None) for kind in ("attention", "key_value"))
        # The layers can be built, and fail at the first forward.
        if isinstance(heads, int) and isinstance(shared, int) and (shared < 1 or heads % shared):
            raise InputError(
                f"{self.label}: num_key_value_heads is {shared} and num_attention_heads {heads}. Every head for keys "
                "and values serves equally many others, so choose a number that divides them."
            )

    def _tokenizer_config(self) -> Any:
        """Return a transformers configuration that tells the class of `path`'s tokenizer; None: its files tell."""
        return None

    @classmethod
    def from_saved(cls, config: Any, folder: Path) -> Self:
        """Build the model with the architecture and tokenizer that `save_assets` wrote; weights come after."""
        norms = choose_present_norms(config.norms)
        saved = replace(config, path=str(folder), config={}, tokenizer=None, revision=None, norms=norms)
        return cls(replace(saved, local_files_only=True))

    def save_assets(self, folder: Path) -> None:
        """Write the architecture and the tokenizer into `folder`."""
        self.model.config.save_pretrained(folder)
        self.tokenizer.backend.save_pretrained(folder)
        # A template that writes the date would frame turns in another way tomorrow.
        save_turn_template(folder, self.turn_template, self.end_of_turn)

    def fit_tokenizer(self, corpus: Iterable[str], fixed: Sequence[str]) -> None:
        """Train the tokenizer, unless one was loaded; `fixed` strings become single tokens."""
        if self.config.path is None and self.config.tokenizer is None:
            trained = train_tokenizer(corpus, fixed, self.vocab_size, self.config.placeholder)
            # The trainer treats its size as a wish: bytes and fixed strings become tokens in any case.
            if len(trained) > self.vocab_size:
                raise InputError(
                    f"{self.label}: bytes and grammar strings alone are {len(trained)} tokens, more than vocab_size "
                    f"{self.vocab_size}. Set vocab_size to {len(trained)} or more."
                )
            self._use_tokenizer(trained)

    def _use_tokenizer(self, tokenizer: HFTokenizer) -> None:
        self.tokenizer: HFTokenizer = tokenizer
        self.turn_template: TurnTemplate = tokenizer.turn_template
        self.end_of_turn, self.placeholder = tokenizer.end_of_turn, tokenizer.placeholder

    def embed(self, ids: Tensor) -> Tensor:
        """Look up token embeddings; [...] -> [..., D]."""
        embedded: Tensor = self.model.get_input_embeddings()(ids)
        return embedded

    def forward(
        self,
        embeddings: Tensor,
        positions: Tensor,
        mask: Tensor,
        cache: CacheView | None = None,
        last: int | None = None,
        documents: Sequence[int] | None = None,
        stems: Sequence[int] | None = None,
    ) -> Tensor:
        """Return logits [B, L, V] of columns [B, L, D] at positions [P, B, L]; see the contract."""
        if documents is not None:
            row, unmasked = self._prepare_documents(documents, stems, embeddings.device)
            logits = self._compute_logits(embeddings, positions, unmasked, None, last, documents=row)
        elif cache is None:
            logits = self._compute_logits(embeddings, positions, self._window_padding(mask, embeddings), None, last)
        else:
            with self._mask_taking_attention(is_single=embeddings.shape[1] == 1) as takes_none:
                attention_mask = self._attention_mask(cache, embeddings) if takes_none else cache.mask
                attention_mask = self._window_cached(attention_mask, cache)
                logits = self._compute_logits(embeddings, positions, attention_mask, _TransformersCache(cache), last)
        return self._rule_out_tokens(logits)

    def run_layers(
        self,
        embeddings: Tensor,
        positions: Tensor,
        mask: Tensor,
        documents: Sequence[int] | None = None,
        stems: Sequence[int] | None = None,
    ) -> Tensor:
        """Return the last hidden states [B, L, D]; of a model whose head cannot be called alone, the logits."""
        if self.logit_scaling == "unknown":
            return super().run_layers(embeddings, positions, mask, documents, stems)
        if documents is not None:
            row, unmasked = self._prepare_documents(documents, stems, embeddings.device)
            return self._run_layers(embeddings, positions, unmasked, documents=row)
        return self._run_layers(embeddings, positions, self._window_padding(mask, embeddings))

    def compute_logits(self, states: Tensor) -> Tensor:
        """Return the logits [N, V] of states [N, D]."""
        if self.logit_scaling == "unknown":
            return super().compute_logits(states)
        logits: Tensor = self.head(states)
        if self.logit_scaling == "by_settings":
            logits = scale_logits(logits, self.model.config.get_text_config())
        return self._rule_out_tokens(logits)

    def _run_layers(self, embeddings: Tensor, positions: Tensor, mask: Any, **options: Any) -> Tensor:
        """Return the hidden states [B, L, D] as they enter the head. A `mask` of None means causal."""
        states: list[Tensor] = []

        def keep_states(_: nn.Module, given: tuple[Tensor, ...]) -> Tensor:
            states.append(given[0])
            return given[0][:, :0]

        # Between the layers and the head a family may do things of its own, so its whole forward runs. The head is
        # given no column, and computes nothing.
        hook = self.head.register_forward_pre_hook(keep_states)
        try:
            self._compute_logits(embeddings, positions, mask, None, None, **options)
        finally:
            hook.remove()
        return states[0]

    def _rule_out_tokens(self, logits: Tensor) -> Tensor:
        """Set the logits [..., V] of tokens that cannot be written to -inf, in place."""
        # Neither a placeholder nor a row of the table without a token can be written. In training too, so that the
        # probabilities of all other tokens are the same as in sampling.
        if torch.is_grad_enabled() and logits.requires_grad:
            return rule_out_in_place(logits, self.placeholder, len(self.tokenizer))
        logits[..., self.placeholder] = float("-inf")
        logits[..., len(self.tokenizer) :] = float("-inf")
        return logits

    def _compute_logits(
        self, embeddings: Tensor, positions: Tensor, mask: Any, cache: Any, last: int | None, **options: Any
    ) -> Tensor:
        """Return the model's logits in a tensor that the caller may write to. A `mask` of None means causal.

        `options` go to every layer's attention.
        """
        # One position axis: `positions` is [1, B, L]. transformers takes 0 for "logits of all columns".
        output = self.model(
            inputs_embeds=embeddings,
            position_ids=positions[0],
            attention_mask=mask,
            past_key_values=cache,
            use_cache=cache is not None,
            logits_to_keep=last or 0,
            **options,
        )
        logits: Tensor = output.logits
        return logits

    def describe_packing_problem(self) -> str:
        """Return why the model takes no row of several dialogues, or an empty text."""
        text = self.model.config.get_text_config()
        return describe_unpackable(text)

    @property
    def takes_stems(self) -> bool:  # type: ignore[override]
        """True if dialogues of a row may share a beginning: if no layer cuts the text into chunks, which it moves."""
        return not self.describe_packing_problem() and CHUNKED not in self._windows.sizes

    def _prepare_documents(
        self, documents: Sequence[int], stems: Sequence[int] | None, device: torch.device
    ) -> tuple[DocumentRow, Any]:
        """Return the dialogues of a row, and the masks that keep transformers from making its own."""
        text = self.model.config.get_text_config()
        # For good, since layers may be computed again in the backward pass, long after this forward.
        text._attn_implementation = register_document_attention(text._attn_implementation)
        unmasked, types = no_mask(device), self._windows.types
        return DocumentRow(documents, self._windows, device, stems), (
            dict.fromkeys(types, unmasked) if len(types) > 1 else unmasked
        )

    def _window_padding(self, mask: Tensor, embeddings: Tensor) -> Any:
        """Return the attention masks for columns [B, L, D] without a cache, of which those under `mask` are real."""
        # transformers slides a window over columns and counts padding as text, which would shift it from row to row.
        # No window slides within its own length, so a short text needs no other mask.
        implementation = inner_attention(self.model.config.get_text_config()._attn_implementation)
        if not self._windows.applies_to(mask.shape[1]) or implementation not in _MASKED:
            return mask
        full, numbers = causal_mask(mask, embeddings.dtype), number_columns(mask)
        return self._windows.split_mask(full, full, numbers, numbers)

    def _window_cached(self, full: Any, cache: CacheView) -> Any:
        """Return the attention masks for columns after the cached ones; `full` is that of layers without a window."""
        if not self._windows.sizes or not self._windows.applies_to(cache.mask.shape[-1]):
            return full
        # A row of the cache has no padding: a column that sees n columns is the n-th of its row.
        new = (cache.mask == 0).sum(-1)[:, 0] - 1
        seen = torch.arange(cache.mask.shape[-1], device=new.device)[None]
        return self._windows.split_mask(full, cache.mask, new, seen)

    def _attention_mask(self, cache: CacheView, embeddings: Tensor) -> Any:
        """Return the mask of the new columns [B, L, D], as the model's attention takes it."""
        # Without a prefix plain causal attention is right, and without a mask its kernels are the fast ones.
        return None if cache.prefix_length == 0 else cache.mask

    @property
    def head(self) -> nn.Module:
        """Return the module that turns last hidden states into logits."""
        found: nn.Module = self.model.get_output_embeddings()
        return found

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The layers of the decoder, in their order."""
        decoder = self.model.get_decoder()
        lists = [child for child in decoder.children() if isinstance(child, nn.ModuleList)]
        # Some families name another module, or none, as their decoder. Their layers are the only list of that length.
        lists = lists or [child for child in self.model.modules() if isinstance(child, nn.ModuleList)]
        return max((list(each) for each in lists if len(each) <= self.layers), key=len, default=[])

    def _single_token_attention(self) -> str:
        """Return transformers' name of the attention used for single new tokens."""
        return "sdpa"

    @contextmanager
    def _mask_taking_attention(self, is_single: bool) -> Iterator[bool]:
        """Use an attention that takes any mask; yields True if it also takes None, for causal attention."""
        # Flash attention takes padding at an end and nothing else, but a row of the cache may have holes.
        config = self.model.config.get_text_config()
        chosen = config._attn_implementation
        # Where attention has more than queries, keys and values, as the sinks of gpt_oss, sdpa would leave them out.
        if inner_attention(chosen) == "eager" or not self.model._supports_sdpa:
            used = "eager"
        else:
            used = self._single_token_attention() if is_single else "sdpa"
        config._attn_implementation = used
        try:
            # A single token may see all columns, so a mask of None would be right only if no row had padding.
            yield used != "eager" and not is_single
        finally:
            config._attn_implementation = chosen


class _TransformersCache:
    """Wraps the loop's KV cache in the methods that transformers' models call on theirs."""

    is_compileable = False

    def __init__(self, view: CacheView) -> None:
        self._view = view

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Add keys and values of new columns to a layer; returns those of all columns."""
        # Under autocast the rotary embedding leaves keys in float32, at twice the memory. Attention casts them anyway.
        return self._view.update(layer, keys.to(values.dtype), values)

    def get_seq_length(self, layer: int = 0) -> int:
        """Return 0: positions and masks are given, so that nothing may be derived from this length."""
        return 0

    def get_query_offset(self, layer: int = 0) -> int:
        """Return 0, for the same reason; transformers asks for it if no mask is given."""
        return 0

    def get_mask_sizes(self, length: int, layer: int) -> tuple[int, int]:
        """Return the size of the mask that transformers would build, and never does here: it is given, or causal."""
        return length, 0


@contextmanager
def config_errors(label: str) -> Iterator[None]:
    """Turn the exceptions that settings from scratch cause into an InputError."""
    with as_input_error(f"{label}: `config` builds no causal language model", "Correct `config` or `attention`."):
        yield
