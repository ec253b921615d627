"""Language model `qwen2_5_vl`: transformers' positions and logits, its checkpoints as they come, little memory."""

from __future__ import annotations

import json
import re
import shutil
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from vilavt_components.language_models import qwen2_5_vl
from vilavt_components.language_models.qwen2_5_vl import Qwen25VLLanguageConfig, Qwen25VLLanguageModel
from vilavt_toolkit.errors import InputError, VilavtError
from vilavt_toolkit.generation.kv_cache import KVCache
from vilavt_toolkit.registry import language_models
from vilavt_toolkit.testing import bench

PLACED = Qwen25VLLanguageModel(Qwen25VLLanguageModel.tiny())
SIDE = st.integers(1, 5)
# Runs of text, each before a region; the last one ends the dialogue.
DIALOGUES = st.lists(
    st.tuples(st.integers(0, 4), st.one_of(st.tuples(SIDE, SIDE), st.tuples(SIDE, SIDE, SIDE))), max_size=6
)


def laid_out(dialogue, tail):
    """Length and regions (column, grid) of a dialogue of (text, grid)."""
    regions, column = [], 0
    for text, grid in dialogue:
        regions.append((column + text, grid))
        column += text + torch.Size(grid).numel()
    return column + tail, regions


def theirs(dialogue, tail):
    """transformers' positions of it, (h, w) being an image and (t, h, w) a video of a slice a second."""
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel

    vision = SimpleNamespace(spatial_merge_size=1, tokens_per_second=2)
    model = SimpleNamespace(
        config=SimpleNamespace(vision_config=vision),
        get_vision_position_ids=lambda *args, **kw: Qwen2_5_VLModel.get_vision_position_ids(None, *args, **kw),
    )
    kinds = [kind for text, grid in dialogue for kind in [0] * text + [len(grid) - 1] * torch.Size(grid).numel()]
    kinds = torch.tensor([kinds + [0] * tail])
    images = [(1, *grid) for _, grid in dialogue if len(grid) == 2]
    videos = [grid for _, grid in dialogue if len(grid) == 3]
    grids = [torch.tensor(each) if each else None for each in (images, videos)]
    return Qwen2_5_VLModel.get_rope_index(model, torch.zeros_like(kinds), kinds, *grids)[0][:, 0]


@given(DIALOGUES, st.integers(1, 5))
def test_images_stand_where_transformers_places_them(dialogue, tail):
    # Its groups of one kind are one image: text between them keeps them apart.
    images = [(text + 1, grid) for text, grid in dialogue if len(grid) == 2]
    assert torch.equal(PLACED.positions(*laid_out(images, tail)), theirs(images, tail))


@given(st.integers(0, 4), st.tuples(SIDE, SIDE, SIDE))
def test_a_video_stands_where_transformers_places_it_and_text_behind_its_last_moment(text, grid):
    length, regions = laid_out([(text, grid)], 3)
    found = PLACED.positions(length, regions)
    assert torch.equal(found[:, :-3], theirs([(text, grid)], 3)[:, :-3])
    # Later versions of transformers start behind the sides, in the midst of a long video; the first ones, and the
    # paper's, behind the largest position.
    assert (
        found[:, -3:].tolist() == [[found[:, :-3].max().item() + more for more in (1, 2, 3)] if length > 3 else []] * 3
    )


@given(DIALOGUES, st.integers(0, 5), st.data())
def test_positions_turn_by_turn_are_those_at_once(dialogue, tail, data):
    length, regions = laid_out(dialogue, tail)
    inside = {column for start, grid in regions for column in range(start + 1, start + torch.Size(grid).numel())}
    cuts = data.draw(st.sets(st.sampled_from([c for c in range(length + 1) if c not in inside])))
    parts, first = [], 0
    for start, end in pairwise(sorted({0, length} | cuts)):
        placed = [(column - start, grid) for column, grid in regions if start <= column < end]
        parts.append(PLACED.positions(end - start, placed, first))
        first = int(parts[-1].max()) + 1
    whole = PLACED.positions(length, regions)
    assert torch.equal(torch.cat([whole[:, :0], *parts], dim=1), whole)


def test_slices_lie_as_far_apart_in_time_as_the_settings_or_the_checkpoint_say(golden_folder, tmp_path):
    def times(**settings):
        given = {"path": str(golden_folder), "local_files_only": True, **settings}
        return Qwen25VLLanguageModel(Qwen25VLLanguageConfig(**given)).positions(4, [(0, (3, 1, 1))])[0].tolist()

    assert times() == [0, 2, 4, 5]
    assert times(time_step=0) == [0, 0, 0, 1]
    assert times(time_step=1.5) == [0, 1, 3, 4]
    folder = changed(golden_folder, tmp_path, vision_config={"tokens_per_second": 4})
    assert times(path=str(folder)) == [0, 4, 8, 9]
    model = Qwen25VLLanguageModel(Qwen25VLLanguageConfig(path=str(folder), local_files_only=True))
    model.save_assets(tmp_path / "saved")
    saved = Qwen25VLLanguageModel.from_saved(model.config, tmp_path / "saved")
    assert saved.positions(4, [(0, (3, 1, 1))])[0].tolist() == [0, 4, 8, 9]


FORMATS = {"float32": (torch.float32, False), "bfloat16": (torch.bfloat16, False), "mixed": (torch.float32, True)}


@pytest.mark.parametrize("number_format", FORMATS)
@pytest.mark.parametrize("variant", Qwen25VLLanguageModel.variants())
def test_what_follows_is_read_alike_where_kernels_for_causal_attention_are(variant, number_format, monkeypatch):
    """Also under autocast, which leaves queries and keys in float32 beside values in bfloat16."""
    dtype, is_mixed = FORMATS[number_format]
    config = Qwen25VLLanguageModel.variants()[variant]
    model = bench.build_language_model(language_models.get("qwen2_5_vl"), config).to(dtype)
    embeddings = torch.randn(2, 9, model.width, generator=torch.Generator().manual_seed(0)).to(dtype)

    def read():
        cache, logits = KVCache(2, torch.device("cpu")), []
        for first, last in pairwise((0, 4, 8, 9)):
            count = last - first
            view = cache.prepare_update([0, 1], [count] * 2, dtype)
            positions = torch.arange(first, last).expand(3, 2, -1)
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=is_mixed):
                logits.append(model(embeddings[:, first:last], positions, torch.ones(2, count).bool(), view))
            cache.commit([0, 1], [count] * 2, [last] * 2)
        computed_in = torch.bfloat16 if is_mixed else dtype
        assert {part.dtype for layer in cache.layers for part in layer} == {computed_in}
        return torch.cat(logits, dim=1)[..., : len(model.tokenizer)].float()

    masked = read()
    monkeypatch.setattr(qwen2_5_vl, "_CAUSAL_KERNELS", ("cpu",))
    torch.testing.assert_close(read(), masked, rtol=0, atol=1e-5 if number_format == "float32" else 2e-2)


def test_a_grid_of_four_axes_is_refused():
    with pytest.raises(InputError, match=r"not for \(1, 2, 3, 4\). Choose another"):
        PLACED.positions(24, [(0, (1, 2, 3, 4))])


# --- Checkpoints -----------------------------------------------------------------------------------------------------


def changed(folder: Path, tmp_path: Path, **settings) -> Path:
    """A copy of the golden folder whose config.json says otherwise."""
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    found = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**found, **settings}))
    return copy


def weights_of(folder: Path):
    # Copies: what is loaded lies in the file, and the tests spoil that.
    return {key: value.clone() for key, value in load_file(folder / "model.safetensors").items()}


def rewritten(folder: Path, weights, shards: int = 1) -> Path:
    """Put other weights into a folder, in one file or in several."""
    (folder / "model.safetensors").unlink()
    if shards == 1:
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        return folder
    keys = sorted(weights)
    places = {key: f"model-{number * shards // len(keys) + 1:05}.safetensors" for number, key in enumerate(keys)}
    for name in set(places.values()):
        save_file({k: weights[k].clone() for k in keys if places[k] == name}, folder / name, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


def loaded(path: Path, **settings) -> Qwen25VLLanguageModel:
    model = Qwen25VLLanguageModel(Qwen25VLLanguageConfig(path=str(path), local_files_only=True, **settings))
    model.load_weights()
    return model.eval()


def logits(model, ids=None):
    ids = torch.arange(3, 23).view(2, 10) if ids is None else ids
    positions = torch.arange(ids.shape[1]).expand(3, *ids.shape)
    with torch.no_grad():
        return model(model.embed(ids), positions, torch.ones_like(ids, dtype=torch.bool))


def transformers_logits(folder: Path, weights, tied: bool = False):
    """What transformers' whole Qwen2.5-VL makes of the same weights."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    found = json.loads((folder / "config.json").read_text())
    sections = {key: dict(found[key]) for key in ("text_config", "vision_config")}
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**sections, tie_word_embeddings=tied)).eval()
    own = {k.replace("model.", "model.language_model.", 1): v for k, v in weights.items() if k.startswith("model.")}
    missing, unexpected = model.load_state_dict({**own, "lm_head.weight": weights["lm_head.weight"]}, strict=False)
    assert not unexpected and all(".visual." in key for key in missing)
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 23).view(2, 10)).logits


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("layout", ["older", "newer"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_every_layout_of_a_checkpoint_gives_transformers_own_logits(golden_folder, tmp_path, layout, shards, tied):
    folder = changed(golden_folder, tmp_path, model_type="qwen2_5_vl", tie_word_embeddings=tied)
    weights = weights_of(folder)
    if tied:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    expected = transformers_logits(folder, weights, tied)
    if tied:
        del weights["lm_head.weight"]
    if layout == "newer":
        renamed = [(r"^model\.", "model.language_model."), (r"^visual\.", "model.visual.")]
        for pattern, prefix in renamed:
            weights = {re.sub(pattern, prefix, key): value for key, value in weights.items()}
    model = loaded(rewritten(folder, weights, shards))
    found = logits(model)
    said = torch.arange(1000) != model.placeholder
    assert torch.equal(found[..., said], expected[..., said])
    assert (model.lm_head.weight is model.model.get_input_embeddings().weight) is tied


def test_a_flat_configuration_as_first_versions_wrote_it_is_the_same_model(golden_folder, tmp_path):
    found = json.loads((golden_folder / "config.json").read_text())
    flat = {key: value for key, value in found.items() if key != "text_config"}
    flat |= {"model_type": "qwen2_5_vl", "rope_scaling": {"type": "mrope", "mrope_section": [4, 4, 4]}}
    folder = changed(golden_folder, tmp_path)
    (folder / "config.json").write_text(json.dumps(flat))
    assert torch.equal(logits(loaded(folder)), logits(loaded(golden_folder)))


def test_weights_of_other_parts_need_not_even_be_there(golden_folder, tmp_path):
    folder = changed(golden_folder, tmp_path)
    weights = weights_of(folder)
    language = {key: value for key, value in weights.items() if key.startswith(("model.", "lm_head."))}
    places = {key: "language.safetensors" if key in language else "other.safetensors" for key in weights}
    (folder / "model.safetensors").unlink()
    save_file(language, folder / "language.safetensors", {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert torch.equal(logits(loaded(folder)), logits(loaded(golden_folder)))


def test_weights_of_mixed_types_become_one(golden_folder, tmp_path):
    weights = weights_of(golden_folder)
    types = [torch.float32, torch.bfloat16, torch.float16]
    mixed = {key: value.to(types[number % 3]) for number, (key, value) in enumerate(weights.items())}
    folder = rewritten(changed(golden_folder, tmp_path), mixed)
    for name in ("float32", "bfloat16"):
        model = loaded(folder, dtype=name)
        assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, name)}
        assert model.model.rotary_emb.inv_freq.dtype == torch.float32
    bench.assert_close_in_bf16(sayable(logits(loaded(folder, dtype="bfloat16"))), sayable(logits(loaded(folder))))


def sayable(values):
    return values.where(values.isfinite(), 0)


def test_rows_without_a_token_are_never_said_and_tokens_without_a_row_get_one(golden_folder, tmp_path):
    text = json.loads((golden_folder / "config.json").read_text())["text_config"]
    weights, tables = weights_of(golden_folder), ("model.embed_tokens.weight", "lm_head.weight")
    folder = changed(golden_folder, tmp_path, text_config={**text, "vocab_size": 1100})
    more = {key: torch.cat([weights[key], torch.ones(100, 96)]) for key in tables}
    model = loaded(rewritten(folder, {**weights, **more}))
    assert model.vocab_size == 1100
    assert (logits(model)[..., 1000:] == float("-inf")).all()
    assert torch.equal(logits(model)[..., :1000], logits(loaded(golden_folder)))
    grown = loaded(golden_folder, placeholder="<|feature|>")
    assert (grown.placeholder, grown.vocab_size) == (1000, 1001)
    assert torch.equal(logits(grown)[..., :990], logits(loaded(golden_folder))[..., :990])
    bench.assert_close(grown.lm_head.weight[1000], weights["lm_head.weight"].mean(0), "the new token's row")


def test_weights_that_do_not_fit_are_told_by_a_model_without_memory(golden_folder, tmp_path):
    weights = weights_of(golden_folder)
    settings = Qwen25VLLanguageConfig(path=str(golden_folder), local_files_only=True)
    with torch.device("meta"):
        Qwen25VLLanguageModel(settings).load_weights()
    key = next(name for name in weights if name.endswith("layers.0.mlp.up_proj.weight") and "visual" not in name)
    folder = rewritten(changed(golden_folder, tmp_path), {**weights, key: weights[key][:5].clone()})
    with torch.device("meta"), pytest.raises(InputError, match=r"another architecture.*mis-shaped: model.layers.0.mlp"):
        Qwen25VLLanguageModel(Qwen25VLLanguageConfig(path=str(folder), local_files_only=True)).load_weights()


def test_a_folder_without_a_chat_template_speaks_in_qwens_frames(golden_folder):
    model = Qwen25VLLanguageModel(Qwen25VLLanguageConfig(path=str(golden_folder), local_files_only=True))
    frames = model.turn_template
    assert frames.system == ("<|im_start|>system\n", "<|im_end|>\n<|im_start|>user\n")
    assert frames.reply == "<|im_end|>\n<|im_start|>assistant\n" and frames.following == "\n<|im_start|>user\n"
    assert (model.end_of_turn, model.placeholder) == (2, 990)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measures as Linux counts")
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
def test_loading_takes_no_second_copy_in_memory(golden_folder, tmp_path, stored):
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "vocab_size": 20_000}
    text = {**json.loads((golden_folder / "config.json").read_text())["text_config"], **sizes}
    text["rope_scaling"] = {"type": "mrope", "mrope_section": [16, 24, 24]}
    folder = changed(golden_folder, tmp_path, text_config=text)
    settings = Qwen25VLLanguageConfig(path=str(folder), local_files_only=True)
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in Qwen25VLLanguageModel(settings).state_dict().items()}
    rewritten(folder, {key: torch.rand(shape).to(stored) for key, shape in shapes.items()})
    wanted = sum(shape.numel() for shape in shapes.values()) * 4
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    model = loaded(folder)
    assert sum(parameter.sum().item() for parameter in model.parameters()) > 0
    assert memory("VmHWM") - before < 1.2 * wanted


def memory(what: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) * 1024


# --- Bad input -------------------------------------------------------------------------------------------------------


def refusal(path: Path | None = None, **settings) -> str:
    with pytest.raises(VilavtError) as caught:
        if path is not None:
            loaded(path, **settings)
        else:
            Qwen25VLLanguageModel(Qwen25VLLanguageConfig(**settings))
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600 and len(re.findall(r"[.?!] [A-Z](?!.*\?)", message)) <= 1
    return message


def test_damaged_folders_are_told_with_one_remedy_each(golden_folder, tmp_path):
    folder = changed(golden_folder, tmp_path)
    weights = weights_of(folder)
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    assert "its file model.safetensors cannot be read" in refusal(folder)
    rewritten(folder, weights, shards=3)
    (folder / "model-00001.safetensors").unlink()
    assert "its file model-00001.safetensors is missing" in refusal(folder)
    (folder / "model.safetensors.index.json").write_text("{}")
    assert "model.safetensors.index.json has no weight_map" in refusal(folder)
    outside = {"weight_map": {"model.norm.weight": "../model-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(outside))
    assert "no file of the checkpoint's own folder" in refusal(folder)
    (folder / "model.safetensors.index.json").unlink()
    assert "which names the file of every tensor, is missing" in refusal(folder)
    for shard in folder.glob("*.safetensors"):
        shard.unlink()
    torch.save({}, folder / "pytorch_model.bin")
    assert "convert them once" in refusal(folder)
    (folder / "tokenizer.json").unlink()
    assert "Name one in `tokenizer`" in refusal(folder)
    (folder / "config.json").write_text("{")
    assert "valid JSON" in refusal(folder)


def test_weights_that_do_not_fit_are_listed_by_their_fault(golden_folder, tmp_path):
    weights = weights_of(golden_folder)
    del weights["model.layers.1.mlp.up_proj.weight"]
    weights["model.layers.2.mlp.up_proj.weight"] = torch.zeros(2)
    weights["model.norm.weight"] = torch.zeros(7)
    told = refusal(rewritten(changed(golden_folder, tmp_path), weights))
    assert "missing: model.layers.1.mlp.up_proj.weight" in told
    assert "unexpected: model.layers.2.mlp.up_proj.weight" in told
    assert "mis-shaped: model.norm.weight [7] for [96]" in told
    assert "visual" not in told


UNEVEN = {"type": "mrope", "mrope_section": [3, 4, 6]}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model_type": "qwen3"}, "its model type is 'qwen3', not 'qwen2_5_vl'"),
        ({"text_config": {"hidden_size": "wide"}}, "expected int"),
        (
            {"text_config": {"hidden_size": 96, "num_attention_heads": 4, "rope_scaling": UNEVEN}},
            r"its mrope_section is \[3, 4, 6\], .* of sum 12",
        ),
    ],
)
def test_a_configuration_that_makes_no_model_is_told_with_one_remedy(golden_folder, tmp_path, settings, words):
    assert re.search(words, refusal(changed(golden_folder, tmp_path, **settings)))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "exactly one of"),
        ({"config": {"hiden_size": 30}}, "Did you mean 'hidden_size'"),
        ({"config": {"hidden_size": 30, "num_attention_heads": 4, "num_key_value_heads": 2}}, "must be divisible"),
        ({"config": {"hidden_size": 32}, "attention": "fast"}, "attention"),
    ],
)
def test_settings_from_scratch_that_make_no_model_are_told_with_one_remedy(settings, words):
    assert words in refusal(**settings)
