"""Every model with every preset: it builds, learns, evaluates, packs, is saved and loaded.

The names of `zoo.NETWORKS`, one for each family and kind of block, meet every preset here. The others differ from them
in sizes alone, which tests make tiny anyway: they meet one preset each, another one for each name; ``make test-slow``
runs the whole product.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bitcore import BitLabError
from bitcore.presets import PRESETS, resolve
from bitexport.trace import lower
from bitlayers import BitLayer, clip_latent_weights, pack
from bitmodels import AutoBitModel, data_options, find_model, list_models, load_model, save_model
from bitmodels.auto import _FAMILIES
from bitmodels.resnet import BLOCKS
from zoo import CLASSES, NETWORKS, TINY, batch, tiny, tiny_options

OTHERS = [name for name in list_models() if name not in NETWORKS]
CASES = [
    pytest.param(name, preset, marks=[] if name in NETWORKS or i == OTHERS.index(name) else [pytest.mark.slow])
    for name in list_models()
    for i, preset in enumerate(PRESETS)
]


def test_every_family_and_block_is_there():
    assert set(TINY) == set(_FAMILIES)
    assert {tiny_options(name).get("block", "basic") for name in NETWORKS} == set(BLOCKS)
    assert len(OTHERS) <= len(PRESETS)


class Step:
    """A batch's loss after one step against the gradient, as a function of the step's size: the same at every call.

    The step changes each parameter by ``size`` times its norm. The model first sees the batch once, where learned
    scales and ranges start; what stochastic rounding draws and what buffers gather is the same for every size.

    Raises:
        AssertionError: A parameter has no gradient, one that is not finite, or a weight's is zero.
    """

    def __init__(self, model: nn.Module, x: Tensor, labels: Tensor) -> None:
        self.model, self.x, self.labels = model, x, labels
        self.loss()
        self.start = copy.deepcopy(model.state_dict())
        before = self.loss()
        before.backward()
        self.before = float(before.detach())
        model.load_state_dict(self.start)
        self.directions: list[tuple[nn.Parameter, Tensor]] = []
        for name, parameter in model.named_parameters():
            gradient = parameter.grad
            assert gradient is not None and torch.isfinite(gradient).all(), name
            assert parameter.ndim < 2 or gradient.any(), name
            norm = float(parameter.detach().norm()) or 1.0
            self.directions.append((parameter, gradient * (norm / max(float(gradient.norm()), 1e-30))))

    def loss(self) -> Tensor:
        torch.manual_seed(1)
        return nn.functional.cross_entropy(self.model(self.x), self.labels)

    @torch.no_grad()
    def __call__(self, size: float) -> float:
        self.model.load_state_dict(self.start)
        for parameter, direction in self.directions:
            parameter.sub_(direction, alpha=size)
        clip_latent_weights(self.model)
        return float(self.loss())


def stepped(name: str, *quant: Any) -> nn.Module:
    """A tiny model after one step, of the sizes 1, 1/2, …, 1/4096, that lowers its loss.

    A quantized network's loss is a staircase: no rate is sure to lower it in one step, which may cross several stairs
    or none. Where all is signs, with biases on the accumulator's grid, no size at all may do it; so there are four
    starting points. Of a network of few, coarse weights a step in any direction lowers the loss at some size, more
    often than not: this finds broken networks, and `test_gradients_point_downhill` wrong gradients.
    """
    for seed in range(4):
        torch.manual_seed(seed)
        model = tiny(name, *quant)
        step = Step(model, *batch(name))
        if any(step(2.0**-k) < step.before for k in range(13)):
            return model
    raise AssertionError("no step lowers the loss")


@pytest.mark.parametrize(("name", "preset"), CASES)
def test_any_model_with_any_preset(name: str, preset: str, tmp_path: Path):
    model = stepped(name, preset)
    weighted = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    assert weighted and all(isinstance(module, BitLayer) for module in weighted)
    x, _ = batch(name)
    with torch.no_grad():
        y = model.eval()(x)
        assert y.shape == (len(x), CLASSES) and torch.isfinite(y).all()
        save_model(model, tmp_path / "model.safetensors")
        loaded, _ = load_model(tmp_path / "model.safetensors")
        assert torch.equal(loaded(x), y)
        assert torch.equal(pack(model)(x), y)


@pytest.mark.parametrize("preset", PRESETS)
def test_gradients_point_downhill(preset: str):
    """A quarter and an eighth of a step downhill end lower than as much uphill, in at least 9 of these networks.

    Estimators stand in for the slope of a staircase, so that the two can be told apart only over finite steps, and in
    tiny networks with noise: of all pairs with a preset 97 % are right; of random directions half are.
    """
    right = 0
    for name in NETWORKS:
        step = Step(tiny(name, preset), *batch(name))
        right += sum(step(size) - step(-size) for size in (1 / 4, 1 / 8)) < 0
    assert len(NETWORKS) == 13 and right >= 9, right


@pytest.mark.parametrize("name", list_models())
def test_the_quantization_that_a_name_implies(name: str):
    variant, model = find_model(name), tiny(name)
    told: Any = model.bit_model
    config = resolve(variant.quant)
    assert config and told["quant"] == config.to_dict()
    assert told["overrides"] == dict(variant.overrides) and told["name"] == name
    assert all(told["options"][option] == value for option, value in tiny_options(name).items())
    formats = {m.quant_config.weight_format for m in model.modules() if isinstance(m, BitLayer)}
    assert formats == {config.weight_format} | ({"int8"} if variant.overrides else set())
    assert ("binary" in name or variant.overrides != {}) == (config.weight_format == "binary")
    other = tiny(name, "lsq-2")
    assert other.bit_model["overrides"] == {}  # type: ignore[index]  (they belong to the implied quantization)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_full_precision_twin(name: str):
    model = stepped(name, None)
    assert not any(isinstance(module, BitLayer) for module in model.modules())
    x, _ = batch(name)
    with torch.no_grad():
        y = model.eval()(x)
        torch.testing.assert_close(model(x[:1]), y[:1])


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in ("resnet18", "resnet50")])
def test_binary_activations_see_both_signs(name: str):
    """A ReLU in front of a sign would leave +1 alone, and of pooled signs +1 nearly alone.

    The large residual nets pool behind their first ReLU, as the paper has it; Bi-Real nets are those for signs.
    """
    model = tiny(name, "bnn")
    assert not any(isinstance(module, nn.ReLU | nn.ReLU6) for module in model.modules())
    shares = []
    for layer in model.modules():
        if isinstance(layer, BitLayer) and layer.quant_config.activation_dtype == "binary":
            layer.register_forward_pre_hook(lambda _, x: shares.append(float((x[0] < 0).float().mean())))
    model(batch(name, 64)[0])
    assert len(shares) >= 1 and all(0.05 < share < 0.95 for share in shares)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("shape", [(1, 20, 20), (4, 16, 16)])
def test_models_fit_their_data(name: str, shape: tuple[int, int, int]):
    model = tiny(name, None, **data_options(name, shape, 7))
    assert model.eval()(torch.zeros(2, *shape)).shape == (2, 7)


def test_images_that_are_not_square():
    for name in list_models():
        options = _FAMILIES[find_model(name).family.name].config.__dataclass_fields__
        if "image_size" in options:
            with pytest.raises(BitLabError, match=f"model '{name}': it takes square images, not 20×16"):
                data_options(name, (3, 20, 16), 2)
        else:
            assert data_options(name, (3, 20, 16), 2)["out_channels"] == 2


IMPOSSIBLE: list[tuple[str, dict[str, Any], str]] = [
    ("resnet18", {"block": "basik"}, "block must be one of basic"),
    ("resnet18", {"blocks": ()}, "at least 1"),
    ("resnet18", {"blocks": (1, 0)}, "at least 1"),
    ("resnet18", {"stem": "mnist"}, "stem must be one of imagenet, cifar"),
    ("mobilenetv1", {"width": 0.0}, "greater than 0"),
    ("mobilenetv1", {"stages": ((8, 1),)}, "stages are channels, blocks and stride"),
    ("mobilenetv2", {"stages": ()}, "stages are expansion"),
    ("mobilenetv2", {"dropout": 1.0}, "dropout"),
    ("mobilenetv2", {"last": 0}, "last must be at least 1"),
    ("convnextv2_atto", {"blocks": (1,)}, "same stages"),
    ("convnextv2_atto", {"drop_path": 1.0}, "drop_path"),
    ("convnextv2_atto", {"patch": 0}, "at least 1"),
    ("alexnet", {"image_size": 32}, "too small for stem 'imagenet'"),
    ("alexnet", {"hidden_dims": (0,)}, "at least 1"),
    ("alexnet", {"dropout": -1.0}, "dropout"),
    ("vgg_small", {"features": ("pool", 8)}, "begin with a convolution"),
    ("vgg_small", {"features": (8, "pol")}, "not 'pol'"),
    ("vgg_small", {"image_size": 4}, "pool less"),
    ("vgg_small", {"dropout": 1.0}, "dropout"),
    ("mcunet", {"features": (8, "pol")}, "not 'pol'"),
    ("mcunet", {"image_size": 4}, "pool less"),
    *[(name, {"out_channels": 0}, "at least 1") for name in list_models() if name != "mlp"],
]


@pytest.mark.parametrize(("name", "options", "message"), IMPOSSIBLE)
def test_impossible_sizes(name: str, options: dict[str, Any], message: str):
    with pytest.raises(BitLabError, match=f"model '{name}': .*{message}"):
        AutoBitModel.from_name(name, None, **options)


# What integers cannot express of a network; all others become integer graphs.
REFUSED = {"convnextv2_atto": "LayerNorm|ChannelNorm|permute"}


@pytest.mark.parametrize("preset", ["w8a8", "mcu-ternary-static", "pact-sawb-4", "bireal"])
@pytest.mark.parametrize("name", NETWORKS)
def test_integer_graphs(name: str, preset: str):
    """The classes are those of the fake-quantized network, but for at most two of 32, which were hardly trained."""
    model = tiny(name, preset)
    x, labels = batch(name, 32)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(3):
        nn.functional.cross_entropy(model(x), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    if name in REFUSED:
        with pytest.raises(BitLabError, match=REFUSED[name]):
            lower(model, tuple(x.shape[1:]))
        return
    graph = lower(model, tuple(x.shape[1:]))
    with torch.no_grad():
        expected = model.eval()(x).argmax(1)
    found = torch.from_numpy(graph.run(graph.input.quantize(x))).argmax(1)
    assert int((found != expected).sum()) <= 2
