"""Hostile names in lists and folders: the dataset's steps, run as commands, accept them or refuse them in one clear line."""

import json
import os
import subprocess
import sys
import unicodedata
from itertools import islice
from pathlib import Path

import cv2
import pytest

from pipeline.errors import InputError
from pipeline.files import plain_name, stem_of
from pipeline.formats.roots import Root
from pipeline.sources import folders
from pipeline.sources.tables import Source
from tests.pipeline.conftest import read_source

COMMAND = "$(touch pwned) '\"; touch pwned #"
UMLAUT = "K\u00e4fer \u00d6l"
NAMES = [
    *(COMMAND, "`touch pwned`", "--help -n", "-", UMLAUT, unicodedata.normalize("NFD", UMLAUT), "\u00e4" * 100),
    *("<b>&amp; =1+1, \t 50 %2e%2e", "plain"),
]
"""Names of folders and files."""


def class_of(name):
    """The class name for a folder name: on one line, in Unicode's NFC."""
    return unicodedata.normalize("NFC", " ".join(name.split()))


CLASSES = sorted(set(map(class_of, NAMES)))


@pytest.fixture
def build_dataset(tmp_path, command):
    """build_dataset("--list=…", …) runs the dataset's steps, from shards to databases; gives class names and number of images."""

    def step(module, *arguments):
        done = command(module, *arguments)
        assert done.returncode == 0, done.stderr

    def run(*source):
        step("pipeline.sources.shards", "list", *source)
        step("pipeline.dataset.download", "list/00000.csv", "download/00000", "--table", "download/00000.csv", "--allow-file")
        step("pipeline.dataset.resize", "download/00000", "resize/00000", "--height", 8, "--width", 8)
        step("pipeline.dataset.label", "list", "download", "resize", "--output", "lists", "--val", 0.34)
        images = 0
        for part in ("train", "val"):
            files = ("--labels", "lists/labels.txt", "--manifest", f"{part}.json")
            step("pipeline.dataset.database", f"lists/{part}.txt", "resize", part, *files)
            images += json.loads((tmp_path / f"{part}.json").read_text())["images"]
        assert not list(tmp_path.rglob("pwned"))
        return (tmp_path / "lists/labels.txt").read_text().splitlines(), images

    return run


@pytest.fixture
def photographs(tmp_path, picture):
    """photographs(folder) makes a folder for each of NAMES with three pictures, named by it and a number."""

    def make(folder):
        for number, name in enumerate(NAMES):
            (tmp_path / folder / name).mkdir(parents=True)
            for image in range(3):
                content = cv2.imencode(".png", picture(3 * number + image))[1]
                (tmp_path / folder / name / f"{name}{image}.png").write_bytes(content)
        return tmp_path / folder

    return make


def test_a_folder_of_hostile_names_becomes_a_dataset(tmp_path, build_dataset, photographs):
    folder = photographs(COMMAND)
    (folder / "plain/plain0.png").rename(folder / "plain" / os.fsdecode(b"caf\xe9.png"))
    assert build_dataset(f"--folder={COMMAND}") == (CLASSES, 3 * len(NAMES))
    files = [path.name for path in (tmp_path / "download/00000").iterdir()]
    assert len(files) == 3 * len(NAMES)
    assert max(len(os.fsencode(file)) for file in files) < 100


def test_a_table_of_hostile_names_becomes_a_dataset(tmp_path, build_dataset, photographs):
    photographs("-n $(touch pwned)")
    rows = [(f"{name}/{name}{image}.png", name * 3 if len(name) == 100 else name) for name in NAMES for image in range(3)]
    quoted = ["".join(f',"{cell.replace(chr(34), chr(34) * 2)}"' for cell in row)[1:] for row in rows]
    (tmp_path / "all.csv").write_text("\n".join(["path,label", *quoted]))
    labels = sorted(name * 3 if len(name) == 100 else name for name in CLASSES)
    assert build_dataset("--list=all.csv", "--root=-n $(touch pwned)") == (labels, 3 * len(NAMES))


def test_a_text_list_of_hostile_labels_becomes_a_dataset(tmp_path, build_dataset, photographs):
    photographs("root")
    lines = [f"{COMMAND}/{COMMAND}{image}.png $(touch${{IFS}}pwned)" for image in range(3)]
    lines += [f"--help -n/--help -n{image}.png --help" for image in range(3)]
    (tmp_path / "all.txt").write_text("\n".join(lines))
    assert build_dataset("--list=all.txt", "--root=root") == (["$(touch${IFS}pwned)", "--help"], 6)


OUTSIDE = {
    "by two dots": "../../etc/passwd",
    "by two dots after a folder": "cats/../../other/x.jpg",
    "by an absolute path": "/etc/passwd",
    "by a link to a file": "out.jpg",
    "by a link to a folder": "elsewhere/x.jpg",
    "by two dots in a Windows path": "..\\other\\x.jpg",
    "to a folder whose name begins like the root's": "../root2/x.jpg",
}


@pytest.fixture
def outside(tmp_path):
    """A list's root with links that lead out of it."""
    for folder in ("root/cats", "other", "root2"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("root/cats/1.jpg", "other/x.jpg", "root2/x.jpg"):
        (tmp_path / file).touch()
    (tmp_path / "root/out.jpg").symlink_to(tmp_path / "other/x.jpg")
    (tmp_path / "root/elsewhere").symlink_to("../other")
    (tmp_path / "root/within.jpg").symlink_to("cats/1.jpg")
    return tmp_path / "root"


LISTS = {"csv": "path,label\ncats/1.jpg,a\n{},b\n", "txt": "cats/1.jpg a\n\n{} b\n"}


@pytest.mark.parametrize("name", OUTSIDE.values(), ids=OUTSIDE)
@pytest.mark.parametrize("form", LISTS)
def test_a_path_outside_the_lists_root_is_refused_with_its_line(outside, write, name, form):
    listed = Path(write(f"all.{form}", LISTS[form].format(name)))
    with pytest.raises(InputError) as raised:
        read_source(Source(list=listed, root=outside))
    assert raised.value.where == f"{listed}:3"
    assert f'"{name}" is outside of the root' in raised.value.found
    real = os.path.realpath(outside / name.replace("\\", "/"))
    assert real in raised.value.found
    allowed = read_source(Source(list=listed, root=outside, allow_outside_root=True))
    assert list(allowed.url) == [(outside / "cats/1.jpg").as_uri(), Path(real).as_uri()]


@pytest.mark.usefixtures("outside")
def test_the_shards_step_names_the_option_that_allows_paths_outside_the_root(write, fails, command):
    write("all.csv", LISTS["csv"].format("out.jpg"))
    source = ("pipeline.sources.shards", "list", "--list=all.csv", "--root=root")
    fails(["error: all.csv:3", "is outside of the root", "source.allow_outside_root: true"], *source)
    done = command(*source, "--allow-outside-root")
    assert done.returncode == 0, done.stderr
    assert "2 images of 2 classes" in done.stdout


def test_links_and_absolute_paths_within_the_root_are_accepted(outside, write):
    names = ["cats/1.jpg", "within.jpg", "cats/../cats/1.jpg", f"{outside}/cats/1.jpg"]
    listed = write("all.csv", "path,label\n" + "".join(f"{name},a\n" for name in names))
    assert set(read_source(Source(list=Path(listed), root=outside)).url) == {(outside / "cats/1.jpg").as_uri()}


def test_a_root_that_is_a_symbolic_link_is_resolved(outside, write, tmp_path):
    (tmp_path / "link").symlink_to(outside)
    listed = write("all.csv", "path,label\ncats/1.jpg,a\n")
    assert read_source(Source(list=Path(listed), root=tmp_path / "link")).url[0] == (outside / "cats/1.jpg").as_uri()


def test_a_path_with_a_nul_character_is_refused_with_its_line(write, fails, outside):
    write("all.txt", "cats/1.jpg b\na\0b.jpg a\n")
    fails(["all.txt:2", "NUL"], "pipeline.sources.shards", "list", "--list=all.txt", f"--root={outside}")


@pytest.mark.usefixtures("outside")
def test_impossible_paths_are_reported_as_not_found(outside, write, command):
    (outside / "loop.jpg").symlink_to("loop.jpg")
    write("all.txt", f"{'x' * 300} a\n{'y/' * 3000} a\nloop.jpg a\ncats/1.jpg b\n")
    for step in (
        ("pipeline.sources.shards", "list", "--list=all.txt", "--root=root"),
        ("pipeline.dataset.download", "list/00000.csv", "d", "--table", "d.csv", "--allow-file", "--min-yield", 0),
    ):
        done = command(*step)
        assert done.returncode == 0, done.stderr
    assert "3 not_found" in done.stdout


@pytest.mark.parametrize(("listed", "there"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_files_are_found_by_names_in_the_other_unicode_normal_form(tmp_path, write, listed, there):
    file = tmp_path / "root" / unicodedata.normalize(there, f"{UMLAUT}.png")
    file.parent.mkdir()
    file.touch()
    path = write("all.csv", f"path,label\n{unicodedata.normalize(listed, file.name)},a\n")
    assert read_source(Source(list=Path(path), root=tmp_path / "root")).url[0] == file.as_uri()


def test_class_names_in_both_unicode_normal_forms_are_one_class(tmp_path, write):
    both = [unicodedata.normalize(form, UMLAUT) for form in ("NFC", "NFD")]
    assert both[0] != both[1]
    for name in both:
        (tmp_path / "f" / name).mkdir(parents=True)
        (tmp_path / "f" / name / "1.png").touch()
    table = write("all.csv", "url,label\n" + "".join(f"http://x/{n},{name}\n" for n, name in enumerate(both)))
    text = write("all.txt", "".join(f"http://x/{n} {name.split()[0]}\n" for n, name in enumerate(both)))
    assert set(read_source(Source(folder=tmp_path / "f")).label) == set(read_source(Source(list=Path(table))).label) == {UMLAUT}
    assert set(read_source(Source(list=Path(text))).label) == {UMLAUT.split()[0]}


@pytest.fixture
def loops(tmp_path):
    """A folder with links to its parent folders, links to one another, and one to itself."""
    for folder in ("src/cats/deep", "src/dogs", "other/dogs"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "1.jpg").touch()
    src = tmp_path / "src"
    (src / "all").symlink_to(src)
    (src / "above").symlink_to("..")
    (src / "cats/up").symlink_to("..")
    (src / "cats/deep/again").symlink_to(src / "cats")
    (src / "dogs/self.jpg").symlink_to("self.jpg")
    (src / "dogs/more").symlink_to(tmp_path / "other/dogs")
    (tmp_path / "other/dogs/back").symlink_to(src / "dogs")
    return src


LOOPS = "links to a folder above (above, all, cats/deep/again, cats/up, dogs/more/back)"


def test_links_to_parent_folders_are_skipped_and_reported(loops, tmp_path, command):
    found = list(islice(folders.images(loops, None), 50))  # limited, in case the walk does not end
    other = (tmp_path / "other/dogs/1.jpg").as_uri()  # a link out of the folder is followed
    taken = [((loops / f"{path}.jpg").as_uri(), path[:4]) for path in ("cats/deep/1", "dogs/1", "dogs/self")]
    assert sorted(found) == sorted((url, label, "") for url, label in [*taken, (other, "dogs")])
    done = command("pipeline.sources.shards", "list", "--folder=src")
    assert done.returncode == 0, done.stderr
    assert LOOPS in done.stdout


def test_folders_linked_to_one_another_are_each_entered_once(tmp_path):
    linked = [tmp_path / "src/cats" / str(number) for number in range(5)]
    for folder in linked:
        folder.mkdir(parents=True)
        (folder / "1.jpg").touch()
    for folder in linked:
        for other in linked:
            if other != folder:
                (folder / f"to{other.name}").symlink_to(other)
    assert len(list(islice(folders.images(tmp_path / "src", None), 50))) == 5


def test_folders_may_be_nested_deeper_than_pythons_recursion_limit(tmp_path):
    deep = tmp_path.joinpath("src", "cats", *["d"] * 250)
    deep.mkdir(parents=True)
    (deep / "1.jpg").touch()
    code = "import sys; from pathlib import Path; from pipeline.sources import folders; sys.setrecursionlimit(150)"
    code += "; print(len(list(folders.images(Path('src'), None))), folders.describe_ignored(Path('src')))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "1 \n"), done.stderr


@pytest.mark.usefixtures("outside")
@pytest.mark.parametrize(
    ("name", "said"), [("../other/x.jpg", "is outside of the root"), ("out.jpg", "is outside"), ("x" * 600, "600 bytes")]
)
def test_a_database_of_image_files_refuses_files_outside_their_folder(write, fails, picture, tmp_path, name, said):
    cv2.imwrite(str(tmp_path / "root/cats/1.jpg"), picture())
    write("train.txt", f"cats/1.jpg 0\n{name} 0\n")
    write("labels.txt", "a\n")
    arguments = ("train.txt", "root", "train", "--labels", "labels.txt", "--manifest", "train.json")
    fails(["train.txt:2", said], "pipeline.dataset.database", *arguments)


BLOBS = [
    "pool5",
    "inception_3a/output",
    "a.b",
    COMMAND,
    "-x",
    "..",
    "../../x",
    "x" * 300,
    "x" * 301,
    UMLAUT,
    "\u00e4",
    "\u00f6",
    "",
]


def test_file_names_of_blobs_are_short_plain_and_unique():
    stems = [stem_of(blob) for blob in BLOBS]
    assert stems[:3] == ["pool5", "inception_3a_output", "a.b"]
    assert len(set(stems)) == len(BLOBS)
    for stem in stems:
        assert len(stem) <= 110
        assert stem.isascii()
        assert stem.replace("_", "").replace("-", "").replace(".", "").isalnum()
        assert stem[0] not in "-."


@pytest.mark.parametrize("words", ["\u00e4" * 100, "\U00020000" * 100, "a" * 100, f"{COMMAND}{'x' * 100}"])
def test_parts_of_file_names_are_bounded_in_bytes(words):
    part = plain_name(words, 60)
    assert 55 < len(part.encode()) <= 60
    assert not set(part) & set(" $()'\";#/")


def test_a_root_contains_itself_and_the_root_of_the_file_system_contains_all(tmp_path):
    (tmp_path / "root").mkdir()
    root = Root(tmp_path / "root")
    assert root.path_of(".", "x:1") == tmp_path / "root"
    assert Root(Path("/")).path_of("/etc/passwd", "x:1") == Path(os.path.realpath("/etc/passwd"))
