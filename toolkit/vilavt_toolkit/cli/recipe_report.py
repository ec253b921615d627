"""The report of `vilavt check` on a recipe: its parts, what of them is trained, and samples as the model reads them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.table import Table

from vilavt_toolkit.cli.recipe_check import RecipeReport
from vilavt_toolkit.cli.sample_check import SampleReport
from vilavt_toolkit.config.recipe import CheckedRecipe
from vilavt_toolkit.utils.text import shorten_list


def make_parts_table(recipe: CheckedRecipe, report: RecipeReport) -> Table:
    """Return a table of a recipe's components with their parameters, how many of them are trained, and shapes."""
    section, model = recipe.recipe.model, report.model
    vision, language = model.vision, model.language_model
    spec, inquiry = vision.backbone.spec, vision.inquiry_encoder
    table = Table(title=f"{recipe.name}: {_count_parameters(model):,} parameters")
    table.add_column("part")
    table.add_column("name")
    table.add_column("parameters", justify="right")
    for stage in report.learning:
        table.add_column(f"trained in {stage}", justify="right")
    table.add_column("shapes")

    def add_part(label: str, name: str, kind: str, module: Any, shapes: str) -> None:
        total = _count_parameters(module)
        trained = [_describe_trained(found.count_trained(kind), total) for found in report.learning.values()]
        table.add_row(label, name, f"{total:,}" if total else "", *trained, shapes)

    def add_plain(label: str, name: str, shapes: str) -> None:
        table.add_row(label, name, "", *[""] * len(report.learning), shapes)

    # Encoders of stages have blocks of several widths.
    widths = "/".join(map(str, sorted({block.width for block in spec.blocks})))
    blocks = f"{spec.depth} blocks of width {widths}, positions {spec.positions}"
    modulated = f"blocks {shorten_list([*vision.modulators], 48) or 'none'}"
    tokens = f"width {language.width}, {language.vocab_size:,} tokens, context {language.context_length:,}"
    units = model.dialogue.units_per_side
    boxes = f"boxes in {units} units per side" if units else "boxes in pixels"
    add_plain("source", section.source.name, f"modality {section.source.entry.cls.modality}")
    add_part("encoder", section.encoder.name, "encoder", vision.backbone, blocks)
    add_part("modulator", _join_names(section.modulator), "modulator", vision.modulators, modulated)
    if inquiry is not None:
        add_part("inquiry encoder", section.inquiry_encoder.name, "inquiry_encoder", inquiry, f"width {inquiry.width}")
    width = f"{spec.out_width} -> {language.width}"
    add_part("projector", section.projector.name, "projector", model.projector, width)
    add_part("language model", section.language_model.name, "language_model", language, tokens)
    add_plain("dialogue", section.dialogue.name, boxes)
    add_part("stopping", _join_names(section.stopping), "stopping", model.stopping, "")
    add_plain("task", recipe.recipe.task.name, "")
    return table


def describe_samples(report: RecipeReport) -> Iterator[str]:
    """Yield a line for every sample that was built."""
    for sample in report.samples:
        yield _describe_sample(sample, report.model.language_model.context_length)


def _describe_sample(sample: SampleReport, context: int) -> str:
    views = ", ".join(
        f"{count} view{'' if count == 1 else 's'} of {tokens:,} encoder tokens ({features:,} features)"
        for (tokens, features), count in sorted(sample.views.items())
    )
    others = f" (the longest of {sample.measured})" if sample.measured > 1 else ""
    return (
        f"{sample.split}: {sample.name}{others} has {views or 'no views'}. {sample.tokens:,} tokens, "
        f"{sample.features:,} of them features, of a context of {context:,}"
    )


def _describe_trained(trained: int, total: int) -> str:
    if not total:
        return ""
    return "frozen" if not trained else "all" if trained == total else f"{trained:,}"


def _join_names(parts: Sequence[Any]) -> str:
    return shorten_list([part.name for part in parts], 12)


def _count_parameters(module: Any) -> int:
    return sum(weight.numel() for weight in module.parameters())
