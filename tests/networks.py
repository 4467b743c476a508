"""Networks for tests: random integer graphs put together by hand, and small models trained for a few steps."""

import itertools
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from bitcore.config import BitQuantConfig
from bitcore.formats import FORMATS, get_format
from bitcore.graph import Graph, InputSpec, IntTensor, Linear, Node, NormShift, Op, Requantize, Threshold
from bitcore.quantizers.ranges import Remembered
from bitlayers.convert import quantize

Ints = np.ndarray
FOLDS = ("normshift", "relu normshift", "shift", "channel shift", "multiplier", "channel multiplier", "threshold")


def random_linear(
    rng: np.random.Generator, source: IntTensor, outputs: int, format_name: str, bias: bool = False
) -> Linear:
    """A matrix of random levels."""
    levels = rng.choice(FORMATS[format_name].levels, (outputs, source.size)).astype(np.int64)
    return Linear(levels, format_name, rng.integers(-5000, 5000, outputs) if bias else np.zeros(1, dtype=np.int64))


def random_fold(rng: np.random.Generator, fold: str, source: IntTensor) -> Op:
    """What makes 8-bit activations, or narrower ones, of accumulators; all extremes are within reach."""
    largest = max(-source.low, source.high, 1)
    channels = source.shape[0] if "channel" in fold else 1
    signed = bool(rng.integers(2))
    low, high = (-127, 127) if signed else (0, 255)
    if "normshift" in fold:
        return NormShift(high if "relu" in fold else 127, "relu" in fold)
    if "threshold" in fold:
        count = int(rng.choice([1, 3, 7, 15]))
        thresholds = np.sort(rng.integers(-largest, largest + 2, (source.shape[0], count)), axis=1)
        low, step = [(0, 1), (-count, 2)][rng.integers(2)]
        return Threshold(thresholds, rng.choice([-1, 1], source.shape[0]), low, step)
    if "shift" in fold:
        shift = rng.integers(0, max(1, largest.bit_length() - 6), channels)
        return Requantize(np.ones(1, dtype=np.int64), rng.integers(-50, 50, channels), shift, low, high)
    multiplier = rng.choice([-1, 1], channels) * rng.integers(2**29, 2**30, channels)
    shift = rng.integers(24, 30 + largest.bit_length(), channels)
    return Requantize(multiplier, rng.integers(-(2**40), 2**40, channels), shift, low, high)


def random_chain(
    rng: np.random.Generator,
    formats: Sequence[str] = (),
    folds: Sequence[str] = (),
    widths: Sequence[int] = (),
    input_format: str = "",
) -> Graph:
    """A fully connected network of random constants; what is not given is random."""
    depth = len(formats) or len(folds) + 1 if formats or folds else int(rng.integers(2, 5))
    formats = formats or [str(name) for name in rng.choice(sorted(FORMATS), depth)]
    folds = folds or [str(name) for name in rng.choice(FOLDS, depth - 1)]
    widths = widths or [int(n) for n in rng.integers(1, 41, depth + 1)]
    spec = InputSpec((widths[0],), input_format or str(rng.choice(["int8", "uint8", "8bit"])), 0.5)
    nodes: list[Node] = []
    source, kind = "input", spec.type

    def add(name: str, op: Op) -> None:
        nonlocal source, kind
        kind = op.infer(kind)
        nodes.append(Node(name, op, (source,), kind))
        source = name

    for i, format_name in enumerate(formats):
        add(f"fc{i}", random_linear(rng, kind, widths[i + 1], format_name, bool(rng.integers(2))))
        if i < len(formats) - 1:
            add(f"fc{i + 1}.input", random_fold(rng, folds[i], kind))
    return Graph(spec, tuple(nodes), 0.125, {"folds": list(folds)})


def extreme_codes(graph: Graph, samples: int, seed: int = 0) -> Ints:
    """Inputs of a graph: all low, all high, both alternating ways, all nearest to zero, then random ones."""
    kind = graph.input.type
    rng = np.random.default_rng(seed)
    low, high = np.full(kind.size, kind.low), np.full(kind.size, kind.high)
    even = np.arange(kind.size) % 2 == 0
    levels = np.array(get_format(graph.input.format).levels)
    near_zero = np.full(kind.size, min(levels, key=abs))
    fixed = np.stack([low, high, np.where(even, low, high), np.where(even, high, low), near_zero])
    codes = np.concatenate([fixed, rng.choice(levels, (samples - len(fixed), kind.size))])
    return codes.reshape(samples, *kind.shape)


def perceptron(
    config: BitQuantConfig,
    widths: Sequence[int] = (24, 13, 7, 5),
    *,
    bias: bool = False,
    batch_norm: bool = False,
    activation: type[nn.Module] | None = nn.ReLU,
) -> nn.Module:
    """Flatten, linear layers, batch norm and activation between them."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for i, (k, n) in enumerate(itertools.pairwise(widths)):
        layers[f"fc{i}"] = nn.Linear(k, n, bias)
        if i < len(widths) - 2:
            if batch_norm:
                layers[f"bn{i}"] = nn.BatchNorm1d(n)
            if activation is not None:
                layers[f"act{i}"] = activation()
    return quantize(nn.Sequential(layers), config)


def convolutional(
    config: BitQuantConfig,
    *,
    bias: bool = False,
    batch_norm: bool = False,
    pool: bool = True,
    activation: type[nn.Module] = nn.ReLU,
    channels: int = 2,
) -> nn.Module:
    """Convolutions (strided, padded, depthwise, dilated) with all that may stand between them, then a linear layer."""
    norms = [nn.BatchNorm2d(8), nn.BatchNorm2d(8), nn.BatchNorm2d(6)] if batch_norm else [nn.Identity()] * 3
    layers = OrderedDict(
        conv0=nn.Conv2d(channels, 8, 3, stride=1, padding=1, bias=bias),
        norm0=norms[0],
        act0=activation(),
        pool0=nn.MaxPool2d(2) if pool else nn.Identity(),
        depthwise=nn.Conv2d(8, 8, (3, 1), padding=(1, 0), groups=8, bias=bias),
        norm1=norms[1],
        act1=activation(),
        conv1=nn.Conv2d(8, 6, 2, stride=(1, 2), dilation=(2, 1), bias=bias),
        norm2=norms[2],
        act2=activation(),
        pool2=nn.MaxPool2d(2, stride=1, padding=1) if pool else nn.Identity(),
        flatten=nn.Flatten(),
        head=nn.LazyLinear(5, bias=bias),
    )
    model = nn.Sequential(layers)
    model(torch.zeros(2, channels, *CONV_SHAPE[1:]))
    return quantize(model, config)


CONV_SHAPE = (2, 9, 8)


def with_ranges(model: nn.Module) -> nn.Module:
    """Pretends that static activation ranges have seen data; those of tracked ones are still ±1."""
    for source in model.modules():
        if isinstance(source, Remembered):
            source.batches.fill_(1)
    return model


def train_a_little(model: nn.Module, x: Tensor, steps: int = 3, negative_gammas: bool = False) -> nn.Module:
    """A few optimizer steps towards random outputs, so that ranges, statistics and weights are no initial ones."""
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    target = torch.randn(model(x).shape, generator=generator)
    for _ in range(steps):
        optimizer.zero_grad()
        (model(x) - target).square().mean().backward()
        optimizer.step()
    if negative_gammas:
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                    module.weight[::2] *= -1
    return model.eval()
