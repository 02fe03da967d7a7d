"""Fields that forks of Caffe added: those that are read but only hint, and whose the unknown ones are."""

from collections.abc import Iterator
from typing import NamedTuple

from google.protobuf.message import Message

from caffe import events


class Hint(NamedTuple):
    """A field that does not change what a net computes: the fork that has it, and what it hints at there."""

    fork: str
    about: str


_PRECISION = Hint("NVIDIA's", "the precision of fp16 training; set_numerics chooses how nets compute")
_CUDNN = Hint("NVIDIA's", "cuDNN's algorithms")
_READING = Hint("NVIDIA's", "how records are read and kept in memory")
_LIBRARY = Hint("Intel's", "the library that computes")
_MEMORY = Hint("Tongcheng's (DenseNet)", "the GPU and its memory")
_FLOWNET = Hint("FlowNet's", "threads, logs and files to look at")
_WINDOW = Hint("tpfister's (heatmap regression)", "a window that shows the images")
_STATISTICS = Hint("Intel's", "a BatchNorm's statistics over parts of a batch; they are the whole batch's")

HINTS: dict[str, Hint] = {
    **{f"NetParameter.default_{way}_{what}": _PRECISION for way in ("forward", "backward") for what in ("type", "math")},
    **{f"LayerParameter.{way}_{what}": _PRECISION for way in ("forward", "backward") for what in ("type", "math")},
    "NetParameter.global_grad_scale": _PRECISION,
    "NetParameter.global_grad_scale_adaptive": _PRECISION,
    "SolverParameter.solver_data_type": _PRECISION,
    "NetParameter.default_conv_algos_override": _CUDNN,
    "NetParameter.default_cudnn_math_override": _CUDNN,
    "LayerParameter.cudnn_math_override": _CUDNN,
    "ConvolutionParameter.conv_algos_override": _CUDNN,
    "ConvolutionParameter.cudnn_convolution_algo_seeker": _CUDNN,
    "NetParameter.reduce_buckets": Hint("NVIDIA's", "the exchange of gradients between GPUs"),
    "NetParameter.eltwise_mem_sharing": Hint("NVIDIA's", "the sharing of memory between blobs"),
    "LayerParameter.debug": Hint("NVIDIA's", "more lines in the log"),
    "SolverParameter.store_blobs_in_old_format": Hint("NVIDIA's", "the format of snapshots"),
    "TransformationParameter.use_gpu_transform": Hint("NVIDIA's", "where images are transformed"),
    "DataParameter.cache": _READING,
    "DataParameter.precache": _READING,
    "DataParameter.threads": _READING,
    "DataParameter.parser_threads": _READING,
    "ImageDataParameter.cache": _READING,
    "ImageDataParameter.precache": _READING,
    "ImageDataParameter.threads": _READING,
    "NetParameter.engine": _LIBRARY,
    "LayerParameter.engine": _LIBRARY,
    "SolverParameter.engine": _LIBRARY,
    "BatchNormParameter.engine": _LIBRARY,
    "ReLUParameter.fuse": _LIBRARY,
    "ConvolutionParameter.conv_algorithm": _LIBRARY,
    "NetParameter.bn_stats_batch_size": _STATISTICS,
    "BatchNormParameter.stats_batch_size": _STATISTICS,
    "LayerParameter.quantization_param": Hint("Intel's", "quantized inference; the net computes in floating point"),
    "NetParameter.mem_param": Hint("yjxiong's", "the sharing of memory between blobs"),
    "SolverParameter.richness": Hint("yjxiong's", "the size of cuDNN's workspace"),
    "SolverParameter.group_id": Hint("yjxiong's", "the GPUs that train together: caffe train -gpu 0,1"),
    "LayerParameter.reshape_every_iter": Hint("FlowNet's", "whether shapes are inferred for each pass; they always are"),
    "LayerParameter.strict_dim": Hint("DeepLab's", "which shapes stored weights may have; here they have to fit"),
    "MultiStageMeanfieldParameter.threshold": Hint("CRF-RNN's", "nothing: its layer does not read it"),
    "CosinAddmParameter.transform_test": Hint("xialuxi's (ArcFace)", "nothing: its margin is that of training"),
    "CombinedMarginParameter.transform_test": Hint("xialuxi's (ArcFace)", "nothing: its layer does not read it"),
    "DenseBlockParameter.gpuIdx": _MEMORY,
    "DenseBlockParameter.BC_ultra_space_efficient": _MEMORY,
    "DenseBlockParameter.workspace_MB": _MEMORY,
    "DataParameter.verbose": _FLOWNET,
    "DataParameter.disk_reader_threads": _FLOWNET,
    "FlowAugmentationParameter.write_augmented": _FLOWNET,
    "FlowAugmentationParameter.write_mean": _FLOWNET,
    "ResampleParameter.factor": Hint("FlowNet's", "nothing: its Resample does not read it"),
    "LayerParameter.visualise": _WINDOW,
    "LayerParameter.visualise_channel": _WINDOW,
    "HeatmapDataParameter.num_channels": Hint("tpfister's (heatmap regression)", "the channels of images, which are always 3"),
    "CPMTransformationParameter.visualize": Hint("OpenPose's", "a window that shows the images"),
    "VideoDataParameter.show_data": Hint("C3D's", "a window that shows the frames"),
    "VideoDataParameter.encoded": Hint("yjxiong's", "how frames are kept in memory"),
}
"""The fields, as Message.field, that are read and not used."""

_PASSED = frozenset({"blobs", "include", "exclude", "net_param", "train_net_param", "test_net_param"})
"""Fields without hints, and nets inside a solver, whose hints are logged when they are built."""


def log_hints(message: Message, where: str) -> None:
    """Log each field of a message, or of one inside it, that only hints; one line for each field, however often it is given.

    where  the net or solver, as log lines name it
    """
    for name in dict.fromkeys(_hints_in(message)):
        hint = HINTS[name]
        events.hint_not_used(where, name, hint.fork, hint.about)


def _hints_in(message: Message) -> Iterator[str]:
    owner = message.DESCRIPTOR.name
    for field, value in message.ListFields():
        name = f"{owner}.{field.name}"
        if name in HINTS:
            yield name
        elif field.message_type is not None and field.name not in _PASSED:
            for part in [value] if isinstance(value, Message) else value:
                yield from _hints_in(part)


_UNSUPPORTED: dict[str, dict[str, str]] = {
    "NVIDIA/caffe": {
        "PoolingParameter": "torch_pooling",
        "SolverParameter": ("larc_turbo test_and_snapshot_last_epochs"),
        "TransformationParameter": "rand_resize_ratio_lower rand_resize_ratio_upper forward_packing random_seed num_labels",
    },
    "intel/caffe": {
        "BatchNormParameter": "use_weight_bias bias_term filler relu",
        "ConvolutionParameter": "relu negative_slope fusion_type coeff",
        "PoolingParameter": "kernel_size_3d stride_3d pad_3d",
        "SolverParameter": "disabled_update test_offset",
        "TransformationParameter": "pad",
    },
    "happynear/caffe-windows": {
        "ChannelScaleParameter": "global_scale max_global_scale min_global_scale init_global_scale",
        "GeneralContrastiveParameter": "square max_positive_only add_intra_mae max_negative_margin",
        "SoftmaxParameter": "class_weight cutting_point hard_mining_label hard_ratio label_smooth_factor",
        "SolverParameter": "clip_weights clamp_weights_lower clamp_weights_upper",
        "TransformationParameter": "aspect_max aspect_min center_crop erase_ratio scale_max scale_min",
        "ImageDataParameter": (
            "balance_by balance_class face_mirror face_point_num face_transform label_cut_end label_cut_start max_aspect_ratio"
            " max_random_scale max_random_shift max_rotate_angle max_shear_ratio min_random_scale"
        ),
    },
    "yjxiong/caffe": {
        "TransformationParameter": "original_image stride upper_height upper_size upper_width",
    },
    "eric612/MobileNet-YOLO": {
        "LayerParameter": "yolo_seg_param",
        "AnnotatedDataParameter": "single_class seg_scales seg_resize_width seg_resize_height difficult_label_warmup",
        "TransformationParameter": "enable_classf_aug max_rotation_angle max_scaling_factor min_scaling_factor",
    },
    "LisaAnne/lisa-caffe-public": {
        "AccuracyParameter": "denominator",
        "EltwiseParameter": "coeff_blob",
        "ImageDataParameter": "min_height min_width",
    },
    "facebookarchive/C3D": {
        "ImageDataParameter": "num_truth_channels use_label use_byte_input is_flow truth_scale clip_min clip_max",
        "V1LayerParameter.LayerType": "VIDEO_WITH_VOXEL_TRUTH_DATA VOXEL_CUSTOM_LOSS",
    },
    "lmb-freiburg/flownet2": {
        "LayerParameter": "accum_param black_augmentation_param disparity_augmentation_param lpq_loss_param",
        "CorrelationParameter": "single_direction",
        "DataParameter": "huge_video_dataset limit_samples",
    },
    "zhaoweicai/mscnn": {
        "ImageGtDataParameter": "mean_file mirror min_whaspect max_whaspect cache_images",
    },
    "aaalgo/picpac": {"LayerParameter": "picpac_param"},
    "gustavla/autocolorize": {
        "ExtendedImageDataParameter": "fill_value key ucm2 color_perturbation",
    },
    "CMU-Perceptual-Computing-Lab/caffe_train": {
        "LayerParameter": "imresize_param nms_param",
        "CPMTransformationParameter": (
            "scale mirror crop_size mean_file mean_value scale_cvg max_cvg_len min_cvg_len opaque_coverage coverage"
            " bbox_norm_factor img_header force_color force_gray sigma_center clahe_tile_size clahe_clip_limit num_total_augs"
            " aug_way gray transform_body_joint"
        ),
    },
    "Mhaiyang/TMM2018_DRFN": {"LossParameter": "class_weight_source"},
    "ctensmeyer/caffe (binarization)": {
        "DocDataParameter": (
            "weights rand_skip label_names missing_value weights_by_size no_wrap enforce_epochs in_order force_color"
        ),
        "ProbImageTransformParameter": (
            "resize_params crop_params reflect_params gauss_noise_params rotate_params shear_params gauss_blur_params"
            " unsharp_mask_params perspective_params elastic_deformation_params zero_border_params hsv_params"
            " salt_pepper_params otsu_color_jitter_params linear_prob_weights color_jitter_prob_weights"
        ),
        "SolverParameter": (
            "monitor_test monitor_test_id max_steps_without_improvement max_periods_without_improvement min_iters_per_period"
            " max_nonfinite_test_loss"
        ),
    },
}


def fork_of(owner: str, name: str) -> str:
    """The public fork that has a field of a message, or a value of an enum, that this schema lacks; "" if it is not known."""
    return next((fork for fork, fields in _UNSUPPORTED.items() if name in fields.get(owner, "").split()), "")
