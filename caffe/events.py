"""Log lines of the engine and its commands: for each event, the text and the place of the same log call in BVLC Caffe's source.

    events.layer_created("conv1")      logs `net.cpp:86] Creating Layer conv1`

Other modules name an event and pass its values; places and texts are only here. Parsers of Caffe's logs read these lines, so a
text changes only if Caffe's does.
"""

from typing import NamedTuple

from caffe import glog
from caffe.glog import ERROR, WARNING


class Event(NamedTuple):
    """A line of the log: `place` as glog prints it, `text` with a replacement field for each value."""

    place: str
    text: str
    severity: int = glog.INFO

    def __call__(self, *values: object) -> None:
        """Log the event with its values, in the order of the text's fields."""
        glog.write(self.severity, self.place, self.text, *values)


# ---- nets

net_described = Event("net.cpp:53", "Initializing net from parameters: \n{}")
layer_found = Event("layer_factory.hpp:77", "Creating layer {}")
layer_created = Event("net.cpp:86", "Creating Layer {}")
layer_reads = Event("net.cpp:408", "{} <- {}")
layer_writes = Event("net.cpp:382", "{} -> {}")
layer_writes_in_place = Event("net.cpp:369", "{} -> {} (in-place)")
layer_set_up = Event("net.cpp:124", "Setting up {}")
top_shaped = Event("net.cpp:131", "Top shape: {}({})")
loss_weighted = Event("net.cpp:134", "    with loss weight {:g}")
memory_required = Event("net.cpp:139", "Memory required for data: {}")
parameter_shared = Event("net.cpp:484", "Sharing parameters '{}' owned by layer '{}', param index {}")
backward_needed = Event("net.cpp:200", "{} needs backward computation.")
backward_not_needed = Event("net.cpp:202", "{} does not need backward computation.")
output_produced = Event("net.cpp:244", "This network produces output {}")
net_initialized = Event("net.cpp:257", "Network initialization done.")
phase_differs = Event("net.cpp:296", "The NetState phase ({}) differed from the phase ({}) specified by a rule in layer {}")
level_too_low = Event("net.cpp:304", "The NetState level ({}) is above the min_level ({}) specified by a rule in layer {}")
level_too_high = Event("net.cpp:312", "The NetState level ({}) is above the max_level ({}) specified by a rule in layer {}")
stage_missing = Event("net.cpp:328", "The NetState did not contain stage '{}' specified by a rule in layer {}")
stage_excluded = Event("net.cpp:343", "The NetState contained a not_stage '{}' specified by a rule in layer {}")
source_layer_ignored = Event("net.cpp:744", "Ignoring source layer {}")
fast_in_float32 = Event("common.cpp:1", "numerics fast computes as fp32: this processor has neither AVX512-BF16 nor AMX", WARNING)
update_not_captured = Event("solver.cpp:1", "The solver's update is not captured as a CUDA graph: {}", WARNING)
kernel_not_used = Event("common.cpp:2", "The kernel {} is not used on {}: {}", WARNING)
layout_chosen = Event("net.cpp:2", "Images are kept {}: a pass takes {:.3f} ms channels-last, {:.3f} ms row-major")
passes_not_captured = Event("net.cpp:1", "The solver's passes are not captured as CUDA graphs: {}", WARNING)
diff_not_kept = Event("blob.hpp:168", "The diff of a blob of shape {} was not kept; from now on it will be.", WARNING)

# ---- debug_info: mean magnitudes

forward_top = Event("net.cpp:591", "    [Forward] Layer {}, top blob {} data: {:g}")
forward_parameter = Event("net.cpp:603", "    [Forward] Layer {}, param blob {} data: {:g}")
backward_bottom = Event("net.cpp:619", "    [Backward] Layer {}, bottom blob {} diff: {:g}")
backward_parameter = Event("net.cpp:630", "    [Backward] Layer {}, param blob {} diff: {:g}")
parameter_norms = Event(
    "net.cpp:683", "    [Backward] All net params (data, diff): L1 norm = ({:g}, {:g}); L2 norm = ({:g}, {:g})"
)

# ---- layers

hdf5_list_read = Event("hdf5_data_layer.cpp:80", "Loading list of HDF5 filenames from: {}")
hdf5_files_listed = Event("hdf5_data_layer.cpp:94", "Number of HDF5 files: {}")
hdf5_rows_loaded = Event("hdf5_data_layer.cpp:66", "Successfully loaded {} rows")
hdf5_output_begun = Event("hdf5_output_layer.cpp:34", "Saving HDF5 file {}")
hdf5_output_saved = Event("hdf5_output_layer.cpp:40", "Successfully saved")
image_list_opened = Event("image_data_layer.cpp:39", "Opening file {}")
image_list_shuffled = Event("image_data_layer.cpp:52", "Shuffling data")
images_listed = Event("image_data_layer.cpp:63", "A total of {} images.")
image_batch_shaped = Event("image_data_layer.cpp:85", "output data size: {}")
image_list_restarted = Event("image_data_layer.cpp:160", "Restarting data prefetching from start.")
lmdb_opened = Event("db_lmdb.cpp:35", "Opened lmdb {}")
leveldb_opened = Event("db_leveldb.cpp:18", "Opened leveldb {}")
database_batch_shaped = Event("data_layer.cpp:45", "output data size: {}")
database_restarted = Event("data_layer.cpp:73", "Restarting data prefetching from start.")
windows_begun = Event("window_data_layer.cpp:45", "Window data layer:")
window_images_listed = Event("window_data_layer.cpp:152", "Number of images: {}")
window_batch_shaped = Event("window_data_layer.cpp:180", "output data size: {},{},{},{}")
built_in_used = Event("layer_factory.cpp:180", '{}: no module "{}"; the built-in {} is used')

# ---- older formats

_UPGRADE = "Attempting to upgrade input file specified using deprecated {}: {{}}"
v0_net_upgraded = Event("upgrade_proto.cpp:23", _UPGRADE.format("V0LayerParameter"))
v1_net_upgraded = Event("upgrade_proto.cpp:52", _UPGRADE.format("V1LayerParameter"))
inputs_upgraded = Event("upgrade_proto.cpp:66", _UPGRADE.format("input fields"))
solver_type_upgraded = Event("upgrade_proto.cpp:1113", _UPGRADE.format("'solver_type' field (enum)'"))
upgrade_problem = Event("upgrade_proto.cpp:525", "{}", ERROR)
upgrade_incomplete = Event(
    "upgrade_proto.cpp:27",
    "Warning: had one or more problems upgrading V0NetParameter to NetParameter (see above); continuing anyway.",
    ERROR,
)
devices_left_out = Event("caffe.cpp:204", "{}: one device is used; caffe train -gpu 0,1 uses several", WARNING)
hint_not_used = Event("upgrade_proto.cpp:1000", "{}: {} has no effect; in {} fork it is about {}")
inputs_without_shape = Event("upgrade_proto.cpp:1000", "{}: inputs without input_shape or input_dim are left out", WARNING)

# ---- solvers

solver_described = Event("solver.cpp:45", "Initializing solver from parameters: \n{}")
solver_initialized = Event("solver.cpp:57", "Solver scaffolding done.")
weights_given = Event("solver.cpp:72", "Finetuning from {}")
train_net_given = Event("solver.cpp:102", "Creating training net from {} file: {}")
test_net_given = Event("solver.cpp:190", "Creating test net (#{}) specified by {}")
label_impossible = Event(
    "solver.cpp:222",
    "Iteration {}, loss = {:g}: 87.3365 is -log(FLT_MIN), the loss of a label with probability 0. Either the net has diverged: "
    "lower base_lr (the rate is {:g}), and subtract a mean or set scale. Or labels do not fit: they go from 0 to num_output - 1. "
    "roastery preflight {} checks both; see docs/troubleshooting.md.",
    WARNING,
)
loss_displayed = Event("solver.cpp:239", "Iteration {} ({:g} iter/s, {:g}s/{} iters), loss = {:g}")
train_output = Event("solver.cpp:258", "    Train net output #{}: {} = {:g}{}")
training_begun = Event("solver.cpp:289", "Solving {}")
policy_named = Event("solver.cpp:290", "Learning Rate Policy: {}")
solver_restored = Event("solver.cpp:297", "Restoring previous solver status from {}")
random_numbers_not_resumed = Event(
    "solver.cpp:297", "The state is from before version 0.3, whose random numbers were others: new ones are drawn.", WARNING
)
training_stopped = Event("solver.cpp:314", "Optimization stopped early.")
last_loss_displayed = Event("solver.cpp:327", "Iteration {}, loss = {:g}")
training_ended = Event("solver.cpp:332", "Optimization Done.")
test_begun = Event("solver.cpp:347", "Iteration {}, Testing net (#{})")
test_loss = Event("solver.cpp:400", "Test loss: {:g}")
test_output = Event("solver.cpp:414", "    Test net output #{}: {} = {:g}{}")
weights_saved = Event("solver.cpp:464", "Snapshotting to binary proto file {}")
weights_saved_hdf5 = Event("solver.cpp:475", "Snapshotting to HDF5 file {}")
step_reached = Event("sgd_solver.cpp:48", "MultiStep Status: Iteration {}, step = {}")
plateau_ended = Event("sgd_solver.cpp:78", "Plateau Status: Iteration {}, step = {}")
gradients_clipped = Event(
    "sgd_solver.cpp:94", "Gradient clipping: scaling down gradients (L2 norm {:g} > {:g}) by scale factor {:g}"
)
rate_displayed = Event("sgd_solver.cpp:112", "Iteration {}, lr = {:g}")
state_saved = Event("sgd_solver.cpp:284", "Snapshotting solver state to binary proto file {}")
state_saved_hdf5 = Event("sgd_solver.cpp:300", "Snapshotting solver state to HDF5 file {}")
processes_differ = Event("parallel.cpp:300", "{} processes differ from one with iter_size {}: {}")
process_failed = Event("parallel.cpp:331", "{}", ERROR)

# ---- commands

gpus_queried = Event("caffe.cpp:138", "Querying GPUs {}")
gpu_properties = {
    "number": Event("common.cpp:181", "Device id:                     {}"),
    "major": Event("common.cpp:182", "Major revision number:         {}"),
    "minor": Event("common.cpp:183", "Minor revision number:         {}"),
    "name": Event("common.cpp:184", "Name:                          {}"),
    "total_memory": Event("common.cpp:185", "Total global memory:           {}"),
    "shared_memory_per_block": Event("common.cpp:186", "Total shared memory per block: {}"),
    "warp_size": Event("common.cpp:187", "Warp size:                     {}"),
    "max_threads_per_block": Event("common.cpp:188", "Maximum threads per block:     {}"),
    "clock_rate": Event("common.cpp:189", "Clock rate:                    {}"),
    "multi_processor_count": Event("common.cpp:190", "Number of multiprocessors:     {}"),
}
"""By the names of PyTorch's device properties, and `number`."""
train_on_cpu = Event("caffe.cpp:197", "Use CPU.")
train_gpu_missing = Event("caffe.cpp:197", "solver_mode is GPU, but there is no CUDA device.", WARNING)
train_on_gpus = Event("caffe.cpp:204", "Using GPUs {}")
train_gpu_named = Event("caffe.cpp:209", "GPU {}: {}")
snapshot_given = Event("caffe.cpp:235", "Resuming from {}")
train_begun = Event("caffe.cpp:239", "Starting Optimization")
train_doubtful = Event("caffe.cpp:239", "{} (roastery preflight {} checks more.)", WARNING)
train_ended = Event("caffe.cpp:250", "Optimization Done.")
flag_unused = Event("caffe.cpp:443", "-{} has no effect in {}", WARNING)
scoring_begun = Event("caffe.cpp:285", "Running for {} iterations.")
batch_scored = Event("caffe.cpp:308", "Batch {}, {} = {:g}")
loss_scored = Event("caffe.cpp:313", "Loss: {:g}")
output_scored = Event("caffe.cpp:325", "{} = {:g}{}")
first_forward = Event("caffe.cpp:360", "Performing Forward")
first_loss = Event("caffe.cpp:365", "Initial loss: {:g}")
first_backward = Event("caffe.cpp:366", "Performing Backward")
benchmark_begun = Event("caffe.cpp:374", "*** Benchmark begins ***")
benchmark_sized = Event("caffe.cpp:375", "Testing for {} iterations.")
passes_timed = Event("caffe.cpp:403", "Iteration: {} forward-backward time: {:g} ms.")
layer_times_begun = Event("caffe.cpp:406", "Average time per layer: ")
layer_forward_timed = Event("caffe.cpp:409", "{:>10}\tforward: {:g} ms.")
layer_backward_timed = Event("caffe.cpp:412", "{:>10}\tbackward: {:g} ms.")
forward_timed = Event("caffe.cpp:417", "Average Forward pass: {:g} ms.")
backward_timed = Event("caffe.cpp:419", "Average Backward pass: {:g} ms.")
forward_backward_timed = Event("caffe.cpp:421", "Average Forward-Backward: {:g} ms.")
total_timed = Event("caffe.cpp:423", "Total Time: {:g} ms.")
benchmark_ended = Event("caffe.cpp:424", "*** Benchmark ends ***")
mean_begun = Event("compute_image_mean.cpp:74", "Starting iteration")
mean_progressed = Event("compute_image_mean.cpp:94", "Processed {} files.")
mean_read = Event("compute_image_mean.cpp:99", "Processed {} files.")
mean_written = Event("compute_image_mean.cpp:105", "Write to {}")
mean_channels = Event("compute_image_mean.cpp:110", "Number of channels: {}")
mean_of_channel = Event("compute_image_mean.cpp:116", "mean_value channel [{}]: {:g}")
encoding_assumed = Event("convert_imageset.cpp:74", "encode_type specified, assuming encoded=true.")
records_shuffled = Event("convert_imageset.cpp:84", "Shuffling data")
records_listed = Event("convert_imageset.cpp:87", "A total of {} images.")
encoding_unknown = Event("convert_imageset.cpp:117", "Failed to guess the encoding of '{}'", WARNING)
records_progressed = Event("convert_imageset.cpp:145", "Processed {} files.")
records_written = Event("convert_imageset.cpp:153", "Processed {} files.")
image_unreadable = Event("io.cpp:80", "Could not open or find file {}", ERROR)
extraction_begun = Event("extract_features.cpp:133", "Extracting Features")
features_extracted = Event("extract_features.cpp:175", "Extracted features of {} query images for feature blob {}")
extraction_ended = Event("extract_features.cpp:181", "Successfully extracted the features!")


def _file_upgrade(net_line: int, solver_line: int, text: str, severity: int = glog.INFO) -> dict[str, Event]:
    """The event of the commands that upgrade a net or a solver, by the command."""
    lines = {"upgrade_net_proto_binary": net_line, "upgrade_net_proto_text": net_line, "upgrade_solver_proto_text": solver_line}
    return {command: Event(f"{command}.cpp:{line}", text, severity) for command, line in lines.items()}


file_upgrade_incomplete = _file_upgrade(38, 39, "Encountered error(s) while upgrading prototxt; see details above.", ERROR)
file_latest = _file_upgrade(42, 43, "File already in latest proto format: {}", ERROR)
file_upgraded = _file_upgrade(47, 49, "Wrote upgraded {} {} proto to {}")

gpu_left_out, gpu_used, gpu_named, cpu_used = (
    {command: Event(f"caffe.cpp:{line}", text) for command, line in lines.items()}
    for text, lines in (
        ("Not using GPU #{} for single-GPU function", {"extract_features": 48, "test": 264, "time": 342}),
        ("Use GPU with device ID {}", {"extract_features": 54, "test": 270, "time": 348}),
        ("GPU device name: {}", {"extract_features": 58, "test": 274, "time": 348}),
        ("Use CPU.", {"extract_features": 63, "test": 279, "time": 352}),
    )
)
"""By the command, which computes on one device."""
