"""Link build/tools and build/examples of a BVLC Caffe checkout to `caffe`, so that its scripts run unchanged.

roastery link-tools FOLDER     where FOLDER has examples/, data/ and models/ as in BVLC Caffe's repository

Nothing is overwritten, but for links that lead to another installation of Roastery.
"""

import os
import shutil
import sys
import sysconfig
from pathlib import Path

from pipeline import command
from pipeline.errors import InputError

PROGRAMS = {
    "build/tools": (
        "caffe",
        "compute_image_mean",
        "convert_imageset",
        "device_query",
        "extract_features",
        "finetune_net",
        "net_speed_benchmark",
        "test_net",
        "train_net",
        "upgrade_net_proto_binary",
        "upgrade_net_proto_text",
        "upgrade_solver_proto_text",
    ),
    "build/examples/mnist": ("convert_mnist_data",),
    "build/examples/cifar10": ("convert_cifar_data",),
    "build/examples/siamese": ("convert_mnist_siamese_data",),
}
"""{folder of a build of BVLC Caffe: its programs}; each is linked as NAME and as NAME.bin."""


def main(argv: list[str] | None = None) -> None:
    parser = command.step_parser(__doc__)
    parser.add_argument("folder", type=Path, help="a checkout of BVLC Caffe, or any folder whose scripts run build/tools/caffe")
    folder = parser.parse_args(argv).folder
    made = link_programs(folder, caffe_script())
    for place, programs in PROGRAMS.items():
        new = [name for name in programs if {f"{place}/{name}", f"{place}/{name}.bin"} & set(made)]
        there = f"; {len(programs) - len(new)} linked already" if len(new) < len(programs) else ""
        print(f"{folder / place}: {', '.join(new) or 'nothing new'}{there}")
    print(f"{len(made)} links (NAME and NAME.bin) to {caffe_script()}")


def link_programs(folder: Path, script: Path) -> list[str]:
    """Link each program to the `caffe` script; return the paths of new links, relative to `folder`.

    Raises InputError, before anything is made, if `folder` is no folder, or has something else in a link's place.
    """
    if not folder.is_dir():
        raise InputError(folder, "no such folder", "a checkout of BVLC Caffe is needed")
    paths = [f"{place}/{name}{end}" for place, names in PROGRAMS.items() for name in names for end in ("", ".bin")]
    for path in paths:
        for parent in reversed((folder / path).relative_to(folder).parents):
            if os.path.lexists(folder / parent) and not (folder / parent).is_dir():
                raise InputError(folder / parent, "not a folder", "the links belong in it", "move it away")
        if os.path.lexists(folder / path) and not ((folder / path).is_symlink() and is_ours(folder / path)):
            raise InputError(folder / path, "is already there, and is no link to Roastery's caffe", do="move it away")
    made = []
    for path in paths:
        link = folder / path
        if link.is_symlink():
            if link.readlink() == script:
                continue
            link.unlink()
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(script)
        made.append(path)
    return made


def caffe_script() -> Path:
    """The script `caffe` of this installation. Raises InputError if there is none."""
    folders = [Path(sysconfig.get_path("scripts")), Path(sys.executable).parent, Path(__file__).parents[1] / "bin"]
    found = [folder.absolute() / "caffe" for folder in folders]
    if on_path := shutil.which("caffe"):
        found.append(Path(on_path).resolve())  # the script, where PATH leads to a link that this command made
    script = next(filter(is_ours, found), None)
    if script is None:
        raise InputError("caffe", "no such command of Roastery", do="install Roastery with its commands (pip install, make env)")
    return script


def is_ours(path: Path) -> bool:
    """Whether a path is, or is a link to, the script `caffe` of an installation of Roastery."""
    try:
        with path.open("rb") as file:
            return b"from caffe.cli import main" in file.read(4096)
    except OSError:  # a broken link, or a folder
        return False


if __name__ == "__main__":
    command.run(main)
