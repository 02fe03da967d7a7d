"""What BVLC's notebooks call, to their end: detection, net surgery and siamese, with random weights; in our own words."""

from pathlib import Path

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import caffe
from caffe import layers as L
from caffe import params as P
from tests.tutorials.test_notebooks import digits
from tests.tutorials.thin_caffenet import deploy, photograph


def transformer_of(net: caffe.Net) -> caffe.io.Transformer:
    """As for CaffeNet: BGR, less a mean of 100."""
    transformer = caffe.io.Transformer({"data": net.blobs["data"].data.shape})
    transformer.set_mean("data", np.full((3, 256, 256), 100.0).mean(1).mean(1))
    transformer.set_transpose("data", (2, 0, 1))
    transformer.set_channel_swap("data", (2, 1, 0))
    transformer.set_raw_scale("data", 255.0)
    return transformer


# ---- detection


def test_detection(examples):
    prototxt, weights = deploy(examples, classes=200)
    names = [f"class {number}" for number in range(200)]
    picture = photograph(examples / "fish-bike.jpg", 60)
    # Selective search is MATLAB's; python/detect.py also takes a list of windows, which becomes these calls.
    draw = np.random.default_rng(0)
    corners = draw.integers(0, 120, (12, 2))
    windows = np.hstack([corners, corners + draw.integers(30, 130, (12, 2))])  # ymin, xmin, ymax, xmax
    detector = caffe.Detector(prototxt, weights, mean=np.full(3, 100.0), raw_scale=255, channel_swap=[2, 1, 0], context_pad=16)
    frame = pd.DataFrame(detector.detect_windows([(picture, windows)]))
    frame = pd.concat([frame, pd.DataFrame(np.vstack(frame.window), columns=["ymin", "xmin", "ymax", "xmax"])], axis=1)
    frame.drop(columns=["prediction", "window"]).to_csv("det_output.csv", index=False)
    assert len(pd.read_csv("det_output.csv")) == 12

    predictions = pd.DataFrame(np.vstack(frame.prediction.values), columns=names)
    np.testing.assert_allclose(predictions.sum(axis=1), 1, rtol=1e-4)
    plt.matshow(predictions.values)
    best = predictions.max(axis=0).sort_values(ascending=False)
    top = int(predictions[best.index[0]].values.argmax())
    assert predictions.values[top].max() == predictions.values.max()
    window = frame.iloc[top]
    plt.imshow(plt.imread(picture))
    plt.gca().add_patch(
        plt.Rectangle((window.xmin, window.ymin), window.xmax - window.xmin, window.ymax - window.ymin, fill=False)
    )
    boxes = np.hstack([frame[["xmin", "ymin", "xmax", "ymax"]].values, predictions[best.index[0]].values[:, None]])
    kept = suppress(boxes, 0.3)
    assert 0 < len(kept) < 12
    np.testing.assert_array_equal(kept[0], boxes[top])


def suppress(boxes: np.ndarray, overlap: float) -> np.ndarray:
    """Rows of xmin, ymin, xmax, ymax, score, best first, without those that overlap a better one."""
    left, kept = boxes[boxes[:, 4].argsort()[::-1]], []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        sides = (np.minimum(best[2:4], left[:, 2:4]) - np.maximum(best[:2], left[:, :2])).clip(0)
        inside = sides.prod(1)
        areas = [(rows[..., 2:4] - rows[..., :2]).prod(-1) for rows in (best, left)]
        left = left[inside / (areas[0] + areas[1] - inside) <= overlap]
    return np.array(kept)


# ---- net_surgery


def test_net_surgery_on_filters(examples):
    (examples / "conv.prototxt").write_text(
        'name: "convolution" input: "data" input_dim: 1 input_dim: 1 input_dim: 100 input_dim: 100\n'
        'layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" convolution_param { num_output: 3 kernel_size: 5\n'
        '  stride: 1 weight_filler { type: "gaussian" std: 0.01 } bias_filler { type: "constant" value: 0 } } }\n'
    )
    photograph(examples / "cat_gray.jpg", 0, size=(90, 70))
    caffe.set_mode_cpu()
    net = caffe.Net("conv.prototxt", caffe.TEST)
    assert (list(net.blobs.keys()), list(net.params.keys())) == (["data", "conv"], ["conv"])
    image = np.array(caffe.io.load_image("cat_gray.jpg", color=False)).squeeze()
    batch = image[np.newaxis, np.newaxis, :, :]
    net.blobs["data"].reshape(*batch.shape)
    net.blobs["data"].data[...] = batch
    net.forward()
    first = net.blobs["conv"].data[0, 0]
    mean = first.mean()
    net.params["conv"][1].data[0] = 1.0
    net.forward()
    np.testing.assert_allclose(first.mean(), mean + 1, rtol=1e-5)

    height, width = net.params["conv"][0].data.shape[2:]
    y, x = np.mgrid[-height // 2 + 1 : height // 2 + 1, -width // 2 + 1 : width // 2 + 1]
    blur = np.exp(-(x**2 + y**2) / 2.0)
    net.params["conv"][0].data[0] = (blur / blur.sum()).astype(np.float32)
    net.params["conv"][0].data[1:] = 0.0
    sobel = np.array((-1, -2, -1, 0, 0, 0, 1, 2, 1), dtype=np.float32).reshape(3, 3)
    net.params["conv"][0].data[1, 0, 1:-1, 1:-1] = sobel
    net.params["conv"][0].data[2, 0, 1:-1, 1:-1] = sobel.T
    net.forward()
    edges = cv2.filter2D(image.astype(np.float32), -1, sobel)[2:-2, 2:-2]
    np.testing.assert_allclose(net.blobs["conv"].data[0, 1], edges, atol=1e-5)
    np.testing.assert_allclose(
        first, cv2.filter2D(image.astype(np.float32), -1, net.params["conv"][0].data[0, 0])[2:-2, 2:-2] + 1, 1e-4
    )


def test_net_surgery_on_caffenet(examples):
    prototxt, weights = deploy(examples)
    message = caffe.read_net(Path(prototxt))
    for layer, kernel in (("fc6", 6), ("fc7", 1), ("fc8", 1)):
        (found,) = (each for each in message.layer if each.name == layer)
        outputs = found.inner_product_param.num_output
        found.ClearField("inner_product_param")
        found.name, found.type = f"{layer}-conv", "Convolution"
        found.convolution_param.num_output = outputs
        found.convolution_param.kernel_size.append(kernel)
    message.layer[0].input_param.shape[0].dim[:] = [1, 3, 451, 451]
    (examples / "full_conv.prototxt").write_text(str(message))

    net = caffe.Net(prototxt, weights, caffe.TEST)
    full = caffe.Net("full_conv.prototxt", weights, caffe.TEST)
    dense = {name: (net.params[name][0].data, net.params[name][1].data) for name in ("fc6", "fc7", "fc8")}
    for name, (matrix, bias) in dense.items():
        full.params[f"{name}-conv"][0].data.flat = matrix.flat
        full.params[f"{name}-conv"][1].data[...] = bias
    full.save("full_conv.caffemodel")
    full = caffe.Net("full_conv.prototxt", "full_conv.caffemodel", caffe.TEST)
    image = caffe.io.load_image(photograph(examples / "cat.jpg", 20, size=(500, 480)))
    out = full.forward_all(data=np.asarray([transformer_of(full).preprocess("data", image)]))
    assert out["prob"].shape == (1, 1000, 8, 8)
    assert out["prob"][0].argmax(axis=0).shape == (8, 8)
    plt.imshow(np.clip(transformer_of(full).deprocess("data", full.blobs["data"].data[0]), 0, 1))
    plt.imshow(out["prob"][0, 281])

    full.blobs["data"].reshape(1, 3, 227, 227)
    batch = np.asarray([transformer_of(net).preprocess("data", image)])
    once = full.forward_all(data=batch)["prob"][0, :, 0, 0]
    np.testing.assert_allclose(once, net.forward_all(data=batch)["prob"][0], rtol=1e-4)


# ---- siamese


def tower(n: caffe.NetSpec, data: object, suffix: str) -> object:
    """LeNet to two features; both towers share their parameters by name."""

    def shared(name: str) -> list[dict]:
        return [{"name": f"{name}_w", "lr_mult": 1}, {"name": f"{name}_b", "lr_mult": 2}]

    filler, below = {"type": "xavier"}, data
    for name, outputs in (("conv1", 8), ("conv2", 12)):
        made = L.Convolution(below, kernel_size=5, num_output=outputs, weight_filler=filler, param=shared(name))
        setattr(n, name + suffix, made)
        below = L.Pooling(made, kernel_size=2, stride=2)
        setattr(n, f"pool_{name}{suffix}", below)
    made = L.InnerProduct(below, num_output=2, weight_filler=filler, param=shared("feat"))
    setattr(n, "feat" + suffix, made)
    return made


def test_siamese(examples):
    images, labels = digits()
    chosen = labels < 2
    images, labels = images[chosen], labels[chosen]
    left, right = np.random.default_rng(0).integers(0, len(images), (2, 400))
    with caffe.db.DatabaseWriter("pairs_lmdb", "lmdb") as write:
        for number, (a, b) in enumerate(zip(left, right, strict=True)):
            datum = caffe.io.array_to_datum(np.stack([images[a], images[b]]), int(labels[a] == labels[b]))
            write(b"%08d" % number, datum.SerializeToString())
    n = caffe.NetSpec()
    n.pair_data, n.sim = L.Data(
        source="pairs_lmdb", backend=P.Data.LMDB, batch_size=32, ntop=2, transform_param={"scale": 0.00390625}
    )
    n.data, n.data_p = L.Slice(n.pair_data, slice_dim=1, slice_point=1, ntop=2)
    n.loss = L.ContrastiveLoss(tower(n, n.data, ""), tower(n, n.data_p, "_p"), n.sim, margin=1)
    (examples / "train.prototxt").write_text(str(n.to_proto()))
    (examples / "solver.prototxt").write_text(
        'net: "train.prototxt" base_lr: 0.01 momentum: 0.9 lr_policy: "fixed" max_iter: 120'
    )
    solver = caffe.get_solver("solver.prototxt")
    solver.solve()
    solver.net.save("mnist_siamese_iter_50000.caffemodel")
    n = caffe.NetSpec()
    n.data = L.Input(shape={"dim": [100, 1, 28, 28]})
    tower(n, n.data, "")
    (examples / "mnist_siamese.prototxt").write_text(str(n.to_proto()))

    caffe.set_mode_cpu()
    net = caffe.Net("mnist_siamese.prototxt", "mnist_siamese_iter_50000.caffemodel", caffe.TEST)
    out = net.forward_all(data=images.reshape(-1, 1, 28, 28) * 0.00390625)
    features = out["feat"]
    assert features.shape == (len(images), 2)
    for digit in range(2):
        plt.plot(features[labels == digit, 0].flatten(), features[labels == digit, 1].flatten(), ".")
    centres = np.stack([features[labels == digit].mean(0) for digit in range(2)])
    nearest = ((features[:, None] - centres) ** 2).sum(2).argmin(1)
    assert (nearest == labels).mean() > 0.95
