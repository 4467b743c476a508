"""Random calls of every operator of ours and of every packed layer: valid, borderline and false ones.

Each must raise a clear error, or give what plain torch gives. As a program it runs many of them, on a library with
sanitizers: ``python native_calls.py CALLS SEED FOLDER``, where ``FOLDER/_native`` holds the library.
"""

from __future__ import annotations

import copy
import random
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import bitcore

if __name__ == "__main__":
    bitcore.__path__.insert(0, sys.argv[3])

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from bitcore import BitLabError, BitQuantConfig
from bitcore.config import FLOAT
from bitcore.engine.convolution import Geometry, make_tiles
from bitcore.formats import FORMATS, NumberFormat, get_format
from bitcore.kernels import machine
from bitcore.kernels.native import usable_sets
from bitcore.kernels.real import FEW_ROWS
from bitcore.kernels.simd import quantizes
from bitcore.quantizers import PackedTensor, QTensor
from bitlayers.bitconv import BitConv1d, BitConv2d, BitConvTranspose2d
from bitlayers.bitembedding import BitEmbedding
from bitlayers.bitlinear import BitLinear, BitTransposedLinear

DTYPES = (
    torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool, torch.float16, torch.bfloat16,
    torch.float32, torch.float64, torch.complex64,
)  # fmt: skip
HUGE = 2**42
CLEAR = (BitLabError, RuntimeError, ValueError, TypeError, IndexError)
Arguments = list[Any]
Case = tuple[Arguments, Callable[..., Tensor]]


class Refused(Exception):
    """There is no right value: the call must raise."""


# ---- what mutations do to arguments ------------------------------------------------------------------------------


def _dim(rng: random.Random, x: Tensor) -> int:
    if x.ndim == 0 or x.numel() == 0:
        raise Refused
    return rng.randrange(x.ndim)


def _wider(rng: random.Random, x: Tensor) -> Tensor:
    dim = _dim(rng, x)
    return torch.cat([x, x.narrow(dim, 0, 1)], dim)


def _narrower(rng: random.Random, x: Tensor) -> Tensor:
    dim = _dim(rng, x)
    return x.narrow(dim, 0, rng.choice([0, x.shape[dim] // 2, x.shape[dim] - 1]))


def _constant(rng: random.Random, x: Tensor) -> Tensor:
    return x.narrow(_dim(rng, x), 0, 1).expand_as(x)


def _huge(rng: random.Random, x: Tensor) -> Tensor:
    dim = _dim(rng, x)
    return x.narrow(dim, 0, 1).expand(*x.shape[:dim], HUGE, *x.shape[dim + 1 :])


def _moved(rng: random.Random, x: Tensor) -> Tensor:
    return torch.cat([x.flatten()[:1], x.flatten()])[-x.numel() :].view(x.shape) if x.numel() else x


def _last(rng: random.Random, x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def _largest(rng: random.Random, x: Tensor) -> Tensor:
    return torch.full_like(
        x, rng.choice([-128, -1, 0, 1, 2, 127]) if x.dtype != torch.uint8 else rng.choice([0, 1, 255])
    )


TENSORS: tuple[Callable[[random.Random, Tensor], Tensor], ...] = (
    lambda rng, x: x.to(rng.choice(DTYPES)),
    lambda rng, x: x[None],
    lambda rng, x: x[0] if x.ndim and len(x) else x.reshape(0, 1),
    lambda rng, x: x.flatten(),
    lambda rng, x: x.reshape(-1)[0] if x.numel() else x.sum(),
    lambda rng, x: x.transpose(0, -1) if x.ndim else x,
    lambda rng, x: torch.stack([x, x], -1)[..., 0],
    lambda rng, x: x.to("meta"),
    lambda rng, x: x.to_sparse(),
    lambda rng, x: torch._neg_view(-x) if x.dtype == torch.float32 else x,  # pyright: ignore[reportPrivateImportUsage]
    lambda rng, x: x.clone().requires_grad_() if x.is_floating_point() else x,
    _wider, _narrower, _constant, _huge, _moved, _last, _largest,
)  # fmt: skip


def mutate(rng: random.Random, value: Any) -> Any:
    """Returns another argument of that kind, or one of another kind."""
    if isinstance(value, Tensor):
        if HUGE in value.shape:  # a copy would take for ever
            return value
        return rng.choice(TENSORS)(rng, value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice([0, -1, 1, value - 1, value + 1, 2 * value, -value, 2**31, 2**62, -(2**62)])
    if isinstance(value, str):
        return rng.choice(["", "nonsense", *FORMATS])
    if isinstance(value, Sequence):
        at = rng.randrange(len(value))
        lists = [*value[:at], mutate(rng, value[at]), *value[at + 1 :]], value[:-1], [*value, 1], []
        return list(rng.choice(lists))
    return rng.choice([torch.ones(()), torch.ones(3), torch.zeros(2, 1)])


# ---- operators: valid arguments, and what they give ---------------------------------------------------------------


def _expect(*truths: bool) -> None:
    if not all(truths):
        raise Refused


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)


def _levels_of(name: str) -> tuple[int, ...]:
    _expect(name in FORMATS)
    return FORMATS[name].levels


def _int32(sums: Tensor) -> Tensor:
    _expect(not sums.numel() or -(2**31) <= int(sums.min()) <= int(sums.max()) < 2**31)
    return sums.to(torch.int32)


def _weight(rng: random.Random, name: str = "") -> tuple[NumberFormat, Tensor, PackedTensor]:
    fmt = FORMATS[name or rng.choice(list(FORMATS))]
    shape = rng.choice([1, 3, 20, 70]), rng.choice([1, 5, 33, 64])
    levels = torch.tensor(fmt.levels)[torch.randint(len(fmt.levels), shape)]
    return fmt, levels, QTensor(levels.float(), torch.ones(()), fmt).pack()


def _input(rng: random.Random, *sizes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    if dtype.is_floating_point:
        return torch.randn(*sizes, dtype=dtype)
    return torch.randint(
        max(torch.iinfo(dtype).min, -(2**40)), min(torch.iinfo(dtype).max + 1, 2**40), sizes, dtype=dtype
    )


def _rows(rng: random.Random) -> tuple[int, ...]:
    return rng.choice([(), (0,), (1,), (3,), (2, 2)])


def _bytes(rng: random.Random) -> torch.dtype:
    return rng.choice([torch.int8, torch.uint8])


def _plain(rng: random.Random, dtypes: Sequence[torch.dtype]) -> Case:
    _, levels, packed = _weight(rng)

    def reference(x: Tensor, weight: Tensor, name: str) -> Tensor:
        _levels_of(name)
        _expect(x.dtype in dtypes, x.ndim > 0, weight.dtype == torch.uint8, weight.ndim == 2)
        fmt = get_format(name)
        levels = fmt.decode(fmt.packing.unpack(weight, x.shape[-1]))  # raises where bytes hold no codes
        if x.is_floating_point():
            return linear(x, levels.to(x.dtype))
        return _int32(x.long() @ levels.long().T)

    x = _input(rng, *_rows(rng), levels.shape[1], dtype=rng.choice(dtypes))
    x = x.clamp(-999, 999) if rng.random() < 0.9 and x.dtype.itemsize > 1 else x
    return [x, packed.data, packed.format.name], reference


def _linear_simd(rng: random.Random) -> Case:
    fmt, levels, packed = _weight(rng, rng.choice(["", "binary"]))
    signs = fmt.name == "binary" and rng.random() < 0.5
    made = machine.prepare(packed, signs)

    def reference(x: Tensor, weight: Tensor, outputs: int, isa: str = "") -> Tensor:
        _expect(x.dtype in (torch.int8, torch.uint8), x.ndim > 0, _same(weight, made), outputs == len(levels))
        _expect(x.shape[-1:] == levels.shape[1:], not signs or bool((x.long().abs() == 1).all()))
        _expect(isa in ("", *usable_sets()))
        return _int32(x.long() @ levels.T)

    x = _input(rng, *_rows(rng), levels.shape[1], dtype=_bytes(rng))
    if signs:
        x = torch.randint(2, x.shape, dtype=torch.int8) * 2 - 1
    return [x, made, len(levels), ""], reference


def _quantized(
    x: Tensor, fmt: NumberFormat, dims: int, scale: Tensor | None, per_tensor: bool
) -> tuple[Tensor, Tensor]:
    """Levels, and scales that broadcast to the input."""
    lead = x.shape[: x.ndim - dims]
    if scale is None:
        rows = 1 if per_tensor else lead.numel()
        flat = x.detach().abs().reshape(rows, (lead.numel() if per_tensor else 1) * x.shape[x.ndim - dims :].numel())
        largest = flat.amax(1) if flat.shape[1] else flat.new_zeros(len(flat))
        scale = largest / fmt.high
        scale = torch.where(scale > 1e-30, scale, 1.0)
    _expect(scale.dtype == torch.float32, scale.numel() in (1, lead.numel()))
    scale = scale.reshape((1,) * x.ndim if scale.numel() == 1 else (*lead, *[1] * dims))
    return fmt.nearest(x / scale), scale


def _real(sums: Tensor, scale: Tensor, bias: Tensor | None, on_grid: bool) -> Tensor:
    """``scale`` and ``bias`` broadcast to the sums."""
    if bias is not None and on_grid:
        return (sums.double() + torch.round(bias.double() / scale.double())).float() * scale
    y = sums.float() * scale
    return y if bias is None else y + bias


def _scales(rng: random.Random, rows: int) -> Tensor | None:
    return rng.choice([None, torch.rand(()) + 0.1, torch.rand(rows, 1) + 0.1])


def _linear_simd_float(rng: random.Random) -> Case:
    activation = FORMATS[rng.choice([name for name, fmt in FORMATS.items() if quantizes(fmt)])]
    _, levels, packed = _weight(rng, "binary" if rng.random() < 0.2 else "")
    made = machine.prepare(packed, activation.name == "binary")
    outputs, rows = len(levels), _rows(rng)
    bias = rng.choice([None, torch.randn(outputs)])

    def reference(
        x: Tensor, weight: Tensor, count: int, name: str, per_tensor: bool, x_scale: Tensor | None,
        weight_scale: Tensor, bias: Tensor | None, on_grid: bool, isa: str = "",
    ) -> Tensor:  # fmt: skip
        _expect(name in FORMATS and quantizes(FORMATS[name]), x.dtype == torch.float32, x.ndim > 0)
        _expect(x.shape[-1:] == levels.shape[1:], _same(weight, made), count == outputs, isa in ("", *usable_sets()))
        _expect(
            machine.layout(packed.format, 1, activation.name == "binary", False) != machine.SIGNS or name == "binary"
        )
        _expect(weight_scale.dtype == torch.float32, weight_scale.numel() in (1, outputs))
        _expect(bias is None or (bias.dtype == torch.float32 and bias.shape == (outputs,)))
        codes, scale = _quantized(x, FORMATS[name], 1, x_scale, per_tensor)
        sums = codes.double() @ levels.double().T
        return _real(sums, scale * weight_scale.flatten(), bias, on_grid)

    weight_scale = rng.choice([torch.rand(()) + 0.1, torch.rand(outputs) + 0.1, torch.rand(outputs, 1) + 0.1])
    x = _input(rng, *rows, levels.shape[1])
    scale = _scales(rng, torch.Size(rows).numel())
    flags = rng.random() < 0.3, rng.random() < 0.3
    return [x, made, outputs, activation.name, flags[0], scale, weight_scale, bias, flags[1], ""], reference


def _in_order(x: Tensor, levels: Tensor) -> Tensor:
    """See test_real.py; more rows, and other dtypes, are torch's."""
    _expect(x.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64), x.ndim > 0)
    _expect(x.shape[-1] == levels.shape[1])
    if x.dtype != torch.float32 or x.shape[:-1].numel() > FEW_ROWS:
        return linear(x, levels.to(x.dtype))
    sums = torch.zeros(*x.shape[:-1], len(levels), 4)
    for k in range(x.shape[-1]):
        sums[..., k % 4] += x[..., None, k] * levels.float()[:, k]
    return (sums[..., 0] + sums[..., 1]) + (sums[..., 2] + sums[..., 3])


def _linear_real(rng: random.Random) -> Case:
    fmt, levels, packed = _weight(rng)
    made = machine.prepare(packed)

    def reference(x: Tensor, weight: Tensor, name: str, outputs: int) -> Tensor:
        _expect(_levels_of(name) == fmt.levels, _same(weight, made), outputs == len(levels))
        return _in_order(x, levels)

    return [_input(rng, *_rows(rng), levels.shape[1]), made, fmt.name, len(levels)], reference


def _linear_levels(rng: random.Random) -> Case:
    def reference(x: Tensor, levels: Tensor) -> Tensor:
        _expect(levels.is_floating_point(), levels.ndim == 2)
        return _in_order(x, levels)

    levels = _weight(rng)[1].float()
    return [_input(rng, *_rows(rng), levels.shape[1]), levels], reference


def _decode(rng: random.Random) -> Case:
    fmt, levels, packed = _weight(rng)
    made = machine.prepare(packed, rng.random() < 0.5, rng.random() < 0.5)

    def reference(weight: Tensor, name: str, outputs: int, inputs: int) -> Tensor:
        _expect(_levels_of(name) == fmt.levels, _same(weight, made), (outputs, inputs) == levels.shape)
        return levels.float()

    return [made, fmt.name, *levels.shape], reference


GEOMETRIES = (
    Geometry((5, 3, 3, 3), (1, 1), (1, 1), (1, 1), 1),
    Geometry((20, 40, 1, 2), (2, 1), (0, 1), (1, 2), 1),
    Geometry((6, 2, 3, 2), (2, 1), (0, 1), (1, 2), 3),
    Geometry((20, 1, 3, 3), (1, 2), (1, 1), (1, 1), 20),
)


@lru_cache(maxsize=4096)
def _tiles(fmt: NumberFormat, activation: NumberFormat, g: Geometry) -> tuple[Tensor, Tensor]:
    levels = torch.tensor(fmt.levels)[torch.randint(len(fmt.levels), g.shape)]
    tiles = make_tiles(QTensor(levels.float(), torch.ones(()), fmt).pack(), activation.name, g)
    assert tiles is not None
    return levels, tiles


def _format(rng: random.Random) -> NumberFormat:
    """A format; mostly one of few, whose programs are at hand."""
    return FORMATS[rng.choice(["binary", "ternary", "int8", "uint8", "nf4"] if rng.random() < 0.9 else list(FORMATS))]


def _conv(rng: random.Random, activation: NumberFormat) -> tuple[list[Any], Tensor, Tensor, Callable[..., Tensor]]:
    """Arguments from the tiles to the groups, levels, tiles, and the convolution where those are what they were."""
    fmt, g = _format(rng), rng.choice(GEOMETRIES)
    levels, tiles = _tiles(fmt, activation, g)
    fixed = [fmt.name, activation.name, *(list(pair) for pair in g[:4]), g.groups]

    def convolve(x: Tensor, *arguments: Any) -> Tensor:
        _expect(_same(arguments[0], tiles), list(arguments[1:]) == fixed, x.ndim == 4, x.shape[1] == g.inputs)
        double = x.double(), levels.double()
        return nn.functional.conv2d(*double, None, g.stride, g.padding, g.dilation, g.groups)

    return [tiles, *fixed], levels, tiles, convolve


def _images(rng: random.Random, arguments: Arguments) -> tuple[int, ...]:
    return rng.choice([0, 1, 3]), arguments[3][1] * arguments[7], *rng.choice([(3, 7), (8, 2)])


def _conv2d_packed(rng: random.Random) -> Case:
    fmt = _format(rng)
    arguments, _, _, convolve = _conv(rng, fmt)

    def reference(x: Tensor, *arguments: Any) -> Tensor:
        _expect(x.dtype in (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64))
        values = x.long()
        inside = not x.numel() or fmt.low <= int(values.min()) <= int(values.max()) <= fmt.high
        _expect(inside, fmt.name != "binary" or bool((values != 0).all()))
        return _int32(convolve(x, *arguments))

    size = _images(rng, arguments)
    x = torch.tensor(fmt.levels)[torch.randint(len(fmt.levels), size)].to(fmt.level_dtype)
    return [x, *arguments], reference


def _conv2d_float(rng: random.Random) -> Case:
    fmt = _format(rng)
    fmt = fmt if quantizes(fmt) else FORMATS["int8"]
    arguments, levels, _, convolve = _conv(rng, fmt)
    outputs = len(levels)

    def reference(x: Tensor, *arguments: Any) -> Tensor:
        *fixed, per_tensor, x_scale, weight_scale, bias, on_grid = arguments
        _expect(x.dtype == torch.float32, x.ndim == 4)
        _expect(weight_scale.dtype == torch.float32, weight_scale.numel() in (1, outputs))
        _expect(bias is None or (bias.dtype == torch.float32 and bias.shape == (outputs,)))
        codes, scale = _quantized(x, fmt, 3, x_scale, per_tensor)
        column = bias if bias is None else bias.reshape(-1, 1, 1)
        return _real(convolve(codes, *fixed), scale * weight_scale.reshape(-1, 1, 1), column, on_grid)

    size = _images(rng, arguments)
    weight_scale = rng.choice([torch.rand(()) + 0.1, torch.rand(outputs) + 0.1])
    bias, flags = rng.choice([None, torch.randn(outputs)]), (rng.random() < 0.3, rng.random() < 0.3)
    rest = [flags[0], _scales(rng, size[0]), weight_scale, bias, flags[1]]
    return [torch.randn(size), *arguments, *rest], reference


_INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)
OPERATORS: dict[str, Callable[[random.Random], Case]] = {
    "linear_portable": lambda rng: _plain(rng, (torch.int8, torch.uint8)),
    "linear_torch": lambda rng: _plain(rng, (*_INTEGERS, *DTYPES[6:10])),
    "linear_simd": _linear_simd,
    "linear_simd_float": _linear_simd_float,
    "linear_real": _linear_real,
    "linear_levels": _linear_levels,
    "decode": _decode,
    "conv2d_packed": _conv2d_packed,
    "conv2d_float": _conv2d_float,
}


# ---- layers -------------------------------------------------------------------------------------------------------

LAYERS: dict[type[nn.Module], tuple[tuple[int, ...], tuple[int, ...]]] = {  # arguments; an input's shape
    BitLinear: ((20, 30), (3, 20)),
    BitTransposedLinear: ((20, 30), (3, 20)),
    BitConv1d: ((8, 6, 3), (2, 8, 12)),
    BitConv2d: ((8, 20, 3), (2, 8, 9, 7)),
    BitConvTranspose2d: ((8, 6, 3), (2, 8, 5, 4)),
    BitEmbedding: ((40, 20), (5,)),
}


@lru_cache(maxsize=512)
def _pair(kind: type[Any], weight: str, activation: str, granularity: str) -> tuple[nn.Module, nn.Module]:
    """A layer in eval, and packed."""
    torch.manual_seed(0)
    options = {"activation_granularity": granularity} if activation != FLOAT else {}
    config = BitQuantConfig(weight, weight_granularity="per_channel", activation_dtype=activation, **options)  # type: ignore[arg-type]
    layer = kind(*LAYERS[kind][0], quant_config=config).eval()
    packed = copy.deepcopy(layer)
    packed.pack()
    return layer, packed


def _layer(rng: random.Random, kind: type[nn.Module]) -> tuple[nn.Module, nn.Module, Tensor]:
    weight = rng.choice(["binary", "ternary", "int4", "fp130", "nf4"])
    activation = rng.choice([FLOAT, "int8", "uint4", "binary", "nf4"])
    pair = _pair(kind, weight, activation, rng.choice(["per_token", "per_tensor"]))
    shape = LAYERS[kind][1]
    return *pair, torch.randint(40, shape) if kind is BitEmbedding else torch.randn(shape)


# ---- the calls ----------------------------------------------------------------------------------------------------


def outcome(call: Callable[..., Tensor], *arguments: Any) -> Tensor | BaseException:
    """Returns what a call gives, or what it raises."""
    try:
        return call(*arguments)
    except (*CLEAR, Refused) as error:
        return error


def complaint(got: Tensor | BaseException, wanted: Tensor | BaseException) -> str:
    """Returns what is wrong with an outcome, empty if nothing is."""
    if isinstance(got, BaseException):
        return "" if str(got) else f"an error without a word: {got!r}"
    if isinstance(wanted, BaseException):
        return f"gave a value where {wanted!r} is right"
    if got.shape != wanted.shape or got.dtype != wanted.dtype or got.device != wanted.device:
        return f"{got.dtype} {list(got.shape)} on {got.device}, not {wanted.dtype} {list(wanted.shape)}"
    same = got.is_meta or torch.equal(got, wanted) or torch.equal(got.nan_to_num(1e30), wanted.nan_to_num(1e30))
    return "" if same else f"other values: {got.flatten()[:5].tolist()}, not {wanted.flatten()[:5].tolist()}"


def _mutated(rng: random.Random, arguments: Arguments) -> Arguments:
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
        at = rng.randrange(len(arguments))
        try:
            arguments[at] = mutate(rng, arguments[at])
        except (Refused, RuntimeError, IndexError, ValueError):  # that mutation has no meaning there
            continue
    return arguments


def call_operator(rng: random.Random, name: str) -> tuple[str, Tensor | BaseException]:
    """Calls an operator; returns what is wrong with the outcome, and the outcome."""
    arguments, reference = OPERATORS[name](rng)
    if rng.random() < 0.05:  # all on meta: the shape comes out
        wanted = outcome(reference, *arguments)
        arguments = [a.to("meta") if isinstance(a, Tensor) else a for a in arguments]
        got = outcome(getattr(torch.ops.bitcore, name), *arguments)
        if isinstance(got, BaseException) and isinstance(wanted, Tensor):
            return f"refuses meta: {got}", got
        if not isinstance(wanted, Tensor):  # because of values, of which meta knows nothing
            return "", got
        return complaint(got, wanted.to("meta")), got
    arguments = _mutated(rng, arguments)
    tensors = [a for a in arguments if isinstance(a, Tensor)]
    foreign = any(t.is_meta or t.layout != torch.strided or HUGE in t.shape for t in tensors)
    got = outcome(getattr(torch.ops.bitcore, name), *arguments)
    if isinstance(got, Tensor) and got.is_meta and all(t.is_meta for t in tensors):
        return "", got  # of tensors without values there is no more to know
    if isinstance(got, Tensor) and not got.numel() and not foreign:
        return "", got  # no weight was read, whatever it holds
    if isinstance(got, Tensor) and not got.numel() and any(HUGE in t.shape for t in tensors):
        return "", got  # nothing for each of so many
    wanted = Refused("no such call") if foreign else outcome(reference, *arguments)
    if name == "linear_portable" and "corrupted data" in str(wanted):
        return "", got  # whether bytes hold codes is looked at once, when a layer takes them, not at every call
    return complaint(got, wanted), got


def call_layer(rng: random.Random, kind: type[nn.Module]) -> tuple[str, Tensor | BaseException]:
    """Calls a packed layer; its own evaluation before it was packed is right."""
    layer, packed, x = _layer(rng, kind)
    (x,) = _mutated(rng, [x])
    got = outcome(packed, x)
    return complaint(got, Refused("too large") if HUGE in x.shape else outcome(layer, x)), got


def calls(count: int, seed: int) -> tuple[list[str], int]:
    """Makes calls of everything in turn; returns the complaints, and how many calls were refused."""
    jobs: list[tuple[Callable[..., tuple[str, Tensor | BaseException]], Any]] = [(call_operator, n) for n in OPERATORS]
    jobs += [(call_layer, kind) for kind in LAYERS]
    complaints, refused = [], 0
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of torch, about sparse tensors and complex numbers
        for i in range(count):
            job, what = jobs[i % len(jobs)]
            torch.manual_seed(seed + i)
            wrong, got = job(random.Random(seed + i), what)
            refused += isinstance(got, BaseException)
            if wrong:
                complaints.append(f"call {seed + i} of {what}: {wrong}")
    return complaints, refused


if __name__ == "__main__":
    from native_programs import lies

    found, no = calls(int(sys.argv[1]), int(sys.argv[2]))
    ran = lies(int(sys.argv[1]) // 5, int(sys.argv[2]))
    library = Path(str(machine.library()._name)).parent.parent  # type: ignore[union-attr]
    sys.stdout.write("\n".join([*found[:20], f"{len(found)} complaints, {no} refused, {ran}, {library}\n"]))
