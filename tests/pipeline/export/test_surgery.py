"""Net surgery: cropped, convolutional, merged and averaged nets compute what they should; other nets are refused."""

import numpy as np
import pytest

import caffe
from caffe.proto import caffe_pb2
from pipeline.errors import InputError
from pipeline.export import agreement, surgery
from pipeline.export.convolutional import convolutional
from pipeline.export.merging import merged
from pipeline.nets import graph
from tests.conftest import SHARED, needs_shared
from tests.pipeline.trained_nets import digits, image, layer, net, of_template, remove_fillers, set_random_weights

PAD = "convolution_param { num_output: 6 kernel_size: 3 pad: 1 bias_term: false }"
FULL = "inner_product_param { num_output: %d }"


def output(of: caffe.Net, values: np.ndarray, blob: str = "") -> np.ndarray:
    return agreement.compute(of, {"data": values}, [blob or of.outputs[0]])[0]


def pictures(*shape: int) -> np.ndarray:
    return (np.random.default_rng(5).standard_normal(shape) * 50).astype(np.float32)


@pytest.fixture(scope="module")
def caffenet():
    """CaffeNet with 20 classes, and 512 outputs instead of 4096, which keeps the test short."""
    definition = of_template("caffenet", 20, 1, 3, 227, 227)
    for one in definition.layer:
        if one.name in ("fc6", "fc7"):
            one.inner_product_param.num_output = 512
    return set_random_weights(caffe.Net(definition, caffe.TEST))


# ---- convolutional


@needs_shared
def test_caffenet_becomes_the_published_convolutional_net():
    deploy = SHARED / "zoo/bvlc/models/bvlc_reference_caffenet/deploy.prototxt"
    ours = convolutional(caffe.Net(str(deploy), caffe.TEST), 451, 451)
    published = caffe.read_net(SHARED / "zoo/v1_format/imagenet__bvlc_caffenet_full_conv.prototxt")
    assert [one.name for one in published.layer if one.type == "Convolution"][-3:] == ["fc6-conv", "fc7-conv", "fc8-conv"]
    mine, theirs = (
        [one for one in definition.layer if one.type != "Input"] for definition in (graph.definition_of(ours), published)
    )
    assert mine == theirs


def test_a_convolutional_caffenet_gives_the_nets_output_for_its_input_size(caffenet):
    values = pictures(2, 3, 227, 227)
    changed = convolutional(caffenet, 227, 227)
    for blob in ("fc6", "fc7", "fc8", "prob"):
        mine = output(changed, values, blob if blob == "prob" else f"{blob}-conv")
        expected = output(caffenet, values, blob)
        assert mine.shape == (*expected.shape, 1, 1)
        np.testing.assert_allclose(mine.reshape(expected.shape), expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_the_output_map_equals_the_classifier_on_every_window_of_the_last_pooling(caffenet):
    values = pictures(1, 3, 454, 454)
    changed = convolutional(caffenet, 454, 454)
    assert tuple(changed.blobs["prob"].shape) == (1, 20, 8, 8)
    scores, pooled = output(changed, values, "fc8-conv"), output(changed, values, "pool5")
    assert pooled.shape == (1, 256, 13, 13)
    windows = [pooled[:, :, row : row + 6, column : column + 6] for row in range(8) for column in range(8)]
    rows = []
    for window in windows:
        caffenet.blobs["pool5"].data[...] = window
        caffenet.forward(start="fc6")
        rows.append(caffenet.blobs["fc8"].data[0].copy())
    slid = np.stack(rows, -1).reshape(20, 8, 8)
    np.testing.assert_allclose(scores[0], slid, rtol=1e-5, atol=1e-5 * np.abs(slid).max())


def test_the_output_map_without_padding_equals_the_net_slid_over_the_image():
    definition = of_template("caffenet", 20, 1, 3, 227, 227)
    for one in definition.layer:
        if one.type == "Convolution":
            one.convolution_param.ClearField("pad")
        if one.name in ("fc6", "fc7"):
            one.inner_product_param.num_output = 512
    unpadded = set_random_weights(caffe.Net(definition, caffe.TEST))
    values = pictures(1, 3, 454, 454)
    found = output(convolutional(unpadded, 454, 454), values, "fc8-conv")
    assert found.shape == (1, 20, 8, 8)
    windows = [values[0, :, row : row + 227, column : column + 227] for row in range(0, 256, 32) for column in range(0, 256, 32)]
    slid = output(unpadded, np.stack(windows), "fc8").reshape(8, 8, 20).transpose(2, 0, 1)
    np.testing.assert_allclose(found[0], slid, rtol=1e-5, atol=1e-5 * np.abs(slid).max())


BODY = (
    image(1, 3, 12, 10)
    + layer("Convolution", "conv", "data", more=PAD)
    + layer("Pooling", "pool", "conv", more="pooling_param { %s }")
)
HEADS = {
    "after a Flatten": layer("Flatten", "flat", "pool")
    + layer("ReLU", "relu", "flat", top="flat")
    + layer("InnerProduct", "fc", "flat", more=FULL % 4),
    "after a Reshape": layer("Reshape", "row", "pool", more="reshape_param { shape { dim: 0 dim: -1 } }")
    + layer("InnerProduct", "fc", "row", more=FULL % 4),
    "transposed weights": layer(
        "InnerProduct", "fc", "pool", more="inner_product_param { num_output: 4 transpose: true bias_term: false }"
    ),
    "before a BatchNorm": layer("InnerProduct", "fc", "pool", more=FULL % 4)
    + layer("BatchNorm", "bn", "fc")
    + layer("Scale", "scale", "bn", more="scale_param { bias_term: true }")
    + layer("Softmax", "prob", "scale", more="softmax_param { axis: -1 }"),
    "two parallel heads": layer("InnerProduct", "a", "pool", more=FULL % 4)
    + layer("InnerProduct", "b", "pool", more=FULL % 3)
    + layer("Concat", "both", "a", "b", more="concat_param { axis: -1 }"),
}


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_the_output_map_is_right_for_every_kind_of_head(write, head):
    original = net(write, (BODY % "kernel_size: 2 stride: 2").replace("pad: 1 ", "") + head)
    values = pictures(1, 3, 16, 16)
    found = output(convolutional(original, 16, 16), values)
    windows = [values[0, :, row : row + 12, column : column + 10] for row in range(0, 5, 2) for column in range(0, 7, 2)]
    slid = output(original, np.stack(windows)).reshape(3, 4, -1).transpose(2, 0, 1)
    np.testing.assert_allclose(found[0], slid, rtol=1e-5, atol=1e-5 * np.abs(slid).max())


def test_global_pooling_becomes_pooling_with_its_former_window(write):
    original = net(
        write,
        (BODY % "pool: AVE global_pooling: true").replace("pad: 1 ", "") + layer("InnerProduct", "fc", "pool", more=FULL % 4),
    )
    values = pictures(1, 3, 14, 11)
    found = output(convolutional(original, 14, 11), values)
    assert found.shape == (1, 4, 3, 2)
    np.testing.assert_allclose(found[0, :, 2, 1], output(original, values[:, :, 2:, 1:])[0], rtol=1e-4)


REFUSED = {
    "a smaller image": (BODY % "kernel_size: 2", (11, 10), "12×10"),
    "a vector": (image(1, 5) + layer("InnerProduct", "fc", "data", more=FULL % 4), (20, 20), "an input of shape (1, 5)"),
    "a reshape": (
        image(1, 4, 6, 6) + layer("Reshape", "row", "data", more="reshape_param { shape { dim: 0 dim: 2 dim: -1 } }"),
        (20, 20),
        'layer "row": (1, 4, 6, 6) becomes (1, 2, 72)',
    ),
    "a flattened map's softmax": (
        image(1, 4, 6, 6) + layer("Flatten", "flat", "data") + layer("Softmax", "prob", "flat"),
        (20, 20),
        'layer "prob": Softmax on a flattened map',
    ),
    "an InnerProduct along axis 2": (
        image(1, 4, 6, 6) + layer("InnerProduct", "fc", "data", more="inner_product_param { num_output: 4 axis: 2 }"),
        (20, 20),
        'layer "fc": axis 2',
    ),
    "a type that needs a vector": (
        image(1, 4, 6, 6) + layer("InnerProduct", "fc", "data", more=FULL % 4) + layer("ArgMax", "best", "fc"),
        (20, 20),
        'layer "best": ArgMax',
    ),
}


@pytest.mark.parametrize(("text", "size", "said"), REFUSED.values(), ids=REFUSED)
def test_a_net_that_cannot_become_convolutional_is_refused(write, text, size, said):
    with pytest.raises(InputError) as error:
        convolutional(net(write, text), *size)
    assert said in str(error.value)


# ---- merge


def assert_merged(original: caffe.Net, gone: list[str] | int, left: list[str] | int) -> caffe.Net:
    changed, *found = merged(original)
    for names, expected in zip(found, (gone, left), strict=True):
        assert (len(names) if isinstance(expected, int) else names) == expected
    assert not {*found[0]} & {*changed.layer_dict}
    inputs = agreement.random_inputs(original, 2)
    pairs = [agreement.compute(one, inputs, agreement.compared_blobs(one)) for one in (original, changed)]
    assert min(array.std() for array in pairs[0]) > 0
    assert agreement.assert_close("the merged net", *pairs) < 1e-5
    return changed


NORM = layer("BatchNorm", "bn", "x") + layer("Scale", "scale", "bn", more="scale_param { bias_term: true }")
IN_PLACE = layer("BatchNorm", "bn", "x", top="x") + layer("Scale", "scale", "x", top="x", more="scale_param { bias_term: true }")
BEFORE = {
    "a convolution": layer("Convolution", "x", "data", more=PAD),
    "a grouped convolution with a bias": layer(
        "Convolution", "x", "data", more="convolution_param { num_output: 6 kernel_size: 3 group: 2 }"
    ),
    "a depthwise convolution": layer(
        "DepthwiseConvolution", "x", "data", more="convolution_param { num_output: 8 kernel_size: 3 }"
    ),
    "a grouped deconvolution": layer(
        "Deconvolution", "x", "data", more="convolution_param { num_output: 6 kernel_size: 4 stride: 2 group: 2 }"
    ),
    "a convolution with one output": layer("Convolution", "x", "data", more="convolution_param { num_output: 1 kernel_size: 3 }"),
    "a fully connected layer": layer("InnerProduct", "x", "data", more=FULL % 5),
    "a fully connected layer with transposed weights": layer(
        "InnerProduct", "x", "data", more="inner_product_param { num_output: 5 transpose: true bias_term: false }"
    ),
}


@pytest.mark.parametrize("after", [NORM, IN_PLACE], ids=["separate", "in place"])
@pytest.mark.parametrize("before", BEFORE.values(), ids=BEFORE)
def test_normalisation_is_merged_into_the_layer_before(write, before, after):
    changed = assert_merged(net(write, image(1, 4, 7, 6) + before + after), ["bn", "scale"], [])
    assert [one.type for one in changed.layers][1:] == [changed.layer_dict["x"].type]


AFTER = {
    "NVIDIA's": (layer("BatchNorm", "bn", "x", more="batch_norm_param { scale_bias: true eps: 1e-6 }"), ["bn"], []),
    "yjxiong's": (layer("BN", "bn", "x"), ["bn"], []),
    "a scale alone, then a bias": (layer("Scale", "scale", "x") + layer("Bias", "bias", "scale"), ["scale", "bias"], []),
    "after an activation": (layer("ReLU", "relu", "x", top="x") + layer("BatchNorm", "bn", "x"), [], ["bn"]),
    "with a second reader of the convolution": (
        layer("BatchNorm", "bn", "x") + layer("Eltwise", "sum", "x", "bn"),
        [],
        ["bn"],
    ),
    "with batch statistics": (layer("BatchNorm", "bn", "x", more="batch_norm_param { use_global_stats: false }"), [], ["bn"]),
    "a scale for each position": (
        layer("BatchNorm", "bn", "x") + layer("Scale", "scale", "bn", more="scale_param { num_axes: -1 }"),
        ["bn"],
        [],
    ),
}


@pytest.mark.parametrize(("after", "gone", "left"), AFTER.values(), ids=AFTER)
def test_only_mergeable_layers_are_merged(write, after, gone, left):
    assert_merged(net(write, image(1, 4, 7, 6) + layer("Convolution", "x", "data", more=PAD) + after), gone, left)


def test_normalisation_is_not_merged_into_shared_weights(write):
    shared = PAD + ' param { name: "w" }'
    text = image(1, 4, 7, 6) + layer("Convolution", "x", "data", more=shared) + layer("Convolution", "y", "data", more=shared)
    assert_merged(net(write, text + layer("BatchNorm", "bn", "x") + layer("Eltwise", "sum", "bn", "y")), [], ["bn"])


@pytest.mark.long
@needs_shared
@pytest.mark.parametrize(
    ("name", "gone", "left"), [("resnet50", 106, 0), ("mobilenet", 54, 0), ("mobilenet_v2", 106, 0), ("densenet121", 118, 62)]
)
def test_published_nets_are_merged(name, gone, left):
    definition = remove_fillers(caffe.read_net(SHARED / "zoo" / name / "deploy.prototxt"))
    assert_merged(set_random_weights(caffe.Net(definition, caffe.TEST)), gone, left)


# ---- crop and average, and the commands

SMALL = image(1, 3, 6, 6) + layer("Convolution", "conv", "data", more=PAD)
WHOLE = SMALL + layer("BatchNorm", "bn", "conv") + layer("InnerProduct", "fc", "bn", more=FULL % 4)


@pytest.fixture
def whole(write, tmp_path):
    """whole.prototxt and three snapshots of it; gives the nets."""
    nets = [net(write, WHOLE, seed) for seed in range(3)]
    (tmp_path / "net.prototxt").rename(tmp_path / "whole.prototxt")
    (tmp_path / "snapshots").mkdir()
    for number, one in enumerate(nets):
        weights = one.params["bn"][2].data
        for blob in one.params["bn"]:
            blob.data[...] *= number + 1
        assert weights[0] == 2 * (number + 1)
        one.save(tmp_path / f"snapshots/s_iter_{8 + number}.caffemodel")
    return nets


def stored_layers(path) -> dict[str, int]:
    """{layer: parameters} of a .caffemodel's layers that have any."""
    found = caffe_pb2.NetParameter.FromString(path.read_bytes())
    return {one.name: len(one.blobs) for one in found.layer if one.blobs}


def test_crop_keeps_the_layers_of_a_smaller_prototxt(write, tmp_path, whole):
    smaller = write("smaller.prototxt", SMALL)
    surgery.main(["crop", smaller, str(tmp_path / "snapshots/s_iter_8.caffemodel"), "--output", str(tmp_path / "out/cropped")])
    assert stored_layers(tmp_path / "out/cropped.caffemodel") == {"conv": 1}
    cropped = surgery.load_net(tmp_path / "out/cropped.prototxt", tmp_path / "out/cropped.caffemodel")
    values = pictures(1, 3, 6, 6)
    # A look, as at the whole net's, since then the convolution has the same kernel.
    np.testing.assert_array_equal(cropped.params["conv"][0].data, whole[0].params["conv"][0].data)
    np.testing.assert_array_equal(output(cropped, values), output(whole[0], values, "conv"))


def test_a_crop_to_layers_that_do_not_match_is_refused_and_writes_nothing(write, tmp_path, whole, fails):
    write("absent.prototxt", SMALL.replace('"conv"', '"convv"'))
    write("other.prototxt", SMALL.replace("kernel_size: 3", "kernel_size: 5"))
    arguments = ("snapshots/s_iter_8.caffemodel", "--output", "cropped")
    fails(
        ["s_iter_8.caffemodel: no weights of layer convv", 'did you mean "conv"?'],
        "pipeline.export.surgery",
        "crop",
        "absent.prototxt",
        *arguments,
    )
    with pytest.raises(caffe.WeightsError, match='layer "conv": parameter 0 has shape'):
        surgery.load_net(tmp_path / "other.prototxt", tmp_path / "snapshots/s_iter_8.caffemodel")


def test_the_average_is_the_mean_of_parameters_and_of_normalised_statistics(tmp_path, whole):
    surgery.main(
        [
            "average",
            str(tmp_path / "whole.prototxt"),
            str(tmp_path / "snapshots"),
            "--average",
            "2",
            "--output",
            str(tmp_path / "mean"),
        ]
    )
    mean = surgery.load_net(tmp_path / "mean.prototxt", tmp_path / "mean.caffemodel")
    one, other = whole[1:]
    for name in ("conv", "fc"):
        for found, first, second in zip(mean.params[name], one.params[name], other.params[name], strict=True):
            np.testing.assert_allclose(found.data, (first.data + second.data) / 2, rtol=1e-6, atol=1e-7)
    for slot in (0, 1):
        expected = (one.params["bn"][slot].data / 4 + other.params["bn"][slot].data / 6) / 2
        np.testing.assert_allclose(mean.params["bn"][slot].data, expected, rtol=1e-5)
    assert mean.params["bn"][2].data == [1]


@needs_shared
def test_the_average_of_two_snapshots_of_2014_classifies_digits():
    snapshots = [SHARED / f"weights/lenet_iter_{iteration}.caffemodel" for iteration in (5000, 10000)]
    images, labels = digits(500)
    scores = output(surgery.averaged(SHARED / "zoo/v1_format/mnist__lenet.prototxt", snapshots), images)
    assert (scores.argmax(1) == labels).mean() > 0.98


def test_the_latest_snapshots_by_iteration_are_taken_in_either_format(tmp_path, whole):
    whole[0].save_hdf5(tmp_path / "snapshots/s_iter_100.caffemodel.h5")
    (tmp_path / "snapshots/s_iter_100.solverstate").touch()
    files = surgery.snapshots_in(tmp_path / "snapshots", 3)
    assert [path.name for path in files] == ["s_iter_9.caffemodel", "s_iter_10.caffemodel", "s_iter_100.caffemodel.h5"]
    alone = surgery.averaged(tmp_path / "whole.prototxt", files[-1:])
    np.testing.assert_array_equal(alone.params["fc"][0].data, whole[0].params["fc"][0].data)


def test_with_fewer_snapshots_than_requested_all_are_averaged_with_a_message(tmp_path, whole, capsys):
    files = [str(tmp_path / "whole.prototxt"), str(tmp_path / "snapshots")]
    surgery.main(["average", *files, "--average", "4", "--output", str(tmp_path / "mean")])
    names = ", ".join(f"s_iter_{number}.caffemodel" for number in (8, 9, 10))
    assert f"the mean of {names}; 4 were requested, but there are only 3" in capsys.readouterr().out
    assert (tmp_path / "mean.caffemodel").exists()


def test_one_snapshot_where_several_are_requested_is_refused(tmp_path, whole):
    for number in (8, 9):
        (tmp_path / f"snapshots/s_iter_{number}.caffemodel").unlink()
    with pytest.raises(InputError, match=r"1 snapshot, but 4 are to be averaged; set solver.snapshot"):
        surgery.snapshots_in(tmp_path / "snapshots", 4)
    assert len(surgery.snapshots_in(tmp_path / "snapshots", 1)) == 1


def test_after_a_diverged_training_the_average_is_its_final_weights(tmp_path, whole, capsys):
    whole[0].save(str(tmp_path / "final.caffemodel"))
    (tmp_path / "best.json").write_text('{"diverged": 7}')
    files = [str(tmp_path / "whole.prototxt"), str(tmp_path / "snapshots"), "--best", str(tmp_path / "best.json")]
    surgery.main(["average", *files, "--output", str(tmp_path / "mean")])
    assert "training diverged at iteration 7" in capsys.readouterr().out
    mean = caffe.Net(str(tmp_path / "mean.prototxt"), str(tmp_path / "mean.caffemodel"), caffe.TEST)
    for name, blobs in whole[0].params.items():
        np.testing.assert_array_equal(mean.params[name][0].data, blobs[0].data)


@pytest.mark.parametrize("last", [1, -2])
def test_an_average_of_fewer_than_2_snapshots_is_refused(tmp_path, whole, last):
    files = [str(tmp_path / "whole.prototxt"), str(tmp_path / "snapshots"), "--output", str(tmp_path / "mean")]
    with pytest.raises(InputError, match=rf"--average: {last} is less than 2"):
        surgery.main(["average", *files, f"--average={last}"])


def test_snapshots_of_different_nets_are_refused(write, tmp_path, whole):
    more = net(write, WHOLE + layer("InnerProduct", "aux", "bn", more=FULL % 2))
    more.save(tmp_path / "more.caffemodel")
    files = [tmp_path / "snapshots/s_iter_8.caffemodel", tmp_path / "more.caffemodel"]
    with pytest.raises(InputError, match=r"more.caffemodel: weights of another net than .*, but only one of them has layer aux"):
        surgery.averaged(tmp_path / "whole.prototxt", files)


def test_the_commands_write_nets_that_can_be_loaded(tmp_path, whole, capsys):
    files = [str(tmp_path / "whole.prototxt"), str(tmp_path / "snapshots/s_iter_8.caffemodel")]
    surgery.main(["merge", *files, "--output", str(tmp_path / "merged")])
    surgery.main(["convolutional", *files, "--height", "9", "--width", "8", "--output", str(tmp_path / "convolutional")])
    said = capsys.readouterr().out
    assert "merged: 1 layer merged; largest difference" in said
    assert "convolutional: fc-conv 1×4×4×3; for the net's own size" in said
    assert stored_layers(tmp_path / "merged.caffemodel") == {"conv": 2, "fc": 2}
    changed = surgery.load_net(tmp_path / "convolutional.prototxt", tmp_path / "convolutional.caffemodel")
    values = pictures(1, 3, 6, 6)
    np.testing.assert_allclose(output(changed, values).ravel(), output(whole[0], values).ravel(), rtol=1e-4)


def test_a_changed_net_with_a_different_output_is_not_written(tmp_path, whole, monkeypatch):
    def wrong(of):
        changed, *rest = merged(of)
        changed.params["fc"][1].data[...] += 1
        return changed, *rest

    monkeypatch.setattr(surgery, "merged", wrong)
    files = [str(tmp_path / "whole.prototxt"), str(tmp_path / "snapshots/s_iter_8.caffemodel")]
    with pytest.raises(InputError, match="differs from the net's own"):
        surgery.main(["merge", *files, "--output", str(tmp_path / "merged")])
    assert not list(tmp_path.glob("*merged*"))
