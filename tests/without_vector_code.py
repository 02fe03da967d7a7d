"""Run a command as on a processor without AVX: python -m tests.without_vector_code pytest tests/caffe

Libraries choose their kernels by the processor, and kernels of another vector width round differently: what holds with and
without vector code holds on more processors than this one. Children of the command inherit the setting.
"""

import os
import sys


def environment() -> dict[str, str]:
    """Environment variables that disable each library's vector code; features that this processor lacks are left out."""
    import cv2
    from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

    opencv = [name.strip("*") for name in cv2.getCPUFeaturesLine().split() if name.startswith("*AVX") and not name.endswith("?")]
    numpy = [name for name in __cpu_dispatch__ if __cpu_features__[name]]
    return {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "OPENBLAS_CORETYPE": "Nehalem",
        "NPY_DISABLE_CPU_FEATURES": os.environ.get("NPY_DISABLE_CPU_FEATURES") or " ".join(numpy),
        "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-FMA,-AVX2_Usable,-FMA_Usable",
        "OPENCV_CPU_DISABLE": os.environ.get("OPENCV_CPU_DISABLE") or ",".join(opencv),
        "OPENCV_IPP": "disabled",
        "JSIMD_FORCENONE": "1",
        "ARROW_USER_SIMD_LEVEL": "NONE",
    }


if __name__ == "__main__":
    os.execvpe(sys.argv[1], sys.argv[1:], {**os.environ, **environment()})
