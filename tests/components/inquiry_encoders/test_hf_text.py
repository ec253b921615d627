"""Inquiries are read by any text model of transformers, as transformers reads them."""

from types import SimpleNamespace

import pytest
import torch

from vilavt_components.inquiry_encoders.hf_text import HFTextConfig, HFTextInquiryEncoder
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.testing import bench

SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
FAMILIES = {
    "qwen3": {"model_type": "qwen3", **SMALL, "num_key_value_heads": 1, "head_dim": 8},
    "bert": {"model_type": "bert", **SMALL},
    "roberta": {"model_type": "roberta", **SMALL, "pad_token_id": 1, "max_position_embeddings": 66},
    "modernbert": {"model_type": "modernbert", **SMALL, "pad_token_id": 0},
    "gpt2": {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "deberta-v2": {"model_type": "deberta-v2", **SMALL, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "opt": {"model_type": "opt", "hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 24, "num_attention_heads": 2},
    "esm": {"model_type": "esm", **SMALL, "pad_token_id": 1, "max_position_embeddings": 66},
    "xlm": {"model_type": "xlm", "emb_dim": 16, "n_layers": 2, "n_heads": 2, "pad_index": 0},
    "t5": {"model_type": "t5", "d_model": 16, "d_ff": 24, "d_kv": 8, "num_layers": 2, "num_heads": 2},
}
IDS = [[5, 9, 12, 7, 30], [], [8], [40, 41, 42]]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "square", "digit", "##s"]


def encoder_of(**settings):
    torch.manual_seed(0)
    made = HFTextInquiryEncoder(HFTextConfig(**settings), SimpleNamespace(vocab_size=64, tokenizer=None)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return made


@pytest.fixture
def bert_folder(tmp_path):
    """A small BERT with its tokenizer, as a user has one."""
    from transformers import BertConfig, BertModel, BertTokenizer

    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    torch.manual_seed(1)
    BertModel(BertConfig(vocab_size=len(WORDS), **SMALL)).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_features_are_the_models_last_hidden_states(family):
    encoder = encoder_of(config=FAMILIES[family])
    features, pooled = encoder(IDS)
    alone = [encoder.model(input_ids=torch.tensor([ids])).last_hidden_state[0] for ids in IDS if ids]
    bench.assert_close(features, torch.cat(alone), family)
    assert not pooled[1].any()
    bench.assert_close(pooled[[0, 2, 3]], torch.stack([x.mean(0) for x in alone]), "mean")


def test_a_model_that_mixes_padding_into_an_inquiry_is_refused_by_name():
    with pytest.raises(InputError, match=r"type 'fnet' cannot be used .*from itself alone.*Choose another text model"):
        encoder_of(config={"model_type": "fnet", **{k: v for k, v in SMALL.items() if k != "num_attention_heads"}})


@torch.no_grad()
def test_an_inquiry_that_is_longer_than_a_window_is_read_through_it():
    config = {**FAMILIES["modernbert"], "local_attention": 4, "layer_types": ["sliding_attention", "full_attention"]}
    encoder = encoder_of(config=config)
    ids = list(range(5, 25))
    bench.assert_close(encoder([ids, [7]])[0][:20], encoder.model(torch.tensor([ids])).last_hidden_state[0], "windows")


@torch.no_grad()
def test_the_last_token_can_stand_for_the_inquiry():
    encoder = encoder_of(config=FAMILIES["qwen3"], pooling="last", width=7)
    features, pooled = encoder(IDS)
    assert features.shape == (9, 7) and encoder.width == 7
    assert torch.equal(pooled[[0, 2, 3]], features[[4, 5, 8]])
    assert not pooled[1].any()


@torch.no_grad()
def test_a_decoder_reads_from_left_to_right_and_an_encoder_both_ways():
    for family, later_matters in (("qwen3", False), ("bert", True)):
        encoder = encoder_of(config=FAMILIES[family])
        first, second = (encoder([[5, 9, last], [4]])[0][0] for last in (7, 8))
        assert torch.equal(first, second) is not later_matters


@torch.no_grad()
def test_no_inquiry_at_all_gives_no_features():
    features, pooled = encoder_of(config=FAMILIES["bert"], width=5)([[], []])
    assert features.shape == (0, 5)
    assert pooled.shape == (2, 5) and not pooled.any()


@torch.no_grad()
def test_a_folder_gives_its_model_and_its_tokenizer(bert_folder):
    from transformers import BertModel

    encoder = encoder_of(path=str(bert_folder), local_files_only=True)
    encoder.load_weights()
    ids = encoder.tokenize(" a red square ")
    assert encoder.token_texts(ids) == ["[CLS]", "a", "red", "square", "[SEP]"]
    expected = BertModel.from_pretrained(bert_folder)(torch.tensor([ids])).last_hidden_state[0]
    bench.assert_close(encoder.eval()([ids])[0], expected, "features")


def test_a_long_inquiry_is_cut_and_keeps_its_marks(bert_folder):
    encoder = encoder_of(path=str(bert_folder), max_tokens=4, local_files_only=True)
    assert encoder.token_texts(encoder.tokenize("a red digit a red square")) == ["[CLS]", "a", "red", "[SEP]"]
    assert encoder.tokenize("  \n") == []


@pytest.mark.parametrize("prefix", ["", "a ", "[CLS] a "])
def test_names_of_special_tokens_in_an_inquiry_are_words(bert_folder, prefix):
    encoder = encoder_of(path=str(bert_folder), prefix=prefix, local_files_only=True)
    before = encoder.tokenize("red")[:-2]
    ids = encoder.tokenize("[SEP] red[PAD] [CLS]square")
    assert ids[: len(before)] == before and ids[-1] == WORDS.index("[SEP]")
    assert not {WORDS.index(name) for name in ("[PAD]", "[CLS]", "[SEP]")} & set(ids[len(before) : -1])
    assert {WORDS.index("red"), WORDS.index("square")} <= set(ids)


def test_a_new_model_reads_the_language_models_tokens():
    language_model = bench.example_language_model()
    encoder = HFTextInquiryEncoder(HFTextConfig(config=FAMILIES["qwen3"], max_tokens=3), language_model)
    ids = language_model.tokenizer.encode("read the digit on the blue circle")
    assert encoder.tokenize(" read the digit on the blue circle") == ids[:3]
    assert "".join(encoder.token_texts(ids)) == "read the digit on the blue circle"
    assert encoder.model.get_input_embeddings().num_embeddings == language_model.vocab_size


def test_tokens_that_the_text_model_has_no_row_for_are_refused(bert_folder, tmp_path_factory):
    from transformers import BertTokenizer

    more = tmp_path_factory.mktemp("more")
    (more / "vocab.txt").write_text("\n".join([*WORDS, "lamp", "door"]))
    BertTokenizer(str(more / "vocab.txt")).save_pretrained(more)
    with pytest.raises(InputError, match=r"12 tokens, 2 of them beyond the 9 .* Set `tokenizer` to its own"):
        encoder_of(path=str(bert_folder), tokenizer=str(more), local_files_only=True)
    with pytest.raises(InputError, match="rows for 10 tokens"):
        encoder_of(config={**FAMILIES["bert"], "vocab_size": 10})


def test_pickled_weights_are_not_read(bert_folder):
    from safetensors.torch import load_file

    torch.save(load_file(bert_folder / "model.safetensors"), bert_folder / "pytorch_model.bin")
    (bert_folder / "model.safetensors").unlink()
    encoder = encoder_of(path=str(bert_folder), local_files_only=True)
    with pytest.raises(InputError, match="cannot be loaded"):
        encoder.load_weights()


def test_weights_that_lack_something_are_refused(bert_folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(bert_folder / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, bert_folder / "model.safetensors", metadata={"format": "pt"})
    encoder = encoder_of(path=str(bert_folder), local_files_only=True)
    for device in ("cpu", "meta"):
        with pytest.raises(InputError, match=r"lack encoder\.layer\.1\.output\.dense\.weight"):
            encoder.to(device).load_weights()
        encoder = encoder_of(path=str(bert_folder), local_files_only=True)


@torch.no_grad()
def test_a_changed_precision_leaves_rotary_frequencies_exact():
    encoder = encoder_of(config=FAMILIES["qwen3"])
    expected = encoder.model.rotary_emb.inv_freq.clone()
    encoder.to(torch.bfloat16)
    assert encoder.model.rotary_emb.inv_freq.dtype == torch.float32
    assert torch.equal(encoder.model.rotary_emb.inv_freq, expected)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "exactly one"),
        ({"config": {"model_type": "qwen3", "hiden_size": 16}}, "Did you mean 'hidden_size'"),
        ({"path": "no/such/model", "local_files_only": True}, "no/such/model"),
    ],
)
def test_settings_that_make_no_model_are_explained(settings, words):
    with pytest.raises(InputError, match=words):
        encoder_of(**settings)


class Letters:
    """A language model's tokenizer: a token a letter, and one for the end."""

    def encode(self, text):
        return [63] if text == "<|end|>" else [ord(letter) - 96 for letter in text]


@pytest.mark.parametrize(("text", "ids"), [("abc", [1, 2, 3, 63]), ("abcdefg", [1, 2, 3, 4, 63]), ("  ", [])])
def test_an_end_token_stands_behind_what_is_left_of_an_inquiry(text, ids):
    config = HFTextConfig(config=FAMILIES["qwen3"], end_token="<|end|>", max_tokens=5)
    assert HFTextInquiryEncoder(config, SimpleNamespace(vocab_size=64, tokenizer=Letters())).tokenize(text) == ids


@pytest.mark.parametrize(("text", "ids"), [(" abc ", [26, 1, 2, 3, 63]), ("abcdefg", [26, 1, 2, 3, 63]), (" ", [])])
def test_a_prefix_stands_before_every_inquiry_that_is_not_blank(text, ids):
    config = HFTextConfig(config=FAMILIES["qwen3"], prefix="z", end_token="<|end|>", max_tokens=5)
    assert HFTextInquiryEncoder(config, SimpleNamespace(vocab_size=64, tokenizer=Letters())).tokenize(text) == ids


def test_an_end_that_is_no_token_is_refused():
    config = HFTextConfig(config=FAMILIES["qwen3"], end_token="end")
    encoder = HFTextInquiryEncoder(config, SimpleNamespace(vocab_size=64, tokenizer=Letters()))
    with pytest.raises(InputError, match="`end_token` 'end' is 3 tokens"):
        encoder.tokenize("abc")


def test_a_frozen_text_model_leaves_the_map_to_be_trained():
    encoder = encoder_of(config=FAMILIES["qwen3"], width=7, frozen=True)
    learning = {name for name, weight in encoder.named_parameters() if weight.requires_grad}
    assert learning == {"projection.weight", "projection.bias"}


def test_a_checkpoint_needs_the_text_models_folder_no_more(bert_folder, tmp_path_factory):
    config = HFTextConfig(path=str(bert_folder), width=7)
    language_model = SimpleNamespace(vocab_size=64, tokenizer=None)
    encoder, saved = HFTextInquiryEncoder(config, language_model), tmp_path_factory.mktemp("saved")
    encoder.save_assets(saved)
    gone = HFTextConfig(path=str(bert_folder / "gone"), width=7)
    again = HFTextInquiryEncoder.from_saved(gone, language_model, saved)
    again.load_state_dict(encoder.state_dict())
    assert again.tokenize("a red square") == encoder.tokenize("a red square")
