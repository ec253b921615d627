"""Language model `hf_causal`: any transformers causal LM gives its own logits here, and says what it cannot load."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vilavt_components.language_models import tokenizer as hf_tokenizer
from vilavt_components.language_models.hf_causal import HFCausal, HFCausalConfig
from vilavt_toolkit.errors import VilavtError

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = {**SMALL, "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.3}
FAMILIES = {
    "llama": {"model_type": "llama", **GROUPED},
    "qwen2": {"model_type": "qwen2", **GROUPED},
    "qwen3": {"model_type": "qwen3", **GROUPED, "head_dim": 8},
    "gemma2": {"model_type": "gemma2", **GROUPED, "head_dim": 8},
    "phi3": {"model_type": "phi3", **GROUPED},
    "gpt2": {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "gpt_neox": {"model_type": "gpt_neox", **SMALL, "max_position_embeddings": 128, "initializer_range": 0.3},
}
CORPUS = ["what digit is on the red square?", "a blue circle left of it", "0 1 2 3 4 5 6 7 8 9", "User: Assistant:"] * 8
FIXED = ["<answer>", "</answer>"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_backend) -> Path:
    """A pretrained model as transformers saves it, with a tokenizer that has no chat template."""
    from transformers import AutoConfig, AutoModelForCausalLM

    path = tmp_path_factory.mktemp("pretrained")
    tokenizer = make_backend(None)
    torch.manual_seed(1)
    settings = {**FAMILIES["qwen2"], "vocab_size": len(tokenizer), "tie_word_embeddings": True}
    AutoModelForCausalLM.from_config(AutoConfig.for_model(settings.pop("model_type"), **settings)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def scratch(family: str = "llama", **settings: object) -> HFCausal:
    torch.manual_seed(0)
    model = HFCausal(HFCausalConfig(config={**FAMILIES[family], **settings}, vocab_size=400)).eval()
    model.fit_tokenizer(CORPUS, FIXED)
    return model


def loaded(path: Path, **settings: object) -> HFCausal:
    model = HFCausal(HFCausalConfig(path=str(path), **settings)).eval()
    model.load_weights()
    return model.eval()


def logits(model: HFCausal, ids: torch.Tensor) -> torch.Tensor:
    positions = torch.arange(ids.shape[1]).expand(1, *ids.shape)
    with torch.no_grad():
        return model(model.embed(ids), positions, torch.ones_like(ids, dtype=torch.bool))


def some_ids(count: int = 12) -> torch.Tensor:
    return torch.randint(10, 280, (2, count), generator=torch.Generator().manual_seed(2))


def sayable(model: HFCausal) -> torch.Tensor:
    kept = torch.ones(model.vocab_size, dtype=torch.bool)
    kept[model.placeholder] = False
    kept[len(model.tokenizer) :] = False
    return kept


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_gives_transformers_own_logits_and_never_the_placeholder(family, tied):
    model = scratch(family, tie_word_embeddings=tied)
    weights = model.model.get_input_embeddings().weight, model.model.get_output_embeddings().weight
    assert (weights[0] is weights[1]) is tied
    with torch.no_grad():
        theirs = model.model(input_ids=some_ids()).logits
    ours = logits(model, some_ids())
    assert torch.equal(ours[..., sayable(model)], theirs[..., sayable(model)])
    assert (ours[..., model.placeholder] == float("-inf")).all()
    assert (model.width, model.context_length) == (32, 128)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_what_is_saved_builds_the_same_model(family, tied, tmp_path):
    from safetensors.torch import load_model, save_model

    model = scratch(family, tie_word_embeddings=tied)
    model.save_assets(tmp_path)
    save_model(model, str(tmp_path / "model.safetensors"))
    torch.manual_seed(9)
    other = HFCausal.from_saved(model.config, tmp_path).eval()
    load_model(other, str(tmp_path / "model.safetensors"))
    assert torch.equal(logits(other, some_ids()), logits(model, some_ids()))
    assert other.tokenizer.encode("<answer>7</answer>") == model.tokenizer.encode("<answer>7</answer>")
    assert (other.turn_template, other.end_of_turn, other.placeholder) == (
        model.turn_template,
        model.end_of_turn,
        model.placeholder,
    )
    weights = other.model.get_input_embeddings().weight, other.model.get_output_embeddings().weight
    assert (weights[0] is weights[1]) is tied


def test_pretrained_weights_give_exact_logits_after_the_embeddings_grew(folder):
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(folder)
    model = loaded(folder)
    known = theirs.config.vocab_size
    assert known <= model.placeholder < model.vocab_size == len(model.tokenizer), "the placeholder is new, its row too"
    with torch.no_grad():
        expected = theirs(input_ids=some_ids()).logits
    found = logits(model, some_ids())
    assert torch.equal(found[..., :known], expected)
    assert found.shape[-1] == model.vocab_size and (found[..., model.placeholder] == float("-inf")).all()
    assert model.model.get_input_embeddings().weight is model.model.get_output_embeddings().weight


def test_a_token_the_tokenizer_has_can_be_the_placeholder(folder):
    model = loaded(folder, placeholder="<|im_end|>")
    assert model.tokenizer.decode([model.placeholder]) == "<|im_end|>"
    assert "<|feature|>" not in model.tokenizer.backend.get_vocab()


TRAINED = hf_tokenizer.train_tokenizer(CORPUS, FIXED, 400, "<|feature|>")


@given(st.text())
def test_any_text_survives_a_trained_tokenizer(text):
    assert TRAINED.decode(TRAINED.encode(text)) == text


@given(st.lists(st.sampled_from(["<answer>", "</answer>", "<|end|>", "<|user|>", " ", "\n", "7", "é", "red"])))
def test_grammar_and_special_tokens_survive_it_too(pieces):
    text = "".join(pieces)
    assert TRAINED.decode(TRAINED.encode(text)) == text


@pytest.mark.parametrize("text", ["Répondez!", "Отвечай.", "Antworte jetzt, hörst du?"])
def test_a_fixed_string_in_another_language_survives(text):
    tokenizer = hf_tokenizer.train_tokenizer(CORPUS, [text], 400, "<|feature|>")
    assert tokenizer.decode(tokenizer.encode(f"so {text}")) == f"so {text}"


def refusal(**settings: object) -> str:
    with pytest.raises(VilavtError) as caught:
        model = HFCausal(HFCausalConfig(**settings))
        model.fit_tokenizer(CORPUS, FIXED)
        model.load_weights()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600
    return message


def copied(folder: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(folder, tmp_path / "copy"))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "exactly one of"),
        ({"hidden_size": 32}, "Unrecognized model"),
        ({"model_type": "lama"}, "lama"),
        ({"model_type": "vit"}, "ViTConfig"),
        ({**FAMILIES["llama"], "hidden_size": "wide"}, "expected int"),
        ({**FAMILIES["llama"], "hidden_size": 30}, "hidden size"),
        ({**FAMILIES["llama"], "hiden_size": 30}, "Did you mean 'hidden_size'"),
        ({**FAMILIES["gpt2"], "n_embd": 30}, "divisible"),
        ({**FAMILIES["llama"], "num_key_value_heads": 32}, "num_key_value_heads is 32 and num_attention_heads 4"),
        ({**FAMILIES["llama"], "num_key_value_heads": 3}, "num_key_value_heads is 3 and num_attention_heads 4"),
        ({**FAMILIES["llama"], "vocab_size": 100}, "Set vocab_size to 264 or more"),
    ],
)
def test_a_config_that_builds_nothing_is_one_sentence(config, words):
    assert words in refusal(config=config)


def test_an_attention_that_does_not_exist_is_one_sentence():
    assert "attn_implementation" in refusal(config=FAMILIES["llama"], attention="fast")


def test_path_and_config_together_are_refused():
    assert "exactly one" in refusal(path="somewhere", config=FAMILIES["llama"])


def test_damaged_folders_are_one_sentence_each(folder, tmp_path):
    path = copied(folder, tmp_path)
    weights = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    assert str(path) in refusal(path=str(path)), "truncated weights"
    (path / "model.safetensors").unlink()
    assert "safetensors" in refusal(path=str(path)), "no weights"
    torch.save({}, path / "pytorch_model.bin")
    assert "safetensors" in refusal(path=str(path)), "pickled weights"
    (path / "tokenizer.json").write_text("{")
    assert "tokenizer" in refusal(path=str(path)), "a broken tokenizer"
    (path / "tokenizer.json").unlink()
    assert "Name one in `tokenizer`" in refusal(path=str(path)), "no tokenizer"
    (path / "config.json").write_text("{")
    assert str(path) in refusal(path=str(path)), "a broken config"
    assert "nowhere" in refusal(path=str(tmp_path / "nowhere"), local_files_only=True)


def test_weights_of_another_model_are_refused_rather_than_replaced_by_random_ones(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    path = copied(folder, tmp_path)
    tensors = load_file(path / "model.safetensors")
    dropped = next(name for name in tensors if "k_proj.weight" in name)
    save_file({k: v for k, v in tensors.items() if k != dropped}, path / "model.safetensors", {"format": "pt"})
    assert dropped in refusal(path=str(path))
    with torch.device("meta"):
        assert dropped in refusal(path=str(path)), "vilavt check"
    narrow = {k: v[..., :8].contiguous() for k, v in tensors.items()}
    save_file(narrow, path / "model.safetensors", {"format": "pt"})
    assert str(path) in refusal(path=str(path))
    with torch.device("meta"):
        assert "of another shape" in refusal(path=str(path)), "vilavt check"


def test_a_tokenizer_of_more_tokens_than_the_model_is_refused(folder, tmp_path, make_backend):
    larger = hf_tokenizer.train_tokenizer([chr(300 + n) * 3 for n in range(400)], [], 900, "<|feature|>")
    larger.backend.save_pretrained(tmp_path)
    told = refusal(path=str(folder), tokenizer=str(tmp_path))
    assert "beyond the" in told and "that the model has weights for" in told
    padded = make_backend(None)
    padded.add_special_tokens({"pad_token": "[PAD]"})
    padded.save_pretrained(tmp_path / "padded")
    assert HFCausal(HFCausalConfig(path=str(folder), tokenizer=str(tmp_path / "padded"))).vocab_size == len(padded) + 1


def test_a_check_of_right_weights_reads_none(folder, monkeypatch):
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    with torch.device("meta"):
        model = HFCausal(HFCausalConfig(path=str(folder)))
        model.load_weights()
    assert all(weight.is_meta for weight in model.parameters())


@pytest.mark.parametrize("name", ["nobody/nothing-here", "not a//name"])
def test_a_hub_name_out_of_reach_is_one_sentence(name, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert name in refusal(path=name)


def test_rotary_frequencies_keep_their_precision_in_half_precision():
    model = HFCausal(HFCausal.tiny())
    exact = {name: buffer.clone() for name, buffer in model.named_buffers() if name.endswith("inv_freq")}
    model.to(torch.bfloat16)
    assert next(model.parameters()).dtype == torch.bfloat16
    assert exact and all(torch.equal(dict(model.named_buffers())[name], kept) for name, kept in exact.items())
