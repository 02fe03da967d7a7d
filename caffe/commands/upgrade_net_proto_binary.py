"""caffe upgrade_net_proto_binary: upgrade a .caffemodel to the current format."""

from caffe.commands import upgrade_net_proto_text
from caffe.formats import prototxt


def main(argv: list[str]) -> int:
    """`caffe upgrade_net_proto_binary OLD NEW`; exit code 1 if fields were dropped."""
    return upgrade_net_proto_text.run("binary", "a .caffemodel", prototxt.read_binary, prototxt.write_binary, argv)
