"""The must-work table of docs/compatibility.md: encoder family x modulator, no promised cell refused."""

from pathlib import Path

import pytest
import torch

from vilavt_components.encoders.open_clip.encoder import OpenClipEncoder
from vilavt_components.encoders.timm.encoder import TimmConfig, TimmEncoder
from vilavt_components.encoders.timm.stem import StemConfig
from vilavt_components.encoders.timm_stages.encoder import TimmStagesConfig, TimmStagesEncoder
from vilavt_toolkit.contracts import Modulator
from vilavt_toolkit.errors import BadConfig
from vilavt_toolkit.registry import encoders, modulators
from vilavt_toolkit.registry.plugins import load_builtin
from vilavt_toolkit.testing.bench import WordInquiryEncoder, example_views
from vilavt_toolkit.vision.dynamic_encoder import DynamicEncoder

load_builtin()

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
VARIANTS = TimmEncoder.variants()
STAGED = {"convnext": TimmStagesEncoder.tiny(), **TimmStagesEncoder.variants()}
FAMILIES = {
    "`timm`, plain ViT": [TimmConfig(config=VIT), TimmEncoder.tiny(), VARIANTS["naflex"]],
    "`timm`, ViT with a convolutional stem": [
        TimmConfig(config=VIT, stem=StemConfig((8, 16, 24))),
        VARIANTS["hybrid"],
    ],
    "`timm`, EVA and rotary ViT": [VARIANTS[name] for name in ("eva", "rope_mixed", "rope_dinov3")],
    "`timm`, parallel blocks": [VARIANTS[name] for name in ("parallel", "side_by_side")],
    "`timm`, post-norm blocks": [VARIANTS[name] for name in ("post_norm", "eva_post_norm")],
    "`timm`, relative positions": [VARIANTS[name] for name in ("relative_table", "relative_network")],
    "`timm`, differential attention": [VARIANTS[name] for name in ("differential", "parallel_differential")],
    "`open_clip`, ViT": [OpenClipEncoder.tiny(), *OpenClipEncoder.variants().values()],
    "`timm_stages`, ConvNeXt": [TimmStagesConfig(), *(STAGED[name] for name in STAGED if "convnext" in name)],
    "`timm_stages`, Swin": [STAGED[name] for name in STAGED if "swin" in name],
    "`timm_stages`, ResNet": [STAGED[name] for name in STAGED if "resnet" in name],
    "`timm_stages`, other families": [STAGED[name] for name in ("hiera", "efficientnet")],
    "`qwen2_5_vl`": [encoders.get("qwen2_5_vl").cls.tiny()],
    "`point_cloud`": [encoders.get("point_cloud").cls.tiny()],
}


def table():
    """The cells of the docs by (encoder family, modulator)."""
    text = (Path(__file__).parents[2] / "docs" / "compatibility.md").read_text(encoding="utf-8")
    lines = [line for line in text.partition("## Must work")[2].partition("\n## ")[0].splitlines() if line[:1] == "|"]
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {
        (row[0], name.strip("`")): cell for row in rows for name, cell in zip(head[1:], row[1:], strict=True) if row[0]
    }


def cells(promise):
    return [cell for cell, found in table().items() if found == promise]


def modulated(config, name):
    encoder = next(each for each in encoders.entries() if each.config is type(config)).cls(config)
    entry = modulators.get(name)
    return DynamicEncoder(encoder, [(entry.cls, entry.cls.tiny())], "all", WordInquiryEncoder()).eval()


def test_the_table_has_every_family_and_registered_modulator():
    assert {family for family, _ in table()} == set(FAMILIES)
    assert {name for _, name in table()} == set(modulators.names()), "add its column to docs/compatibility.md"
    assert set(table().values()) <= {"yes", "refused"}


def test_every_variant_is_of_a_family():
    used = [config for configs in FAMILIES.values() for config in configs]
    assert all(config in used for config in (*VARIANTS.values(), *STAGED.values()))


@pytest.mark.parametrize(("family", "name"), cells("yes"))
@torch.no_grad()
def test_the_cell_works(family, name):
    for config in FAMILIES[family]:
        dynamic = modulated(config, name)
        views = example_views(dynamic.backbone)
        features, grids = dynamic.encode(views, [0, 1, 0, 1, 1], [dynamic.tokenize("the red square"), []])
        assert len(dynamic.modulators) == dynamic.backbone.spec.depth
        assert len(grids) == len(views)
        assert features.isfinite().all()


def test_a_modulator_of_parts_that_a_stage_lacks_is_refused_before_it_is_built():
    class Gate(Modulator):
        sites = frozenset({"norm1"})

        def __init__(self, config, block, inquiry_width):
            raise AssertionError(f"was built for {block.sites['norm1']} channels")

    encoder = TimmStagesEncoder(TimmStagesEncoder.tiny())
    with pytest.raises(BadConfig, match="Gate cannot work on block 0: it uses 'norm1', but the block offers block"):
        DynamicEncoder(encoder, [(Gate, None)], "all", WordInquiryEncoder())


@pytest.mark.parametrize(("family", "name"), cells("refused"))
def test_the_cell_is_refused_with_the_reason(family, name):
    for config in FAMILIES[family]:
        with pytest.raises(BadConfig, match=r"cannot work on block 0: \w+"):
            modulated(config, name)


@pytest.mark.parametrize(
    ("family", "name", "reason"),
    [
        ("`timm`, relative positions", "joint_attention", "its attention .*relative bias"),
        ("`timm`, differential attention", "joint_attention", "its attention .*difference of two"),
        ("`timm_stages`, ConvNeXt", "lora_gated", "it adds to the output of 'qkv', which .* not offer"),
        ("`timm_stages`, ConvNeXt", "joint_attention", "it adds keys .* no attention of tokens"),
    ],
)
def test_a_refusal_names_what_the_blocks_lack(family, name, reason):
    with pytest.raises(BadConfig, match=r"cannot work on block 0: " + reason):
        modulated(FAMILIES[family][0], name)


def test_a_site_that_is_misspelt_where_a_modulator_is_built_is_named_with_those_there_are():
    class Gate(Modulator):
        sites = frozenset({"block"})

        def __init__(self, config, block, inquiry_width):
            super().__init__()
            self.width = block.sites["attn"]

    encoder = TimmStagesEncoder(TimmStagesEncoder.tiny())
    with pytest.raises(BadConfig, match="Gate cannot be built on block 0: it uses 'attn', but the block offers block"):
        DynamicEncoder(encoder, [(Gate, None)], "all", WordInquiryEncoder())
