"""`vilavt new`: the one file a third party needs to add a component, and its test."""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from vilavt_toolkit.errors import InputError, UsageError
from vilavt_toolkit.registry import modulators
from vilavt_toolkit.registry.plugins import display, load_builtin
from vilavt_toolkit.utils.files import write_text

_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")

_MODULATOR = '''"""The modulator '__NAME__': the inquiry gates what the MLP adds.

Use it in a recipe that stands beside this file:

    plugins: [./__NAME__.py]
    model:
      modulator: {name: __NAME__, hidden_dim: 64}
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from vilavt_toolkit.contracts import BlockSpec, Inquiry, Modulator
from vilavt_toolkit.registry import modulators, setting


@dataclass(frozen=True, kw_only=True)
class __CLASS__Config:
    """What a recipe may set, each with its type, default and help."""

    hidden_dim: int = setting(64, help="width between the inquiry and the gate", minimum=1)


@modulators.register("__NAME__", __CLASS__Config)
class __CLASS__(Modulator):
    """Scale what the MLP adds, channel by channel, under the inquiry."""

    # The sites that `modulate` is called at. `vilavt list encoder` and docs/contracts.md name the others.
    sites = frozenset({"mlp"})
    # What a token attends over in a modulated block: its "region", or its whole inquiry "group".
    span = "region"

    def __init__(self, config: __CLASS__Config, block: BlockSpec, inquiry_width: int) -> None:
        """Build the part for one block; each modulated block gets an instance of its own."""
        super().__init__()
        last = nn.Linear(config.hidden_dim, block.sites["mlp"])
        # Zero weights make the gate 0: a fresh modulator leaves the encoder exactly as it was.
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.gate = nn.Sequential(nn.Linear(inquiry_width, config.hidden_dim), nn.SiLU(), last)

    @classmethod
    def refusal(cls, config: Any, block: BlockSpec) -> str:
        """Say why this cannot work on a block; `vilavt check` shows it before any weight is loaded."""
        return "" if "mlp" in block.sites else "it gates the MLP, and the block has no site 'mlp'."

    def modulate(self, site: str, x: Tensor, y: Tensor, inquiry: Inquiry) -> Tensor:
        """Change what the part at `site` made of x: y [S, D] -> [S, D].

        `inquiry.pooled` [G, D_inquiry] has one row per inquiry; `inquiry.to_tokens` gives every token
        its inquiry's row. The engine restores y for tokens whose inquiry is empty.
        """
        # Not y * (1 + gate): beside the 1 a bfloat16 has no room for a small gate.
        return y + y * inquiry.to_tokens(self.gate(inquiry.pooled)).to(y.dtype)

    @classmethod
    def tiny(cls) -> __CLASS__Config:
        """Settings of a small instance, which the contract tests build."""
        return __CLASS__Config(hidden_dim=4)
'''

_TEST = '''"""The contract of the modulator '__NAME__'; run with `pytest __FILE__`."""

from __future__ import annotations

from pathlib import Path

from vilavt_toolkit.registry.plugins import load_plugins
from vilavt_toolkit.testing import check_modulator


def test___NAME___keeps_the_modulator_contract() -> None:
    """It changes nothing before training, and packing, order and neighbours change nothing."""
    load_plugins(["./__NAME__.py"], relative_to=Path(__file__).parent)
    check_modulator("__NAME__")
'''


def new_modulator(name: str, folder: Path) -> tuple[Path, Path]:
    """Write NAME.py and test_NAME.py into `folder`, both or neither; raises UsageError, overwrites nothing."""
    if not _NAME.fullmatch(name) or keyword.iskeyword(name):
        raise UsageError(f"'{name}' cannot name a modulator; write it in lower_snake_case, like 'my_gate'.")
    load_builtin()
    if name in modulators:
        raise UsageError(
            f"there is a modulator '{name}' already, of {modulators.get(name).origin}; choose another name."
        )
    class_name = "".join(word.capitalize() for word in name.split("_"))
    texts = {folder / f"{name}.py": _MODULATOR, folder / f"test_{name}.py": _TEST}
    try:
        for file in texts:
            if file.exists():
                raise UsageError(f"{display(file)} exists already; choose another name, or a folder with --dir.")
    except OSError as error:
        raise UsageError(
            f"cannot write into {folder}: {error.strerror}; choose another name, or a folder with --dir."
        ) from error
    for file, text in texts.items():
        texts[file] = text.replace("__NAME__", name).replace("__CLASS__", class_name).replace("__FILE__", file.name)
    _write_all(texts)
    module, test = texts
    return module, test


def _write_all(texts: Mapping[Path, str]) -> None:
    written: list[Path] = []
    try:
        for file, text in texts.items():
            write_text(file, text)
            written.append(file)
    except InputError:
        for file in written:
            with suppress(OSError):  # the error that is told is the first
                file.unlink()
        raise
