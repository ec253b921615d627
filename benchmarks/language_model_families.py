"""Which causal families of the installed transformers `hf_causal` reads right, and why not the others.

python benchmarks/language_model_families.py            # a small copy of every family, half a minute on a CPU
python benchmarks/language_model_families.py --write    # and put the table into docs/language-models.md
python benchmarks/language_model_families.py --only llama mamba2
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from _measure import replace_section

PAGE = Path(__file__).parent.parent / "docs" / "language-models.md"
# Settings of published models that a family has no default for.
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "deepseek_v2": {"num_experts_per_tok": 6},
    "dots1": {"n_routed_experts": 128, "num_experts_per_tok": 6, "n_shared_experts": 2, "first_k_dense_replace": 1},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "lfm2": {"layer_types": [*["conv", "conv", "full_attention"] * 10, "conv", "conv"]},
    "lfm2_moe": {"layer_types": [*["conv", "conv", "full_attention"] * 10, "conv", "conv"]},
    "ministral": {"head_dim": 128},
    "nemotron": {"head_dim": 128, "num_key_value_heads": 8},
    "qwen2": {"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 2},
    "reformer": {"is_decoder": True},
}


def main() -> None:
    """Try every family, print what is found, and write the page by the options."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as FAMILIES

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(FAMILIES), metavar="FAMILY", default=list(FAMILIES))
    parser.add_argument("--write", action="store_true", help="put the table into docs/language-models.md")
    options = parser.parse_args()
    if options.write and options.only != list(FAMILIES):
        parser.error("--write replaces the whole table. Leave out --only or --write.")
    reasons: dict[str, str] = {}
    unpackable: list[str] = []
    for family in options.only:
        reasons[family] = find_reason(family)
        mixing = "" if reasons[family] else find_mixing(family)
        unpackable += [family] if mixing else []
        print(f"{family}: {reasons[family] or mixing or 'right'}", flush=True)
    if options.write:
        replace_section(PAGE, "families", format_families(reasons, unpackable))


def find_reason(family: str) -> str:
    """Return why a family is refused, or an empty text. An exception that is no refusal is not caught."""
    from transformers import AutoConfig

    from vilavt_components.common.hf_errors import as_input_error
    from vilavt_components.language_models.agreement import refuse_disagreement
    from vilavt_toolkit.errors import InputError

    try:
        with as_input_error("cannot be used", "Choose another."):
            config = AutoConfig.for_model(family, **SETTINGS.get(family, {}))
        refuse_disagreement("hf_causal", config, None)
    except InputError as error:
        found = re.search(r"cannot be used \((.*)\)\. Choose", str(error), re.S)
        assert found is not None, str(error)
        return found[1]
    return ""


def find_mixing(family: str) -> str:
    """Return why a family that is read right takes no row of several dialogues, or an empty text."""
    from transformers import AutoConfig

    from vilavt_components.language_models.agreement import describe_mixing

    return describe_mixing(AutoConfig.for_model(family, **SETTINGS.get(family, {})), None)


def format_families(reasons: Mapping[str, str], unpackable: Sequence[str]) -> str:
    """Return the families that are read right, which of them are not packed, and a table of the others by reason."""
    import transformers

    groups: dict[str, list[str]] = {}
    for family, reason in reasons.items():
        # How far logits are apart depends on random weights.
        reason = re.sub(r"are \S+ from transformers' own", "differ from transformers' own", reason)
        groups.setdefault(" ".join(reason.replace("|", "/").split()), []).append(f"`{family}`")
    right = groups.pop("", [])
    rows = [f"| {reason} | {', '.join(groups[reason])} |" for reason in sorted(groups)]
    version = transformers.__version__
    names = ", ".join(f"`{family}`" for family in unpackable)
    packed = f"{len(right) - len(unpackable)} of them take rows of several dialogues, all but {names}."
    head = f"Of the {len(reasons)} causal families of transformers {version}, {len(right)} are read right:"
    return "\n".join(
        [
            head,
            "",
            ", ".join(right),
            "",
            packed,
            "",
            "The others are refused:",
            "",
            "| reason | families |",
            "| --- | --- |",
            *rows,
        ]
    )


if __name__ == "__main__":
    main()
