"""The engine's steps and the buffers between them, as a plan holds them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from bitcore.engine.posts import Post
from bitcore.engine.program import PostKind, StepKind
from bitcore.engine.weights import Block


@dataclass(eq=False)
class Buffer:
    """An intermediate tensor of one sample, channels last (``struct bit_buffer``).

    Attributes:
        height: With its border, if any; so is width.
        width: Likewise.
        channels: Without padding.
        item: Bytes of an element.
        offset: Added to what is stored.
        pixel: Bytes from one pixel to the next.
        border: Zeros above and below, left and right.
        first: The step that writes it.
        last: The last step that reads it.
    """

    height: int
    width: int
    channels: int
    item: int
    offset: int
    pixel: int
    border: tuple[int, int] = (0, 0)
    first: int = 0
    last: int = 0

    @property
    def bytes(self) -> int:
        """Bytes of one sample, with what a kernel may read beyond its last channel."""
        return -(-(self.height * self.width * self.pixel + 8) // 64) * 64


@dataclass(eq=False)
class Step:
    """A pass over one buffer (``struct bit_step``).

    Attributes:
        kind: Which.
        source: The buffer that it reads.
        size: Height and width of the result.
        blocks: Of channels of the result.
        numbers: Fields that are numbers.
        pairs: Vertical and horizontal: kernel, stride, padding, dilation.
        arrays: Fields that are arrays.
        posts: What becomes of each tile.
        slots: Copies of tiles that posts keep.
    """

    kind: StepKind
    source: int
    size: tuple[int, int]
    blocks: tuple[Block, ...] = ()
    numbers: dict[str, int] = field(default_factory=dict)
    pairs: dict[str, tuple[int, int]] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    posts: list[Post] = field(default_factory=list)
    slots: int = 0

    @property
    def writes(self) -> list[int]:
        """The buffers that it writes."""
        stored = [post.numbers["target"] for post in self.posts if post.kind == PostKind.STORE]
        return stored + ([self.numbers["target"]] if "target" in self.numbers else [])

    @property
    def reads(self) -> list[int]:
        """The buffers that it reads."""
        return [self.source, *(post.numbers["target"] for post in self.posts if post.kind == PostKind.ADD)]
