"""Hugging Face's models, quantized and packed: they read dtype, shape and device of weights that are only codes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import bitlayers

transformers = pytest.importorskip("transformers")
_TEXT = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
_HEADS = {"num_attention_heads": 2}
_IMAGE = {"image_size": 16, "patch_size": 8, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
WORDS = {"input_ids": torch.arange(6)[None] + 3}
PICTURE = {"pixel_values": torch.linspace(-1, 1, 768).reshape(1, 3, 16, 16)}
T5 = {"vocab_size": 50, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
# Some of its products are with `layer.weight` itself: the float weight of a layer that is not packed.
COMPUTES_WITH_FLOAT_WEIGHTS = ("mamba",)
MODELS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "bert": (lambda: transformers.BertModel(transformers.BertConfig(**_TEXT, **_HEADS)), WORDS),
    "gpt2": (
        lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2)),
        WORDS,
    ),
    "llama": (lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**_TEXT, **_HEADS)), WORDS),
    "mamba": (
        lambda: transformers.MambaForCausalLM(
            transformers.MambaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, state_size=4)
        ),
        WORDS,
    ),
    "t5": (
        lambda: transformers.T5ForConditionalGeneration(transformers.T5Config(**T5)),
        {**WORDS, "decoder_input_ids": WORDS["input_ids"]},
    ),
    "vit": (lambda: transformers.ViTModel(transformers.ViTConfig(**_IMAGE, **_HEADS)), PICTURE),
}


@pytest.mark.filterwarnings("ignore")  # of transformers
@pytest.mark.parametrize("preset", ["bitnet", "w8a8"])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_packed_models_compute_the_bits_of_eval(name: str, preset: str):
    build, inputs = MODELS[name]
    torch.manual_seed(0)
    model = bitlayers.quantize(build(), preset)
    model.train()(**inputs)
    expected = model.eval()(**inputs)[0]
    packed = bitlayers.pack(model)
    again = bitlayers.unpack(packed)(**inputs)[0]
    assert torch.equal(packed(**inputs)[0], again)
    assert name in COMPUTES_WITH_FLOAT_WEIGHTS or torch.equal(again, expected)
    half = packed.to(torch.bfloat16)
    outputs = half(**{key: value.bfloat16() if value.is_floating_point() else value for key, value in inputs.items()})
    assert outputs[0].isfinite().all()
