import pytest

from synaptree.artifact.files import replacing


def test_a_file_takes_its_place_with_its_folder_made(tmp_path):
    with replacing(tmp_path / "new" / "a.json") as partial:
        assert partial.parent == tmp_path / "new"
        partial.write_text("whole")
        assert not list(partial.parent.glob("*.json"))  # who looks for whole files does not find it
    assert (tmp_path / "new" / "a.json").read_text() == "whole"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.json"]


def test_after_an_error_the_old_file_stands_and_nothing_lies_beside_it(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="disk"), replacing(path) as partial:  # noqa: PT012 - breaks half-way
        partial.write_text("half")
        raise RuntimeError("disk full")
    assert path.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_the_old_file_can_be_read_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with replacing(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_an_error_of_the_system_names_the_file_that_was_wanted(tmp_path):
    (tmp_path / "a.json").mkdir()
    with pytest.raises(IsADirectoryError) as caught, replacing(tmp_path / "a.json") as partial:
        partial.write_text("new")
    assert (caught.value.filename, caught.value.filename2) == (str(tmp_path / "a.json"), None)
    long = tmp_path / ("a" * 300)
    with pytest.raises(OSError, match=f"too long: '{long}'"), replacing(long) as partial:
        partial.write_text("new")
    with pytest.raises(FileNotFoundError, match="other"), replacing(tmp_path / "b.json"):
        (tmp_path / "other").read_text()
