"""ViLaVT and Qwen2.5-VL checkpoints come in and go out without a bit changed, or are refused in one sentence."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import vilavt_toolkit as vt
from vilavt_components.formats.vilavt import export as _vilavt_export
from vilavt_toolkit.checkpoints import exporting
from vilavt_toolkit.checkpoints.loading import build_model
from vilavt_toolkit.checkpoints.native import save_checkpoint
from vilavt_toolkit.config.parsing import parse_config
from vilavt_toolkit.config.recipe import load_recipe
from vilavt_toolkit.config.schema import ModelSection
from vilavt_toolkit.contracts import View
from vilavt_toolkit.errors import InputError, VilavtError
from vilavt_toolkit.formats import foreign
from vilavt_toolkit.models.assemble import assemble_model

GOLDEN = Path(__file__).parents[3] / "golden"
FOLDER = GOLDEN / "vilavt"
EXTRA = ("text_encoder.", "text_proj.")


def weights():
    return load_file(GOLDEN / "weights.safetensors")


def folder(path, state=None, config=None, tokenizer=True):
    """A checkpoint's folder: the golden one, with other weights, and with `config` changed."""
    path.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json") if tokenizer else ():
        shutil.copyfile(FOLDER / name, path / name)
    told = json.loads((FOLDER / "config.json").read_text()) | (config or {})
    (path / "config.json").write_text(json.dumps({key: value for key, value in told.items() if value is not None}))
    save_file(weights() if state is None else state, path / "model.safetensors")
    return path


def load(path, **options):
    return vt.load(path, device="cpu", **options)


def exported(model, path):
    """What an exported folder holds: the tensors of all its files."""
    found = {}
    for file in exporting.save_foreign(model, path).glob("*.safetensors"):
        found |= load_file(file)
    return found


def assert_same(found, expected):
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name


@torch.no_grad()
def features(model):
    """The golden pictures as a loaded model sees them."""
    inputs = load_file(GOLDEN / "inputs_A.safetensors")
    grids = [tuple(grid) for grid in inputs["image_grid_thw"].tolist()]
    patches = inputs["pixel_values"].float().split([t * h * w for t, h, w in grids])
    views = [View(data, grid) for data, grid in zip(patches, grids, strict=True)]
    pairs = zip(inputs["query_ids"], inputs["query_attention_mask"].bool(), strict=True)
    inquiries = [ids[mask].tolist() for ids, mask in pairs]
    return model.encode(views, inputs["image_to_query_mapping"].tolist(), inquiries)


@pytest.mark.parametrize("point", ["all", "late"])
def test_a_folder_of_the_papers_weights_gives_the_papers_features(tmp_path, point):
    kept = weights()
    if point == "late":
        kept = {name: value for name, value in kept.items() if "instruct" not in name or name[14] in "4567"}
    told = json.loads((FOLDER / "config.json").read_text())["vision_config"]
    config = {"integration_point": point, "vision_config": {**told, "integration_point": point}}
    model = load(folder(tmp_path / "in", kept, config), dtype="float32")
    expected = load_file(GOLDEN / f"outputs_A_{point}.safetensors")["vision_output"]
    torch.testing.assert_close(features(model), expected, atol=1e-5, rtol=1e-5)


def mixed():
    """The golden weights, each of three parts in another type."""
    types = {"text_encoder": torch.float32, "model": torch.bfloat16, "lm_head": torch.bfloat16}
    return {name: value.to(types.get(name.split(".")[0], torch.float16)) for name, value in weights().items()}


@pytest.mark.parametrize("state", [weights, mixed])
def test_in_and_out_again_every_bit_is_the_same(tmp_path, state):
    before = state()
    found = exported(load(folder(tmp_path / "in", before)), tmp_path / "out")
    assert_same(found, before)


def test_what_was_exported_says_what_the_papers_config_says(tmp_path):
    exporting.save_foreign(load(FOLDER), tmp_path / "out")
    found, told = (json.loads((path / "config.json").read_text()) for path in (tmp_path / "out", FOLDER))
    for key in ("model_type", "architectures", "integration_point", "hidden_size", "rope_theta", "rope_scaling"):
        assert found[key] == told[key], key
    for key in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id", "dtype"):
        assert found[key] == told[key], key
    for part in ("vision_config", "text_config", "text_encoder_config"):
        same = {key for key, value in told[part].items() if found[part].get(key) == value}
        left = {key for key, value in told[part].items() if value is not None} - same
        assert left <= {"initializer_range", "output_scores", "tie_word_embeddings", "use_cache", "pad_token_id"}, left
    one, other = (foreign.find_foreign_checkpoint(path).read_section() for path in (tmp_path / "out", FOLDER))
    for section in (one, other):
        del section["language_model"]["tokenizer"]
    assert one == other


def test_large_weights_go_into_several_files_with_an_index(tmp_path, monkeypatch):
    monkeypatch.setattr(_vilavt_export, "SHARD_BYTES", 400_000)
    assert_same(exported(load(FOLDER), tmp_path / "out"), weights())
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 3
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in weights().values())
    assert_same(exported(load(tmp_path / "out"), tmp_path / "again"), weights())


def nested(name):
    if name.startswith(("visual.", *EXTRA)):
        return f"model.{name}"
    return name.replace("model.", "model.language_model.", 1)


def test_the_newer_layout_of_keys_loads_as_the_older_one(tmp_path):
    newer = {nested(name): value for name, value in weights().items()}
    assert_same(exported(load(folder(tmp_path / "in", newer)), tmp_path / "out"), weights())


def test_straight_after_sft_the_text_encoder_and_the_blocks_are_told_by_the_weights(tmp_path):
    told = json.loads((FOLDER / "config.json").read_text())["vision_config"]
    del told["integration_point"]
    config = {"model_type": "qwen2_5_vl", "text_encoder_config": None, "integration_point": None, "vision_config": told}
    model = load(folder(tmp_path / "in", config=config))
    assert list(model.vision.modulators) == [str(block) for block in range(8)]
    assert_same(exported(model, tmp_path / "out"), weights())


def plain():
    return {name: value for name, value in weights().items() if "instruct" not in name and not name.startswith(EXTRA)}


PLAIN = {"model_type": "qwen2_5_vl", "text_encoder_config": None, "integration_point": None}


def plain_folder(path, tied=False):
    vision = json.loads((FOLDER / "config.json").read_text())["vision_config"]
    del vision["integration_point"]
    text = json.loads((FOLDER / "config.json").read_text())["text_config"] | {"tie_word_embeddings": tied}
    state = {name: value for name, value in plain().items() if not tied or name != "lm_head.weight"}
    config = {**PLAIN, "vision_config": vision, "text_config": text, "tie_word_embeddings": tied}
    return folder(path, state, config)


@pytest.mark.parametrize("tied", [False, True])
def test_a_plain_model_is_itself_whatever_it_is_asked(tmp_path, caplog, tied):
    model = load(plain_folder(tmp_path / "in", tied), dtype="float32")
    assert "no query-aware weights" in caplog.text
    found = features(model)
    for group in model.vision.modulators.values():
        assert not list(group.parameters())
    model.vision.modulators = torch.nn.ModuleDict()
    assert torch.equal(found, features(model))
    assert_same(exported(load(tmp_path / "in"), tmp_path / "out"), load_file(tmp_path / "in" / "model.safetensors"))


def test_a_recipe_gives_a_plain_model_new_modulation_to_train(tmp_path, caplog, monkeypatch):
    monkeypatch.chdir(GOLDEN.parents[1])
    plain_folder(tmp_path / "in")
    recipe = load_recipe("vilavt_7b/tiny_sft", [f"model.checkpoint={tmp_path / 'in'}"])
    model = build_model(recipe)
    assert "no weights for the recipe's inquiry encoder, modulator" in caplog.text
    assert not any(parameter.is_meta for parameter in model.parameters())
    assert torch.equal(model.language_model.lm_head.weight, weights()["lm_head.weight"].float())
    assert sorted(model.vision.modulators) == ["4", "5", "6", "7"]


# --- Bad input -------------------------------------------------------------------------------------------


def without(*names):
    return {name: value for name, value in weights().items() if name not in names}


NORM, QKV = "visual.blocks.0.norm1.weight", "visual.blocks.3.attn.qkv.weight"
BAD_WEIGHTS = {
    "missing": (lambda: without(NORM), f"1 missing: {NORM}"),
    "unexpected": (lambda: {**weights(), "adapter.a": torch.zeros(2), "adapter.b": torch.zeros(2)}, "2 unexpected: ad"),
    "mis-shaped": (lambda: {**weights(), QKV: torch.zeros(3, 4)}, rf"1 mis-shaped: {QKV} \[3, 4\] for \[192, 64\]"),
    "int8": (
        lambda: {**weights(), QKV: weights()[QKV].to(torch.int8)},
        rf"{QKV} is stored as I8: quantised weights hold",
    ),
    "mixed": (lambda: {**weights(), NORM: torch.ones(64)}, r"vision tower: \d+ float16, 1 float32.*with `dtype`"),
}


@pytest.mark.parametrize("fault", BAD_WEIGHTS)
def test_weights_that_do_not_fit_are_told_by_group(tmp_path, fault):
    state, words = BAD_WEIGHTS[fault]
    with pytest.raises(InputError, match=words):
        load(folder(tmp_path / "in", state()))


def test_all_that_does_not_fit_stands_in_one_error(tmp_path):
    state = {**without(NORM), "adapter.a": torch.zeros(2), QKV: torch.zeros(3, 4)}
    with pytest.raises(InputError, match=r"1 missing: .*; 1 unexpected: .*; 1 mis-shaped: "):
        load(folder(tmp_path / "in", state))


def test_one_type_for_all_mends_a_mixture(tmp_path):
    model = load(folder(tmp_path / "in", BAD_WEIGHTS["mixed"][0]()), dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def sharded(path):
    made = folder(path)
    (made / "model.safetensors").unlink()
    names = sorted(weights())
    halves = {"model-00001-of-00002.safetensors": names[:90], "model-00002-of-00002.safetensors": names[90:]}
    for file, half in halves.items():
        save_file({name: weights()[name] for name in half}, made / file)
    places = {name: file for file, half in halves.items() for name in half}
    (made / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return made


def lose_a_shard(path):
    (sharded(path) / "model-00002-of-00002.safetensors").unlink()


def truncate(path):
    file = folder(path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def pickled(path):
    (folder(path) / "model.safetensors").rename(path / "pytorch_model.bin")


def no_weights(path):
    (folder(path) / "model.safetensors").unlink()


def no_config(path):
    (folder(path) / "config.json").unlink()


def broken_config(path):
    (folder(path) / "config.json").write_text('{"model_type": ')


def other_pixels(path):
    (folder(path) / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5], "image_std": [1, 1, 1]}')


def too_shallow(path):
    vision = json.loads((FOLDER / "config.json").read_text())["vision_config"]
    folder(path, config={"vision_config": {**vision, "depth": 3}})


def vision(**changes):
    told = json.loads((FOLDER / "config.json").read_text())["vision_config"]
    return lambda path: folder(path, config={"vision_config": told | changes})


def processor(text):
    return lambda path: (folder(path) / "preprocessor_config.json").write_text(text)


BAD_FOLDERS = {
    vision(hidden_size="64"): "vision_config.hidden_size: expected an int, got '64'",
    vision(depth=None): "vision_config.depth: expected an int, got null",
    vision(num_heads=0): "vision_config.num_heads",
    vision(fullatt_block_indexes=7): "vision_config.fullatt_block_indexes",
    vision(tokens_per_second=None): "cannot be read",
    lambda path: folder(path, config={"text_config": "x"}): "cannot be read",
    processor('{"image_mean": '): "preprocessor_config.json cannot be read",
    processor("[]"): "preprocessor_config.json",
    processor('{"image_mean": null}'): "image_mean and image_std are not three numbers each",
    lose_a_shard: "model-00002-of-00002.safetensors is missing",
    truncate: "its file model.safetensors cannot be read",
    pickled: "no safetensors weights, and other formats can run code.*save_file",
    no_weights: "no safetensors weights",
    no_config: "no config.json|holds no checkpoint",
    broken_config: "config.json cannot be read",
    other_pixels: "preprocessor_config.json: image_mean",
    too_shallow: "names block 3. Name blocks from 0 to 2",
    lambda path: folder(path, tokenizer=False): "holds no tokenizer",
    lambda path: folder(path, config={"model_type": "llama"}): "model type 'llama', which no checkpoint format",
}


@pytest.mark.parametrize("damage", BAD_FOLDERS)
def test_a_folder_that_cannot_be_used_says_so_in_one_sentence(tmp_path, damage):
    damage(tmp_path / "in")
    with pytest.raises(VilavtError, match=BAD_FOLDERS[damage]) as told:
        load(tmp_path / "in")
    assert "\n" not in str(told.value)


def test_several_files_load_as_one(tmp_path):
    assert_same(exported(load(sharded(tmp_path / "in")), tmp_path / "out"), weights())


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ({"projector": {"name": "mlp"}}, "projector is"),
        ({"modulator": {"name": "film"}}, "modulator is"),
        ({"modulator": [{"name": "joint_attention"}, {"name": "joint_attention"}]}, "several modulators"),
        ({"inquiry_encoder": {"name": "language_model"}}, "inquiry encoder is"),
        ({"integration": [1, 6]}, r"integration, blocks \[1, 6\], has no name"),
    ],
)
def test_a_model_of_other_parts_than_the_papers_is_refused_by_the_part(tmp_path, override, part):
    section = foreign.find_foreign_checkpoint(FOLDER).read_section() | override
    model = assemble_model(parse_config(ModelSection, section))
    with pytest.raises(InputError, match=part):
        exporting.save_foreign(model, tmp_path / "out")
    assert not list(tmp_path.iterdir())


# --- Memory ----------------------------------------------------------------------------------------------


def anonymous_memory():
    """Bytes of memory that no file stands behind."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads Linux's account of memory")
@pytest.mark.parametrize(("dtype", "copies"), [(None, 0.2), ("float32", 1.2)])
def test_loading_takes_little_more_memory_than_the_weights_do(tmp_path, dtype, copies):
    rows = 300_000
    text = json.loads((FOLDER / "config.json").read_text())["text_config"] | {"vocab_size": rows}
    state = weights() | {
        name: torch.zeros(rows, 96, dtype=torch.float16) for name in ("lm_head.weight", "model.embed_tokens.weight")
    }
    made = folder(tmp_path / "in", state, {"text_config": text, "vocab_size": rows})
    size = sum(value.numel() for value in state.values()) * (4 if dtype else 2)
    del state
    load(FOLDER)  # what libraries need once
    before = anonymous_memory()
    model = load(made, dtype=dtype)
    assert anonymous_memory() - before < copies * size
    assert sum(parameter.nbytes for parameter in model.parameters()) > 0.9 * size


def test_nothing_but_safetensors_and_descriptions_is_asked_of_the_hub(monkeypatch, tmp_path):
    import huggingface_hub

    asked = {}

    def download(name, **options):
        asked.update(options, name=name)
        return str(FOLDER)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    load("owner/name", revision="v1", local_files_only=True)
    assert (asked["name"], asked["revision"], asked["local_files_only"]) == ("owner/name", "v1", True)
    assert not any(pattern.endswith((".bin", ".pt", ".py", "*")) for pattern in asked["allow_patterns"])


def test_a_hub_name_out_of_reach_is_told_in_one_sentence(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="'owner/name' is no folder here, and the hub does not give it") as told:
        load("owner/name", local_files_only=True)
    assert "\n" not in str(told.value)


def test_a_text_encoders_own_tokenizer_is_taken_and_written(tmp_path):
    made = folder(tmp_path / "in")
    (made / "text_encoder").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(FOLDER / name, made / "text_encoder" / name)
    own, stand_in = load(made), load(FOLDER)
    ids = own.tokenize_inquiry("a red square")
    assert stand_in.tokenize_inquiry("a red square") == [*ids, 0]  # the end that Qwen3-Embedding's puts itself
    exporting.save_foreign(own, tmp_path / "out")
    assert load(tmp_path / "out").tokenize_inquiry("a red square") == ids


def test_an_interrupted_export_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("safetensors.torch.save_file", lambda *a, **k: os.close(-1))
    with pytest.raises(InputError, match="cannot be written"):
        exporting.save_foreign(load(FOLDER), tmp_path / "out")
    assert not list(tmp_path.iterdir())


# --- Code of a checkpoint ---------------------------------------------


def test_code_beside_a_tokenizer_is_never_run_nor_asked_about(tmp_path, monkeypatch):
    made, ran = folder(tmp_path / "in"), tmp_path / "ran"
    own = made / "text_encoder"
    own.mkdir()
    shutil.copyfile(FOLDER / "tokenizer.json", own / "tokenizer.json")
    told = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [None, "own.Own"]}}
    (own / "tokenizer_config.json").write_text(json.dumps(told))
    (own / "own.py").write_text(
        f"open({str(ran)!r}, 'w')\nfrom transformers import PreTrainedTokenizerFast\n"
        "class Own(PreTrainedTokenizerFast): pass\n"
    )
    asked = []
    monkeypatch.setattr("builtins.input", lambda *words: asked.append(words) or "y")
    with pytest.raises(VilavtError, match="custom code"):
        load(made)
    assert not asked and not ran.exists()


# --- The paper's numbers through `vt.load` ---------------------------------------------


@torch.no_grad()
def test_a_loaded_folder_of_the_papers_weights_gives_the_papers_logits(tmp_path):
    kept = {name: value for name, value in weights().items() if "instruct" not in name or name[14] in "4567"}
    made = folder(tmp_path / "in", kept, json.loads((GOLDEN / "config_late.json").read_text()))
    model, inputs = load(made, dtype="float32"), load_file(GOLDEN / "inputs_A.safetensors")
    expected = load_file(GOLDEN / "language.safetensors")
    image = model.language_model.placeholder
    ids, positions = inputs["input_ids"], expected["A_late.position_ids"]
    slots = (ids.flatten() == image).nonzero().flatten()
    embedded = model.embed(ids, slots, features(model))
    found = model.language_model(embedded, positions, inputs["attention_mask"].bool())
    said = torch.arange(1000) < len(model.language_model.tokenizer)
    said[image] = False
    torch.testing.assert_close(found[..., said], expected["A_late.logits"][..., said], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("device", ["gpu", "", "hpu:99"])
def test_a_device_that_is_not_there_is_told_in_one_sentence(device):
    with pytest.raises(InputError, match="cannot be used") as told:
        vt.load(FOLDER, device=device)
    assert "\n" not in str(told.value)


def test_an_export_does_not_replace_the_folder_one_is_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="the folder you are in"):
        exporting.save_foreign(load(FOLDER), ".")
    assert not list(tmp_path.iterdir())


def test_a_hub_checkpoint_whose_weights_tell_its_shape_is_fetched_for_it(tmp_path, monkeypatch):
    """As ViLaVT is straight after SFT, when a recipe names it."""
    import huggingface_hub

    whole = folder(tmp_path / "whole", config={"model_type": "qwen2_5_vl", "text_encoder_config": None})
    told = folder(tmp_path / "told", config={"model_type": "qwen2_5_vl", "text_encoder_config": None})
    (told / "model.safetensors").unlink()
    patterns = []

    def download(name, **options):
        patterns.append(options["allow_patterns"])
        return str(whole if "*.safetensors" in options["allow_patterns"] else told)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("vilavt_7b/rl", ["model.checkpoint=owner/name"])
    assert recipe.recipe.model.inquiry_encoder.config.config["hidden_size"] == 48
    assert ["*.safetensors" in each for each in patterns] == [False, True]


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "int8", "complex64", "bfloat", torch.float8_e4m3fn])
def test_a_type_that_nothing_here_computes_in_is_refused(dtype):
    from vilavt_toolkit.models.meta import parse_dtype

    with pytest.raises(InputError, match=r"is no type of weights\. Give float32, bfloat16 or float16"):
        parse_dtype(dtype)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_pointer_of_git_lfs_in_place_of_a_file_says_so(tmp_path, name):
    (folder(tmp_path / "in") / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 12\n")
    with pytest.raises(InputError, match=rf"{name} is a pointer of git-lfs.*git lfs pull"):
        load(tmp_path / "in")


# --- What an export keeps of its source ------------------------------------------------------------------

PROCESSOR = {"min_pixels": 12544, "max_pixels": 12845056, "image_processor_type": "Qwen2VLImageProcessorFast"}
GENERATION = {
    "bos_token_id": 1,
    "do_sample": True,
    "eos_token_id": [1, 2],
    "pad_token_id": 0,
    "repetition_penalty": 1.05,
    "temperature": 1e-6,
}


def source_with_settings(path):
    (folder(path) / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    (path / "generation_config.json").write_text(json.dumps(GENERATION))
    return path


def read_settings(path):
    names = ("preprocessor_config.json", "generation_config.json")
    processor, generation = (json.loads((path / name).read_text()) for name in names)
    return {key: processor[key] for key in PROCESSOR}, generation


def test_an_export_keeps_the_settings_of_images_and_of_generation(tmp_path):
    exporting.export(source_with_settings(tmp_path / "in"), tmp_path / "out", "vilavt")
    assert read_settings(tmp_path / "out") == (PROCESSOR, GENERATION)
    shape = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert (shape["patch_size"], shape["merge_size"], len(shape["image_mean"])) == (14, 2, 3)


def test_a_run_that_began_with_a_checkpoint_exports_its_settings_too(tmp_path, monkeypatch):
    monkeypatch.chdir(GOLDEN.parents[1])
    source = source_with_settings(tmp_path / "in")
    recipe = load_recipe("vilavt_7b/tiny_sft", [f"model.checkpoint={source}"])
    save_checkpoint(tmp_path / "run", build_model(recipe), recipe, 1)
    shutil.rmtree(source)
    exporting.export(tmp_path / "run", tmp_path / "out", "vilavt")
    assert read_settings(tmp_path / "out") == (PROCESSOR, GENERATION)


def test_generation_ends_at_the_end_of_a_turn_whatever_the_source_says(tmp_path):
    source = source_with_settings(tmp_path / "in")
    (source / "generation_config.json").write_text(json.dumps({**GENERATION, "eos_token_id": 1}))
    exporting.export(source, tmp_path / "out", "vilavt")
    assert read_settings(tmp_path / "out")[1]["eos_token_id"] == [2, 1]


def test_damaged_settings_of_generation_are_one_sentence(tmp_path):
    (source_with_settings(tmp_path / "in") / "generation_config.json").write_text("[")
    with pytest.raises(VilavtError, match=r"generation_config\.json cannot be read .*Copy the file again"):
        load(tmp_path / "in")


@pytest.mark.parametrize("is_nested", [True, False])
def test_an_export_keeps_windows_context_and_special_tokens_of_the_text_model(tmp_path, is_nested):
    told = json.loads((FOLDER / "config.json").read_text())["text_config"]
    kinds = ["full_attention", "sliding_attention"]
    own = {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1, "layer_types": kinds}
    own |= {"max_position_embeddings": 2048, "bos_token_id": 1, "attention_dropout": 0.1, "initializer_range": 0.01}
    told |= own
    config = {"text_config": told} if is_nested else {**told, "model_type": "vilavt", "text_config": None}
    exporting.export(folder(tmp_path / "in", config=config), tmp_path / "out", "vilavt")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    for section in (written, written["text_config"]):
        assert {key: section[key] for key in own} == own
    assert load(tmp_path / "out").language_model.context_length == 2048


def test_a_plain_model_in_bfloat16_is_so_in_all_its_parts(tmp_path):
    plain_folder(tmp_path / "in")
    state = {name: value.bfloat16() for name, value in load_file(tmp_path / "in" / "model.safetensors").items()}
    save_file(state, tmp_path / "in" / "model.safetensors")
    assert {weight.dtype for weight in load(tmp_path / "in").parameters()} == {torch.bfloat16}
