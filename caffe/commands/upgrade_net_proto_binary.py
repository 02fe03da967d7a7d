"""caffe upgrade_net_proto_binary: upgrade a .caffemodel to the current format."""

from caffe.commands.upgrade_net_proto_text import V0_V1, run
from caffe.formats import upgrade
from caffe.proto import caffe_pb2


def main(argv: list[str]) -> int:
    """`caffe upgrade_net_proto_binary OLD NEW`; exit code 1 if fields were dropped."""
    return run("upgrade_net_proto_binary", f"a .caffemodel {V0_V1}", caffe_pb2.NetParameter(), upgrade.upgrade_net, argv)
