"""Solver states: what a training resumes from besides its weights, in both of Caffe's formats."""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from google.protobuf.message import DecodeError

from caffe import events
from caffe.engine import mode
from caffe.engine.net import Net
from caffe.errors import FileError, SolverError
from caffe.formats import prototxt
from caffe.formats.files import written_whole
from caffe.formats.stored import add_array, shape_of, values_of
from caffe.proto import caffe_pb2


class State(NamedTuple):
    """The content of a solver state.

    model    path of the weights
    step     number of rate changes by lr_policy "step" or "multistep"
    history  the update rule's arrays for each parameter
    run      what makes a resume exact, which only ours hold; empty if BVLC Caffe wrote the state
    """

    iteration: int
    model: str
    step: int
    history: Sequence[torch.Tensor]
    run: caffe_pb2.RunState


def write_state(state: State, path: str) -> None:
    """Write a .solverstate, or a .solverstate.h5; whole or not at all."""
    if path.endswith(".h5"):
        _write_hdf5(state, path)
        return
    events.state_saved(path)
    proto = caffe_pb2.SolverState(iter=state.iteration, learned_net=state.model, current_step=state.step)
    for tensor in state.history:
        add_array(proto.history.add(), tensor.cpu().numpy())
    proto.run.CopyFrom(state.run)
    prototxt.write_binary(path, proto)


def read_state(path: str) -> State:
    """Read a .solverstate, or a .solverstate.h5."""
    if path.removesuffix(".h5").endswith(".caffemodel"):
        do = "restore the .solverstate of the same name, or call solver.net.copy_from to start from these weights"
        raise FileError(path, "weights", "a solver state is a .solverstate", do)
    return _read_hdf5(path) if path.endswith(".h5") else _read_proto(path)


def check_prefix(prefix: str, solver: str) -> None:
    """Raise SolverError if the folder of snapshot_prefix cannot be made or written to, before a training for nothing.

    solver  its prototxt, for the error
    """
    folder = Path(prefix).absolute().parent
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        raise SolverError(solver, f'snapshot_prefix "{prefix}"', f"{there} is a file, not a folder", "correct snapshot_prefix")
    if not os.access(there, os.W_OK | os.X_OK):
        do = "make it writable, or choose another folder"
        raise SolverError(solver, f'snapshot_prefix "{prefix}"', f"the folder {there} is not writable", do)


def weights_beside(path: str, model: str) -> str | Path:
    """The weights that a state names, or, if they do not exist, the file of that name beside the state."""
    beside = Path(path).parent / Path(model).name
    return model if Path(model).exists() or not beside.exists() else beside


def run_of(nets: Iterable[Net], losses: list[float]) -> caffe_pb2.RunState:
    """The state of a run between iterations, besides weights and history.

    losses  the last ones, for average_loss
    """
    run = caffe_pb2.RunState(random=json.dumps(mode.generator.state), loss=losses)
    run.generator = torch.get_rng_state().numpy().tobytes()
    if mode.device().type == "cuda" and mode.numerics() != "reproducible":  # where nothing draws from it, and states are equal
        run.gpu_generator = torch.cuda.get_rng_state(mode.device()).numpy().tobytes()
    for index, net in enumerate(nets):
        for layer in net.layers:
            state = caffe_pb2.LayerState()
            layer.keep(state)
            if state.ListFields():
                state.net, state.name = index, layer.param.name
                run.layer.append(state)
    return run


def resume_run(nets: Iterable[Net], run: caffe_pb2.RunState) -> None:
    """Restore what `run_of` returned, except the losses, as far as the nets have the same layers."""
    states: dict[tuple[int, str], list[caffe_pb2.LayerState]] = {}
    for state in run.layer:
        states.setdefault((state.net, state.name), []).append(state)
    for index, net in enumerate(nets):
        for layer in net.layers:
            if of_name := states.get((index, layer.param.name)):
                layer.resume(of_name.pop(0))  # layers of one name, in their order
    torch.set_rng_state(torch.frombuffer(bytearray(run.generator), dtype=torch.uint8))
    if run.gpu_generator and mode.device().type == "cuda":
        torch.cuda.set_rng_state(torch.frombuffer(bytearray(run.gpu_generator), dtype=torch.uint8), mode.device())
    if run.HasField("random"):
        mode.generator.state = json.loads(run.random)
    else:
        events.random_numbers_not_resumed()


def _write_hdf5(state: State, path: str) -> None:
    import h5py

    events.state_saved_hdf5(path)
    with written_whole(path) as part, h5py.File(part, "w") as file:
        file["iter"] = np.int32(state.iteration)
        file["learned_net"] = np.bytes_(state.model)
        file["current_step"] = np.int32(state.step)
        history = file.create_group("history")
        for index, tensor in enumerate(state.history):
            history.create_dataset(str(index), data=tensor.cpu().numpy())
        file["run"] = np.frombuffer(state.run.SerializeToString(), np.uint8)


def _read_proto(path: str) -> State:
    state = prototxt.read_binary(path, caffe_pb2.SolverState())
    if isinstance(state.learned_net, bytes):
        raise FileError(path, f"the weights' name is {state.learned_net!r}, which is not text", do="the file is damaged")
    history = [_tensor(values_of(blob), shape_of(blob)) for blob in state.history]
    return State(state.iter, state.learned_net, state.current_step, history, state.run)


def _tensor(values: np.ndarray, shape: tuple[int, ...]) -> torch.Tensor:
    """Values in their shape; flat if a damaged file holds another number of them."""
    return torch.from_numpy(values.reshape(shape) if np.prod(shape) == values.size else values)


def _read_hdf5(path: str) -> State:
    import h5py

    if not Path(path).exists():
        raise FileError(path, "no such file")
    try:
        with h5py.File(path, "r") as file:
            model = file["learned_net"][()] if "learned_net" in file else b""
            model = model.decode() if isinstance(model, bytes) else str(model)
            group = file["history"]
            history = [torch.from_numpy(np.asarray(group[str(index)], np.float32)) for index in range(len(group))]
            step = int(np.asarray(file["current_step"]).item()) if "current_step" in file else 0
            iteration = int(np.asarray(file["iter"]).item())
            run = caffe_pb2.RunState.FromString(bytes(np.asarray(file["run"], np.uint8)) if "run" in file else b"")
            return State(iteration, model, step, history, run)
    except (OSError, KeyError, ValueError, DecodeError) as error:
        raise FileError(path, f"not a .solverstate.h5 ({error})") from error
