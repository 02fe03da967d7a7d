"""Snapshots: a net's weights and its solver's state at one iteration, in both of Caffe's formats."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from google.protobuf.message import DecodeError

from caffe import glog
from caffe.engine import mode
from caffe.errors import FileError, SolverError
from caffe.formats import prototxt
from caffe.formats.stored import add_array, shape_of, values_of, write_whole
from caffe.proto import caffe_pb2

if TYPE_CHECKING:
    from caffe.training.solver import Solver


def write(solver: Solver, stem: str, folder: str | os.PathLike | None = None) -> str:
    """Write `stem`.caffemodel and .solverstate (or .h5 of each); returns the path of the weights.

    folder  where the files are written if they will be moved to `stem` later: the state names the weights by `stem`
    """
    p = solver.param
    written = str(Path(folder) / Path(stem).name) if folder else stem
    Path(written).parent.mkdir(parents=True, exist_ok=True)
    if p.snapshot_format == caffe_pb2.SolverParameter.HDF5:
        model, state = f"{written}.caffemodel.h5", f"{written}.solverstate.h5"
        solver.net.save_hdf5(model, p.snapshot_diff)
        _write_hdf5(solver, f"{stem}.caffemodel.h5", state)
    else:
        model, state = f"{written}.caffemodel", f"{written}.solverstate"
        solver.net.save(model, p.snapshot_diff)
        glog.info("sgd_solver.cpp:284", f"Snapshotting solver state to binary proto file {state}")
        proto = caffe_pb2.SolverState(iter=solver.iter, learned_net=f"{stem}.caffemodel", current_step=solver.current_step)
        for tensor in solver.history:
            add_array(proto.history.add(), tensor.cpu().numpy())
        proto.run.CopyFrom(_run_of(solver))
        write_whole(state, proto.SerializeToString())
    return model


def _run_of(solver: Solver) -> caffe_pb2.RunState:
    """What goes on from one iteration to the next besides weights and history."""
    run = caffe_pb2.RunState(generator=torch.get_rng_state().numpy().tobytes(), loss=solver.recent_losses())
    if mode.device().type == "cuda":
        run.gpu_generator = torch.cuda.get_rng_state(mode.device()).numpy().tobytes()
    for index, net in enumerate((solver.net, *solver.test_nets)):
        for layer in net.layers:
            state = caffe_pb2.LayerState()
            layer.keep(state)
            if state.ListFields():
                state.net, state.name = index, layer.param.name
                run.layer.append(state)
    return run


def _write_hdf5(solver: Solver, model: str, state: str) -> None:
    import h5py

    glog.info("sgd_solver.cpp:300", f"Snapshotting solver state to HDF5 file {state}")
    part = Path(f"{state}.part")
    with h5py.File(part, "w") as file:
        file["iter"] = np.int32(solver.iter)
        file["learned_net"] = np.bytes_(model)
        file["current_step"] = np.int32(solver.current_step)
        history = file.create_group("history")
        for index, tensor in enumerate(solver.history):
            history.create_dataset(str(index), data=tensor.cpu().numpy())
        file["run"] = np.frombuffer(_run_of(solver).SerializeToString(), np.uint8)
    part.replace(state)


class Stored(NamedTuple):
    """What a solver state holds; `run` is empty where Caffe wrote it."""

    iteration: int
    model: str
    step: int
    history: list[tuple[tuple[int, ...], np.ndarray]]
    run: caffe_pb2.RunState


def restore(solver: Solver, path: str) -> None:
    """Set iteration, weights, history and the position in the data from a solver state.

    The weights are those that the state names, or, where they are not there, the file of that name beside the state. A state of
    ours says besides what was drawn at random and carried on, so that training goes on to the bit as undisturbed. Caffe's states
    hold no data position and Caffe starts over at the first record; here training goes on at the record that an undisturbed run
    would read next. So it does where several solvers train together: each draws for itself.
    """
    stored = _read_hdf5(path) if path.endswith(".h5") else _read_proto(path)
    if len(stored.history) != len(solver.history):
        raise SolverError(
            path,
            f"a history of {len(stored.history)} arrays",
            f"{solver.type} wants {len(solver.history)} for this net",
            "use the solver that wrote it",
        )
    for index, (mine, (shape, values)) in enumerate(zip(solver.history, stored.history, strict=True)):
        if values.size != mine.numel():
            raise SolverError(
                path, f"array {index} of the history has shape {shape}", f"the net's parameter has {tuple(mine.shape)}"
            )
    if stored.model:
        beside = Path(path).parent / Path(stored.model).name
        solver.net.copy_from(stored.model if Path(stored.model).exists() or not beside.exists() else beside)
    solver.load_history(torch.from_numpy(values) for _, values in stored.history)
    solver.iter, solver.current_step = stored.iteration, stored.step
    for layer in solver.net.layers:
        if hasattr(layer, "seek"):
            layer.seek(stored.iteration * solver.param.iter_size * layer.batch_size)
    if mode.solver_count() == 1 and stored.run.ListFields():
        try:
            _go_on(solver, stored.run)
        except (ValueError, TypeError, KeyError, OverflowError, RuntimeError) as error:
            raise FileError(path, f"damaged: what was drawn at random cannot be read ({error})") from error


def _go_on(solver: Solver, run: caffe_pb2.RunState) -> None:
    """Take up what `_run_of` has written, as far as the solver has the same layers."""
    states: dict[tuple[int, str], list[caffe_pb2.LayerState]] = {}
    for state in run.layer:
        states.setdefault((state.net, state.name), []).append(state)
    for index, net in enumerate((solver.net, *solver.test_nets)):
        for layer in net.layers:
            if of_name := states.get((index, layer.param.name)):
                layer.resume(of_name.pop(0))  # layers of one name, in their order
    solver.recall_losses(run.loss)
    torch.set_rng_state(torch.frombuffer(bytearray(run.generator), dtype=torch.uint8))
    if run.gpu_generator and mode.device().type == "cuda":
        torch.cuda.set_rng_state(torch.frombuffer(bytearray(run.gpu_generator), dtype=torch.uint8), mode.device())


def _read_proto(path: str) -> Stored:
    state = prototxt.read_binary(path, caffe_pb2.SolverState())
    if isinstance(state.learned_net, bytes):
        raise FileError(path, f"the weights' name is {state.learned_net!r}, which is no text", do="the file is damaged")
    history = [(shape_of(blob), values_of(blob)) for blob in state.history]
    return Stored(state.iter, state.learned_net, state.current_step, history, state.run)


def _read_hdf5(path: str) -> Stored:
    import h5py

    if not Path(path).exists():
        raise FileError(path, "no such file")
    try:
        with h5py.File(path, "r") as file:
            model = file["learned_net"][()] if "learned_net" in file else b""
            model = model.decode() if isinstance(model, bytes) else str(model)
            group = file["history"]
            arrays = [np.asarray(group[str(index)], np.float32) for index in range(len(group))]
            step = int(np.asarray(file["current_step"]).item()) if "current_step" in file else 0
            iteration = int(np.asarray(file["iter"]).item())
            run = caffe_pb2.RunState.FromString(bytes(np.asarray(file["run"], np.uint8)) if "run" in file else b"")
            return Stored(iteration, model, step, [(array.shape, array.reshape(-1)) for array in arrays], run)
    except (OSError, KeyError, ValueError, DecodeError) as error:
        raise FileError(path, f"not a .solverstate.h5 ({error})") from error
