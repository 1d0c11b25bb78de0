"""What is known of each data set before any of its files is read."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from synaptree.core.errors import unknown

__all__ = ["FOLDER", "SETS", "File", "Source", "class_names", "directory", "source"]

FOLDER = "folder:"
"""What a set's name begins with if it is a folder of images: `folder:PATH`."""

_PMLB = "https://github.com/EpistasisLab/pmlb/raw/253138e2aa4098734fb9154ec3570fbcad5f4197/datasets/"
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class File:
    """One published file: its name, size in bytes and SHA-256; `plain` is the same file gunzipped."""

    name: str
    bytes: int
    sha256: str
    plain: "File | None" = None


@dataclass(frozen=True)
class Source:
    """What is known of a data set before any of its files is read.

    Attributes:
        format: how the files are read: "idx", CIFAR's "records", a "table", image "folders", or "digits",
            embedded in scikit-learn.
        shape: (channels, height, width) of an image, (features,) of a row of a table.
        classes: number of classes; labels are 0..classes-1. Of image folders as many as there are.
        validation: training images held out when nobody says otherwise; None: a tenth of them.
        licence: the terms, in a line.
        folder: where the files lie under ROOT/NAME.
        url: the folder they are published in.
        files: the published files; "idx": training images and labels, then test images and labels;
            "records": the training batches, then the test set, without which one can do if some are `spare`.
        extra: files that are read if present, but that nobody publishes.
        archive: the archive under `url` that holds `files`, if they are published as one.
        spare: last training images, never trained on: the test set of whoever lacks the published one.
        labels: bytes before the pixels of a record; the last is its class.
        test_folder: which of the image folders is the test set.
        scale: the pixel value that becomes 1.
        mean: subtracted from each channel after scaling; empty: the mean of the training images.
        std: divides each channel after that; goes with `mean`.
        augment: the augmentation that suits the set.
    """

    format: Literal["idx", "records", "table", "folders", "digits"]
    shape: tuple[int, ...]
    classes: int
    validation: int | None
    licence: str
    folder: str = ""
    url: str = ""
    files: tuple[File, ...] = ()
    extra: tuple[File, ...] = ()
    archive: File | None = None
    spare: int = 0
    labels: int = 1
    test_folder: str = "test"
    scale: float = 255.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    augment: str = "none"


def _gz(name: str, size: int, sha256: str, plain_size: int, plain_sha256: str) -> File:
    return File(name + ".gz", size, sha256, File(name, plain_size, plain_sha256))


SETS: dict[str, Source] = {
    "mnist": Source(
        format="idx", shape=(1, 28, 28), classes=10, validation=5000,
        licence="Y. LeCun, C. Cortes, C. Burges; commonly stated as CC BY-SA 3.0",
        folder="MNIST/raw", url="https://ossci-datasets.s3.amazonaws.com/mnist/",
        files=(
            _gz("train-images-idx3-ubyte",
                9_912_422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
                47_040_016, "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
            _gz("train-labels-idx1-ubyte",
                28_881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
                60_008, "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
            _gz("t10k-images-idx3-ubyte",
                1_648_877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
                7_840_016, "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
            _gz("t10k-labels-idx1-ubyte",
                4_542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
                10_008, "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
        ),
    ),
    "fashion_mnist": Source(
        format="idx", shape=(1, 28, 28), classes=10, validation=5000,
        licence="MIT, Zalando SE",
        folder="FashionMNIST/raw", url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        files=(
            _gz("train-images-idx3-ubyte",
                26_421_880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
                47_040_016, "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"),
            _gz("train-labels-idx1-ubyte",
                29_515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
                60_008, "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"),
            _gz("t10k-images-idx3-ubyte",
                4_422_102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
                7_840_016, "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"),
            _gz("t10k-labels-idx1-ubyte",
                5_148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
                10_008, "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"),
        ),
    ),
    "cifar10": Source(
        format="records", shape=(3, 32, 32), classes=10, validation=5000,
        licence="no explicit licence; cite A. Krizhevsky, Learning Multiple Layers of Features, 2009",
        folder="cifar-10-batches-bin", url="https://www.cs.toronto.edu/~kriz/",
        files=tuple(File(name, 30_730_000, sha256) for name, sha256 in (
            ("data_batch_1.bin", "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5"),
            ("data_batch_2.bin", "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed"),
            ("data_batch_3.bin", "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67"),
            ("data_batch_4.bin", "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48"),
            ("data_batch_5.bin", "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add"),
            ("test_batch.bin", "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b"),
        )),
        extra=(File("test_batch_1017.bin", 3_125_241,
                    "c77ad46116beb3508f55d38aa34893560beae9515f9aca4a4dd0ea3617ac289e"),),
        archive=File("cifar-10-binary.tar.gz", 170_052_171,
                     "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"),
        spare=5000, mean=_IMAGENET_MEAN, std=_IMAGENET_STD, augment="crop_flip",
    ),
    "cifar100": Source(
        format="records", shape=(3, 32, 32), classes=100, validation=5000,
        licence="no explicit licence; cite A. Krizhevsky, Learning Multiple Layers of Features, 2009",
        folder="cifar-100-binary", url="https://www.cs.toronto.edu/~kriz/",
        files=(
            File("train.bin", 153_700_000, "f31298fc616915fa142368359df1c4ca2ae984d6915ca468b998a5ec6aeebf29"),
            File("test.bin", 30_740_000, "d8b1e6b7b3bee4020055f0699b111f60b1af1e262aeb93a0b659061746f8224a"),
        ),
        archive=File("cifar-100-binary.tar.gz", 168_513_733,
                     "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"),
        labels=2, mean=_IMAGENET_MEAN, std=_IMAGENET_STD, augment="crop_flip",
    ),
    "tiny_imagenet": Source(
        format="folders", shape=(3, 64, 64), classes=200, validation=None,
        licence="ImageNet's terms of access: research and education only, not commercial",
        folder="tiny-imagenet-200", url="http://cs231n.stanford.edu/",
        archive=File("tiny-imagenet-200.zip", 248_100_043,
                     "6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821"),
        test_folder="val", mean=_IMAGENET_MEAN, std=_IMAGENET_STD, augment="crop_flip",
    ),
    "letter": Source(
        format="table", shape=(16,), classes=26, validation=2000,
        licence="CC BY 4.0, D. Slate, UCI; the table is of PMLB (MIT)",
        folder="tabular", url=_PMLB + "letter/",
        files=(_gz("letter.tsv",
                   213_271, "f8ffe4f9920dc63fb85b864cc1afffb66e45c6e302d175905fd7db04ba67b8c6",
                   1_365_766, "1ce967cac310120042a497760cb642e21b26d813e87c87fa1bb13896da6c812c"),),
        scale=1.0, mean=(), std=(),
    ),
    "pendigits": Source(
        format="table", shape=(16,), classes=10, validation=1000,
        licence="CC BY 4.0, E. Alpaydin and F. Alimoglu, UCI; the table is of PMLB (MIT)",
        folder="tabular", url=_PMLB + "pendigits/",
        files=(_gz("pendigits.tsv",
                   200_229, "73294fc30c2c50bf737c954d04cca3a1be69508535d3d52e2512ec88fefaad3f",
                   891_493, "23a064d28460f05be47b4b86ec438c58708d29adb85df02cbed4cd1a57564142"),),
        scale=1.0, mean=(), std=(),
    ),
    "digits": Source(
        format="digits", shape=(1, 8, 8), classes=10, validation=240, scale=16.0,
        licence="CC BY 4.0, E. Alpaydin and C. Kaynak, UCI; embedded in scikit-learn",
    ),
}


def source(name: str) -> Source:
    """Return what is known of the data set `name`, a key of SETS or `folder:PATH`.

    Raises:
        OptionError: nobody knows it.
    """
    if name.startswith(FOLDER) and name != FOLDER:
        return Source("folders", (), 0, None, "as of whoever made it", mean=(), std=())
    if name not in SETS:
        raise unknown("data set", name, [*SETS, FOLDER + "PATH"])
    return SETS[name]


def directory(name: str, root: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder that holds, or would hold, the files of `name`.

    That is ROOT/NAME/FOLDER, or ROOT/FOLDER where only that exists; image folders may also lie in ROOT/NAME
    itself. ROOT defaults to the environment variable SYNAPTREE_DATA, then to ./data. `folder:PATH` is PATH.
    """
    known = source(name)
    if name.startswith(FOLDER):
        return Path(name.removeprefix(FOLDER)).expanduser()
    base = Path(root or os.environ.get("SYNAPTREE_DATA") or "data")
    nested, flat = base / name / known.folder, base / known.folder
    if nested.is_dir():
        return nested
    if known.format == "folders" and (base / name / "train").is_dir():
        return base / name
    return flat if flat.is_dir() else nested


def class_names(folder: Path) -> list[str]:
    """Return the names of the class folders in `folder`/train, sorted: the class of label k is the k-th."""
    train = folder / "train"
    return sorted(p.name for p in train.iterdir() if p.is_dir() and p.name[0] != ".") if train.is_dir() else []
