"""Options of the steps that make a dataset: shards, download, published collections, resize, label, databases."""

import enum
from typing import ClassVar, Literal

from pydantic import Field

from pipeline.options.base import FilePath, Options


class Columns(Options):
    """What a list calls its columns."""

    url: str | None = None
    path: str | None = None
    label: str | None = None
    split: str | None = None
    group: str | None = None
    sha256: str | None = None


class Source(Options):
    """The images of a list or a folder."""

    kinds: ClassVar[tuple[str, ...]] = ("list", "folder")
    """Keys of which a source has one, and which shards are read from."""
    list: FilePath | None = None
    """CSV (commas, semicolons or tabs; UTF-8) or parquet with the columns `url`, `label` and optionally `split` (`train`, `val`
    or `test`), `group` and `sha256`; or a text file with `URL label` per line"""
    columns: Columns | None = None
    """names of the list's columns: `{url: image_url, label: style}`"""
    root: FilePath | None = None
    """the list has paths below this folder instead of URLs: a column `path`, or Caffe's `path label` lines"""
    allow_outside_root: bool = False
    """accept paths in the list that lead out of `root` (`..`, absolute paths, links); otherwise they are errors"""
    folder: FilePath | None = None
    """instead of a list: a folder with `CLASS/image`, or with `train/CLASS/image`, `val/CLASS/image` and optionally
    `test/CLASS/image`. Subfolders of a class belong to that class. Links are followed, also out of the folder; a link to a folder
    that contains it is skipped with a message. Files that are not taken, such as HEIC, are listed. Added, removed and replaced
    images are noticed by the next run, which makes their shards anew"""
    val_labels: FilePath | None = None
    """for a folder whose `val/` (or, without it, `test/`) has no classes: `image label` lines, or a label per image in sorted
    order"""
    sample: int | None = Field(None, ge=1)
    """number of images to draw, as in Caffe's flickr_style example; else all"""
    seed: int = Field(1, ge=0)
    """seed of that sample"""


class Limits(Options):
    """What is downloaded."""

    allow_file: bool = False
    """accept `file:` URLs, such as `file:///data/a.jpg` or, relative to the workflow's folder, `file:photos/a.jpg`"""
    allow_private: bool = False
    """download from hosts of private networks and from this machine"""
    ignore_opt_out: bool = False
    """take images whose server declares by X-Robots-Tag (`noai`, `noindex` …) that they must not be collected"""
    max_bytes: int = Field(64 << 20, ge=1)
    """largest file, in bytes"""
    max_pixels: int = Field(64_000_000, ge=1)
    """largest image, in pixels; read from its header before decoding"""
    max_redirects: int = Field(5, ge=0, le=20)
    """redirects followed per image"""


class Patience(Options):
    """How long and how hard a download is tried; a change does not repeat a download that succeeded."""

    min_yield: float = Field(0.5, ge=0, le=1)
    """smallest share of a shard's images that must arrive"""
    concurrency: int = Field(32, ge=1, le=1000)
    """simultaneous requests"""
    per_host: int = Field(16, ge=1, le=1000)
    """simultaneous requests to one host"""
    timeout: float = Field(20.0, gt=0)
    """seconds to connect, and between two pieces of a response"""
    total_timeout: float = Field(120.0, gt=0)
    """seconds for a whole response"""
    retries: int = Field(3, ge=0, le=20)
    """retries after a transient failure, with a pause that doubles"""


class FetchOptions(Patience, Limits):
    """How a URL is fetched."""


class DownloadOptions(Options):
    """Options of dataset.download."""

    source: FetchOptions = FetchOptions()


class ShardSize(Options):
    """Size of a shard."""

    shard_size: int = Field(1000, ge=1)
    """images per shard, the unit of a download or resize job"""


class ShardOptions(ShardSize):
    """Options of sources.shards."""

    source: Source = Source()


class Published(Options):
    """Where the files of a published collection are."""

    copied_from: FilePath | None = Field(None, alias="copy")
    """a folder with the collection's files or archives; without it they are downloaded"""


class FetchCollectionOptions(Options):
    """Options of `sources.published fetch`."""

    source: Published = Published()


class Mode(enum.StrEnum):
    """How an image of another aspect ratio is fitted."""

    SQUASH = "squash"
    """Both sides are scaled independently."""
    CROP = "crop"
    """The shorter side is scaled to fit, and the longer one center-cropped."""
    FIT = "fit"
    """The longer side is scaled to fit, and the rest is black."""


class ImageSize(Options):
    """Height and width, in pixels."""

    height: int = Field(256, ge=1, le=8192)
    """pixels"""
    width: int = Field(256, ge=1, le=8192)
    """pixels"""


class Color(Options):
    """Colour or grayscale images."""

    color: Literal["color", "gray"] = "color"
    """`color` or `gray` images"""


class Channels(Options):
    """Channel order of records."""

    channels: Literal["BGR", "RGB"] = "BGR"
    """channel order of colour records: `BGR`, as Caffe has it, or `RGB`, depending on what the weights were pretrained on. CIFAR
    is RGB as published; for a `source.database` it describes the existing records"""


class Sampling(Options):
    """How images are resized."""

    resize_mode: Mode = Mode.SQUASH
    """`squash` both sides, center-`crop` the longer one, or `fit` the image between black bars"""
    interpolation: Literal["nearest", "linear", "area", "cubic", "lanczos"] = "linear"
    """`nearest`, `linear` (as convert_imageset), `area`, `cubic` or `lanczos`"""


class ResizeOptions(Sampling, Color):
    """Options of dataset.resize."""

    size: ImageSize = ImageSize()


class Names(Options):
    """Class names of numeric labels."""

    names: FilePath | None = None
    """a text file of class names by number, if the labels are numbers; else the labels are the names"""


class Seed(Options):
    """Seed of what is drawn."""

    seed: int = Field(1, ge=0)
    """seed of the split, the shuffled lists and the augmentation"""


class Split(Options):
    """How images are divided into training and validation sets."""

    by: Literal["column", "fraction", "fold"] | None = None
    """`fraction`: a share of each class, drawn by seed; `fold`: one of several folds of each class; `column`: the list's `split`,
    or the folder's `train/`, `val/` and `test/`; if there is no validation set, the test set becomes it. By default `column` if
    the images have a split and `val` is not given; else `fraction`"""
    val: float | None = Field(None, gt=0, lt=1)
    """share of each class for validation, by default 0.2"""
    folds: int | None = Field(None, ge=2)
    """number of folds"""
    fold: int | None = Field(None, ge=0)
    """the fold for validation, from 0"""
    min_per_class: int | None = Field(None, ge=1)
    """fewest training images that a class may have, by default 1"""
    max_per_class: int | None = Field(None, ge=1)
    """most training images taken of a class, by default all"""


class Duplicates(enum.StrEnum):
    """What becomes of a validation or test image that is a near-duplicate of a training image."""

    REPORT = "report"
    DROP = "drop"
    IGNORE = "ignore"


class ListKeys(Names, Seed):
    """Keys of a dataset that make its lists."""

    duplicates: Duplicates = Duplicates.REPORT
    """near-duplicates of training images among validation and test images: `report`, `drop` or `ignore` them"""


class LabelOptions(ListKeys):
    """Options of dataset.label."""

    split: Split = Split()
    repeat: bool = False
    """oversample: list every class as often as the largest one, in shuffled order"""


class Augmentation(Options):
    """Random changes of training images: the fields of caffe.proto's AugmentationParameter."""

    brightness: float | None = Field(None, ge=0, le=1)
    """x: all values times a factor between 1 − x and 1 + x"""
    contrast: float | None = Field(None, ge=0, le=1)
    """x: the same for distances from the mean gray"""
    saturation: float | None = Field(None, ge=0, le=1)
    """x: the same for distances from each pixel's gray"""
    pca: float | None = Field(None, ge=0)
    """standard deviation of a shift along the principal components of ImageNet's colours; AlexNet's is 0.1"""
    min_area: float | None = Field(None, gt=0, le=1)
    """a random crop is scaled to the whole: its smallest share of the area"""
    max_aspect: float | None = Field(None, ge=1)
    """x: aspect ratio of that crop, between 1/x and x"""
    horizontal_flip: float | None = Field(None, ge=0, le=1)
    """probability of a horizontal flip"""
    vertical_flip: float | None = Field(None, ge=0, le=1)
    """probability of a vertical flip"""
    rotation: float | None = Field(None, ge=0, le=180)
    """largest rotation, in degrees, either way"""
    shear: float | None = Field(None, ge=0, le=80)
    """largest shear, in degrees, either way"""
    translation: float | None = Field(None, ge=0, le=1)
    """largest translation, as a share of the sides, either way"""
    noise: float | None = Field(None, ge=0)
    """standard deviation of Gaussian noise, in levels of 0 to 255"""
    blur: float | None = Field(None, ge=0)
    """standard deviation of a Gaussian blur, in pixels"""


class Encode(Options):
    """Encoding of records."""

    encode: Literal["raw", "png", "jpg"] | None = None
    """records of the databases: `raw` pixels, or `png` or `jpg` (lossy) files; by default `raw`, and unchanged for
    `source.database`"""


class Copies(Options):
    """Augmented copies in the training database."""

    copies: int = Field(0, ge=0, le=1000)
    """augmented copies of each image written once to the training database; with 0, images are augmented anew each time they
    enter the net"""


class DatabaseOptions(Copies, Encode, Channels, Color, Seed):
    """Options of dataset.database."""

    augmentation: Augmentation | None = None


class ReuseOptions(Names, Encode, Channels):
    """Options of sources.databases."""
