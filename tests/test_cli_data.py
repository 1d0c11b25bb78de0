from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from synaptree.cli.commands import app

LOCAL = Path("d/tiny_imagenet")


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS", "SYNAPTREE_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    for path in ("train/n01/a.png", "train/n02/a.png", "val/n01/b.png", "val/n02/b.png"):
        (LOCAL / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(LOCAL / path)


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["data", *arguments])


def test_the_list_counts_the_class_folders_that_are_there() -> None:
    (line,) = [line for line in call("list", "--data", "d").stdout.splitlines() if line.startswith("tiny_imagenet")]
    assert line.endswith(f"200 classes  2 class folders in {LOCAL}")
    assert call("list", "tiny_imagenet", "--data", "no").stdout.count("0 class folders in no/") == 1


def test_a_folder_of_ones_own_can_be_listed_and_verified() -> None:
    (LOCAL / "val").rename(LOCAL / "test")
    assert f"2 class folders in {LOCAL}" in call("list", f"folder:{LOCAL}").stdout
    assert call("verify", f"folder:{LOCAL}").stdout == (
        f"folder:{LOCAL}: ok: all 4 images of 2 classes can be read: {LOCAL}\n"
    )


def test_verifying_image_folders_names_the_first_that_cannot_be_read() -> None:
    (LOCAL / "train/n02/a.png").write_bytes(b"no image")
    result = call("verify", "--data", "d")
    assert result.exit_code == 2
    assert f"tiny_imagenet: {LOCAL}/train/n02/a.png cannot be read as an image" in result.stdout
    assert "letter: not there" in result.stdout
    assert "1 file(s) damaged or missing" in result.stderr


def test_image_folders_may_be_missing_unless_they_are_asked_for() -> None:
    everything, asked = call("verify", "--data", "no"), call("verify", "tiny_imagenet", "--data", "no")
    assert everything.exit_code == 0
    assert "tiny_imagenet: not there (no/tiny_imagenet/tiny-imagenet-200)" in everything.stdout
    assert asked.exit_code == 2
    assert "train is missing or holds no folders" in asked.stdout


def test_nobody_publishes_a_folder_of_ones_own() -> None:
    result = call("download", f"folder:{LOCAL}")
    assert result.exit_code == 2
    assert "that nobody publishes" in result.stderr
