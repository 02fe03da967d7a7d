"""Compile every kernel for a GPU, on a machine that has none: python -m tests.kernels.compiled CAPABILITY.

Prints, as JSON, the number of variants of each function that were compiled.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

CAPABILITIES = 75, 90
"""Of the oldest GPUs that PyTorch is built for, and of Hopper."""
FUNCTIONS = {
    *("response._forward", "response._backward", "softmax._forward", "softmax._backward"),
    *("chains._sum_relu", "chains._relu_backward", "chains._scale_relu", "chains._scale_relu_backward", "update._update"),
}
ROOT = Path(__file__).parents[2]


def in_another_process(capability):
    """The numbers, from a process in which Triton compiles instead of interpreting."""
    command = [sys.executable, "-m", "tests.kernels.compiled", str(capability)]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def _kind(value):
    """The type of an argument as Triton writes it."""
    import torch

    if isinstance(value, torch.Tensor):
        names = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.int64: "i64", torch.int32: "i32"}
        return "*" + names[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


def main(capability):
    import torch
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.runtime.jit import JITFunction

    variants = Counter()
    seen = set()

    def run(function, *arguments, grid, warmup, num_warps, enable_fp_fusion, **constants):
        """Instead of starting a function, compile it as for such arguments: where they can be divided by 16, it may use that."""
        given = dict(zip(function.arg_names, arguments, strict=False)) | constants
        signature, values, attributes = {}, {}, {}
        for place, parameter in enumerate(function.params):
            value = given[parameter.name]
            if parameter.is_constexpr or (isinstance(value, int) and value == 1):
                signature[parameter.name], values[(place,)] = "constexpr", value
                continue
            signature[parameter.name] = _kind(value)
            divisor = value.data_ptr() if isinstance(value, torch.Tensor) else value
            if isinstance(divisor, int) and divisor % 16 == 0:
                attributes[(place,)] = [["tt.divisibility", 16]]
        key = function.__name__, str(signature), str(values), str(attributes)
        if key in seen:
            return
        seen.add(key)
        source = ASTSource(function, signature, constexprs=values, attrs=attributes)
        options = {"num_warps": num_warps, "enable_fp_fusion": enable_fp_fusion}
        triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        variants[f"{function.fn.__module__.rpartition('.')[2]}.{function.__name__}"] += 1

    JITFunction.run = run
    _start_all()
    print(json.dumps(variants))


def _start_all():
    """Start each kernel for values of each type, in each layout, of sizes that are divisible by 16 and that are not."""
    import torch

    from caffe.kernels import chains, response, softmax, update
    from caffe.kernels.rules import Rule

    for dtype in (torch.float32, torch.bfloat16):
        for layout in (torch.contiguous_format, torch.channels_last):
            for shape in ((2, 32, 8, 8), (3, 5, 7, 1)):
                x, factors = torch.zeros(shape, dtype=dtype).contiguous(memory_format=layout), torch.zeros(shape[1])
                response.lrn.compute(x, 5, 0.1, 0.75, 1.0)
                response.lrn_backward.compute(x, x, 5, 0.1, 0.75, 1.0)
                chains.sum_relu.compute(x, x)
                chains.relu_backward.compute(x, x)
                for relu, terms in ((True, factors), (False, None)):
                    chains.scale.compute(x, factors, terms, relu)
                    chains.scale_backward.compute(x, x, x, factors, terms is not None, relu)
    response.lrn_backward.compute(torch.zeros(2, 32, 8, 8), torch.zeros(2, 32, 8, 8), 3, 0.1, 0.6, 1.0)
    for shape in ((64, 1000), (32, 10), (2, 21, 5, 7), (4, 21, 32, 32)):
        scores, target = torch.zeros(shape), torch.zeros(shape[0], 1, *shape[2:], dtype=torch.int64)
        for weights in (None, target.float()):
            softmax.softmax_loss.compute(scores, target, weights, 1, 1e-30)
            softmax.softmax_loss_backward.compute(scores, target, weights, torch.zeros(()), 1, 0.0, 0.0)
    for name in update.RULES:
        for count in (4096, 10):
            data, gradients, *histories = ([torch.zeros(count), torch.zeros(count)] for _ in range(4))
            for scale, decay, is_l1 in ((1.0, 0.0, False), (0.5, 0.1, False), (1.0, 0.1, True)):
                rule = Rule(name, scale, decay, is_l1, 0.9, 0.99, 0.95, 1e-8)
                update.Fused(torch.device("cpu"))(rule, data, gradients, histories, torch.zeros(()))


if __name__ == "__main__":
    main(int(sys.argv[1]))
