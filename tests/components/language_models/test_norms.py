"""RMS norms by apex's kernel: refused where it is not, put in by class, and equal to the model's own."""

import shutil
import sys
import types

import pytest
import torch
from torch import nn

from vilavt_components.common.apex import BUILD, require_apex
from vilavt_components.language_models import norms
from vilavt_components.language_models.hf_causal import HFCausal, HFCausalConfig
from vilavt_components.language_models.norms import replace_norms
from vilavt_components.language_models.qwen2_5_vl import Qwen25VLLanguageModel
from vilavt_toolkit.checkpoints.native import find_checkpoint, load_checkpoint
from vilavt_toolkit.cli.app import run as command
from vilavt_toolkit.errors import InputError, MissingPackage


def usable() -> bool:
    try:
        require_apex("it", "another")
    except MissingPackage:
        return False
    return True


needs_apex = pytest.mark.skipif(not usable(), reason="apex's CUDA extensions are not here")
without_apex = pytest.mark.skipif(usable(), reason="apex can be used here")


def norms_of(model: nn.Module) -> dict[str, nn.Module]:
    return {name: child for name, child in model.named_modules() if type(child).__name__.endswith("RMSNorm")}


@without_apex
def test_check_refuses_them_where_apex_is_not(tiny_recipe, capsys):
    assert command(["check", str(tiny_recipe), "model.language_model.norms=apex_rms_norm"]) == 2
    told = capsys.readouterr().err
    assert "model.language_model: " in told and BUILD in told and "set norms own" in told


@without_apex
def test_a_run_that_had_them_is_asked_with_its_own_and_a_warning(tiny_run, tmp_path, caplog):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    recipe = find_checkpoint(run) / "recipe.yaml"
    text = recipe.read_text()
    recipe.write_text(text.replace("norms: own", "norms: apex_rms_norm"))
    assert "norms: own" in text
    model, _ = load_checkpoint(run)
    assert norms_of(model.language_model) and "computed by its own modules" in caplog.text


@pytest.mark.parametrize("model_class", [HFCausal, Qwen25VLLanguageModel])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_every_norm_is_replaced_and_weights_keep_names_and_identity(model_class, device):
    with torch.device(device):
        model = model_class(model_class.tiny())
    before, replaced = dict(model.named_parameters()), norms_of(model)
    assert len(replaced) == 5
    model.eval()
    replace_norms("it", model.model, lambda width, eps: nn.RMSNorm(width, eps=eps))
    after = dict(model.named_parameters())
    assert after.keys() == before.keys() and all(after[name] is weight for name, weight in before.items())
    for name, norm in norms_of(model).items():
        assert type(norm) is nn.RMSNorm and norm.eps == replaced[name].variance_epsilon and not norm.training


def test_with_them_a_model_computes_the_same():
    torch.manual_seed(0)
    model = HFCausal(HFCausal.tiny()).model
    for weight in (norm.weight for norm in norms_of(model).values()):
        nn.init.uniform_(weight, 0.5, 2.0)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        expected = model(ids).logits
        replace_norms("it", model, lambda width, eps: nn.RMSNorm(width, eps=eps))
        assert torch.allclose(model(ids).logits, expected, rtol=1e-5, atol=1e-6)


def test_norms_that_compute_something_else_are_refused_by_name():
    """Gemma multiplies by 1 + weight."""
    model = HFCausal(HFCausal.variants()["windows"])
    with pytest.raises(InputError, match=r"its Gemma3RMSNorm computes something else. Set norms: own"):
        replace_norms("hf_causal", model.model, lambda width, eps: nn.RMSNorm(width, eps=eps))


def test_a_model_without_any_is_refused():
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 64}
    model = HFCausal(HFCausalConfig(config={"model_type": "gpt2", **small}, vocab_size=320))
    with pytest.raises(InputError, match="it has no RMS norm"):
        replace_norms("hf_causal", model.model, lambda width, eps: nn.RMSNorm(width, eps=eps))


@pytest.mark.parametrize("model_class", [HFCausal, Qwen25VLLanguageModel])
def test_the_setting_puts_apexs_class_in(model_class, monkeypatch):
    """A module in the place of apex's, whose class is put in where it is asked for, and computes on the CPU."""

    class FusedRMSNorm(nn.RMSNorm):
        def __init__(self, width, eps):
            super().__init__(width, eps=eps)

    theirs = types.ModuleType("apex.normalization")
    inner = types.ModuleType("apex.normalization.fused_layer_norm")
    theirs.FusedRMSNorm, inner.fused_rms_norm_affine = FusedRMSNorm, None
    for name, module in (("apex", types.ModuleType("apex")), (theirs.__name__, theirs), (inner.__name__, inner)):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "amp_C", types.ModuleType("amp_C"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    norms._apex_class.cache_clear()
    try:
        model = model_class(type(model_class.tiny())(**{**vars(model_class.tiny()), "norms": "apex_rms_norm"}))
        found = norms_of(model)
        assert len(found) == 5 and all(isinstance(norm, FusedRMSNorm) for norm in found.values())
        hidden = torch.randn(2, 32)
        norm = next(iter(found.values()))
        assert torch.equal(norm(hidden), nn.functional.rms_norm(hidden, (32,), norm.weight, norm.eps))
    finally:
        norms._apex_class.cache_clear()


@needs_apex
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_value_and_gradients_are_those_of_the_models_own(dtype, autocast):
    torch.manual_seed(0)
    (own, *_) = norms_of(HFCausal(HFCausal.tiny())).values()
    nn.init.uniform_(own.weight, 0.5, 2.0)
    found = []
    holder = nn.ModuleDict({"norm": own}).cuda()
    hidden = torch.randn(4, 7, 32, device="cuda").to(dtype)
    for each in ("own", "apex_rms_norm"):
        norms.use_norms(each, "it", holder)
        own.weight.grad, given = None, hidden.clone().requires_grad_()
        with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
            value = holder["norm"](given)
        value.float().square().sum().backward()
        found.append((value.float(), given.grad.float(), own.weight.grad.clone()))
    for expected, computed in zip(*found, strict=True):
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        assert (computed - expected).abs().max() <= tolerance * expected.abs().max()
