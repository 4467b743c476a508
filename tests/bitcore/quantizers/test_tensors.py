"""QTensor and PackedTensor."""

from __future__ import annotations

import pytest
import torch

from bitcore.formats import FORMATS, NumberFormat
from bitcore.quantizers import PackedTensor, QTensor

every_format = pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
SHAPES = [(1, 1), (3, 7), (2, 33), (4, 3, 3, 3), (2, 1, 5), (0, 7), (3, 0)]


def random_tensor(fmt: NumberFormat, shape: tuple[int, ...]) -> QTensor:
    levels = torch.tensor(fmt.levels)[torch.randint(len(fmt.levels), shape)].float()
    return QTensor(levels, torch.rand(shape[0], *[1] * (len(shape) - 1)) + 0.5, fmt)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@every_format
def test_pack_and_unpack_are_inverse(fmt: NumberFormat, shape: tuple[int, ...]):
    tensor = random_tensor(fmt, shape)
    packed = tensor.pack()
    row = tensor.levels[:1].numel() if shape[0] else 7
    assert packed.data.shape == (shape[0], fmt.packing.row_bytes(row))
    assert packed.data.dtype == torch.uint8 and packed.shape == shape
    for dtype in (torch.float32, torch.float64):
        back = packed.unpack(dtype)
        assert back.levels.dtype == dtype and back.format is fmt
        assert torch.equal(back.levels, tensor.levels.to(dtype)) and torch.equal(back.scale, tensor.scale)
    assert torch.equal(packed.unpack().dequantize(), tensor.levels * tensor.scale)


@every_format
def test_integers_have_the_formats_dtype(fmt: NumberFormat):
    tensor = random_tensor(fmt, (3, 7))
    assert tensor.integers().dtype == fmt.level_dtype
    assert torch.equal(tensor.integers().float(), tensor.levels)
    assert tensor.codes().dtype == torch.uint8


@every_format
def test_corrupted_bytes_are_refused(fmt: NumberFormat):
    """Every byte pattern either is codes of the format or is refused; none becomes something else."""
    packing = fmt.packing
    for word in {*range(min(256, 256**packing.word)), 256**packing.word - 1}:
        codes = [word // packing.radix**i % packing.radix for i in range(packing.codes)]
        data = torch.tensor([list(word.to_bytes(packing.word, "little"))], dtype=torch.uint8)
        packed = PackedTensor(data, torch.ones(()), (1, packing.codes), fmt)
        if word < packing.radix**packing.codes and max(codes) < len(fmt.levels):
            assert packed.unpack().levels.tolist() == [[fmt.levels[code] for code in codes]]
        else:
            with pytest.raises(ValueError, match="corrupted"):
                packed.unpack()
