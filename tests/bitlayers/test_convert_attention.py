"""Attention: converted modules compute what torch's do, for all arguments; encoder layers take no path past them."""

from __future__ import annotations

import copy
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bitcore import BitLabError, BitQuantConfig
from bitcore.config import FLOAT
from bitcore.presets import PRESETS
from bitlayers import BitLayer, BitLinear, BitMultiheadAttention, pack, quantize
from bitlayers.bitattention import PROJECTIONS
from bitlayers.convert import convert

PLAIN = BitQuantConfig(FLOAT)
KINDS: dict[str, dict[str, Any]] = {
    "same width": {},
    "other widths": {"kdim": 6, "vdim": 10},
    "no bias": {"bias": False},
    "bias kv": {"add_bias_kv": True},
    "zero attention": {"add_zero_attn": True, "add_bias_kv": True},
}
BATCH, TARGETS, SOURCES, HEADS = 3, 5, 7, 2


def attention(batch_first: bool = True, **options: Any) -> nn.MultiheadAttention:
    """Torch's module with random biases, in eval mode."""
    module = nn.MultiheadAttention(8, HEADS, batch_first=batch_first, **options).eval()
    if module.in_proj_bias is not None:
        nn.init.normal_(module.in_proj_bias)
    return module


def inputs(module: nn.MultiheadAttention) -> list[Tensor]:
    """Query, key and value."""
    shapes = ((TARGETS, 8), (SOURCES, module.kdim), (SOURCES, module.vdim))
    x = [torch.randn(BATCH, *shape) for shape in shapes]
    return x if module.batch_first else [t.transpose(0, 1) for t in x]


def masks() -> list[dict[str, Any]]:
    """None, Boolean and float masks, of all shapes, alone and together."""
    allowed = torch.rand(TARGETS, SOURCES) < 0.3
    allowed[:, 0] = False
    padding = torch.rand(BATCH, SOURCES) < 0.3
    padding[:, 0] = False
    each = torch.rand(BATCH * HEADS, TARGETS, SOURCES) < 0.3
    each[..., 0] = False
    real = torch.randn(BATCH, SOURCES)
    return [
        {},
        {"attn_mask": allowed},
        {"attn_mask": each},
        {"key_padding_mask": padding},
        {"attn_mask": allowed, "key_padding_mask": padding},
        {"attn_mask": torch.randn(BATCH * HEADS, TARGETS, SOURCES), "key_padding_mask": real},
    ]


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_without_quantization_it_is_torchs_attention(kind: str, batch_first: bool):
    module = attention(batch_first, **KINDS[kind])
    bit = quantize(copy.deepcopy(module), PLAIN)
    assert isinstance(bit, BitMultiheadAttention)
    for mask, weights, average in product(masks(), (True, False), (True, False)):
        options = {**mask, "need_weights": weights, "average_attn_weights": average}
        x = inputs(module)
        expected, found = module(*x, **options), bit(*x, **options)
        torch.testing.assert_close(found, expected)
        assert (found[1] is None) == (not weights)


@torch.no_grad()
def test_inputs_without_a_batch():
    module = attention()
    bit = quantize(copy.deepcopy(module), PLAIN)
    q, k, v = (x[0] for x in inputs(module))
    padding = torch.arange(SOURCES) > 4
    torch.testing.assert_close(bit(q, k, v, key_padding_mask=padding), module(q, k, v, key_padding_mask=padding))
    torch.testing.assert_close(bit(q, k, v, need_weights=False), module(q, k, v, need_weights=False))


@torch.no_grad()
def test_causal_masks():
    module = attention()
    bit = quantize(copy.deepcopy(module), PLAIN)
    x = torch.randn(BATCH, TARGETS, 8)
    mask = nn.Transformer.generate_square_subsequent_mask(TARGETS)
    for weights in (True, False):
        options: dict[str, Any] = {"attn_mask": mask, "is_causal": True, "need_weights": weights}
        torch.testing.assert_close(bit(x, x, x, **options), module(x, x, x, **options))
    with pytest.raises(BitLabError, match="pass the causal attn_mask too"):
        bit(x, x, x, is_causal=True)


@pytest.mark.parametrize("name", ["attn_mask", "key_padding_mask"])
def test_masks_of_other_shapes_are_refused(name: str):
    bit = BitMultiheadAttention(8, HEADS, batch_first=True)
    with pytest.raises(BitLabError, match=rf"{name} must have shape \(\d, \d.*\), not \(1, 7\)"):
        bit(*inputs(bit), **{name: torch.zeros(1, SOURCES)})


def test_dropout_and_gradients_in_training():
    module = nn.MultiheadAttention(8, HEADS, dropout=0.5, batch_first=True)
    bit = quantize(copy.deepcopy(module), PLAIN).train()
    x = inputs(module)
    for weights in (True, False):
        torch.manual_seed(3)
        expected = module.train()(*x, need_weights=weights)[0]
        torch.manual_seed(3)
        found = bit(*x, need_weights=weights)[0]
        if weights:  # the fused operation draws in another order
            torch.testing.assert_close(found, expected)
        assert not torch.equal(found, bit(*x, need_weights=weights)[0])
    quantized = quantize(copy.deepcopy(module), "bitnet")
    quantized(*x)[0].square().sum().backward()
    for name, parameter in quantized.named_parameters():
        if name != "k_proj.bias":  # softmax does not feel it
            assert parameter.grad is not None and bool((parameter.grad != 0).any()), name


@pytest.mark.parametrize("preset", ["bitnet", "bitnet-cnn", "w8a8", "mcu-4bitsym-static", "xnor"])
@torch.no_grad()
def test_eval_equals_packed(preset: str):
    bit = BitMultiheadAttention(8, HEADS, batch_first=True, quant_config=PRESETS[preset])
    assert [type(getattr(bit, name)) for name in PROJECTIONS] == [BitLinear] * 4
    x = inputs(bit)
    bit.train()(*x)
    expected = bit.eval()(*x)
    bit = pack(bit)
    assert all(torch.equal(a, b) for a, b in zip(bit(*x), expected, strict=True))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_torchs_state_dictionaries_load(kind: str):
    module, other = attention(**KINDS[kind]), quantize(attention(**KINDS[kind]), PLAIN)
    state = module.state_dict()
    other.load_state_dict(state)
    x = inputs(module)
    torch.testing.assert_close(other(*x), module(*x))
    assert state.keys() == module.state_dict().keys()


def test_flags_and_shared_parameters_are_kept():
    one, two = attention(dtype=torch.float64), attention(dtype=torch.float64)
    two.in_proj_weight = one.in_proj_weight
    one.in_proj_weight.requires_grad_(False)
    handle = one.register_forward_hook(lambda *_: None)
    model = nn.ModuleDict({"one": one, "two": two, "again": one})
    report = convert(model, "bitnet")
    assert [entry.names for entry in report.converted][:4] == [(f"one.{n}", f"again.{n}") for n in PROJECTIONS]
    assert {entry.layer for entry in report.entries} == {"MultiheadAttention"}
    assert model["one"] is one is model["again"] and isinstance(one, BitMultiheadAttention)
    assert one.q_proj.weight is two.q_proj.weight and one.q_proj.bias is not two.q_proj.bias  # type: ignore[attr-defined]
    assert not one.v_proj.weight.requires_grad and one.out_proj.weight.requires_grad
    assert one.q_proj.weight.dtype == torch.float64 and not one.q_proj.training
    assert list(one._forward_hooks) == [handle.id]


def test_projections_are_overridden_by_name():
    model = nn.ModuleDict({"attention": attention()})
    quantize(model, "bitnet", {"*.out_proj": None, "attention.[kv]_proj": "bitlab"}, inplace=True)
    attend = model["attention"]
    assert type(attend.out_proj) is nn.Linear
    assert isinstance(attend.q_proj, BitLayer) and attend.q_proj.quant_config == PRESETS["bitnet"]
    assert isinstance(attend.k_proj, BitLayer) and attend.k_proj.quant_config == PRESETS["bitlab"]
    left = nn.ModuleDict({"attention": attention()})
    report = convert(left, "bitnet", {"attention.*": None})
    assert type(left["attention"]) is nn.MultiheadAttention and len(report.left) == 4
    report = convert(left, None)
    assert type(left["attention"]) is nn.MultiheadAttention and not report.converted


def encoder() -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(8, HEADS, 16, batch_first=True, activation="gelu")
    return nn.TransformerEncoder(layer, 2).eval()


PADDING = torch.tensor([[False] * 5, [False] * 3 + [True] * 2, [False] * 4 + [True]])


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")  # torch's own path does it
@pytest.mark.parametrize("overrides", [{}, {"*self_attn*": None}, {"*linear*": None}], ids=str)
@torch.no_grad()
def test_encoder_layers_do_not_go_past_the_bit_layers(overrides: dict[str, None]):
    """In eval mode torch's encoder hands float weights to a fused kernel and packs padded inputs."""
    model, x = encoder(), torch.randn(BATCH, TARGETS, 8)
    for padding in (None, PADDING):
        expected = model(x, src_key_padding_mask=padding)
        found = quantize(copy.deepcopy(model), PLAIN, overrides)(x, src_key_padding_mask=padding)
        keep = slice(None) if padding is None else ~padding
        torch.testing.assert_close(found[keep], expected[keep], rtol=1e-4, atol=1e-5)
    bit = quantize(model, "w8a8", overrides)
    bit.train()(x)
    bit.eval()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        expected = bit(x, src_key_padding_mask=PADDING)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    found = bit(x, src_key_padding_mask=PADDING)
    assert torch.equal(found[~PADDING], expected[~PADDING])
    bit = pack(bit)
    assert torch.equal(bit(x, src_key_padding_mask=PADDING), found)


@torch.no_grad()
def test_a_whole_transformer():
    model = nn.Transformer(8, HEADS, 1, 1, 16, batch_first=True).eval()
    source, target = torch.randn(2, 4, 8), torch.randn(2, 3, 8)
    expected = model(source, target)
    report = convert(model, PLAIN)
    assert len(report.converted) == 3 * 4 + 2 * 2 and not report.left
    torch.testing.assert_close(model(source, target), expected, rtol=1e-4, atol=1e-5)
