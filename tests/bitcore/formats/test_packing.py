"""Packing against a reference on Python's big integers, for the packings of all formats."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitcore.formats import FORMATS, NumberFormat, Packing
from bitcore.formats.packing import bit_packing

PACKINGS = {f"radix{p.radix}": p for p in {fmt.packing for fmt in FORMATS.values()}}
TAILS = (0, 1, 2, 5, 7, 8, 31, 33)
every_packing = pytest.mark.parametrize("packing", PACKINGS.values(), ids=PACKINGS)


def reference(codes: list[int], packing: Packing) -> bytes:
    """The bytes of one row: every word is a number in the radix, least significant code first."""
    stored = b""
    for start in range(0, len(codes), packing.codes):
        word = sum(code * packing.radix**i for i, code in enumerate(codes[start : start + packing.codes]))
        stored += word.to_bytes(packing.word, "little")
    return stored


def data_of(codes: list[int]) -> torch.Tensor:
    return torch.tensor(codes, dtype=torch.uint8)


@every_packing
@pytest.mark.parametrize("n", TAILS)
def test_every_code_at_every_place(packing: Packing, n: int):
    for row in ([(i + shift) % packing.radix for i in range(n)] for shift in range(packing.radix)):
        data = packing.pack(data_of(row))
        assert data.dtype == torch.uint8
        assert bytes(data.tolist()) == reference(row, packing)
        assert len(data) == packing.row_bytes(n)
        assert packing.unpack(data, n).tolist() == row


@every_packing
@settings(max_examples=25)
@given(draw=st.data())
def test_pack_and_unpack_are_inverse(packing: Packing, draw: st.DataObject):
    row = draw.draw(st.lists(st.integers(0, packing.radix - 1), max_size=100))
    data = packing.pack(data_of(row))
    assert bytes(data.tolist()) == reference(row, packing)
    assert packing.unpack(data, len(row)).tolist() == row


@every_packing
def test_rows_are_packed_separately(packing: Packing):
    codes = torch.randint(packing.radix, (2, 3, 33)).to(torch.uint8)
    data = packing.pack(codes)
    assert data.shape == (2, 3, packing.row_bytes(33))
    for i in range(2):
        for j in range(3):
            assert bytes(data[i, j].tolist()) == reference(codes[i, j].tolist(), packing)
    assert torch.equal(packing.unpack(data, 33), codes)
    transposed = codes.transpose(0, 2)  # not contiguous
    assert torch.equal(packing.unpack(packing.pack(transposed), 2), transposed)


@every_packing
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64], ids=str)
def test_any_integer_dtype_packs(packing: Packing, dtype: torch.dtype):
    codes = torch.randint(packing.radix, (2, 7))
    assert torch.equal(packing.pack(codes.to(dtype)), packing.pack(codes))


@every_packing
@pytest.mark.parametrize("shape", [(0,), (0, 7), (3, 0), (2, 0, 5)], ids=str)
def test_nothing_packs_to_nothing(packing: Packing, shape: tuple[int, ...]):
    data = packing.pack(torch.zeros(shape, dtype=torch.uint8))
    assert data.shape == (*shape[:-1], packing.row_bytes(shape[-1]))
    assert packing.unpack(data, shape[-1]).shape == shape


@every_packing
def test_the_words_waste_less_than_one_code_in_full_bytes(packing: Packing):
    """Bits without gaps, and for a radix that is no power of two as many codes as its word holds."""
    assert packing.radix**packing.codes <= 256**packing.word < packing.radix ** (packing.codes + 1)
    assert packing.bits == 8 * packing.word / packing.codes


@every_packing
@pytest.mark.parametrize("offset", [-1, 0, 5])
def test_codes_beyond_the_radix_are_refused(packing: Packing, offset: int):
    code = -1 if offset < 0 else packing.radix + offset
    with pytest.raises(ValueError, match="codes must lie"):
        packing.pack(torch.tensor([0, code]))


@every_packing
def test_rows_of_the_wrong_length_are_refused(packing: Packing):
    data = packing.pack(torch.zeros(2, 33, dtype=torch.uint8))
    for wrong in (data[:, :-1], torch.cat([data, data[:, :1]], 1), data[:, :0]):
        with pytest.raises(ValueError, match="a row of 33 codes"):
            packing.unpack(wrong, 33)


@every_packing
def test_every_word_is_decoded_or_refused(packing: Packing):
    """All one-byte words, and the largest and smallest impossible words of longer ones."""
    first_impossible = packing.radix**packing.codes
    words = range(256) if packing.word == 1 else {0, 1, first_impossible - 1, first_impossible, 256**packing.word - 1}
    for word in words:
        if word >= 256**packing.word:
            continue
        data = torch.tensor([list(word.to_bytes(packing.word, "little"))], dtype=torch.uint8)
        if word < first_impossible:
            codes = [word // packing.radix**i % packing.radix for i in range(packing.codes)]
            assert packing.unpack(data, packing.codes).tolist() == [codes]
        else:
            with pytest.raises(ValueError, match="corrupted"):
                packing.unpack(data, packing.codes)


def test_the_ternary_byte_250_is_refused():
    with pytest.raises(ValueError, match="corrupted"):
        FORMATS["ternary"].packing.unpack(torch.tensor([121, 250], dtype=torch.uint8), 10)


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("n", [1, 7, 33])
def test_levels_survive_storage(fmt: NumberFormat, n: int):
    levels = torch.from_numpy(np.random.default_rng(n).choice(fmt.levels, (4, n)))
    stored = fmt.packing.pack(fmt.encode(levels))
    assert torch.equal(fmt.decode(fmt.packing.unpack(stored, n)).to(torch.int64), levels)


@pytest.mark.parametrize("bits", range(1, 9))
def test_bit_packing_is_a_bit_stream(bits: int):
    packing = bit_packing(bits)
    codes = torch.randint(2**bits, (40,))
    stream = sum(code << (bits * i) for i, code in enumerate(codes.tolist()))
    assert bytes(packing.pack(codes).tolist()) == stream.to_bytes(5 * bits, "little")


@pytest.mark.parametrize(("radix", "codes", "word"), [(3, 6, 1), (2, 9, 1), (256, 8, 8), (2, 1, 0)])
def test_a_word_must_hold_its_codes(radix: int, codes: int, word: int):
    with pytest.raises(ValueError, match="do not fit"):
        Packing(radix, codes, word)


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=lambda fmt: fmt.name)
def test_codes_behind_the_end_of_a_row_are_refused(fmt: NumberFormat) -> None:
    """Kernels read whole words: what one passes over, another would add."""
    packing = fmt.packing
    for n in range(1, packing.codes):
        full = packing.pack(torch.ones(2, packing.codes, dtype=torch.uint8))
        with pytest.raises(ValueError, match="corrupted"):
            packing.unpack(full, n)
        codes = torch.ones(2, n, dtype=torch.uint8)
        assert torch.equal(packing.unpack(packing.pack(codes), n), codes)
