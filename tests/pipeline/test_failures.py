"""What the end of a failed run lists."""

import os

from pipeline.failures import NO_MESSAGE, describe


def log(folder, name: str, text: str, time: float = 200):
    path = folder / name
    path.write_text(text)
    os.utime(path, (time, time))
    return path


def test_each_failed_step_is_listed_with_its_last_error_and_its_log(tmp_path):
    failed = log(tmp_path, "train.log", "I1129 net.cpp\nerror: first\nerror: net.prototxt:3: no such layer\n")
    broken = log(tmp_path, "lmdb.log", "Traceback (most recent call last):\n  File x\nlmdb.DiskError: no space\n")
    killed = log(tmp_path, "mean.log", "1,000 images\n")
    older = log(tmp_path, "resize.log", "error: of yesterday\n", time=100)
    rows = [("train", failed), ("lmdb", broken), ("mean", killed), ("resize", older), ("plots", tmp_path / "none.log")]
    assert describe(rows, since=150).splitlines() == [
        "3 steps failed:",
        "  lmdb: lmdb.DiskError: no space",
        f"    log: {broken}",
        f"  mean: {NO_MESSAGE}",
        f"    log: {killed}",
        "  train: net.prototxt:3: no such layer",
        f"    log: {failed}",
    ]


def test_nothing_is_listed_where_no_step_has_begun(tmp_path):
    assert describe([("train", tmp_path / "none.log")], since=0) == ""
