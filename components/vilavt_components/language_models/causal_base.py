"""What the language models of transformers have in common: settings, tokenizer, cache, what can never be said."""

from __future__ import annotations

import copy
import logging
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from torch import Tensor, nn

from vilavt_components.common.hf_errors import explained
from vilavt_components.common.precision import KeepsFrequencies
from vilavt_components.language_models import tokenizer as _tokenizer
from vilavt_toolkit.contracts import CacheView, Frames, LanguageModel
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.settings import did_you_mean, setting

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CausalConfig:
    """Settings of a language model of transformers: `path` for a pretrained one, or `config` for one from scratch."""

    path: str | None = setting(None, help="hub name or local folder of a pretrained causal LM", replaces=("config",))
    config: dict[str, Any] = setting(
        factory=dict,
        help="from scratch instead: `model_type` and that family's transformers settings",
        replaces=("path", "revision"),
    )
    vocab_size: int = setting(1024, help="from scratch: at most so many tokens, trained on the task", minimum=300)
    tokenizer: str | None = setting(None, help="tokenizer to use instead of `path`'s or a trained one")
    placeholder: str = setting("<|feature|>", help="token that stands where a feature goes; added if missing")
    attention: str | None = setting(None, help="transformers' attention implementation; null: its own choice")
    dtype: Literal["float32", "bfloat16", "float16"] = setting("float32", help="type of pretrained weights")
    revision: str | None = setting(None, help="hub revision of `path`")
    local_files_only: bool = setting(False, help="never ask the hub")


class CausalModel(KeepsFrequencies, LanguageModel):
    """A language model around one of transformers, which stands in `model`; tokenizer loaded, or trained on the task.

    A subclass calls `_begin` with transformers' text configuration, then makes `model`.
    """

    label: ClassVar[str]
    """Its registered name, for errors."""
    template: ClassVar[str | None] = None
    """A chat template for tokenizers without one that know its marks."""
    config: CausalConfig
    model: Any

    def _check(self, config: CausalConfig) -> None:
        if bool(config.path) == bool(config.config):
            raise InputError(f"{self.label}: set exactly one of `path` (pretrained) and `config` (from scratch).")
        self.config = config

    def _begin(self, text: Any) -> None:
        """Load the tokenizer where there is one, and take widths and lengths from `text`."""
        config = self.config
        source = config.tokenizer or config.path
        if source is not None:
            family = None if config.tokenizer else self._family()
            where = source, config.placeholder, config.revision, config.local_files_only
            self._use(_tokenizer.load(*where, self.template, family))
            text.vocab_size = max(text.vocab_size, len(self.tokenizer))
        self.width: int = text.hidden_size
        self.layers = int(getattr(text, "num_hidden_layers", 0))
        self.vocab_size: int = text.vocab_size
        self.context_length = int(getattr(text, "max_position_embeddings", None) or 1 << 20)
        # transformers slides its windows over columns, padding counted. Within one window there is no sliding.
        self._window: int | None = getattr(text, "sliding_window", None)
        if self._window and self._window < self.context_length:
            log.warning("attention slides over %d tokens; the context ends there.", self._window)
            self.context_length = self._window

    def _family(self) -> Any:
        """transformers' configuration that says what kind of tokenizer `path` has; None: what is there says it."""
        return None

    def _windowless(self, model: Any) -> Any:
        if self._window:
            model.config.get_text_config().sliding_window = 1 << 30
        return model

    @classmethod
    def from_saved(cls, config: Any, folder: Path) -> Self:
        """Build the model with the architecture and tokenizer that `save_assets` wrote; weights come after."""
        return cls(replace(config, path=str(folder), config={}, tokenizer=None, revision=None, local_files_only=True))

    def save_assets(self, folder: Path) -> None:
        """Write the architecture and the tokenizer into `folder`."""
        config = copy.deepcopy(self.model.config)
        if self._window:
            config.get_text_config().sliding_window = self._window
        config.save_pretrained(folder)
        self.tokenizer.backend.save_pretrained(folder)

    def fit_tokenizer(self, corpus: Iterable[str], fixed: Sequence[str]) -> None:
        """Train the tokenizer, unless one was loaded; `fixed` strings become single tokens."""
        if self.config.path is None and self.config.tokenizer is None:
            trained = _tokenizer.train(corpus, fixed, self.vocab_size, self.config.placeholder)
            if len(trained) > self.vocab_size:
                raise InputError(
                    f"{self.label}: bytes and grammar strings alone are {len(trained)} tokens; set vocab_size to more "
                    f"than its {self.vocab_size}."
                )
            self._use(trained)

    def _use(self, tokenizer: _tokenizer.HFTokenizer) -> None:
        self.tokenizer: _tokenizer.HFTokenizer = tokenizer
        self.frames: Frames = tokenizer.frames
        self.end_of_turn, self.placeholder = tokenizer.end_of_turn, tokenizer.placeholder

    def embed(self, ids: Tensor) -> Tensor:
        """Token embeddings; [...] -> [..., D]."""
        embedded: Tensor = self.model.get_input_embeddings()(ids)
        return embedded

    def forward(
        self,
        embeddings: Tensor,
        positions: Tensor,
        mask: Tensor,
        cache: CacheView | None = None,
        last: int | None = None,
    ) -> Tensor:
        """Logits [B, L, V] of columns [B, L, D]; see the contract."""
        if cache is None:
            logits = self._logits(embeddings, positions, mask, None, last)
        else:
            with self._masked_attention(single=embeddings.shape[1] == 1) as takes_none:
                seen = self._seen(cache, embeddings) if takes_none else cache.mask
                logits = self._logits(embeddings, positions, seen, _Cache(cache), last)
        # Neither a placeholder nor a row without a token can be said, in sampling or in training.
        logits[..., self.placeholder] = float("-inf")
        logits[..., len(self.tokenizer) :] = float("-inf")
        return logits

    @abstractmethod
    def _logits(self, embeddings: Tensor, positions: Tensor, mask: Any, cache: Any, last: int | None) -> Tensor:
        """What `model` makes of the same; in a tensor of its own. The mask is what `_seen` says, None: causal."""

    def _seen(self, cache: CacheView, embeddings: Tensor) -> Any:
        """What new columns see, as the model's attention takes it: None where the first are read, for fast kernels."""
        return None if cache.kept == 0 else cache.mask

    @property
    def head(self) -> nn.Module:
        """The module that turns last hidden states into logits."""
        found: nn.Module = self.model.get_output_embeddings()
        return found

    def _of_single_tokens(self) -> str:
        """transformers' name of the attention of single tokens over a cache."""
        return "sdpa"

    @contextmanager
    def _masked_attention(self, single: bool) -> Iterator[bool]:
        """Attention that takes any mask, where the chosen implementation takes none but padding.

        Whether it takes none too, and is causal then.
        """
        config = self.model.config.get_text_config()
        chosen = config._attn_implementation
        if chosen == "eager":
            yield False
            return
        config._attn_implementation = self._of_single_tokens() if single else "sdpa"
        try:
            yield not single
        finally:
            config._attn_implementation = chosen


class _Cache:
    """A chat's cache as transformers' models use theirs."""

    is_compileable = False

    def __init__(self, view: CacheView) -> None:
        self._view = view

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Add to a layer; what all columns have there."""
        return self._view.update(layer, keys, values)

    def get_seq_length(self, layer: int = 0) -> int:
        """None before the new ones, whatever is kept: positions and mask, not this count, say where they stand."""
        return 0

    def get_query_offset(self, layer: int = 0) -> int:
        """The same; asked for where no mask is given."""
        return 0

    def get_mask_sizes(self, length: int, layer: int) -> tuple[int, int]:
        """Columns that a mask would be made for; none is, where none is given."""
        return length, 0


def check_settings(family: str, given: Iterable[str], known: Any) -> None:
    """Hold that transformers' configuration knows all settings: it keeps others, which then do nothing."""
    for key in given:
        if not hasattr(known, key):
            raise ValueError(f"{family!r} has no setting {key!r}.{did_you_mean(key, tuple(known.to_dict()))}")


@contextmanager
def mended(label: str) -> Iterator[None]:
    """Turn what goes wrong with settings from scratch into an InputError."""
    with explained(f"{label}: `config` builds no causal language model", "mend `config` or `attention`."):
        yield
