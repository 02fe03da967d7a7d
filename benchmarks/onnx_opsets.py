"""Count the models that onnxruntime and OpenCV's dnn compute rightly, by opset: one for each layer type that is exported.

    python benchmarks/onnx_opsets.py

The models are those of tests/pipeline/export/test_export.py. A model counts if its outputs for random inputs are the net's but
for rounding. Prints a row for each opset, and the models that OpenCV does not compute with the default.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import caffe
from pipeline.export import agreement, export, onnx_graph, opencv
from tests.pipeline.export.test_export import CASES, IMAGE, SEVERAL
from tests.pipeline.trained_nets import image, layer, set_random_weights


def models() -> dict[str, str]:
    """{name: prototxt}."""
    single = {f"{kind} {more}".strip(): image(*IMAGE) + layer(kind, "y", "data", more=more) for kind, more in CASES}
    return single | {name: image(*IMAGE) + text for name, text in SEVERAL.items()}


def main() -> None:
    caffe.init_log(3)
    texts = models()
    refused: dict[int, list[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path, file = Path(folder) / "net.prototxt", Path(folder) / "model.onnx"
        print(f"{len(texts)} models\nopset  onnxruntime  {'OpenCV':>6}")
        for opset in range(onnx_graph.OLDEST, onnx_graph.LATEST + 1):
            computed, refused[opset] = 0, []
            for name, text in texts.items():
                path.write_text(text)
                net = set_random_weights(caffe.Net(str(path), caffe.TEST))
                try:
                    export.write_onnx(net, file, {}, 0.02, onnx_graph.Form(opset))
                except Exception:  # of onnxruntime, too: a version that it does not have
                    continue
                computed += 1
                inputs, found = export.run_onnx(file, net, 0.02)
                agrees, verdict = opencv.check(file, inputs, found, agreement.LIMIT)
                if not agrees:
                    refused[opset].append(f"{name}: {verdict}")
            print(f"{opset:5}  {computed:11}  {computed - len(refused[opset]):6}", flush=True)
    print(*refused[onnx_graph.OPSET], sep="\n")


if __name__ == "__main__":
    main()
