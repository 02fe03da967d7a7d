"""caffe upgrade_solver_proto_text: upgrade a solver's prototxt to the current format."""

from caffe import events
from caffe.commands import flags
from caffe.formats import prototxt, upgrade
from caffe.proto import caffe_pb2


def main(argv: list[str]) -> int:
    """`caffe upgrade_solver_proto_text OLD NEW`."""
    parser = flags.parser("upgrade_solver_proto_text", "Upgrade a solver's prototxt of any version to the current format.")
    parser.add_argument("old", help="the prototxt to read")
    parser.add_argument("new", help="the prototxt to write")
    arguments = parser.parse_args(argv)
    with flags.logging(arguments):
        before = prototxt.read_text(arguments.old, caffe_pb2.SolverParameter())
        solver = caffe_pb2.SolverParameter()
        solver.CopyFrom(before)
        upgrade.upgrade_solver(solver, arguments.old)
        if solver == before:
            events.solver_text_latest(arguments.old)
        prototxt.write_prototxt(arguments.new, solver)
        events.solver_text_written(arguments.new)
    return 0
