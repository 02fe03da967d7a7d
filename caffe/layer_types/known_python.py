"""Built-in versions of Python layers that many prototxts name and whose own modules need Python 2, Cython or CUDA extensions."""

import importlib

from caffe.engine.layer import Layer
from caffe.layer_types.forks import detectnet_boxes, rcnn, rcnn_faces_and_text, rcnn_mnc

KNOWN: dict[tuple[str, str], type[Layer]] = {
    ("rpn.proposal_layer", "ProposalLayer"): rcnn.ProposalLayer,
    ("rpn.anchor_target_layer", "AnchorTargetLayer"): rcnn.AnchorTargetLayer,
    ("rpn.proposal_target_layer", "ProposalTargetLayer"): rcnn.ProposalTargetLayer,
    ("pylayer.proposal_layer", "ProposalLayer"): rcnn_mnc.MNCProposalLayer,
    ("pylayer.anchor_target_layer", "AnchorTargetLayer"): rcnn.AnchorTargetLayer,
    ("pylayer.proposal_target_layer", "ProposalTargetLayer"): rcnn_mnc.MNCProposalTargetLayer,
    ("pylayer.mask_layer", "MaskLayer"): rcnn_mnc.MaskLayer,
    ("pylayer.stage_bridge_layer", "StageBridgeLayer"): rcnn_mnc.StageBridgeLayer,
    ("SSH.layers.proposal_layer", "ProposalLayer"): rcnn_faces_and_text.SSHProposalLayer,
    ("SSH.layers.anchor_target_layer", "AnchorTargetLayer"): rcnn_faces_and_text.SSHAnchorTargetLayer,
    ("layers.text_proposal_layer", "ProposalLayer"): rcnn_faces_and_text.TextProposalLayer,
    ("caffe.layers.detectnet.clustering", "ClusterGroundtruth"): detectnet_boxes.ClusterGroundtruth,
    ("caffe.layers.detectnet.clustering", "ClusterDetections"): detectnet_boxes.ClusterDetections,
    ("caffe.layers.detectnet.mean_ap", "ScoreDetections"): detectnet_boxes.ScoreDetections,
    ("caffe.layers.detectnet.mean_ap", "mAP"): detectnet_boxes.MeanAveragePrecision,
}
"""{module and layer of a python_param: the class that computes the layer where there is no such module}."""


def is_missing(module: str) -> bool:
    """Whether Python finds no module of this name; False if it is found and fails, whatever the reason."""
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        return names_part(error, module)
    except Exception:  # the layer imports it again, and says where
        return False
    return False


def names_part(error: ModuleNotFoundError, module: str) -> bool:
    """Whether the missing module is `module` itself or a package that should hold it, not one that it imports."""
    return error.name is not None and f"{module}.".startswith(f"{error.name}.")
