import io
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from synaptree.core.errors import DataError, OptionError
from synaptree.train.data import load, verify
from synaptree.train.download import download
from synaptree.train.sources import directory, source

RED, GREEN, BLUE, WHITE = (200, 0, 0), (0, 100, 0), (0, 0, 50), (255, 255, 255)
Colour = tuple[int, int, int] | int


def draw(path: Path, colour: Colour = WHITE, size: tuple[int, int] = (4, 3)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L" if isinstance(colour, int) else "RGB", size, colour).save(path)


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Two classes of images, 4 wide and 3 high, in folders of one's own."""
    draw(tmp_path / "train/dog/a.png", RED)
    draw(tmp_path / "train/cat/b.png", GREEN)
    draw(tmp_path / "train/cat/a.PNG", BLUE)
    draw(tmp_path / "test/cat/x.png", WHITE)
    draw(tmp_path / "test/dog/y.png", BLUE)
    return tmp_path


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """Tiny-ImageNet's published form with two classes; JPEGs of one colour keep it but for rounding."""
    folder = tmp_path / "tiny_imagenet/tiny-imagenet-200"
    for of_class, colour in (("n01", RED), ("n02", GREEN)):
        for n in range(10):
            draw(folder / f"train/{of_class}/images/{of_class}_{n}.JPEG", colour)
        (folder / f"train/{of_class}/{of_class}_boxes.txt").write_text("n01_0.JPEG\t0\t0\t3\t2\n")
    draw(folder / "val/images/val_0.JPEG", GREEN)
    draw(folder / "val/images/val_1.JPEG", RED)
    draw(folder / "test/images/test_0.JPEG", BLUE)
    (folder / "val/val_annotations.txt").write_text("val_1.JPEG\tn01\t0\t0\t3\t2\nval_0.JPEG\tn02\t0\t0\t3\t2\n")
    return folder


def test_classes_and_images_come_in_the_order_of_their_names(pets: Path) -> None:
    data = load(f"folder:{pets}", validation=0)
    assert data.classes == 2
    assert data.train.x.shape == (3, 3, 3, 4)
    assert data.train.x.dtype == torch.uint8
    assert data.train.x[:, :, 0, 0].tolist() == [list(BLUE), list(GREEN), list(RED)]
    assert data.train.y.tolist() == [0, 0, 1]
    assert data.test.y.tolist() == [0, 1]
    assert data.test_from == "the images of the folder test"


def test_rows_and_columns_of_an_image_stay_in_place(pets: Path) -> None:
    pixels = np.arange(36, dtype=np.uint8).reshape(3, 4, 3)
    Image.fromarray(pixels).save(pets / "test/cat/x.png")
    assert load(f"folder:{pets}").test.x[0].tolist() == pixels.transpose(2, 0, 1).tolist()


def test_images_are_standardised_by_what_is_trained_on(pets: Path) -> None:
    data = load(f"folder:{pets}", validation=0)
    # red is 0, 0, 200 of the three images: mean 200/3 and deviation 200/3 sqrt 2, both over 255
    assert data.mean[0] == pytest.approx(200 / 3 / 255)
    assert data.std[0] == pytest.approx(200 / 3 / 255 * 2**0.5)
    x = data.normalise(data.train.x)
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(x.square().mean((0, 2, 3)), torch.ones(3))


def test_a_channel_that_never_changes_is_only_centred(pets: Path) -> None:
    for path in pets.glob("t*/*/*"):
        draw(path, 7)
    data = load(f"folder:{pets}", validation=0)
    assert data.std == (1.0,)
    assert data.normalise(data.train.x).abs().max() < 1e-6


def test_a_tenth_of_the_training_images_is_held_out_and_at_least_one(pets: Path) -> None:
    assert len(load(f"folder:{pets}").validation.y) == 1
    for n in range(18):  # 21 in all
        draw(pets / f"train/cat/{n}.png")
    assert len(load(f"folder:{pets}").validation.y) == 3


def test_images_have_one_channel_only_if_all_are_grey(pets: Path) -> None:
    draw(pets / "train/cat/b.png", 9)
    assert load(f"folder:{pets}", validation=0).train.x[1, :, 0, 0].tolist() == [9, 9, 9]
    for path in pets.glob("t*/*/*"):
        draw(path, 7)
    data = load(f"folder:{pets}", validation=0)
    assert data.train.x.shape == (3, 1, 3, 4)
    assert data.train.x.unique().tolist() == [7]


def test_other_files_and_hidden_folders_are_no_images_and_no_classes(pets: Path) -> None:
    (pets / "train/cat/notes.txt").write_text("the cat's")
    (pets / "train/readme.md").write_text("two classes")
    (pets / "train/.hidden").mkdir()
    (pets / "test/.hidden").mkdir()
    data = load(f"folder:{pets}", validation=0)
    assert (data.classes, len(data.train.y)) == (2, 3)


def test_the_published_form_of_tiny_imagenet_is_read_with_val_as_test_set(published: Path) -> None:
    data = load("tiny_imagenet", published.parents[1])
    assert data.classes == 2
    assert [len(data.train.y), len(data.validation.y)] == [18, 2]
    assert data.test.y.tolist() == [0, 1]
    assert (data.test.x[:, :, 0, 0].int() - torch.tensor([RED, GREEN])).abs().max() <= 2
    assert data.test_from == "the images of the folder val"


@pytest.mark.parametrize("place", ["tiny_imagenet/tiny-imagenet-200", "tiny-imagenet-200", "tiny_imagenet"])
def test_folders_of_classes_are_found_in_three_places(tmp_path: Path, place: str) -> None:
    for part in ("train", "val"):
        draw(tmp_path / place / part / "n01/a.JPEG")
    assert directory("tiny_imagenet", tmp_path) == tmp_path / place
    assert load("tiny_imagenet", tmp_path).classes == 1


def test_missing_folders_are_named_with_what_was_wanted(pets: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"{tmp_path}/no/train is missing .* wanted images as train/CLASS/\*\.jpg"):
        load(f"folder:{tmp_path}/no")
    with pytest.raises(DataError, match=r"200/train is missing .* `synaptree data download tiny_imagenet"):
        load("tiny_imagenet", tmp_path)
    (pets / "test").rename(pets / "val")
    with pytest.raises(DataError, match=rf"{pets}/test is missing; .* test/CLASS"):
        load(f"folder:{pets}")


@pytest.mark.parametrize(("part", "of_class"), [("train", "dog"), ("test", "dog")])
def test_a_class_without_images_is_named(pets: Path, part: str, of_class: str) -> None:
    for path in (pets / part / of_class).iterdir():
        path.rename(path.with_suffix(".gif"))
    with pytest.raises(DataError, match=rf"class 'dog' has no images \(\.jpeg, \.jpg, \.png\) in {pets}/{part}/dog"):
        load(f"folder:{pets}")


def test_a_class_that_nobody_trains_on_is_named(pets: Path) -> None:
    draw(pets / "test/cow/a.png")
    with pytest.raises(DataError, match=f"{pets}/test/cow is no class of the training set"):
        load(f"folder:{pets}")


def test_an_image_of_another_size_is_named_beside_the_first(pets: Path) -> None:
    draw(pets / "test/dog/y.png", size=(5, 3))
    with pytest.raises(DataError) as caught:
        load(f"folder:{pets}")
    assert f"{pets}/test/dog/y.png is 5 x 3 pixels, {pets}/train/cat/a.PNG is 4 x 3" in str(caught.value)
    assert "ImageOps.fit" in str(caught.value)


@pytest.mark.parametrize("fault", ["empty", "text", "truncated", "damaged", "16 bits"])
def test_an_unreadable_image_is_named(pets: Path, fault: str) -> None:
    path = pets / "train/cat/b.png"
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (3, 4, 3), np.uint8)).save(stream, "png")
    raw = stream.getvalue()
    content = {"empty": b"", "text": b"a cat", "truncated": raw[:-30], "damaged": raw[:20] + b"??" + raw[22:]}
    if fault == "16 bits":
        Image.fromarray(np.full((3, 4), 60_000, np.uint16)).save(path)
    else:
        path.write_bytes(content[fault])
    with pytest.raises(DataError, match=f"{path} cannot be read as an image"):
        load(f"folder:{pets}")


@pytest.mark.parametrize(("line", "message"), [
    ("val_9.JPEG\tn01", "line 2 names 'val_9.JPEG', but .*val/images/val_9.JPEG is missing"),
    ("val_0.JPEG\tn09", "line 2: 'n09' is no class of the training set"),
    ("val_0.JPEG", "line 2: '' is no class"),
])
def test_annotations_that_do_not_fit_are_named_with_their_line(published: Path, line: str, message: str) -> None:
    (published / "val/val_annotations.txt").write_text(f"val_1.JPEG\tn01\n{line}\n")
    with pytest.raises(DataError, match=message):
        load("tiny_imagenet", published.parents[1])


def test_annotations_without_a_line_are_an_error(published: Path) -> None:
    (published / "val/val_annotations.txt").write_text("")
    with pytest.raises(DataError, match=r"val_annotations\.txt is empty"):
        load("tiny_imagenet", published.parents[1])


def test_reading_images_without_pillow_says_what_to_install(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(DataError, match=r"reading images needs PIL: pip install 'synaptree\[train\]'"):
        load(f"folder:{pets}")


def test_a_folder_of_ones_own_is_neither_verified_nor_downloaded(pets: Path) -> None:
    assert verify(f"folder:{pets}") == []
    with pytest.raises(OptionError, match="a folder of images that nobody publishes"):
        download(f"folder:{pets}")
    with pytest.raises(OptionError, match="unknown data set 'folder:'"):
        source("folder:")


def test_a_path_may_begin_with_ones_home(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(pets))
    assert directory("folder:~/train") == pets / "train"


@pytest.mark.needs_data
@pytest.mark.slow
def test_the_images_of_tiny_imagenet_are_read_whole() -> None:
    root = Path(os.environ.get("SYNAPTREE_DATA", "data"))
    if not (directory("tiny_imagenet", root) / "train").is_dir():
        pytest.skip(f"tiny_imagenet is not laid out under {root} (set SYNAPTREE_DATA)")
    data = load("tiny_imagenet", root)
    assert data.classes in (100, 200)
    assert data.train.y.bincount().tolist() == [450] * data.classes
    assert data.validation.y.bincount().tolist() == data.test.y.bincount().tolist() == [50] * data.classes
    assert data.train.x.shape[1:] == (3, 64, 64)
