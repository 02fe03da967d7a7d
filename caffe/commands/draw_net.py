"""caffe draw_net: draw a net with Graphviz."""

from caffe import draw
from caffe.commands import flags
from caffe.formats import prototxt
from caffe.proto import caffe_pb2


def main(argv: list[str]) -> int:
    """`caffe draw_net NET PICTURE [--rankdir LR] [--phase TRAIN] [--display_lrm]`."""
    parser = flags.parser("draw_net", "Draw a net with Graphviz; the image file's suffix is its format (.png, .svg, .pdf, .dot).")
    parser.add_argument("input_net_proto_file", type=flags.existing, help="the net's prototxt")
    parser.add_argument("output_image_file", type=flags.path, help="the image file to write")
    directions = ("TB", "BT", "LR", "RL")
    flags.add(parser, "rankdir", "direction of the layout (default: LR)", default="LR", choices=directions)
    flags.add(
        parser, "phase", "draw only the layers of this phase (default: ALL)", default="ALL", choices=("TRAIN", "TEST", "ALL")
    )
    parser.add_argument("-display_lrm", "--display_lrm", action="store_true", help="show learning rate multipliers")
    arguments = parser.parse_args(argv)
    with flags.logging(arguments):
        net = prototxt.read_net(arguments.input_net_proto_file)
        print(f"Drawing net to {arguments.output_image_file}")
        phase = None if arguments.phase == "ALL" else caffe_pb2.Phase.Value(arguments.phase)
        draw.draw_net_to_file(net, arguments.output_image_file, arguments.rankdir, phase, arguments.display_lrm)
    return 0
