import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synaptree.core.errors import OptionError, ShapeError
from synaptree.train.data import Dataset, Split, batches, crop_flip, derive, download, load, sample, verify
from synaptree.train.zoo import build


@pytest.fixture
def numbered() -> Dataset:
    """A set of 10 grey 8x8 images, every pixel of image i being i + 1."""
    x = torch.arange(1, 11, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8).contiguous()
    split = Split(x, torch.arange(10))
    return Dataset("numbered", split, split, split, 10, scale=1.0)


def test_a_seed_depends_on_each_number_their_order_and_their_count() -> None:
    tuples = [(), (0,), (1,), (1, 0), (0, 1), (1, 2), (2, 1), (1, 2, 0), (2**32,), (2**64 - 1,)]
    assert len({derive(*numbers) for numbers in tuples}) == len(tuples)
    assert derive(1, 2) == 4013407976395716621  # runs of different releases compare
    assert all(0 <= derive(*numbers) < 2**63 for numbers in tuples)


@pytest.mark.parametrize("number", [-1, 2**64])
def test_a_seed_out_of_range_is_refused(number: int) -> None:
    with pytest.raises(OptionError, match="must be in"):
        derive(number)


def test_a_smaller_sample_is_the_beginning_of_a_larger_one(numbered: Dataset) -> None:
    small, large = sample(numbered.train, 3, seed=5), sample(numbered.train, 10, seed=5)
    assert torch.equal(large.y[:3], small.y)
    assert torch.equal(small.x[:, 0, 0, 0].long(), small.y + 1)
    assert sorted(large.y.tolist()) == list(range(10))
    assert sample(numbered.train, 10, seed=6).y.tolist() != large.y.tolist()


@pytest.mark.parametrize("n", [-1, 11])
def test_a_sample_larger_than_the_split_is_refused(numbered: Dataset, n: int) -> None:
    with pytest.raises(OptionError, match=f"cannot draw {n} images from a split of 10"):
        sample(numbered.train, n, seed=0)


def test_an_epoch_holds_each_image_once_with_its_label_and_keeps_the_short_batch(numbered: Dataset) -> None:
    epoch = list(batches(numbered, numbered.train, 4, seed=0, epoch=0))
    assert [len(y) for _, y in epoch] == [4, 4, 2]
    y = torch.cat([y for _, y in epoch])
    assert sorted(y.tolist()) == list(range(10))
    assert torch.equal(torch.cat([x for x, _ in epoch])[:, 0, 0, 0], y + 1.0)
    assert epoch[0][0].dtype == torch.float32
    assert epoch[0][1].dtype == torch.int64


def test_without_shuffling_the_order_is_that_of_the_split(numbered: Dataset) -> None:
    ys = [y.tolist() for _, y in batches(numbered, numbered.train, 4, seed=0, epoch=3, shuffle=False)]
    assert ys == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_seed_and_epoch_each_change_the_order(numbered: Dataset) -> None:
    def order(seed: int, epoch: int) -> tuple[int, ...]:
        return tuple(int(v) for _, y in batches(numbered, numbered.train, 4, seed=seed, epoch=epoch) for v in y)

    orders = {order(seed, epoch) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9
    assert order(1, 2) == order(1, 2)


@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 12), first=st.integers(0, 11), epoch=st.integers(0, 5), shuffle=st.booleans())
def test_any_step_can_be_made_again_on_its_own(size: int, first: int, epoch: int, shuffle: bool) -> None:
    x = torch.arange(10 * 64, dtype=torch.int64).remainder(251).to(torch.uint8).view(10, 1, 8, 8)
    split = Split(x, torch.arange(10))
    tiny = Dataset("tiny", split, split, split, 10)

    def made(first_step: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return list(batches(
            tiny, split, size, seed=7, epoch=epoch, shuffle=shuffle, augment="crop_flip", first_step=first_step,
        ))

    whole, rest = made(0)[first:], made(first)
    assert len(whole) == len(rest)
    for (x0, y0), (x1, y1) in zip(whole, rest, strict=True):
        assert torch.equal(x0, x1)
        assert torch.equal(y0, y1)


@pytest.mark.parametrize("wrong", [{"size": 0}, {"first_step": -1}, {"augment": "crop"}, {"seed": -1}])
def test_wrong_options_are_refused_before_the_first_batch(numbered: Dataset, wrong: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        batches(numbered, numbered.train, **{"size": 4, "seed": 0, "epoch": 0, **wrong})


def test_pixels_are_scaled_then_standardised_channel_by_channel() -> None:
    none = Split(torch.zeros(0, 2, 1, 1, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64))
    data = Dataset("two", none, none, none, 2, mean=(0.5, 0.25), std=(0.5, 0.125), scale=16.0)
    x = torch.tensor([16, 8], dtype=torch.uint8).view(1, 2, 1, 1)
    assert data.normalise(x).flatten().tolist() == [1.0, 2.0]
    assert x.flatten().tolist() == [16, 8]


def test_normalising_leaves_floating_images_as_they_were(numbered: Dataset) -> None:
    x = torch.full((1, 1, 2, 2), 3.0)
    Dataset("half", *[numbered.train] * 3, 10, scale=2.0).normalise(x)
    assert x.eq(3).all()


def test_images_with_another_number_of_channels_are_refused(numbered: Dataset) -> None:
    with pytest.raises(ShapeError, match=r"must be \(n, 1, height, width\), got \(2, 3, 8, 8\)"):
        numbered.normalise(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))


def test_rows_of_a_table_are_standardised_feature_by_feature() -> None:
    rows = Split(torch.tensor([[1, 20], [3, 40]], dtype=torch.uint8), torch.tensor([0, 1]))
    data = Dataset("table", rows, rows, rows, 2, mean=(2.0, 30.0), std=(1.0, 5.0), scale=1.0)
    x, y = next(batches(data, rows, 2, seed=0, epoch=0, shuffle=False))
    assert x.tolist() == [[-1.0, -2.0], [1.0, 2.0]]
    assert y.tolist() == [0, 1]
    assert build("mlp", inputs=2, hidden=(3,), classes=2)(x).shape == (2, 2)
    with pytest.raises(ShapeError, match=r"table: rows must be \(n, 2\), got \(2, 3\)"):
        data.normalise(torch.zeros(2, 3, dtype=torch.uint8))
    with pytest.raises(OptionError, match="augment must be 'none' for table, which holds no images, got 'crop_flip'"):
        batches(data, rows, 2, seed=0, epoch=0, augment="crop_flip")


def test_every_augmented_image_is_a_window_of_the_padded_one_mirrored_half_of_the_time() -> None:
    torch.manual_seed(0)
    x = torch.randint(1, 256, (200, 2, 6, 5), dtype=torch.uint8)
    out = crop_flip(x, torch.Generator().manual_seed(1))
    padded = np.pad(x.numpy(), ((0, 0), (0, 0), (4, 4), (4, 4)))
    shifts, mirrored = set(), 0
    for image, wide in zip(out.numpy(), padded, strict=True):
        found = [
            (top, left, flip)
            for top in range(9) for left in range(9) for flip in (False, True)
            if np.array_equal(image[..., ::-1] if flip else image, wide[:, top:top + 6, left:left + 5])
        ]
        assert found
        shifts.add(found[0][:2])
        mirrored += found[0][2]
    assert {top for top, _ in shifts} == {left for _, left in shifts} == set(range(9))
    assert 70 <= mirrored <= 130


def test_crops_show_black_beyond_the_edge_before_standardising() -> None:
    split = Split(torch.full((64, 1, 4, 4), 255, dtype=torch.uint8), torch.zeros(64, dtype=torch.int64))
    data = Dataset("white", split, split, split, 1, mean=(0.5,), std=(0.5,))
    x, _ = next(batches(data, split, 64, seed=0, epoch=0, augment="crop_flip"))
    assert set(x.unique().tolist()) == {-1.0, 1.0}


def test_digits_are_split_once_and_for_all_with_each_class_in_its_share() -> None:
    digits = load("digits")
    parts = digits.train, digits.validation, digits.test
    assert [len(part.y) for part in parts] == [1197, 240, 360]
    assert digits.train.x.shape == (1197, 1, 8, 8)
    assert digits.train.x.dtype == torch.uint8
    assert digits.train.x.max() == 16
    assert digits.normalise(digits.test.x).max() == 1.0
    total = torch.cat([part.y for part in parts]).bincount()
    for part in parts:
        assert (part.y.bincount() - total * len(part.y) / 1797).abs().max() <= 1
    assert digits.test.x.long().sum() == 113_418
    assert load("digits", split_seed=1).test.y.equal(digits.test.y)
    assert not load("digits", split_seed=1).validation.x.equal(digits.validation.x)


@pytest.mark.parametrize("n", [0, 1, 1437])
def test_any_number_of_training_images_can_be_held_out(n: int) -> None:
    digits = load("digits", validation=n)
    assert [len(digits.train.y), len(digits.validation.y)] == [1437 - n, n]


@pytest.mark.parametrize("n", [-1, 1438])
def test_more_validation_images_than_there_are_is_refused(n: int) -> None:
    with pytest.raises(OptionError, match=r"0\.\.1437"):
        load("digits", validation=n)


def test_embedded_digits_need_no_files(tmp_path: Path) -> None:
    download("digits", tmp_path)
    assert verify("digits", tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_set_is_named_with_its_neighbours() -> None:
    for act in (load, verify, download):
        with pytest.raises(OptionError, match="unknown data set 'mnits'; did you mean 'mnist'"):
            act("mnits")


@pytest.mark.needs_data
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sizes", "pixel_sum"),
    [
        ("mnist", [55_000, 5_000, 10_000], 264_923_200),
        ("fashion_mnist", [55_000, 5_000, 10_000], 573_469_082),
        ("cifar10", [40_000, 5_000, None], None),
    ],
)
def test_the_published_sets_are_read_whole(name: str, sizes: list[int | None], pixel_sum: int | None) -> None:
    root = Path(os.environ.get("SYNAPTREE_DATA", "data"))
    if any(s.state != "ok" and s.path.name != "test_batch.bin" for s in verify(name, root)):
        pytest.skip(f"{name} is not laid out under {root} (set SYNAPTREE_DATA)")
    data = load(name, root)
    parts = data.train, data.validation, data.test
    for part, size in zip(parts, sizes, strict=True):
        assert len(part.y) == (size or (10_000 if data.test_published is None else 5_000))
        assert part.y.unique().tolist() == list(range(10))
    assert pixel_sum is None or int(data.test.x.sum(dtype=torch.int64)) == pixel_sum


@pytest.mark.needs_data
@pytest.mark.parametrize(
    ("name", "classes", "sizes", "first", "total"),
    # how many are an A or a 0, and the sum of all features
    [
        ("letter", 26, [14_000, 2_000, 4_000], 789, 1_896_149),
        ("pendigits", 10, [7_794, 1_000, 2_198], 1143, 8_918_653),
    ],
)
def test_the_published_tables_are_read_whole(
    name: str, classes: int, sizes: list[int], first: int, total: int
) -> None:
    root = Path(os.environ.get("SYNAPTREE_DATA", "data"))
    if any(s.state != "ok" for s in verify(name, root)):
        pytest.skip(f"{name} is not laid out under {root} (set SYNAPTREE_DATA)")
    data = load(name, root)
    parts = data.train, data.validation, data.test
    assert [len(part.y) for part in parts] == sizes
    assert all(part.y.unique().tolist() == list(range(classes)) for part in parts)
    assert sum(int((part.y == 0).sum()) for part in parts) == first
    assert sum(int(part.x.long().sum()) for part in parts) == total
