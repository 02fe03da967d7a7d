"""The steps from images to a fine-tuned net, its features and a report; each a function and a command."""

import gc
import importlib.util
import os
import sys
from pathlib import Path

# What a step imports stays: garbage collections meanwhile would take a third of the time. `command.run` lets them begin.
if sys.argv[:1] == ["-m"]:  # as Python has it while it locates the module of `python -m`
    gc.disable()

# NumPy's and OpenCV's OpenBLAS start a thread for each processor, which spin for a tenth of a second each time a step starts and
# have nothing to do: PyTorch, which computes, has threads of its own.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Intel's library in OpenCV has a cubic interpolation of its own, which not every OpenCV has: without it a dataset's bytes are the
# same with and without vector code (tests/pipeline/dataset/test_vector_code.py).
os.environ.setdefault("OPENCV_IPP", "disabled")
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")  # the steps' tables name what cannot be decoded

# Scripts of BVLC's tutorials put `caffe_root + "python"` before everything else, and so find a `caffe` that was never compiled.
_found = importlib.util.find_spec("caffe")
_caffe, _ours = Path(_found.origin if _found and _found.origin else "nowhere").parent, Path(__file__).parent.with_name("caffe")
if _caffe.resolve() != _ours.resolve():
    raise ImportError(
        f"import caffe finds {_caffe}, but Roastery's is {_ours}; take the other one's folder off PYTHONPATH, and"
        ' sys.path.insert(0, caffe_root + "python") out of scripts'
    )
