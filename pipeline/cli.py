"""The command `roastery`: runs a step, or `init`, `link-tools` or `doctor`, by its name."""

import ast
import importlib
import sys
from pathlib import Path

import caffe
from pipeline import command
from pipeline.errors import InputError

STAGES = ("sources", "dataset", "nets", "training", "inference", "export", "report")


def commands() -> dict[str, dict[str, Path]]:
    """{stage: {command: module}} of all modules with a `main`; those of a project folder belong to no stage."""
    here = Path(__file__).parent
    stages = {
        stage: {
            path.stem.replace("_", "-"): path
            for path in sorted((here / stage).glob("*.py"))
            if "\ndef main(" in path.read_text(encoding="utf-8")
        }
        for stage in STAGES
    }
    return {"project": {name: here / f"{name.replace('-', '_')}.py" for name in ("init", "link-tools", "doctor")}} | stages


def usage() -> str:
    """The commands by stage, with the first line of each module's docstring."""
    lines = ["usage: roastery COMMAND …"]
    for stage, modules in commands().items():
        lines += ["", f"{stage}:"]
        lines += [f"  {name:22}{_first_line(path)}" for name, path in modules.items()]
    return "\n".join([*lines, "", "roastery COMMAND --help shows a command's arguments."])


def _first_line(path: Path) -> str:
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def main() -> None:
    """Run the command that the command line names; exits as `pipeline.command.run` does."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help", "help"):
        print(usage())
        sys.exit(0 if sys.argv[1:] else 1)
    known = {name: path for modules in commands().values() for name, path in modules.items()}
    path = known.get(name.replace("_", "-"))
    if path is None:
        do = caffe.nearest(name, list(known)) or "roastery --help lists the commands"
        print(f"error: {InputError(f'roastery {name}', 'no such command', do=do)}", file=sys.stderr)
        sys.exit(1)
    module = ".".join(path.relative_to(Path(__file__).parent.parent).with_suffix("").parts)
    sys.argv = [f"roastery {name}", *rest]
    command.run(importlib.import_module(module).main)


if __name__ == "__main__":
    main()
