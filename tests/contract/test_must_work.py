"""The must-work table of docs/contracts.md: encoder family x modulator, none of them refused."""

from pathlib import Path

import pytest
import torch

from vilavt_components.encoders.timm import StemConfig, TimmConfig, TimmEncoder
from vilavt_toolkit.plugins import load_builtin
from vilavt_toolkit.registry import modulators
from vilavt_toolkit.testing.bench import WordInquiryEncoder, example_views
from vilavt_toolkit.vision.dynamic_encoder import DynamicEncoder

load_builtin()

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
FAMILIES = {
    "`timm`, plain ViT": lambda: TimmEncoder(TimmConfig(config=VIT)),
    "`timm`, ViT with a convolutional stem": lambda: TimmEncoder(TimmConfig(config=VIT, stem=StemConfig((8, 16, 24)))),
}


def table():
    """The cells that the docs promise: (encoder family, modulator)."""
    text = (Path(__file__).parents[2] / "docs" / "contracts.md").read_text(encoding="utf-8")
    lines = [line for line in text.partition("## Must work")[2].partition("\n## ")[0].splitlines() if line[:1] == "|"]
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [
        (row[0], name.strip("`")) for row in rows for name, cell in zip(head[1:], row[1:], strict=True) if cell == "yes"
    ]


def test_the_table_has_every_family_and_registered_modulator():
    assert {family for family, _ in table()} == set(FAMILIES)
    assert {name for _, name in table()} <= set(modulators.names())
    assert {"none", "film"} <= {name for _, name in table()}


@pytest.mark.parametrize(("family", "name"), table())
@torch.no_grad()
def test_the_cell_works(family, name):
    entry = modulators.get(name)
    dynamic = DynamicEncoder(FAMILIES[family](), [(entry.cls, entry.cls.tiny())], "all", WordInquiryEncoder()).eval()
    features, _ = dynamic.encode(example_views(dynamic.encoder), [0] * 5, [dynamic.tokenize("the red square")])
    assert len(dynamic.modulators) == dynamic.encoder.spec.depth
    assert features.isfinite().all()
