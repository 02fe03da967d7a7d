"""The public names of `caffe`, from which caffe/__init__.py imports each on first use."""

from caffe import _caffe as _caffe
from caffe import allocator as allocator
from caffe import augmentation as augmentation
from caffe import classifier as classifier
from caffe import coord_map as coord_map
from caffe import datum as datum
from caffe import db as db
from caffe import detector as detector
from caffe import draw as draw
from caffe import io as io
from caffe import net_spec as net_spec
from caffe import proto as proto
from caffe import pycaffe as pycaffe
from caffe import transform as transform
from caffe.classifier import Classifier as Classifier
from caffe.detector import Detector as Detector
from caffe.engine.blob import Blob as Blob
from caffe.engine.layer import layer_type as layer_type
from caffe.engine.layer import layer_type_list as layer_type_list
from caffe.engine.mode import set_device as set_device
from caffe.engine.mode import set_mode_cpu as set_mode_cpu
from caffe.engine.mode import set_mode_gpu as set_mode_gpu
from caffe.engine.mode import set_multiprocess as set_multiprocess
from caffe.engine.mode import set_random_seed as set_random_seed
from caffe.engine.mode import set_solver_count as set_solver_count
from caffe.engine.mode import set_solver_rank as set_solver_rank
from caffe.engine.mode import solver_count as solver_count
from caffe.engine.mode import solver_rank as solver_rank
from caffe.engine.net import Net as Net
from caffe.engine.python_layer import Layer as Layer
from caffe.engine.topology import check_bottoms as check_bottoms
from caffe.errors import Error as Error
from caffe.errors import FileError as FileError
from caffe.errors import LayerError as LayerError
from caffe.errors import ParseError as ParseError
from caffe.errors import SolverError as SolverError
from caffe.errors import WeightsError as WeightsError
from caffe.errors import nearest as nearest
from caffe.formats.prototxt import layer_places as layer_places
from caffe.formats.prototxt import read_net as read_net
from caffe.formats.prototxt import read_solver as read_solver
from caffe.formats.prototxt import write_prototxt as write_prototxt
from caffe.glog import init_log as init_log
from caffe.glog import log as log
from caffe.glog import log_to_file as log_to_file
from caffe.net_spec import NetSpec as NetSpec
from caffe.net_spec import layers as layers
from caffe.net_spec import params as params
from caffe.net_spec import to_proto as to_proto
from caffe.timer import Timer as Timer
from caffe.training.diagnosis import DivergenceError as DivergenceError
from caffe.training.nccl import NCCL as NCCL
from caffe.training.nccl import has_nccl as has_nccl
from caffe.training.solver import Solver as Solver
from caffe.training.solver_types import AdaDeltaSolver as AdaDeltaSolver
from caffe.training.solver_types import AdaGradSolver as AdaGradSolver
from caffe.training.solver_types import AdamSolver as AdamSolver
from caffe.training.solver_types import NesterovSolver as NesterovSolver
from caffe.training.solver_types import RMSPropSolver as RMSPropSolver
from caffe.training.solver_types import SGDSolver as SGDSolver
from caffe.training.solver_types import get_solver as get_solver

TRAIN: int
TEST: int
__version__: str
