import gzip
import hashlib
import io
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from synaptree.core.errors import DataError
from synaptree.train import download as downloading
from synaptree.train.data import load
from synaptree.train.download import SETS, File, Source, download, verify

TRAIN, TEST = 8, 3  # images of the tiny sets


def file(name: str, content: bytes, plain: File | None = None) -> File:
    return File(name, len(content), hashlib.sha256(content).hexdigest(), plain)


def idx(array: np.ndarray) -> bytes:
    magic = 0x0800 + array.ndim
    return np.array([magic, *array.shape], ">i4").tobytes() + array.astype(np.uint8).tobytes()


def tiny_mnist() -> dict[str, bytes]:
    """Content by name: 2x2 images whose first pixel is their index, labels 0, 1, 0, 1..."""
    content = {}
    for part, n in (("train", TRAIN), ("t10k", TEST)):
        images = np.zeros((n, 2, 2))
        images[:, 0, 0] = np.arange(n)
        content[f"{part}-images-idx3-ubyte"] = idx(images)
        content[f"{part}-labels-idx1-ubyte"] = idx(np.arange(n) % 2)
    return content


def tiny_cifar(n: int, first: int = 0) -> bytes:
    """Records of 2x2 images in 3 colours: red = index, green = 100, blue = 200."""
    rows = np.zeros((n, 13), np.uint8)
    rows[:, 0] = np.arange(n) % 2
    rows[:, 1:5] = np.arange(first, first + n)[:, None]
    rows[:, 5:9], rows[:, 9:] = 100, 200
    return rows.tobytes()


def packed(content: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, data in content.items():
            member = tarfile.TarInfo(f"batches-bin/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return gzip.compress(stream.getvalue(), mtime=0)


def lay_out(root: Path, content: dict[str, bytes]) -> None:
    root.mkdir(parents=True, exist_ok=True)
    for name, data in content.items():
        (root / name).write_bytes(data)


@pytest.fixture
def mnist(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """A set "tiny" in MNIST's form, known but not yet laid out; its published files by name."""
    plain = tiny_mnist()
    content = {f"{name}.gz": gzip.compress(data, mtime=0) for name, data in plain.items()}
    files = tuple(file(name, data, file(name[:-3], plain[name[:-3]])) for name, data in content.items())
    known = Source("idx", (1, 2, 2), 2, 2, "none", folder="raw", files=files, url="http://127.0.0.1:9/")
    monkeypatch.setitem(SETS, "tiny", known)
    return content


@pytest.fixture
def cifar(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """A set "tiny" in CIFAR's form: two training batches of 6, the last 4 spare, a test batch of 3."""
    content = {"data_1.bin": tiny_cifar(6), "data_2.bin": tiny_cifar(6, 6), "test.bin": tiny_cifar(3, 50)}
    known = Source(
        "records", (3, 2, 2), 2, 2, "none", folder="batches-bin", url="http://127.0.0.1:9/",
        files=tuple(file(name, data) for name, data in content.items()),
        extra=(file("part.bin", tiny_cifar(2, 50)),), archive=file("tiny.tar.gz", packed(content)), spare=4,
    )
    monkeypatch.setitem(SETS, "tiny", known)
    return content


@pytest.fixture
def cifar_100(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """A set "tiny" in CIFAR-100's form: each record begins with a coarse class of 9 and then the class."""
    content = {}
    for name, n in (("train.bin", 6), ("test.bin", 3)):
        records = np.frombuffer(tiny_cifar(n), np.uint8).reshape(n, 13)
        content[name] = np.concatenate([np.full((n, 1), 9, np.uint8), records], axis=1).tobytes()
    known = Source(
        "records", (3, 2, 2), 2, 2, "none", folder="batches-bin", url="http://127.0.0.1:9/", labels=2,
        files=tuple(file(name, data) for name, data in content.items()),
        archive=file("tiny.tar.gz", packed(content)),
    )
    monkeypatch.setitem(SETS, "tiny", known)
    return content


def table(rows: np.ndarray) -> bytes:
    """A published table: a line of names, then the rows, as decimals, the class last."""
    text = io.StringIO()
    np.savetxt(text, rows, fmt="%.1f", delimiter="\t", header="a\tb\ttarget", comments="")
    return gzip.compress(text.getvalue().encode(), mtime=0)


def known_table(monkeypatch: pytest.MonkeyPatch, root: Path, rows: np.ndarray) -> None:
    """Lay a set "tiny" out, a table of two features and two classes."""
    known = Source(
        "table", (2,), 2, 2, "none", folder="tabular", files=(file("tiny.tsv.gz", table(rows)),),
        scale=1.0, mean=(), std=(),
    )
    monkeypatch.setitem(SETS, "tiny", known)
    lay_out(root / "tabular", {"tiny.tsv.gz": table(rows)})


@pytest.fixture
def folders(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """A set "tiny" in Tiny-ImageNet's form, not yet there; its archive by name."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("tiny-2/train/n01/images/n01_0.JPEG", b"an image")
        archive.writestr("tiny-2/val/images/val_0.JPEG", b"another")
        archive.writestr("tiny-2/val/val_annotations.txt", b"val_0.JPEG\tn01\n")
    known = Source(
        "folders", (3, 2, 2), 1, None, "none", folder="tiny-2", url="http://127.0.0.1:9/", test_folder="val",
        archive=file("tiny-2.zip", stream.getvalue()),
    )
    monkeypatch.setitem(SETS, "tiny", known)
    return {"tiny-2.zip": stream.getvalue()}


class Server:
    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.cut = 0  # bytes left off the end of each body
        self.pause = 0.0  # seconds after each byte
        server = self

        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.lstrip("/")
                server.asked.append(name)
                if name not in server.content:
                    self.send_error(404)
                    return
                body = server.content[name]
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                try:
                    server.send(self.wfile, body[:len(body) - server.cut])
                except OSError:
                    return  # the other side gave up

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def send(self, out: Any, body: bytes) -> None:
        if not self.pause:
            out.write(body)
            return
        for byte in body:
            out.write(bytes([byte]))
            time.sleep(self.pause)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    served = Server()
    thread = threading.Thread(target=served.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield served
    served.http.shutdown()
    thread.join()
    served.http.server_close()


def files_under(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


@pytest.mark.parametrize("folder", ["tiny/raw", "raw"])
def test_an_mnist_like_set_is_read_from_either_place(
    mnist: dict[str, bytes], tmp_path: Path, folder: str
) -> None:
    lay_out(tmp_path / folder, mnist)
    data = load("tiny", tmp_path)
    assert data.test.x[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert data.test.y.tolist() == [0, 1, 0]
    assert [len(data.train.y), len(data.validation.y)] == [TRAIN - 2, 2]
    assert sorted(data.validation.y.tolist()) == [0, 1]
    pixels = torch.cat([data.train.x, data.validation.x])[:, 0, 0, 0]
    assert sorted(pixels.tolist()) == list(range(TRAIN))
    assert data.train.y.equal(data.train.x[:, 0, 0, 0].long() % 2)


def test_gunzipped_files_stand_in_for_published_ones(mnist: dict[str, bytes], tmp_path: Path) -> None:
    lay_out(tmp_path / "raw", mnist)
    zipped = load("tiny", tmp_path)
    for name, data in mnist.items():
        (tmp_path / "raw" / name).unlink()
        (tmp_path / "raw" / name[:-3]).write_bytes(gzip.decompress(data))
    assert load("tiny", tmp_path).train.x.equal(zipped.train.x)
    assert {(state.path.suffix, state.state) for state in verify("tiny", tmp_path)} == {("", "ok")}


@pytest.mark.usefixtures("mnist")
def test_missing_files_are_named_with_the_two_ways_to_get_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYNAPTREE_DATA", str(tmp_path / "elsewhere"))
    with pytest.raises(DataError) as caught:
        load("tiny")
    for part in (str(tmp_path / "elsewhere/tiny/raw"), "synaptree data download tiny", "SYNAPTREE_DATA"):
        assert part in str(caught.value)


def damage(path: Path, how: str) -> None:
    raw = bytearray(path.read_bytes())
    if how == "truncated":
        del raw[-5:]
    else:
        raw[len(raw) // 2] ^= 0xFF
    path.write_bytes(raw)


@pytest.mark.parametrize("how", ["truncated", "checksum differs"])
def test_a_damaged_file_is_reported_with_what_was_expected_and_found(
    mnist: dict[str, bytes], tmp_path: Path, how: str
) -> None:
    lay_out(tmp_path / "raw", mnist)
    bad = tmp_path / "raw" / "train-images-idx3-ubyte.gz"
    damage(bad, how)
    with pytest.raises(DataError) as caught:
        load("tiny", tmp_path)
    published, found = mnist[bad.name], bad.read_bytes()
    for part in (
        str(bad), f"{len(published)} bytes", hashlib.sha256(published).hexdigest(),
        f"{len(found)} bytes", hashlib.sha256(found).hexdigest(), "synaptree data download tiny",
    ):
        assert part in str(caught.value)
    states = {state.path: state.state for state in verify("tiny", tmp_path)}
    assert states.pop(bad) == how
    assert set(states.values()) == {"ok"}


@pytest.mark.parametrize(("at", "what"), [(3, "magic"), (7, "count"), (11, "height"), (-1, None)])
def test_a_header_that_does_not_fit_is_damage(
    mnist: dict[str, bytes], tmp_path: Path, at: int, what: str | None
) -> None:
    lay_out(tmp_path / "raw", {name[:-3]: gzip.decompress(data) for name, data in mnist.items()})
    path = tmp_path / "raw" / "train-images-idx3-ubyte"
    raw = bytearray(path.read_bytes())
    raw[at] += 1
    path.write_bytes(raw)
    if what is None:  # a pixel: nothing cheap can tell, the checksum does
        assert len(load("tiny", tmp_path).train.y) == TRAIN - 2
        assert "checksum differs" in [state.state for state in verify("tiny", tmp_path)]
    else:
        with pytest.raises(DataError, match="header"):
            load("tiny", tmp_path)


def test_a_label_beyond_the_classes_is_damage(mnist: dict[str, bytes], tmp_path: Path) -> None:
    lay_out(tmp_path / "raw", {name[:-3]: gzip.decompress(data) for name, data in mnist.items()})
    path = tmp_path / "raw" / "t10k-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1] + b"\x07")
    with pytest.raises(DataError, match=r"label 7 where labels are 0\.\.1"):
        load("tiny", tmp_path)


def test_cifar_records_hold_the_label_then_red_green_and_blue(cifar: dict[str, bytes], tmp_path: Path) -> None:
    lay_out(tmp_path / "tiny" / "batches-bin", cifar)
    data = load("tiny", tmp_path)
    assert data.test.y.tolist() == [0, 1, 0]
    assert data.test.x[:, :, 1, 1].tolist() == [[50, 100, 200], [51, 100, 200], [52, 100, 200]]


def test_the_training_images_are_the_same_with_and_without_the_published_test_set(
    cifar: dict[str, bytes], tmp_path: Path
) -> None:
    folder = tmp_path / "batches-bin"
    lay_out(folder, cifar)
    whole = load("tiny", tmp_path)
    assert whole.test_from == "the published test set"
    assert whole.test_published is None
    (folder / "test.bin").unlink()
    (folder / "part.bin").write_bytes(tiny_cifar(2, 50))
    partial = load("tiny", tmp_path)
    assert partial.train.x.equal(whole.train.x)
    assert partial.validation.x.equal(whole.validation.x)
    assert partial.test.x[:, 0, 0, 0].tolist() == [8, 9, 10, 11]
    assert "last 4 images of data_2.bin" in partial.test_from
    assert partial.test_published is not None
    assert partial.test_published.x[:, 0, 0, 0].tolist() == [50, 51]
    assert [state.state for state in verify("tiny", tmp_path)] == ["ok", "ok", "missing", "ok"]


def test_the_class_of_a_cifar_100_record_is_its_second_byte(cifar_100: dict[str, bytes], tmp_path: Path) -> None:
    lay_out(tmp_path / "batches-bin", cifar_100)
    data = load("tiny", tmp_path, validation=0)
    assert data.train.y.tolist() == [0, 1, 0, 1, 0, 1]
    assert data.train.x[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert data.test.x[:, :, 1, 1].tolist() == [[0, 100, 200], [1, 100, 200], [2, 100, 200]]
    assert data.test_from == "the published test set"


def test_without_spare_images_the_published_test_set_is_needed(
    cifar_100: dict[str, bytes], tmp_path: Path
) -> None:
    lay_out(tmp_path / "batches-bin", {"train.bin": cifar_100["train.bin"]})
    with pytest.raises(DataError, match=r"batches-bin/test\.bin is missing"):
        load("tiny", tmp_path)


def test_cifar_100_is_fetched_as_one_archive(
    cifar_100: dict[str, bytes], tmp_path: Path, server: Server
) -> None:
    server.content = {"tiny.tar.gz": packed(cifar_100)}
    download("tiny", tmp_path, mirror=server.url)
    assert [state.state for state in verify("tiny", tmp_path)] == ["ok", "ok"]
    assert load("tiny", tmp_path).test.y.tolist() == [0, 1, 0]


def test_a_table_is_split_once_and_for_all_with_each_class_in_its_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # classes are numbered in their order, from whatever they begin with: 3 and 7
    rows = np.array([[n, 100 + n % 3, 7 if n % 2 else 3] for n in range(20)])
    known_table(monkeypatch, tmp_path, rows)
    data = load("tiny", tmp_path)
    parts = [data.train, data.validation, data.test]
    assert [part.x.shape for part in parts] == [(14, 2), (2, 2), (4, 2)]
    assert [part.y.bincount().tolist() for part in parts] == [[7, 7], [1, 1], [2, 2]]
    found = torch.cat([torch.cat([part.x.long(), part.y[:, None]], 1) for part in parts])
    assert sorted(found.tolist()) == [[n, 100 + n % 3, n % 2] for n in range(20)]
    assert load("tiny", tmp_path, split_seed=1).test.x.equal(data.test.x)
    assert data.test_from == "4 of the 20 rows, each class in its share"


def test_the_columns_of_a_table_are_standardised_by_what_is_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known_table(monkeypatch, tmp_path, np.array([[n, 255 - n, n % 2] for n in range(20)]))
    data = load("tiny", tmp_path)
    assert data.train.x.dtype == torch.uint8
    x = data.normalise(data.train.x)
    torch.testing.assert_close(x.mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std(0, correction=0), torch.ones(2))
    assert data.mean[0] == data.train.x[:, 0].double().mean().item()


@pytest.mark.parametrize(("row", "why"), [
    ([0.5, 1, 0], "wanted rows of 2 whole numbers in 0..255 and a class"),
    ([256, 1, 0], "wanted rows of 2 whole numbers in 0..255 and a class"),
    ([-1, 1, 0], "wanted rows of 2 whole numbers in 0..255 and a class"),
    ([float("nan"), 1, 0], "wanted rows of 2 whole numbers in 0..255 and a class"),
    ([1, 1, 2], "3 classes where there are 2"),
])
def test_a_table_that_holds_something_else_is_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: list[float], why: str
) -> None:
    known_table(monkeypatch, tmp_path, np.array([[1, 1, 0], [2, 2, 1], row]))
    with pytest.raises(DataError, match=rf"tiny\.tsv\.gz is damaged \({why}"):
        load("tiny", tmp_path)


def test_a_table_of_another_width_is_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known_table(monkeypatch, tmp_path, np.array([[1, 1, 1, 0], [2, 2, 2, 1]]))
    with pytest.raises(DataError, match="wanted rows of 2 whole numbers"):
        load("tiny", tmp_path)


def test_an_archive_of_folders_is_fetched_once_and_unpacked_whole(
    folders: dict[str, bytes], tmp_path: Path, server: Server
) -> None:
    server.content = folders
    download("tiny", tmp_path, mirror=server.url)
    names = sorted(path.relative_to(tmp_path).as_posix() for path in files_under(tmp_path))
    assert names == [
        f"tiny/tiny-2/{name}"
        for name in ("train/n01/images/n01_0.JPEG", "val/images/val_0.JPEG", "val/val_annotations.txt")
    ]
    download("tiny", tmp_path, mirror=server.url)
    assert server.asked == ["tiny-2.zip"]
    assert verify("tiny", tmp_path) == []


def test_folders_that_are_half_there_are_not_overwritten(
    folders: dict[str, bytes], tmp_path: Path, server: Server
) -> None:
    server.content = folders
    lay_out(tmp_path / "tiny/tiny-2/train/n01", {"mine.JPEG": b"mine"})
    with pytest.raises(DataError, match=r"tiny/tiny-2 is there, but lacks train or val; move it out of the way"):
        download("tiny", tmp_path, mirror=server.url)
    assert server.asked == []
    assert [path.read_bytes() for path in files_under(tmp_path)] == [b"mine"]


def test_a_damaged_archive_of_folders_leaves_nothing(
    folders: dict[str, bytes], tmp_path: Path, server: Server
) -> None:
    server.content = {"tiny-2.zip": folders["tiny-2.zip"][:-1] + b"?"}
    with pytest.raises(DataError, match=r"tiny-2\.zip could not be fetched"):
        download("tiny", tmp_path, mirror=server.url)
    assert files_under(tmp_path) == []
    assert not (tmp_path / "tiny/tiny-2").exists()


def test_a_download_is_complete_verified_and_made_once(
    mnist: dict[str, bytes], tmp_path: Path, server: Server
) -> None:
    server.content = mnist
    download("tiny", tmp_path, mirror=server.url)
    assert {state.state for state in verify("tiny", tmp_path)} == {"ok"}
    assert sorted(path.name for path in files_under(tmp_path)) == sorted(mnist)
    assert sorted(server.asked) == sorted(mnist)
    assert (tmp_path / "tiny/raw/t10k-labels-idx1-ubyte.gz").stat().st_mode & 0o044 == 0o044
    download("tiny", tmp_path, mirror=server.url)
    assert len(server.asked) == len(mnist)


def test_only_a_damaged_file_is_fetched_again(
    mnist: dict[str, bytes], tmp_path: Path, server: Server
) -> None:
    server.content = mnist
    lay_out(tmp_path / "raw", mnist)
    damage(tmp_path / "raw/t10k-images-idx3-ubyte.gz", "checksum differs")
    download("tiny", tmp_path, mirror=server.url + "/")
    assert server.asked == ["t10k-images-idx3-ubyte.gz"]
    assert {state.state for state in verify("tiny", tmp_path)} == {"ok"}


def test_a_damaged_gunzipped_file_gives_way_to_the_published_one(
    mnist: dict[str, bytes], tmp_path: Path, server: Server
) -> None:
    server.content = mnist
    lay_out(tmp_path / "raw", {name[:-3]: gzip.decompress(data) for name, data in mnist.items()})
    damage(tmp_path / "raw/t10k-images-idx3-ubyte", "truncated")
    download("tiny", tmp_path, mirror=server.url)
    assert server.asked == ["t10k-images-idx3-ubyte.gz"]
    assert {state.state for state in verify("tiny", tmp_path)} == {"ok"}


def test_an_archive_is_unpacked_and_not_kept(
    cifar: dict[str, bytes], tmp_path: Path, server: Server
) -> None:
    server.content = {"tiny.tar.gz": packed(cifar)}
    download("tiny", tmp_path, mirror=server.url)
    assert {state.state for state in verify("tiny", tmp_path)} == {"ok"}
    assert sorted(path.name for path in files_under(tmp_path)) == sorted(cifar)
    download("tiny", tmp_path, mirror=server.url)
    assert server.asked == ["tiny.tar.gz"]


def test_a_damaged_file_that_nobody_publishes_is_not_asked_for(
    cifar: dict[str, bytes], tmp_path: Path, server: Server
) -> None:
    lay_out(tmp_path / "batches-bin", {**cifar, "part.bin": b"not it"})
    download("tiny", tmp_path, mirror=server.url)
    assert server.asked == []


def test_the_progress_bar_is_for_the_error_stream(
    mnist: dict[str, bytes], tmp_path: Path, server: Server, capfd: pytest.CaptureFixture[str]
) -> None:
    server.content = mnist
    download("tiny", tmp_path / "quiet", mirror=server.url)
    assert capfd.readouterr() == ("", "")
    download("tiny", tmp_path / "shown", mirror=server.url, progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "t10k-labels-idx1-ubyte.gz" in err


@pytest.mark.parametrize("fault", ["not there", "cut short", "other bytes", "too long", "no server"])
def test_a_failed_download_names_file_address_and_checksums_and_keeps_what_was_there(
    mnist: dict[str, bytes], tmp_path: Path, server: Server, fault: str
) -> None:
    name = "train-images-idx3-ubyte.gz"
    lay_out(tmp_path / "raw", {**mnist, name: b"damaged before"})
    body = {"other bytes": bytes(len(mnist[name])), "too long": mnist[name] * 2}.get(fault, mnist[name])
    server.content = {} if fault == "not there" else {name: body}
    server.cut = 10 if fault == "cut short" else 0
    mirror = "http://127.0.0.1:9" if fault == "no server" else server.url
    with pytest.raises(DataError) as caught:
        download("tiny", tmp_path, mirror=mirror)
    arrived = body[:len(body) - 10] if fault == "cut short" else body
    if fault in ("not there", "no server"):
        arrived = b""
    for part in (
        f"{mirror}/{name}", hashlib.sha256(mnist[name]).hexdigest(), hashlib.sha256(arrived).hexdigest(),
        f"got {len(arrived)} bytes", "try again",
    ):
        assert part in str(caught.value)
    assert "404" in str(caught.value) or fault != "not there"
    assert len(server.asked) <= 1
    assert (tmp_path / "raw" / name).read_bytes() == b"damaged before"
    assert len(files_under(tmp_path)) == len(mnist)


def test_a_trickle_is_given_up(
    mnist: dict[str, bytes], tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloading, "TIMEOUT", 0.2)
    server.content, server.pause = mnist, 0.02
    start = time.monotonic()
    with pytest.raises(DataError, match="not finished after 0 s"):
        download("tiny", tmp_path, mirror=server.url)
    assert time.monotonic() - start < 1.5
    assert files_under(tmp_path) == []


@pytest.mark.usefixtures("mnist")
def test_a_download_without_its_libraries_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(DataError, match=r"downloading needs pooch: pip install 'synaptree\[train\]'"):
        download("tiny", tmp_path)
