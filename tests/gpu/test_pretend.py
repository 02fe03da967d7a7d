"""The pretend GPU sees what CUDA would refuse."""

import threading

import pytest
import torch

from tests.gpu import pretend

pytestmark = pytest.mark.own_device


class Forgetful(torch.autograd.Function):
    """Its backward makes a tensor on the host."""

    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * torch.ones(3)


FAULTS = {
    "host and device": lambda x, y: x + y,
    "concatenation": lambda x, y: torch.cat([x, y]),
    "two devices": lambda x, y: x + torch.ones(3, device="cuda:1"),
    "numbers made on the host": lambda x, y: x * torch.arange(3),
    "a stack of single numbers": lambda x, y: torch.stack([x.sum(), torch.tensor(1.0)]),
    "an assignment to the host's tensor": lambda x, y: y.add_(x),
    "a backward pass": lambda x, y: Forgetful.apply(x).sum().backward(),
}


@pytest.mark.parametrize("name", FAULTS)
def test_tensors_of_different_devices_do_not_meet(name):
    with pretend.gpus(2):
        x, y = torch.zeros(3, device="cuda:0", requires_grad=True), torch.ones(3)
        with pytest.raises(RuntimeError, match="same device"):
            FAULTS[name](x, y)


def test_numpy_reads_no_tensor_of_a_gpu():
    with pretend.gpus():
        x = torch.zeros(3, device="cuda")
        with pytest.raises(TypeError, match="numpy"):
            x.numpy()
        assert x.cpu().numpy().tolist() == [0, 0, 0]


def test_results_stay_on_their_device_and_copies_are_counted():
    with pretend.gpus(2):
        x = torch.arange(4.0).to("cuda:1").requires_grad_()
        y = (x * 2 + 1).relu().view(2, 2)[0]
        assert (y.device, y.is_cuda, y.is_cpu) == (torch.device("cuda", 1), True, False)
        y.sum().backward()
        assert x.grad.device == y.device
        assert dict(pretend.copied) == {"to device": 1}
        assert y.tolist() == [1, 3]
        host = y.cpu()
        assert (host.device, host.is_cuda) == (torch.device("cpu"), False)
        torch.empty(2).copy_(y.detach())
        assert pretend.copied["to host"] == 2


def test_threads_have_the_pretend_gpu_too():
    devices = []
    with pretend.gpus():
        thread = threading.Thread(target=lambda: devices.append(torch.zeros(1, device="cuda").device.type))
        thread.start()
        thread.join()
    assert devices == ["cuda"]
    assert not torch.cuda.is_available()


def test_streams_wait_for_each_other():
    with pretend.gpus():
        side, here = torch.cuda.Stream(), torch.cuda.current_stream()
        x = torch.ones(3, device="cuda")
        with torch.cuda.stream(side), pytest.raises(RuntimeError, match="has not waited"):
            x + 1
        side.wait_stream(here)
        with torch.cuda.stream(side):
            y = x + 1
            made = torch.cuda.Event()
            made.record()
            later = x + 2
        with pytest.raises(RuntimeError, match="has not waited"):
            y * 2
        here.wait_event(made)
        with pytest.raises(RuntimeError, match="record_stream"):
            y * 2
        y.record_stream(here)
        assert (y * 2).tolist() == [4, 4, 4]
        with pytest.raises(RuntimeError, match="has not waited"):
            later + 1


def test_a_graph_computes_nothing_while_it_is_captured_and_refuses_to_wait():
    with pretend.gpus():
        x, y = torch.ones(3, device="cuda"), torch.zeros(3, device="cuda")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            z = x * 2
            y.add_(z)
        assert y.tolist() == [0, 0, 0]
        assert z.isnan().all()
        for count in (1, 2):
            graph.replay()
            assert (y.tolist(), z.tolist()) == ([2.0 * count] * 3, [2, 2, 2])
        x.fill_(5)
        graph.replay()
        assert y.tolist() == [14, 14, 14]
        with torch.cuda.graph(torch.cuda.CUDAGraph()), pytest.raises(RuntimeError, match="capturing"):
            x.sum().item()
