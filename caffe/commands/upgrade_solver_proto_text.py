"""caffe upgrade_solver_proto_text: upgrade a solver's prototxt to the current format."""

from caffe.commands.upgrade_net_proto_text import run
from caffe.formats import upgrade
from caffe.proto import caffe_pb2


def main(argv: list[str]) -> int:
    """`caffe upgrade_solver_proto_text OLD NEW`."""
    what = "a solver's prototxt of any version"
    return run("upgrade_solver_proto_text", what, caffe_pb2.SolverParameter(), upgrade.upgrade_solver, argv)
