"""Preprocessing, augmentation and batches: exact, and a function of seed and place alone."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import Tensor

from bitcore.errors import BitLabError
from bittrain.augment import AUGMENTATIONS, Augment
from bittrain.data import Split, load_dataset
from bittrain.loader import TestLoader, TrainLoader
from bittrain.preprocessing import NORMALIZATIONS, Preprocessing

ALL_PIXELS = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_preprocessing_round_trip(normalization: str) -> None:
    preprocessing = Preprocessing.create(normalization, (16, 16), 1, (0.1307,), (0.3081,))
    assert Preprocessing.from_dict(preprocessing.to_dict()) == preprocessing
    x = preprocessing(ALL_PIXELS)
    assert x.dtype == torch.float32
    assert x.shape == (1, 1, 16, 16)


def test_preprocessing_values() -> None:
    p = torch.arange(256, dtype=torch.float32)
    none = Preprocessing.create("none", (16, 16), 1)
    assert torch.equal(none(ALL_PIXELS).flatten(), p / 255)
    assert none.formula() == "x = pixel / 255"
    mnist = Preprocessing.create("dataset", (16, 16), 1, (0.1307,), (0.3081,))
    assert torch.equal(mnist(ALL_PIXELS).flatten(), (p / 255 - 0.1307) / 0.3081)
    assert mnist.formula() == "x = (pixel / 255 - 0.1307) / 0.3081"
    pow2 = Preprocessing.create("pow2", (16, 16), 1)
    codes = pow2(ALL_PIXELS).flatten() * 128  # what a quantizer with the scale 2**-7 sees: integers already
    assert torch.equal(codes, torch.arange(256) >> 1)
    assert pow2.formula() == "x = (pixel & 254) / 256"


@pytest.mark.parametrize("images", [torch.zeros(1, 1, 16, 16), torch.zeros(1, 3, 16, 16, dtype=torch.uint8)])
def test_preprocessing_refuses_other_images(images: Tensor) -> None:
    with pytest.raises(BitLabError, match=r"images must be uint8 \[B, 1, 16, 16\], not (float32|uint8)"):
        Preprocessing.create("none", (16, 16), 1)(images)


def test_preprocessing_errors() -> None:
    with pytest.raises(BitLabError, match="unknown normalization 'pwo2'; did you mean 'pow2'"):
        Preprocessing.create("pwo2", (8, 8), 1)
    with pytest.raises(BitLabError, match="unreadable preprocessing"):
        Preprocessing.from_dict({"image_size": [8, 8]})
    with pytest.raises(BitLabError, match="one mean and one std"):
        Preprocessing((8, 8), 3, (0.0,), (1.0,))


@pytest.mark.parametrize("name", sorted(AUGMENTATIONS))
@pytest.mark.parametrize("channels", [1, 3])
def test_augmentations_are_functions_of_the_seed(name: str, channels: int) -> None:
    images = torch.randint(0, 256, (40, channels, 16, 16), dtype=torch.uint8)
    augment = Augment([name], (16, 16))
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = augment(images, 1)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(6)
    assert torch.equal(first, augment(images, 1))
    assert not torch.equal(first, augment(images, 2))
    assert first.dtype == torch.uint8
    assert first.shape == images.shape
    assert augment(images, 1, (8, 8)).shape == (40, channels, 8, 8)
    assert all(p.default is not p.empty for p in list(inspect.signature(AUGMENTATIONS[name]).parameters.values())[1:])


def test_strength_zero_changes_nothing() -> None:
    images = torch.randint(0, 256, (9, 1, 16, 16), dtype=torch.uint8)
    assert torch.equal(
        Augment(["affine degrees=0 translate=0 scale=0", "flip probability=0"], (16, 16))(images, 1), images
    )
    flipped = Augment(["flip probability=1"], (16, 16))(images, 1)
    assert torch.equal(flipped, images.flip(3))


def test_crop_moves_by_at_most_the_padding() -> None:
    image = torch.zeros(1, 1, 16, 16, dtype=torch.uint8)
    image[0, 0, 8, 8] = 255
    places = Augment(["crop padding=2"], (16, 16))(image.repeat(200, 1, 1, 1), 3).nonzero()
    assert len(places) == 200
    assert places[:, 2:].amin(0).tolist() == [6, 6]
    assert places[:, 2:].amax(0).tolist() == [10, 10]


def rows(count: int) -> Split:
    """Images that show their own number."""
    images = torch.arange(count).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8).contiguous()
    return Split(images, torch.arange(count))


def loader(count: int = 250, batch: int = 16, **options: object) -> TrainLoader:
    """Batches of `rows`."""
    return TrainLoader(rows(count), Preprocessing.create("none", (8, 8), 1), batch, 3, **options)  # pyright: ignore[reportArgumentType]


def test_an_epoch_sees_every_image_once() -> None:
    batches = list(loader().epoch(0))
    assert len(batches) == len(loader()) == 15
    assert all(len(y) == 16 for _, y in batches)
    seen = torch.cat([y for _, y in batches])
    assert len(seen.unique()) == 240
    for images, labels in batches:
        assert torch.equal(images[:, 0, 0, 0], labels / 255)
    assert not torch.equal(seen, torch.cat([y for _, y in loader().epoch(1)]))
    assert [len(y) for _, y in loader(5).epoch(0)] == [5]


@pytest.mark.parametrize("copies", [0, 1])
@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_any_start_continues_the_same_epoch(chunk: int, copies: int) -> None:
    made = loader(100, augment=Augment(["affine"], (8, 8)), copies=copies, probability=0.7)
    made._chunk = chunk
    whole = list(made.epoch(2))
    for start in range(len(whole) + 1):
        rest = list(made.epoch(2, start))
        assert len(rest) == len(whole) - start
        for (a, b), (c, d) in zip(rest, whole[start:], strict=True):
            assert torch.equal(a, c)
            assert torch.equal(b, d)


def test_position_is_asked_when_the_first_batch_is() -> None:
    place = [0, 0]
    made = loader(position=lambda: (place[0], place[1]))
    iterator = iter(made)
    place[:] = [3, 4]
    assert torch.equal(next(iterator)[1], list(made.epoch(3))[4][1])


def test_copies_and_probability() -> None:
    digits = load_dataset("digits").train
    preprocessing = Preprocessing.create("none", (8, 8), 1)
    augment = Augment(["flip probability=1"], (8, 8))

    def changed(**options: float) -> float:
        made = TrainLoader(digits, preprocessing, 1442, 0, augment, **options)  # pyright: ignore[reportArgumentType]
        original = {i.numpy().tobytes() for i in preprocessing(digits.images)}
        images = torch.cat([x for x, _ in made.epoch(0)])
        assert len(images) == 1442 * (1 + int(options.get("copies", 0)))
        return sum(i.numpy().tobytes() not in original for i in images) / len(images)

    assert changed(probability=0.0) == 0
    assert changed(probability=1.0) > 0.95
    assert 0.4 < changed(probability=0.5) < 0.6
    assert 0.48 < changed(copies=1) <= 0.5


def test_augmenting_at_a_larger_size() -> None:
    small, large = load_dataset("digits", 8).train, load_dataset("digits", 16).train
    preprocessing = Preprocessing.create("none", (8, 8), 1)
    made = TrainLoader(small, preprocessing, 64, 0, Augment(["affine"], (16, 16)), large)
    images, labels = next(iter(made))
    assert images.shape == (64, 1, 8, 8)
    still = TrainLoader(small, preprocessing, 64, 0, Augment(["affine degrees=0 translate=0 scale=0"], (16, 16)), large)
    plain = TrainLoader(small, preprocessing, 64, 0)
    (a, la), (b, lb) = next(iter(still)), next(iter(plain))
    assert torch.equal(la, lb)
    assert torch.equal(la, labels)
    assert (a - b).abs().mean() < 0.12  # the same digits, a little softer


def test_the_test_loader_keeps_the_order() -> None:
    made = TestLoader(rows(25), Preprocessing.create("none", (8, 8), 1), 10)
    assert [len(y) for _, y in made] == [10, 10, 5]
    assert len(made) == 3
    assert torch.cat([y for _, y in made]).tolist() == list(range(25))
