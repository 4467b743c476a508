"""How codes are stored: a fixed number of codes in each little-endian word, written in a radix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Packing:
    """Codes in words: ``word = sum(code[i] * radix**i)``, stored little-endian.

    Rows (the last dimension) are packed separately and padded with code 0, so every row starts on a byte.

    Attributes:
        radix: Codes are ``0 … radix − 1``.
        codes: Codes a word.
        word: Bytes a word (1 to 7).
    """

    radix: int
    codes: int
    word: int

    def __post_init__(self) -> None:
        """Checks that a word holds its codes."""
        if not 1 <= self.word <= 7 or self.radix**self.codes > 256**self.word:
            raise ValueError(f"{self.codes} codes of radix {self.radix} do not fit {self.word} bytes")

    @property
    def bits(self) -> float:
        """Storage bits a code."""
        return 8 * self.word / self.codes

    def row_bytes(self, n: int) -> int:
        """Returns the bytes that a row of ``n`` codes takes."""
        return -(-n // self.codes) * self.word

    def pack(self, codes: Tensor) -> Tensor:
        """Packs integer codes ``[..., n]`` into bytes: uint8 ``[..., row_bytes(n)]``.

        Raises:
            ValueError: If a code lies outside ``0 … radix − 1``.
        """
        if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= self.radix):
            raise ValueError(f"codes must lie in 0 … {self.radix - 1}")
        n = codes.shape[-1]
        digits = torch.nn.functional.pad(codes.to(torch.int64), (0, -n % self.codes)).unflatten(-1, (-1, self.codes))
        words = (digits * self._powers(codes.device)).sum(-1)
        return (words[..., None] >> self._byte_shifts(codes.device) & 255).to(torch.uint8).flatten(-2)

    def unpack(self, data: Tensor, n: int) -> Tensor:
        """Unpacks uint8 ``[..., row_bytes(n)]`` into uint8 codes ``[..., n]``.

        Raises:
            ValueError: If the rows have another length, a stored code lies outside ``0 … radix − 1``, or one behind
                the row's end is not 0 (which kernels that read whole words rely on).
        """
        if data.shape[-1] != self.row_bytes(n):
            raise ValueError(f"a row of {n} codes takes {self.row_bytes(n)} bytes, not {data.shape[-1]}")
        words = data.to(torch.int64).unflatten(-1, (-1, self.word)) << self._byte_shifts(data.device)
        words = words.sum(-1)
        # A compiled graph cannot branch on values; it runs on what was unpacked, and so checked, before.
        without_values = torch.compiler.is_compiling() or words.is_meta
        if words.numel() and not without_values and int(words.max()) >= self.radix**self.codes:
            raise ValueError(f"a packed word holds more than {self.codes} codes of radix {self.radix}: corrupted data")
        codes = (words[..., None] // self._powers(data.device) % self.radix).to(torch.uint8).flatten(-2)
        if n % self.codes and words.numel() and not without_values and bool(codes[..., n:].any()):
            raise ValueError(f"the last word of a row holds more than its {n % self.codes} codes: corrupted data")
        return codes[..., :n]

    def _powers(self, device: torch.device) -> Tensor:
        return torch.tensor([self.radix**i for i in range(self.codes)], device=device)

    def _byte_shifts(self, device: torch.device) -> Tensor:
        return torch.arange(0, 8 * self.word, 8, device=device)


def bit_packing(bits: int) -> Packing:
    """Returns the packing of ``bits``-bit codes without gaps, in the fewest whole bytes."""
    word = {1: 1, 2: 1, 4: 1, 6: 3, 8: 1}.get(bits, bits)
    return Packing(radix=2**bits, codes=8 * word // bits, word=word)
