"""Inquiries are read by open_clip's text towers as open_clip reads them, without its padding."""

import json
from types import SimpleNamespace

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from vilavt_components.encoders.open_clip.encoder import OpenClipConfig, OpenClipEncoder
from vilavt_components.inquiry_encoders.open_clip_text import OpenClipTextConfig, OpenClipTextInquiryEncoder
from vilavt_toolkit.errors import BadConfig, InputError
from vilavt_toolkit.testing.bench import assert_close

VISION = {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8}
TEXT = {"context_length": 16, "width": 16, "heads": 2, "layers": 2}
BOTH_WAYS = {"no_causal_mask": True, "pool_type": "last", "proj_bias": True}
CUSTOM = dict.fromkeys(("qk_norm", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc"), True)
TEXTS = ["a red square left of the door", "", "read the digit!", "the digit on the blue circle, " * 5]


def config_of(text=(), **more):
    return {"embed_dim": 20, "vision_cfg": VISION, "text_cfg": {**TEXT, **dict(text)}, **more}


MODELS = {
    "clip": (open_clip.CLIP, config_of()),
    "quick_gelu": (open_clip.CLIP, config_of(quick_gelu=True)),
    "end_of_text_by_name": (open_clip.CLIP, config_of({"pool_type": "eos", "eos_id": 49407})),
    "first_token": (open_clip.CLIP, config_of({"pool_type": "first"})),
    "text_tower_of_its_own": (open_clip.CustomTextCLIP, config_of({"ls_init_value": 0.3})),
    "both_ways": (open_clip.CustomTextCLIP, config_of(BOTH_WAYS)),
    "last_of_causal": (open_clip.CustomTextCLIP, config_of({"pool_type": "last"})),
    "without_projection": (open_clip.CustomTextCLIP, config_of({"proj_type": "none"})),
    "custom_block": (open_clip.CustomTextCLIP, config_of(CUSTOM)),
    "coca": (open_clip.CustomTextCLIP, config_of({"embed_cls": True})),
}


def model_of(name):
    """open_clip's own model with every parameter drawn anew: several start at zero or one."""
    cls, config = MODELS[name]
    torch.manual_seed(0)
    model = cls(**config, cast_dtype=None).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def encoder_of(**settings):
    return OpenClipTextInquiryEncoder(OpenClipTextConfig(**settings), SimpleNamespace()).eval()


def saved(model, path):
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)
    return str(path)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_pooled_features_are_open_clips_encode_text(name, tmp_path):
    model, config = model_of(name), MODELS[name][1]
    encoder = encoder_of(config=config, path=saved(model, tmp_path / "w.safetensors"))
    encoder.load_weights()
    ids = [encoder.tokenize(text) for text in TEXTS]
    features, pooled = encoder(ids)
    asked = [0, 2, 3]
    tokens = open_clip.SimpleTokenizer(context_length=16)([TEXTS[i] for i in asked])
    assert_close(pooled[asked], model.encode_text(tokens), name)
    assert not pooled[1].any()
    assert features.shape == (sum(map(len, ids)), encoder.width)
    assert encoder.width == (16 if name == "without_projection" else 20)


@torch.no_grad()
def test_token_features_are_projected_into_the_shared_space_too(tmp_path):
    model = model_of("text_tower_of_its_own")
    model.text.output_tokens = True
    config = MODELS["text_tower_of_its_own"][1]
    encoder = encoder_of(config=config, path=saved(model, tmp_path / "w.safetensors"))
    encoder.load_weights()
    ids = encoder.tokenize(TEXTS[0])
    features, pooled = encoder([[], ids])
    _, hidden = model.text(open_clip.SimpleTokenizer(context_length=16)([TEXTS[0]]))
    assert_close(features, (hidden @ model.text.text_projection)[0, : len(ids)], "tokens")
    assert_close(pooled[1], features[-1], "the mark at the end stands for the whole")


@pytest.mark.parametrize("name", ["clip", "both_ways", "coca"])
@torch.no_grad()
def test_an_inquiry_is_the_same_alone_and_beside_longer_ones(name):
    encoder = encoder_of(config=MODELS[name][1])
    ids = [encoder.tokenize(text) for text in TEXTS]
    features, pooled = encoder(ids)
    alone = [encoder([group]) for group in ids]
    assert_close(features, torch.cat([each for each, _ in alone]), "tokens")
    assert_close(pooled, torch.cat([each for _, each in alone]), "pooled")


def test_tokens_are_open_clips_without_padding():
    encoder = encoder_of()
    ids = encoder.tokenize(" read the digit! ")
    assert encoder.token_texts(ids) == ["<start_of_text>", "read", "the", "digit", "!", "<end_of_text>"]
    assert ids == open_clip.tokenize(["read the digit!"])[0, : len(ids)].tolist()
    assert encoder.tokenize(" \n") == []


def test_a_long_inquiry_is_cut_at_the_context_and_keeps_its_mark():
    ids = encoder_of(config=config_of()).tokenize("digit " * 99)
    assert len(ids) == 16 and len(set(ids[1:-1])) == 1
    assert encoder_of().token_texts(ids)[-1] == "<end_of_text>"


def test_one_recipe_names_the_same_model_for_both_towers(tmp_path):
    """Image and text features of one saved folder are those of open_clip's own model."""
    model = model_of("clip")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": MODELS["clip"][1]}))
    saved(model, tmp_path / "open_clip_model.safetensors")
    text, image = encoder_of(path=str(tmp_path)), OpenClipEncoder(OpenClipConfig(path=str(tmp_path)))
    text.load_weights(), image.load_weights()
    assert torch.equal(text.text.text_projection, model.text_projection)
    assert torch.equal(image.tower.model.conv1.weight, model.visual.conv1.weight)
    small = OpenClipTextInquiryEncoder(OpenClipTextConfig(), SimpleNamespace())
    assert small.width == OpenClipEncoder(OpenClipConfig(features="projected")).spec.out_width


@torch.no_grad()
def test_no_inquiry_at_all_gives_no_features():
    features, pooled = encoder_of(config=config_of())([[], []])
    assert features.shape == (0, 20) and pooled.shape == (2, 20) and not pooled.any()


def test_every_variant_is_trained_whole():
    for name, config in OpenClipTextInquiryEncoder.variants().items():
        encoder = OpenClipTextInquiryEncoder(config, SimpleNamespace()).train()
        features, pooled = encoder([encoder.tokenize(text) for text in TEXTS])
        (features.square().sum() + pooled.square().sum()).backward()
        assert all(parameter.grad is not None for parameter in encoder.parameters()), name


def test_it_builds_on_the_meta_device_and_works_from_there():
    with torch.device("meta"):
        encoder = encoder_of(config=config_of())
    assert all(parameter.is_meta for parameter in encoder.parameters())
    filled = encoder.to_empty(device="cpu")
    other = encoder_of(config=config_of())
    filled.load_state_dict(other.state_dict())
    ids = [other.tokenize(text) for text in TEXTS]
    assert torch.equal(filled(ids)[1], other(ids)[1])


@pytest.fixture
def tokenizer_folder(tmp_path):
    """A model whose folder brings a tokenizer of transformers, as CLIPA's and SigLIP's do."""
    from transformers import BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "square", "digit"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    text = BOTH_WAYS | {"hf_tokenizer_name": "owner/elsewhere", "vocab_size": 8, "context_length": 6}
    text["tokenizer_kwargs"] = {"strip_sep_token": True, "clean": "canonicalize"}
    config = config_of(text)
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    torch.manual_seed(0)
    model = open_clip.CustomTextCLIP(**config, cast_dtype=None).eval()
    saved(model, tmp_path / "open_clip_model.safetensors")
    return SimpleNamespace(path=tmp_path, model=model, config=config)


@torch.no_grad()
def test_a_tokenizer_of_transformers_pads_as_open_clip_does(tokenizer_folder):
    encoder = encoder_of(path=str(tokenizer_folder.path), local_files_only=True)
    encoder.load_weights()
    ids = [encoder.tokenize(text) for text in ("A red digit.", "a red square " * 9)]
    assert encoder.token_texts(ids[0]) == ["[CLS]", "a", "red", "digit"]
    assert len(ids[1]) <= 6
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tokenizer_folder.path}")
    expected = tokenizer_folder.model.encode_text(tokenizer(["A red digit.", "a red square " * 9]))
    assert_close(encoder(ids)[1], expected, "pooled")


@pytest.mark.parametrize("text", ["a <end_of_text> lamp", "&lt;End_of_text&gt; lamp", "<start_of_text> <end_of_text>"])
def test_names_of_special_tokens_in_an_inquiry_are_words(text):
    encoder = encoder_of(config=config_of())
    assert encoder.token_texts(encoder.tokenize(text))[1:-1] == [
        *(["a"] if text.startswith("a") else []),
        *(["<", "start", "_", "of", "_", "text", ">"] if "start" in text else []),
        *(["<", "end", "_", "of", "_", "text", ">"]),
        *(["lamp"] if "lamp" in text else []),
    ]
    first, *inner, last = encoder.tokenize(text)
    assert (first, last) == (49406, 49407) and not {first, last} & set(inner)


def test_names_of_special_tokens_are_words_to_a_tokenizer_of_transformers(tokenizer_folder):
    config = json.loads((tokenizer_folder.path / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"clean": "whitespace"}
    (tokenizer_folder.path / "open_clip_config.json").write_text(json.dumps(config))
    encoder = encoder_of(path=str(tokenizer_folder.path), local_files_only=True)
    texts = encoder.token_texts(encoder.tokenize("[SEP] red [CLS]"))
    assert texts[0] == "[CLS]" and not {"[SEP]", "[CLS]"} & set(texts[1:-1])


def test_a_tokenizer_out_of_reach_is_one_sentence(tmp_path):
    (tmp_path / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config_of({"hf_tokenizer_name": "owner/elsewhere"})})
    )
    with pytest.raises(InputError, match=r"tokenizer '.*' cannot be loaded"):
        encoder_of(path=str(tmp_path), local_files_only=True)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model": "ViT-B-33"}, "Did you mean .*ViT-B-32"),
        ({"model": "roberta-ViT-B-32"}, "transformers' roberta-base. Take inquiry encoder `hf_text`"),
        ({"config": config_of({"pool_type": "none"})}, "needs a pooled vector"),
        ({"config": config_of({"vocab_size": 100})}, "`vocab_size` 100 .* below the 49408"),
        ({"config": config_of({"scaled_cosine_attn": True})}, "scaled cosine"),
        ({"config": config_of({"tokenizer_mode": "clips"})}, "no tokenizer mode 'clips'"),
        ({"config": config_of({"tokenizer_kwargs": {"reduction_mask": "random"}})}, "at random"),
        ({"config": config_of({"tokenizer_kwargs": {"claen": "lower"}})}, "'claen'"),
        ({"config": config_of({"tokenizer_kwargs": {"trust_remote_code": True}})}, "'trust_remote_code'"),
        ({"config": config_of({"tokenizer_kwargs": {"clean": "upper"}})}, "does not take tokenizer_kwargs"),
        ({"config": config_of({"hedas": 2})}, "Did you mean 'heads'"),
        ({"config": config_of({"heads": 5})}, "cannot build the text tower"),
        ({"config": {"embed_dim": 20}}, "lacks `embed_dim` or `text_cfg`"),
    ],
)
def test_what_it_cannot_read_with_is_refused_with_the_reason(settings, words):
    with pytest.raises(BadConfig, match=words):
        encoder_of(**settings)


def test_weights_of_another_architecture_are_one_error_with_what_differs(tmp_path):
    file = saved(model_of("clip"), tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=r"missing: transformer\.resblocks\.2\..*mis-shaped: positional_embedding"):
        encoder_of(config=config_of({"layers": 3, "context_length": 9}), path=file).load_weights()
