"""caffe upgrade_net_proto_text: upgrade a net's prototxt to the current format."""

from collections.abc import Callable

from caffe import events
from caffe.commands import flags
from caffe.formats import prototxt, upgrade
from caffe.proto import caffe_pb2


def main(argv: list[str]) -> int:
    """`caffe upgrade_net_proto_text OLD NEW`; exit code 1 if fields were dropped."""
    return run("text", "a net's prototxt", prototxt.read_text, prototxt.write_prototxt, argv)


def run(form: str, what: str, read: Callable[..., caffe_pb2.NetParameter], write: Callable[..., None], argv: list[str]) -> int:
    """Run the command for one format, `text` or `binary`."""
    description = f"Upgrade {what} of any version (V0 of 2013, V1 of 2014) to the current format."
    parser = flags.parser(f"upgrade_net_proto_{form}", description)
    parser.add_argument("old", help="the file to read")
    parser.add_argument("new", help="the file to write")
    arguments = parser.parse_args(argv)
    with flags.logging(arguments):
        before = read(arguments.old, caffe_pb2.NetParameter())
        net = caffe_pb2.NetParameter()
        net.CopyFrom(before)
        problems = upgrade.upgrade_net(net, arguments.old)
        if problems:
            events.net_upgrade_incomplete[form]()
        elif net == before:
            events.net_latest[form](arguments.old)
        write(arguments.new, net)
        events.net_written[form](form, arguments.new)
    return int(bool(problems))
