"""Every kind of picture by the rules of docs/training.md, from folders and tables, however it is loaded."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from bitcore.errors import BitLabError
from bittrain import cache, data
from bittrain.bigdata import open_dataset
from bittrain.data import load_dataset
from bittrain.decode import Decoder
from bittrain.folders import image_folders
from bittrain.pixels import MAX_PIXELS, picture_suffixes

RGB = np.random.RandomState(5).randint(0, 256, (6, 4, 3), dtype=np.uint8)
GREY = np.random.RandomState(6).randint(0, 256, (6, 4), dtype=np.uint8)
ALPHA = np.array([0, 255], np.uint8).repeat(12).reshape(6, 4)
ON_WHITE = np.where(ALPHA[..., None] == 0, 255, RGB)
WIDE = (np.arange(24, dtype=np.uint16) * 2731).reshape(6, 4)
UNIT = np.linspace(0, 1, 24, dtype=np.float32).reshape(6, 4)
Pixels = NDArray[Any]


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def rgba(alpha: Pixels = ALPHA) -> Image.Image:
    return Image.fromarray(np.dstack([RGB, alpha]))


def unsigned32() -> bytes:
    """A TIFF of unsigned 32-bit integers, which Pillow writes as signed ones: its tag 339 is 1 instead of 2."""
    signed = encode(Image.fromarray((WIDE.astype(np.uint32) << 16).view(np.int32)), "TIFF")
    return signed.replace(struct.pack("<HHLL", 339, 3, 1, 2), struct.pack("<HHLL", 339, 3, 1, 1))


def palette() -> tuple[Image.Image, Pixels]:
    """A picture of four colours, and them."""
    image = Image.fromarray(RGB).quantize(4)
    return image, np.array(image.convert("RGB"))


def cut(image: Image.Image, index: int) -> Pixels:
    """The colours of a palette's picture, with one entry white."""
    return np.where(np.array(image)[..., None] == index, 255, np.array(image.convert("RGB")))


def kinds() -> dict[str, tuple[bytes, Pixels]]:
    """Encoded pictures, and what they must become."""
    colours = Image.fromarray(RGB)
    indexed, indexed_pixels = palette()
    bits = GREY > 127
    half = rgba(np.full((6, 4), 51, np.uint8))
    ways = {1: RGB, 2: RGB[:, ::-1], 3: RGB[::-1, ::-1], 4: RGB[::-1], 5: RGB.transpose(1, 0, 2)}
    ways |= {6: np.rot90(RGB, -1), 7: RGB[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(RGB)}
    keyed = np.where(np.equal(RGB, RGB[0, 0]).all(-1, keepdims=True), 255, RGB)
    made = {
        "RGB": (encode(colours), RGB),
        "grey": (encode(Image.fromarray(GREY)), GREY),
        "BMP": (encode(colours, "BMP"), RGB),
        "PPM": (encode(colours, "PPM"), RGB),
        "WebP": (encode(colours, "WEBP", lossless=True), RGB),
        "TIFF": (encode(colours, "TIFF"), RGB),
        "1 bit": (encode(Image.fromarray(bits)), bits * np.uint8(255)),
        "RGBA": (encode(rgba()), ON_WHITE),
        "RGBA as WebP": (encode(rgba(), "WEBP", lossless=True), ON_WHITE),
        "RGBA as TIFF": (encode(rgba(), "TIFF"), ON_WHITE),
        "half transparent": (encode(half), np.rint((51 * RGB.astype(float) + 204 * 255) / 255)),
        "grey and alpha": (encode(Image.fromarray(np.dstack([GREY, ALPHA]), "LA")), np.where(ALPHA == 0, 255, GREY)),
        "transparent grey": (encode(Image.fromarray(GREY), transparency=int(GREY[0, 0])), _key(GREY, GREY[0, 0])),
        "transparent colour": (encode(colours, transparency=tuple(map(int, RGB[0, 0]))), keyed),
        "palette": (encode(indexed), indexed_pixels),
        "transparent entry": (encode(indexed, transparency=1), cut(indexed, 1)),
        "alphas of entries": (encode(indexed, transparency=b"\xff\x00\xff\xff"), cut(indexed, 1)),
        "grey palette": (encode(Image.fromarray(GREY // 64 * 64).convert("P")), GREY // 64 * 64),
        "GIF": (encode(indexed, "GIF"), indexed_pixels),
        "animation": (encode(indexed, "GIF", save_all=True, append_images=[indexed.rotate(180)]), indexed_pixels),
        "animated WebP": (encode(colours, "WEBP", lossless=True, save_all=True, append_images=[rgba()]), RGB),
        "pages": (encode(colours, "TIFF", save_all=True, append_images=[colours.rotate(180)]), RGB),
        "CMYK": (encode(Image.fromarray(np.dstack([255 - RGB, 0 * GREY]), "CMYK"), "TIFF"), RGB),
        "16 bits": (encode(Image.fromarray(WIDE)), WIDE >> 8),
        "16 bits as TIFF": (encode(Image.fromarray(WIDE), "TIFF"), WIDE >> 8),
        "16 bits as PGM": (encode(Image.fromarray(WIDE), "PPM"), WIDE >> 8),
        "16 bits, 0 is white": (encode(Image.fromarray(WIDE), "TIFF", tiffinfo={262: 0}), 255 - (WIDE >> 8)),
        "32 bits": (unsigned32(), WIDE >> 8),
        "floats": (encode(Image.fromarray(UNIT), "TIFF"), np.rint(UNIT * 255)),
        "floats as PFM": (encode(Image.fromarray(UNIT), "PPM"), np.rint(UNIT * 255)),
    }
    for kind, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})):
        for orientation, pixels in ways.items():
            made[f"{kind} turned {orientation}"] = encode(colours, kind, exif=turned(orientation), **options), pixels
    with Image.open(io.BytesIO(encode(colours, "JPEG"))) as lossy:
        upright = np.rot90(np.array(lossy), -1)
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><tiff:Orientation>6</tiff:Orientation></x:xmpmeta>'
    made["JPEG turned"] = encode(colours, "JPEG", exif=turned(6)), upright
    made["JPEG turned by XMP"] = encode(colours, "JPEG", xmp=xmp), upright
    return {name: (code, pixels.astype(np.uint8)) for name, (code, pixels) in made.items()}


def _key(pixels: Pixels, value: int) -> Pixels:
    return np.where(pixels == value, 255, pixels)


KINDS = kinds()


def tensor(pixels: Pixels) -> torch.Tensor:
    """uint8 ``[C, H, W]``."""
    return torch.from_numpy(pixels[None].copy() if pixels.ndim == 2 else pixels.transpose(2, 0, 1).copy())


def as_folder(root: Path, code: bytes) -> Path:
    for place in ("train/a/1", "train/a/sub/2.PnG", "train/b/3.png", "test/a/x.png", "test/b/x.png"):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).write_bytes(code)
    return root


def as_tables(root: Path, code: bytes) -> Path:
    root.mkdir(parents=True)
    for split, labels in (("train", ["a", "a", "b"]), ("test", ["a", "b"])):
        table = pa.table({"image": [{"bytes": code, "path": None} for _ in labels], "label": labels})
        pq.write_table(table, root / f"{split}-0.parquet")
    return root


@pytest.mark.parametrize("name", KINDS)
def test_kinds(name: str) -> None:
    code, pixels = KINDS[name]
    decoder = Decoder()
    assert torch.equal(torch.tensor(decoder(code, "here")), tensor(pixels))
    for channels in (1, 3):  # grey and colour by one rule, ITU-R 601's luma, whatever was stored
        one = Image.fromarray(pixels).convert("L" if channels == 1 else "RGB")
        assert torch.equal(torch.tensor(Decoder(channels=channels)(code, "here")), tensor(np.asarray(one)))


@pytest.mark.parametrize("name", ["RGBA", "16 bits", "floats", "animation", "PNG turned 6", "grey palette"])
@pytest.mark.parametrize("make", [as_folder, as_tables])
@pytest.mark.parametrize(("size", "channels", "crop"), [(None, None, 0.0), (5, 3, 0.0), (3, 1, 0.75)])
def test_every_loading_agrees(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    make: Callable[[Path, bytes], Path],
    size: int | None,
    channels: int | None,
    crop: float,
) -> None:
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)
    code, pixels = KINDS[name]
    folder = str(make(tmp_path / "x", code))
    want = torch.tensor(Decoder(None if size is None else (size, size), channels, crop)(code, "here"))
    if size is None:
        assert torch.equal(want, tensor(pixels))
    seen = [load_dataset(folder, size, channels, crop)]
    with monkeypatch.context() as patch:
        patch.setattr(data, "_decode", lambda *a: pytest.fail("not from the cache"))
        seen.append(load_dataset(folder, size, channels, crop))
    loadings = ("disk",) if make is as_folder else ("disk", "stream")
    others = [open_dataset(folder, size, channels, way, 0, center_crop=crop) for way in loadings]
    for found in (*seen, *others):
        assert found.classes == ("a", "b")
        images, labels = next(iter(found.test.read([torch.tensor([0, 1])], 0, 0)))
        assert torch.equal(images, want.expand(2, *want.shape))
        assert labels.tolist() == [0, 1]
        assert torch.equal(found.train.sample(3), want.expand(3, *want.shape))


def test_another_pillow_decodes_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(as_folder(tmp_path / "x", KINDS["RGB"][0]))
    load_dataset(folder)
    monkeypatch.setattr(cache, "_DECODING", (cache._DECODING[0], "another"))
    monkeypatch.setattr(data, "_decode", lambda *a: pytest.fail("decoded"))
    with pytest.raises(pytest.fail.Exception, match="decoded"):
        load_dataset(folder)


def bomb(width: int, height: int) -> bytes:
    """A PNG that says it is large, and holds nothing."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (bomb(50_000, 50_000), f"more than {MAX_PIXELS:,} pixels"),
        (bomb(10_000, 10_000), f"{MAX_PIXELS:,}"),
        (bomb(1, MAX_PIXELS + 1), f"1x{MAX_PIXELS + 1} pixels; at most {MAX_PIXELS:,} are read"),
        (encode(Image.fromarray(UNIT * 2), "TIFF"), "floating-point values outside 0 .black. to 1 .white."),
        (encode(Image.fromarray(-UNIT), "TIFF"), "floating-point values outside 0 .black. to 1 .white."),
        (encode(Image.fromarray(UNIT * np.nan), "TIFF"), "floating-point values outside 0 .black. to 1 .white."),
        (encode(Image.fromarray(WIDE.astype(np.int32)), "TIFF"), "signed integers, which have no black"),
        (encode(Image.fromarray(WIDE), transparency=0), "a transparent value of more than 8 bits"),
        (encode(Image.fromarray(RGB), "PDF"), "of no known format"),
        (encode(Image.fromarray(RGB), "EPS"), "of no known format"),
        (b"", "of no known format"),
    ],
    ids=range(11),
)
def test_what_is_refused(tmp_path: Path, code: bytes, reason: str) -> None:
    file = as_folder(tmp_path / "x", KINDS["RGB"][0]) / "train" / "b" / "3.png"
    file.write_bytes(code)
    with pytest.raises(BitLabError, match=rf"train/b/3.png: unreadable image .*{reason}.*; remove or replace it"):
        load_dataset(str(tmp_path / "x"))


def test_the_largest_picture_is_read() -> None:
    code = encode(Image.new("1", (8192, 8192)))
    assert Decoder((2, 2))(code, "here").shape == (1, 2, 2)
    with pytest.raises(BitLabError, match=r"resized|pixels; at most"):  # 1 x 60,000 at a shorter side of 8,192
        Decoder((8192, 8192), center_crop=1.0)(encode(Image.new("L", (1, 60_000))), "here")
    for size, crop in ((8193, 0.0), (0, 0.0), (4, 1.5), (4, float("nan"))):
        with pytest.raises(BitLabError, match=r"(image_size|center_crop) must be"):
            load_dataset("digits", size, None, crop)


def test_colours_after_a_grey_first_picture_need_channels(tmp_path: Path) -> None:
    folder = as_folder(tmp_path / "x", KINDS["RGB"][0])
    (folder / "train" / "a" / "1").write_bytes(KINDS["grey"][0])
    with pytest.raises(BitLabError, match=r"2.PnG: the image has colours, the first one has none; set channels"):
        load_dataset(str(folder))
    assert load_dataset(str(folder), channels=3).shape == (3, 6, 4)
    (folder / "train" / "a" / "1").write_bytes(KINDS["RGB"][0])
    (folder / "train" / "b" / "3.png").write_bytes(KINDS["grey"][0])
    assert torch.equal(load_dataset(str(folder)).train.images[2], tensor(GREY).expand(3, 6, 4))


def test_what_is_passed_over_is_said(tmp_path: Path) -> None:
    folder = as_folder(tmp_path / "x", KINDS["RGB"][0])
    (folder / "train" / "a" / "notes.txt").write_text("x")
    (folder / "train" / "a" / "README").write_text("no picture")
    (folder / "train" / "a" / "._1.png").write_bytes(b"what macOS leaves")
    (folder / "train" / "lost.png").write_bytes(KINDS["RGB"][0])
    (folder / "train" / "b" / "gone.png").symlink_to(tmp_path / "nowhere")
    (folder / "train" / "b" / "loop").symlink_to(folder)
    os.mkfifo(folder / "train" / "b" / "pipe.png")
    (folder / "test" / "a" / "x.png").unlink()
    (folder / "test" / "a").rmdir()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        classes, pictures = image_folders(folder)
    texts = [str(warning.message) for warning in said]
    assert len(texts) == 2
    assert "train: 7 not read, as no pictures of a class: " in texts[0]
    assert "._1.png" in texts[0]
    assert texts[0].endswith(", …")
    assert "1 without a class folder, and so never measured: 'a'" in texts[1]
    assert classes.names == ("a", "b")
    assert [(Path(place).name, label) for _, label, place in pictures["train"]] == [
        ("1", 0),
        ("2.PnG", 0),
        ("3.png", 1),
    ]


def test_every_suffix_of_pillow_is_read(tmp_path: Path) -> None:
    assert {".jfif", ".jpe", ".jpeg", ".apng", ".tif", ".tiff", ".webp", ".pbm", ".pgm", ".gif"} <= picture_suffixes()
    folder = as_folder(tmp_path / "x", KINDS["RGB"][0])
    for suffix in picture_suffixes():
        (folder / "test" / "a" / f"picture{suffix.upper()}").write_bytes(KINDS["RGB"][0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(load_dataset(str(folder)).test) == len(picture_suffixes()) + 2


@pytest.mark.parametrize("names", [("Cat", "cat"), ("caf\u00e9", "cafe\u0301"), ("a\nb", "c"), ("a", "\x1b[2J")])
def test_class_folders_that_cannot_be_told_apart_or_shown(tmp_path: Path, names: tuple[str, str]) -> None:
    for split in ("train", "test"):
        for name in names:
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / "1.png").write_bytes(KINDS["RGB"][0])
    with pytest.raises(BitLabError, match=r"differ in case only; rename or merge|no printable class name; rename"):
        load_dataset(str(tmp_path))
