"""Whole models: what conversion keeps, what it leaves and why, and models from outside."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from bitcore import BitLabError, BitQuantConfig
from bitcore.config import FLOAT
from bitcore.presets import PRESETS
from bitlayers import BitEmbedding, BitLayer, BitLinear, pack, quantize
from bitlayers.convert import convert, convert_layers


class Tied(nn.Module):
    """An embedding and a head that share one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(11, 8), nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embed(x))


def test_tied_weights_stay_tied():
    model = Tied()
    model = quantize(model, "bitnet-cnn")
    assert isinstance(model.embed, BitEmbedding) and isinstance(model.head, BitLinear)
    assert model.head.weight is model.embed.weight and len(list(model.parameters())) == 1
    index = torch.tensor([[1, 2], [3, 1]])
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(index).square().sum().backward()
    optimizer.step()
    assert model.head.weight is model.embed.weight
    assert torch.equal(model.head.qweight, model.embed.qweight)
    with torch.no_grad():
        expected = model.eval()(index)
        assert torch.equal(pack(model)(index), expected)


def test_a_layer_of_several_names_is_one_layer():
    shared = nn.Linear(5, 5)
    model = nn.ModuleDict({"a": nn.Linear(5, 5), "b": shared, "c": nn.Sequential(shared)})
    holder = [shared]  # a reference that no module knows of
    report = convert(model, "bitnet", {"c.*": {"weight_format": "int4"}})
    assert model["b"] is model["c"].get_submodule("0") is holder[0] and type(shared) is BitLinear
    assert shared.quant_config.weight_format == "int4"  # a pattern may use any of its names
    assert [entry.names for entry in report.entries] == [("a",), ("b", "c.0")]
    assert "b = c.0" in str(report)


def test_hooks_and_attributes_are_kept():
    layer, seen = nn.Linear(4, 3), []
    layer.note = "kept"  # type: ignore[assignment]
    layer.register_buffer("mask", torch.ones(3))
    handles = [
        layer.register_forward_pre_hook(lambda *_: seen.append("pre")),
        layer.register_forward_hook(lambda module, x, y: y * module.mask * 2),
        layer.register_full_backward_hook(lambda *_: seen.append("backward")),
        layer.register_state_dict_post_hook(lambda *_: seen.append("state")),
        layer.weight.register_hook(lambda g: g * 0 + 7),
    ]
    model = nn.Sequential(layer)
    x = torch.randn(2, 4, requires_grad=True)
    expected = model(x)
    quantize(model, BitQuantConfig(FLOAT), inplace=True)  # of a copied parameter torch forgets the hooks
    torch.testing.assert_close(model(x), expected)
    model(x).sum().backward()
    assert seen.count("pre") == 3 and seen.count("backward") == 1
    assert bool((layer.weight.grad == 7).all()) and layer.note == "kept"
    assert set(model.state_dict()) == {"0.weight", "0.bias", "0.mask"} and "state" in seen
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(model(x), expected / 2)
    assert seen.count("pre") == 3


def test_a_second_conversion_knows_the_first_layer():
    """Only the layer at the network's input gets input_dtype, in whatever order layers are converted."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    config = BitQuantConfig(activation_dtype="uint4", activation_scale="tracked")
    model = quantize(model, None, {"first": config})
    model = quantize(model, config)
    dtypes = [layer.quant_config.activation_dtype for layer in model if isinstance(layer, BitLayer)]
    assert dtypes == ["int8", "int4", "int4"]


def test_layers_called_first_and_last():
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "first": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    model = quantize(model, "bitnet", {"first": None})
    assert [type(model[n]) for n in ("a", "first", "b")] == [BitLinear, nn.Linear, BitLinear]


def replaced_forward() -> nn.Module:
    layer = nn.Linear(3, 3)
    layer.forward = lambda x: x  # type: ignore[method-assign]
    return layer


class Subclass(nn.Conv2d):
    """Might do anything."""


LEFT: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "weight norm, the old way": (lambda: _old_weight_norm(), "its weight is computed"),
    "weight norm": (lambda: parametrizations.weight_norm(nn.Linear(3, 3)), "remove_parametrizations"),
    "spectral norm": (lambda: parametrizations.spectral_norm(nn.Conv2d(3, 3, 1)), "remove_parametrizations"),
    "pruned": (lambda: prune.random_unstructured(nn.Linear(3, 3), "weight", 0.5), "its weight is computed"),
    "another forward": (replaced_forward, "its forward was replaced"),
    "complex": (lambda: nn.Linear(3, 3, dtype=torch.complex64), "not a real floating-point type"),
    "max_norm": (lambda: nn.Embedding(3, 3, max_norm=1.0), "max_norm"),
    "sparse": (lambda: nn.Embedding(3, 3, sparse=True), "sparse=False"),
    "lazy": (lambda: nn.LazyLinear(3), "pass a batch through the model first"),
    "subclass": (lambda: Subclass(3, 3, 1), "subclass of Conv2d"),
    "another layer": (lambda: nn.Bilinear(3, 3, 3), "no bit layer for its type"),
    "attention, pruned": (
        lambda: prune.random_unstructured(nn.MultiheadAttention(4, 2), "in_proj_weight", 0.5),
        "its weight is computed",
    ),
}


def _old_weight_norm() -> nn.Module:
    layer = nn.Linear(3, 3)
    layer.weight_g, layer.weight_v = nn.Parameter(torch.ones(3, 1)), nn.Parameter(layer.weight.detach())
    del layer.weight
    layer.weight = layer.weight_v * layer.weight_g  # type: ignore[assignment]  # what its hook sets
    return layer


@pytest.mark.parametrize("case", LEFT)
def test_what_is_left_and_why(case: str):
    make, reason = LEFT[case]
    odd = make()
    kind = type(odd)
    model = nn.ModuleDict({"odd": odd, "norm": nn.LayerNorm(3), "plain": nn.Linear(3, 3)})
    report = convert(model, "bitnet")
    assert type(odd) is kind and type(model["plain"]) is BitLinear
    assert [entry.names for entry in report.converted] == [("plain",)]
    assert report.left and all(reason in entry.reason and "odd" in entry.names[0] for entry in report.left)
    with pytest.raises(BitLabError, match=r"layer 'odd.*' (stays|cannot)|matches no layer"):
        quantize(model, None, {report.left[0].names[0]: "w8a8"}, inplace=True)


def test_the_report_is_a_table():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Bilinear(3, 3, 3), nn.LSTM(3, 4), nn.Linear(4, 2))
    text = str(convert(model, "w8a8", {"last": None})).splitlines()
    assert text[0].split() == ["name", "layer", "became"]
    assert "weights int8 (absmax per_channel), inputs int8 (tracked per_tensor)" in text[1] and text[1].startswith("0 ")
    assert "left: there is no bit layer" in text[2] and "LSTM" in text[3]
    assert "left: it was asked to stay as it is" in text[4]
    assert text[5] == "1 converted, 3 left (1 Bilinear, 1 LSTM, 1 Linear)"
    assert "(the model)" in str(convert(nn.Linear(2, 2), "bitnet"))


def test_named_layers_get_exactly_their_configs():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    convert_layers(model, {"0": PRESETS["xnor"]})
    assert model[0].quant_config == PRESETS["xnor"] and type(model[1]) is nn.Linear
    with pytest.raises(BitLabError, match="unknown layer '7'"):
        convert_layers(model, {"1": PRESETS["xnor"], "7": PRESETS["xnor"]})
    assert type(model[1]) is nn.Linear


# ---- models from outside ---------------------------------------------------------------------------------------------

SIZES = {"vocab_size": 50, "max_position_embeddings": 20}


def bert(t: ModuleType) -> nn.Module:
    config = t.BertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, **SIZES)
    return t.BertForSequenceClassification(config)


def llama(t: ModuleType) -> nn.Module:
    config = t.LlamaConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, intermediate_size=24,
        tie_word_embeddings=True, **SIZES,
    )  # fmt: skip
    return t.LlamaForCausalLM(config)


def gpt2(t: ModuleType) -> nn.Module:
    tokens = {"bos_token_id": 0, "eos_token_id": 0}
    return t.GPT2LMHeadModel(t.GPT2Config(vocab_size=50, n_positions=20, n_embd=16, n_layer=2, n_head=2, **tokens))


# The layers that are expected: 2 blocks of linear ones, and what surrounds them.
OUTSIDE: dict[str, tuple[Callable[[ModuleType], nn.Module], int]] = {
    "bert": (bert, 3 + 2 * 6 + 2),
    "llama": (llama, 1 + 2 * 7 + 1),
    "gpt2": (gpt2, 2 + 2 * 4 + 1),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", OUTSIDE)
def test_models_of_transformers(name: str, require_package: Callable[[str], ModuleType]):
    make, count = OUTSIDE[name]
    model = make(require_package("transformers")).eval()
    tied = [[n for n, p in model.named_parameters(remove_duplicate=False) if p is q] for q in model.parameters()]
    x = torch.randint(50, (2, 7))
    with torch.no_grad():
        expected = model(x).logits
        twin = copy.deepcopy(model)
        report = convert(twin, BitQuantConfig(FLOAT))
        torch.testing.assert_close(twin(x).logits, expected, rtol=1e-4, atol=1e-5)
    assert len(report.converted) == count and not report.left
    for preset, dtype in (("bitnet", torch.float32), ("w8a8", torch.float32), ("bitnet-cnn", torch.bfloat16)):
        bit: Any = quantize(copy.deepcopy(model).to(dtype), preset).train()
        names = dict(bit.named_parameters(remove_duplicate=False))
        assert all(len({id(names[n]) for n in same}) == 1 for same in tied)
        logits = bit(x).logits
        assert logits.dtype == dtype
        logits.float().square().mean().backward()
        assert all(p.grad is not None for n, p in bit.named_parameters() if "quantizer" not in n)
        with torch.no_grad():
            expected = bit.eval()(x).logits
            bit = pack(bit)
            assert all(m.packed for m in bit.modules() if isinstance(m, BitLayer))
            assert torch.equal(bit(x).logits, expected)
