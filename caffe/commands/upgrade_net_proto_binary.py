"""caffe upgrade_net_proto_binary: a .caffemodel of any version in today's form."""

from __future__ import annotations

from caffe.commands import upgrade_net_proto_text
from caffe.formats import prototxt


def main(argv: list[str]) -> int:
    """`caffe upgrade_net_proto_binary OLD NEW`; 1 where something had no place in today's form."""
    return upgrade_net_proto_text.run("binary", "a .caffemodel", prototxt.read_binary, prototxt.write_binary, argv)
