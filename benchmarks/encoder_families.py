"""Every model family of timm in the dynamic encoder, tried with a small random model each.

python benchmarks/encoder_families.py                      # tries all families, some minutes on a CPU
python benchmarks/encoder_families.py --only hiera davit
python benchmarks/encoder_families.py --write              # and puts the table into docs/encoder-families.md

A family is a module of timm. Its smallest model gets two regions of different size, each under an inquiry of its own,
with `film` in every block. The features must be finite, differ with the inquiry, be the same packed as alone, and
without modulation equal those of timm's own forward pass.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _measure import replace_section
from torch import Tensor

from vilavt_components.encoders.timm.encoder import TimmConfig, TimmEncoder
from vilavt_components.encoders.timm_stages.encoder import TimmStagesConfig, TimmStagesEncoder
from vilavt_components.encoders.timm_stages.models import build_whole
from vilavt_components.modulators.film import FiLM, FiLMConfig
from vilavt_toolkit.contracts import Crop, View
from vilavt_toolkit.errors import BadConfig
from vilavt_toolkit.testing.bench import WordInquiryEncoder
from vilavt_toolkit.vision.dynamic_encoder import DynamicEncoder

PAGE = Path(__file__).parent.parent / "docs" / "encoder-families.md"
TEXTS = ("the red square", "read the digit")
# Far above rounding in float32, which deep networks of random weights amplify, and far below any real difference.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Trial:
    """What came of one family."""

    family: str
    model: str
    encoder: str = ""
    blocks: int = 0
    sides: str = ""
    faults: tuple[str, ...] = ()
    refused: str = ""


def main() -> None:
    """Try the families that the options name, and print or write their table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"put the table into docs/{PAGE.name}")
    parser.add_argument("--only", nargs="+", metavar="FAMILY", help="modules of timm, such as hiera")
    options = parser.parse_args()
    if options.write and options.only:
        parser.error("--write replaces the whole table. Leave out --only or --write.")
    warnings.filterwarnings("ignore")
    families = list_families()
    unknown = sorted(set(options.only or []) - set(families))
    if unknown:
        parser.error(f"timm has no family {unknown[0]}. It has: {', '.join(families)}.")
    trials = []
    for family in options.only or families:
        trials.append(try_family(family, families[family]))
        print(trials[-1], file=sys.stderr, flush=True)
    table = format_table(trials)
    print(table)
    if options.write:
        replace_section(PAGE, "families", table)
    if any(trial.faults for trial in trials):
        sys.exit(1)


def list_families() -> Mapping[str, Sequence[str]]:
    """Return the names of timm's models by the module that builds them."""
    import timm
    from timm.models import model_entrypoint

    found: dict[str, list[str]] = {}
    for name in timm.list_models():
        found.setdefault(model_entrypoint(name).__module__.rpartition(".")[2], []).append(name)
    return dict(sorted(found.items()))


def try_family(family: str, names: Sequence[str]) -> Trial:
    """Try the smallest model of a family in the encoder that takes it."""
    name = min(names, key=count_parameters)
    torch.manual_seed(0)
    reasons = []
    for label, make in (("timm", build_plain), ("timm_stages", build_staged)):
        try:
            encoder = make(name)
        except BadConfig as error:
            reasons.append(str(error))
            continue
        faults = tuple(find_faults(encoder))
        return Trial(family, name, label, encoder.spec.depth, describe_sides(encoder), faults)
    return Trial(family, name, refused=reasons[-1])


def count_parameters(name: str) -> int:
    """Return the number of parameters of a model of timm, without allocating them."""
    import timm

    with torch.device("meta"):
        return sum(parameter.numel() for parameter in timm.create_model(name, num_classes=0).parameters())


def build_plain(name: str) -> TimmEncoder:
    """Build encoder `timm`; raises BadConfig."""
    return TimmEncoder(TimmConfig(model=name)).eval()


def build_staged(name: str) -> TimmStagesEncoder:
    """Build encoder `timm_stages`; raises BadConfig."""
    return TimmStagesEncoder(TimmStagesConfig(model=name)).eval()


def describe_sides(encoder: Any) -> str:
    """Say which sides views have."""
    if encoder.side_multiple:
        return f"multiples of {encoder.side_multiple}"
    rows, columns = encoder._staged.plan.native
    return f"{columns} x {rows} only"


def find_faults(encoder: Any) -> list[str]:
    """Return what the features of two regions under two inquiries should not be, in words."""
    unit = encoder.side_multiple or 64
    rng = np.random.default_rng(0)
    sizes = [(3 * unit, 2 * unit), (unit, 2 * unit)] if unit < 160 else [(unit, unit), (unit, 2 * unit)]
    crops = [Crop(rng.integers(0, 256, (*size, 3), dtype=np.uint8), "image", False) for size in sizes]
    views = [encoder.prepare(crop) for crop in crops]
    dynamic = DynamicEncoder(encoder, [(FiLM, FiLMConfig(zero_init=False))], "all", WordInquiryEncoder()).eval()
    ids = [dynamic.tokenize(text) for text in TEXTS]
    with torch.no_grad():
        packed = encode(dynamic, views, ids)
        swapped = encode(dynamic, views, ids[::-1])
        alone = [encode(dynamic, [view], [words])[0] for view, words in zip(views, ids, strict=True)]
        plain = encode(DynamicEncoder(encoder), views, [[], []])
        # A plain ViT of timm takes other sizes in part only; the encoder's own tests compare it class by class.
        own = run_timm(encoder, views) if isinstance(encoder, TimmStagesEncoder) else plain
    faults = []
    for region in range(2):
        if not packed[region].isfinite().all():
            faults.append(f"region {region} is not finite")
        if torch.equal(packed[region], swapped[region]):
            faults.append(f"region {region} does not depend on its inquiry")
        if (far := distance(packed[region], alone[region])) > TOLERANCE:
            faults.append(f"region {region} is {far:.1e} apart from itself alone")
        if (far := distance(plain[region], own[region])) > TOLERANCE:
            faults.append(f"region {region} is {far:.1e} apart from timm's own")
    faults += [f"'{name}' gets no gradient" for name in weights_without_gradient(dynamic, views, ids)]
    return faults


def encode(dynamic: DynamicEncoder, views: Sequence[View], ids: Sequence[Sequence[int]]) -> list[Tensor]:
    """Return the features of every view under an inquiry of its own."""
    features, _ = dynamic.encode(views, range(len(views)), ids)
    return list(features.split([dynamic.backbone.feature_count(view.size) for view in views]))


def run_timm(encoder: TimmStagesEncoder, views: Sequence[View]) -> list[Tensor]:
    """Return what timm's own whole model makes of every view with the encoder's weights, as features [F, D]."""
    images = [encoder.normalise_pixels(v.data.unsqueeze(0), next(encoder.model.parameters())) for v in views]
    staged = encoder._staged
    model = build_whole(str(encoder.config.model), encoder.config.args).eval()
    model.load_state_dict(encoder.model.state_dict(), strict=False)
    names = [name for stage in (*staged.plan.stages, staged.plan.tail) for name in stage]
    norm = names[-1] == "head.norm"
    seen: list[Tensor] = []
    model.get_submodule(names[-2 if norm else -1]).register_forward_hook(
        lambda module, given, output: seen.append(output)
    )
    for each in images:
        model.forward_features(each)
    seen = [model.head.norm(x) for x in seen] if norm else seen
    grids = [encoder.feature_grid(view.size) for view in views]
    return [staged._to_maps(x, staged.plan.features, grid).flatten(0, 2) for x, grid in zip(seen, grids, strict=True)]


def distance(a: Tensor, b: Tensor) -> float:
    """Return the largest difference, in units of the largest value."""
    return ((a - b).abs().max() / b.abs().max().clamp_min(1e-12)).item() if a.shape == b.shape else float("inf")


def weights_without_gradient(dynamic: DynamicEncoder, views: Sequence[View], ids: Sequence[Sequence[int]]) -> list[str]:
    """Return the names of weights that learn nothing."""
    dynamic.train()  # some models keep what they compute of their weights while they do not train
    features = torch.cat(encode(dynamic, views, ids))
    torch.autograd.backward((features * torch.randn_like(features)).sum())
    return [name for name, each in dynamic.named_parameters() if each.requires_grad and each.grad is None]


def format_table(trials: Sequence[Trial]) -> str:
    """Write the taken families, and below them the refused ones with their reasons."""
    taken = [trial for trial in trials if trial.encoder]
    lines = [f"{len(taken)} of {len(trials)} families are taken.", ""]
    lines += [
        "| family | tried with | encoder | blocks or stages | sides of views in pixels |",
        "| --- | --- | --- | ---: | --- |",
    ]
    lines += [f"| {t.family} | {t.model} | `{t.encoder}` | {t.blocks} | {t.sides} |" for t in taken]
    lines += ["", "| refused family | tried with | reason |", "| --- | --- | --- |"]
    lines += [f"| {t.family} | {t.model} | {shorten_reason(t.refused)} |" for t in trials if not t.encoder]
    return "\n".join(lines)


def shorten_reason(text: str) -> str:
    """Return the reason of a refusal without the advice after it."""
    return text.partition(" stage by stage: ")[2].partition(". Choose another")[0] or text


if __name__ == "__main__":
    main()
