"""Compiled blocks give what eager ones give, with few graphs for many layouts, and leave the state dict alone."""

import dataclasses

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from vilavt_components.encoders.timm.encoder import TimmEncoder
from vilavt_components.modulators.film import FiLM, FiLMConfig
from vilavt_toolkit.contracts import Context, Modulator
from vilavt_toolkit.testing.bench import WordInquiryEncoder, assert_close, example_views
from vilavt_toolkit.vision.dynamic_encoder import DynamicEncoder

# (views taken, their groups, inquiries): sizes, numbers of regions, groups and words all change.
LAYOUTS = [
    ([0, 1, 2, 3, 4], [0, 1, 0, 1, 0], ["a b c", "d"]),
    ([0, 1, 2], [0, 1, 0], ["a b c", "d e f g"]),
    ([1, 2, 3, 4], [2, 1, 0, 2], ["a b c", "d", "e f"]),
    ([3, 1, 0], [0, 1, 2], ["a", "b c", "d e"]),
]
# torch makes a graph of its own for a size of 1, here that of the groups.
ONE_GROUP = ([4, 2], [0, 0], ["a b"])
WITH_EMPTY = ([0, 1, 2, 3], [0, 1, 0, 2], ["a b c", "", "d e"])
SILENT = ([0, 1, 2], [0, 1, 0], ["", ""])


class ReadsInquiry(Modulator):
    """Attention to the inquiry at a site, and a key and value per inquiry token in the block's own attention."""

    sites = frozenset({"norm2"})
    span = "group"

    def __init__(self, config, block, inquiry_width):
        super().__init__()
        self.shape = (block.heads, block.head_dim)
        self.query = nn.Linear(block.width, block.width)
        self.kv = nn.Linear(inquiry_width, 2 * block.width)
        self.more = nn.Linear(inquiry_width, 2 * block.width)

    def modulate(self, site, x, y, inquiry):
        k, v = self.kv(inquiry.features).view(-1, 2, *self.shape).unbind(1)
        return y + inquiry.attend(self.query(y).view(-1, *self.shape), k, v).flatten(1)

    def context(self, inquiry):
        k, v = self.more(inquiry.features).view(-1, 2, *self.shape).unbind(1)
        return Context(k, v)


MODULATORS = {"none": [], "film": [(FiLM, FiLMConfig(zero_init=False))], "context": [(ReadsInquiry, None)]}


def dynamic(name, depth=2):
    torch.manual_seed(0)
    tiny = TimmEncoder.tiny()
    config = dataclasses.replace(tiny, config={**tiny.config, "depth": depth})
    return DynamicEncoder(TimmEncoder(config), MODULATORS[name], "all", WordInquiryEncoder())


def encode(made, layout):
    chosen, groups, texts = layout
    views = example_views(made.backbone)
    return made.encode([views[i] for i in chosen], groups, [made.tokenize(text) for text in texts])[0]


def gradients(made, layout):
    made.zero_grad()
    features = encode(made, layout)
    features.square().mean().backward()
    return features, {name: p.grad.clone() for name, p in made.named_parameters() if p.grad is not None}


def graphs():
    return counters["stats"]["unique_graphs"]


def assert_same(compiled, eager, layout):
    (found, grads), (expected, wanted) = gradients(compiled, layout), gradients(eager, layout)
    assert_close(found, expected, f"features of {layout}")
    assert grads.keys() == wanted.keys()
    for name in grads:
        assert_close(grads[name], wanted[name], f"gradient of {name}")


@pytest.fixture(autouse=True)
def _fresh():
    limits = torch._dynamo.config.recompile_limit, torch._dynamo.config.accumulated_recompile_limit
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()
    torch._dynamo.config.recompile_limit, torch._dynamo.config.accumulated_recompile_limit = limits


@pytest.mark.parametrize(
    "name",
    [pytest.param("none", marks=pytest.mark.nightly), pytest.param("film", marks=pytest.mark.nightly), "context"],
)
def test_features_and_gradients_are_those_of_eager_blocks_and_new_layouts_make_no_new_graph(name):
    compiled, eager = dynamic(name), dynamic(name)
    compiled.compile_blocks(backend="aot_eager")
    assert_same(compiled, eager, LAYOUTS[0])
    first = graphs()
    assert 0 < first <= 10, "one graph per stretch of a block"
    for layout in LAYOUTS[1:]:
        assert_same(compiled, eager, layout)
    assert graphs() == first, "a layout made a graph of its own"
    others = (ONE_GROUP, WITH_EMPTY, SILENT)
    for layout in others:
        assert_same(compiled, eager, layout)
    assert graphs() <= (1 + len(others)) * first, "a set of graphs for each kind of inquiries"
    before = graphs()
    for layout in (*LAYOUTS, *others):
        assert_same(compiled, eager, layout)
    assert graphs() == before


@pytest.mark.parametrize("deep", [4, pytest.param(12, marks=pytest.mark.nightly)])
def test_deeper_encoders_need_no_more_graphs(deep):
    counts = []
    for depth in (2, deep):
        torch._dynamo.reset()
        counters.clear()
        made = dynamic("film", depth)
        made.compile_blocks(backend="eager")
        encode(made, LAYOUTS[0])
        counts.append(graphs())
    assert counts[0] == counts[1]


@pytest.mark.nightly
def test_torchs_own_compiler_gives_the_same_features_and_gradients():
    compiled, eager = dynamic("context", depth=1), dynamic("context", depth=1)
    compiled.compile_blocks()
    for layout in (LAYOUTS[0], LAYOUTS[2]):
        assert_same(compiled, eager, layout)


@pytest.mark.nightly
def test_compiling_goes_with_gradient_checkpointing():
    compiled, eager = dynamic("film", depth=1).train(), dynamic("film", depth=1).train()
    compiled.compile_blocks(backend="aot_eager")
    compiled.gradient_checkpointing = True
    for layout in LAYOUTS[:2]:
        assert_same(compiled, eager, layout)


def test_the_state_dict_is_that_of_the_encoder_that_was_not_compiled():
    compiled, eager = dynamic("film"), dynamic("film")
    compiled.compile_blocks(backend="eager")
    encode(compiled, LAYOUTS[0])
    assert list(compiled.state_dict()) == list(eager.state_dict())
    with torch.no_grad():
        for parameter in eager.parameters():
            parameter.add_(0.01)
    compiled.load_state_dict(eager.state_dict())
    assert_same(compiled, eager, LAYOUTS[1])
