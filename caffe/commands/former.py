"""Command lines of Caffe's early versions, translated to today's: the programs of 2014, and flags that had other names."""

import re

from caffe.errors import Error

PROGRAMS = {
    "train_net": ("train", ("-solver", "-snapshot"), 1),
    "finetune_net": ("train", ("-solver", "-weights"), 2),
    "test_net": ("test", ("-model", "-weights", "-iterations"), 3),
    "net_speed_benchmark": ("time", ("-model", "-iterations"), 1),
}
"""{program of 2014: the command that replaced it, the flags for its arguments, how many of these it needs}."""
COMMANDS = {"speedtest": "time", "devicequery": "device_query"}
"""{command of July 2014: today's}."""
_FLAGS = {
    "solver_proto_file": "solver",
    "net_proto_file": "model",
    "resume_point_file": "snapshot",
    "pretrained_net_file": "weights",
    "run_iterations": "iterations",
    "weight": "weights",  # never a flag of BVLC Caffe; a tutorial has it
}
_BREWS = ("train", "test", "time", "device_query")
_SAMPLES = {"-solver": "solver.prototxt", "-weights": "x.caffemodel", "-model": "net.prototxt", "-iterations": "50"}
_FLAG = re.compile(r"--?(\w+)(=.*)?", re.DOTALL)


def translate(arguments: list[str]) -> list[str]:
    """Today's command line for one of 2014: `train_net a.prototxt` → `train -solver a.prototxt`.

    A command line of today is returned unchanged. Raises Error if a program of 2014 has too few or too many arguments.
    """
    if arguments[0] in PROGRAMS:
        return _translate_program(*arguments)
    place = 0
    if arguments[0].startswith("-"):  # as with gflags, the command may follow flags
        place = next((index for index, word in enumerate(arguments) if word in COMMANDS or word in _BREWS), 0)
    command = COMMANDS.get(arguments[place], arguments[place])
    if command not in _BREWS:
        return arguments
    return _translate_flags(command, [*arguments[:place], command, *arguments[place + 1 :]])


def _translate_program(name: str, *given: str) -> list[str]:
    command, flags, needed = PROGRAMS[name]
    end = next((index for index, word in enumerate(given) if word.startswith("-")), len(given))
    words, rest = list(given[:end]), given[end:]  # today's flags may follow
    device: list[str] = []
    if command != "train":
        start = next((index for index, word in enumerate(words) if word in ("CPU", "GPU")), len(words))
        words, device = words[:start], words[start:]
    usage = " ".join(["use: caffe", command, *(word for flag in flags[:needed] for word in (flag, _SAMPLES[flag]))])
    if len(words) < needed and not rest:
        raise Error(f"caffe {name}", f"{len(words)} arguments", f"{needed} are needed", usage)
    if len(words) > len(flags) or len(device) > 2:
        raise Error(f"caffe {name}", " ".join(given), "these are too many arguments", usage)
    values = [part for flag, value in zip(flags, words, strict=False) for part in (flag, value)]
    gpu = ["-gpu", *(device[1:] or ["0"])] if device[:1] == ["GPU"] else []
    return [command, *values, *gpu, *rest]


def _translate_flags(command: str, arguments: list[str]) -> list[str]:
    """Rename the flags of July 2014; -device_id counted only for a GPU that was asked for."""
    translated: list[str] = []
    device, gpu = "", command == "device_query"
    words = iter(arguments)
    for word in words:
        match = _FLAG.fullmatch(word)
        name, value = (match[1], match[2] or "") if match else ("", "")
        if name in ("speedtest_with_gpu", "nospeedtest_with_gpu"):
            gpu = gpu or (name[:2] != "no" and value.lower() not in ("=false", "=f", "=0", "=no", "=n"))
        elif name == "device_id":
            device = value[1:] or next(words, "")
        elif name in _FLAGS:
            translated.append(f"-{_FLAGS[name]}{value}")
        else:
            translated.append(word)
    if gpu and (device or command == "time"):
        translated += ["-gpu", device or "0"]
    return translated
