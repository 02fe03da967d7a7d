"""Create the nets that a solver definition names: the training net and the test nets."""

import os

from caffe import events
from caffe.engine.net import Net
from caffe.errors import SolverError
from caffe.proto import caffe_pb2


def train_net(p: caffe_pb2.SolverParameter, path: str) -> Net:
    """The net in training, with the weights that the definition names; errors name `path`."""
    given = [field for field in ("train_net_param", "train_net", "net_param", "net") if p.HasField(field)]
    if len(given) != 1:
        found = " and ".join(given) or "no net"
        raise SolverError(path, found, "exactly one of net, net_param, train_net, train_net_param is needed")
    source = getattr(p, given[0])
    if isinstance(source, str):
        events.train_net_given(given[0], source)
    return _net(p, source, caffe_pb2.TRAIN, p.train_state)


def test_nets(p: caffe_pb2.SolverParameter, path: str, trained: Net) -> list[Net]:
    """The test nets, which share the parameters of the net in training."""
    sources: list[str | caffe_pb2.NetParameter] = [*p.test_net_param, *p.test_net]
    rest = len(p.test_iter) - len(sources)
    if rest < 0:
        raise SolverError(path, f"{len(p.test_iter)} test_iter for {len(sources)} test nets", "each test net needs one")
    shared = [getattr(p, field) for field in ("net_param", "net") if p.HasField(field)]
    if rest and not shared:
        raise SolverError(path, f"{len(p.test_iter)} test_iter", f"there are {len(sources)} test nets")
    sources += shared[:1] * rest
    if p.test_state and len(p.test_state) != len(sources):
        raise SolverError(path, f"{len(p.test_state)} test_state for {len(sources)} test nets", "there is one for each, or none")
    if sources and p.test_interval < 1:
        raise SolverError(path, "test nets without test_interval", do="give test_interval: iterations between tests")
    nets = []
    for index, source in enumerate(sources):
        events.test_net_given(index, f"net file: {source}" if isinstance(source, str) else "net_param")
        nets.append(_net(p, source, caffe_pb2.TEST, p.test_state[index] if p.test_state else caffe_pb2.NetState()))
        nets[-1].share_with(trained)
    return nets


def _net(
    p: caffe_pb2.SolverParameter,
    source: os.PathLike[str] | str | caffe_pb2.NetParameter,
    phase: caffe_pb2.Phase,
    given: caffe_pb2.NetState,
) -> Net:
    state = caffe_pb2.NetState(phase=phase)
    state.MergeFrom(given)
    net = Net(source, state.phase, level=state.level if state.HasField("level") else None, stages=list(state.stage))
    for files in p.weights:
        for path in files.split(","):
            events.weights_given(path.strip())
            net.copy_from(path.strip())
    return net
