"""The steps from images to a fine-tuned net, its features and a report; each a function and a command."""

import os

# NumPy's and OpenCV's OpenBLAS start a thread for each processor, which spin for a tenth of a second each time a step starts and
# have nothing to do: PyTorch, which computes, has threads of its own.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Intel's library in OpenCV has a cubic interpolation of its own, which not every OpenCV has: without it a dataset's bytes are the
# same with and without vector code (tests/pipeline/dataset/test_vector_code.py).
os.environ.setdefault("OPENCV_IPP", "disabled")
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")  # the steps' tables name what cannot be decoded
