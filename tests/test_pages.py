"""Links, commands, paths and names in the pages: everything that they refer to exists."""

import ast
import csv
import hashlib
import importlib
import json
import pkgutil
import re
import subprocess
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml

import caffe
from pipeline import cli
from tests.conftest import ROOT

CODE = re.compile(r"^```.*?^```\s*$|^ {4}.*?$|`[^`]+`|<!--.*?-->", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(<?([^()\s>]+)>?(?:\s+\"[^\"]*\")?\)")
# A step's command, to the end of its span of code or of its line, with the lines that continue it.
STEP = re.compile(r"python -m (pipeline\.[\w.]+\w)((?:\\\n|[^`\n])*)")
SPAN = re.compile(r"(?<!`)`(?!`)([^`]*)`")


def pages() -> list[Path]:
    """The repository's pages, also those that git does not track yet, without those that it ignores."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("*/README.md")])
    return sorted(ROOT / line for line in listed.stdout.splitlines() if (ROOT / line).exists())


PAGES = [path.relative_to(ROOT).as_posix() for path in pages()]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them: lower case, hyphens for spaces, punctuation dropped."""
    text, seen = CODE.sub("", page.read_text()), {}
    for heading in re.findall(r"^#+ +(.*?) *#*$", text, re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        seen[slug] = seen.get(slug, -1) + 1
        if seen[slug]:
            seen[f"{slug}-{seen[slug]}"] = 0
    return set(seen)


@pytest.mark.parametrize("name", PAGES)
def test_every_relative_link_and_anchor_exists(name):
    page = ROOT / name
    broken = []
    for link in LINK.findall(CODE.sub("", page.read_text())):
        path, _, anchor = unquote(link).partition("#")
        if re.match(r"[a-z]+:", path):
            continue
        target = (page.parent / path).resolve() if path else page
        there = not path.startswith("/") and target.is_relative_to(ROOT) and target.exists() and not _is_ignored(target)
        if not there or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def _is_ignored(path: Path) -> bool:
    return subprocess.run(["git", "check-ignore", "--quiet", str(path)], cwd=ROOT, capture_output=True).returncode == 0


def test_links_are_found_around_pictures_and_not_in_code():
    """Links in code are not links; those around pictures are."""
    text = "[![picture](a.png)](b.md) and [text](c.md#d), `[x](e.md)`\n\n    [y](f.md)\n\n```sh\n[z](g.md)\n```\n"
    assert LINK.findall(CODE.sub("", text)) == ["a.png", "b.md", "c.md#d"]
    assert "your-own-images" in anchors(ROOT / "README.md")


def commands(name: str) -> list[tuple[str, str]]:
    """The steps that a page runs, each with its arguments."""
    text = re.sub(r"<!--.*?-->", "", (ROOT / name).read_text(), flags=re.DOTALL)
    text = SPAN.sub(lambda span: span[0].replace("\n", " "), text)
    return STEP.findall(text)


@pytest.mark.parametrize("name", [name for name in PAGES if commands(name)])
def test_every_command_of_a_page_is_a_step_with_these_flags(name, capsys):
    for module, arguments in commands(name):
        main = importlib.import_module(module).main
        words = arguments.split("|")[0].split()
        flags = {word.split("=")[0].rstrip(",.") for word in words if word.startswith("--")} - {"--help"}
        help_ = help_text(main, [], capsys)
        if words and re.search(rf"(?:[{{,]|^ {{4}}){words[0]}\b", help_, re.MULTILINE):  # a subcommand of the step
            help_ += help_text(main, [words[0]], capsys)
        assert flags <= set(re.findall(r"--[\w-]+", help_)), f"{module}{arguments}"


def help_text(main, arguments: list[str], capsys) -> str:
    """A command's help."""
    with pytest.raises(SystemExit):
        main([*arguments, "--help"])
    return capsys.readouterr().out


def test_the_changelog_names_every_command_that_moved():
    rows = re.findall(r"^\| `(pipeline\.\w+)` \| `(pipeline\.\w+\.\w+)` \|$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert len(rows) == 31
    assert len({old for old, _ in rows}) == 31
    assert {new for _, new in rows} <= set(steps())


def steps() -> list[str]:
    """The modules of pipeline/ that are commands."""
    files = (ROOT / "pipeline").glob("*/*.py")
    return [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files if '"__main__"' in path.read_text()]


def test_every_make_target_in_a_page_exists():
    targets = set(re.findall(r"^([\w.-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for name in PAGES:
        used = set(re.findall(r"(?:^ {4}|`)make ([a-z-]+)(?=[`\s])", (ROOT / name).read_text(), re.MULTILINE))
        assert used <= targets, name


def test_files_and_names_of_the_map_exist():
    rows = re.findall(r"^\| [^|`]+\? \| `([^`]+)` \| `([^`]+)` \|$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    assert len(rows) >= 12
    for path, name in rows:
        assert (ROOT / path).is_file(), path
        text = (ROOT / path).read_text()
        assert name in (names_in(ast.parse(text)) if path.endswith(".py") else text), f"{path} has no {name}"


def names_in(tree: ast.Module) -> set[str]:
    """What a module defines: functions, classes, CLASS.method and constants."""
    names = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef | ast.ClassDef)}
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "README.md", "docs/elsewhere.md", "docs/reproducibility.md"])
def test_every_path_and_test_that_a_page_names_exists(name):
    text = (ROOT / name).read_text()
    path = r"((?:caffe|pipeline|rules|tests|docs|config|report|profiles|benchmarks)/[\w./-]*)"
    for found in re.findall(rf"(?:`|pytest |python ){path}", text):
        assert (ROOT / found).exists(), found
    for path, test in re.findall(r"(tests/[\w./]+\.py)::(\w+)", text):
        assert test in names_in(ast.parse((ROOT / path).read_text())), test


def documented(page: str) -> list[str]:
    return re.findall(r"^::: ([\w.]+)$", (ROOT / "docs/api" / page).read_text(), re.MULTILINE)


def test_the_api_pages_have_every_public_name_layer_module_and_step():
    # Documented under other names, or in the page's text.
    aliases = {
        "TRAIN",
        "TEST",
        "__version__",
        "layers",
        "params",
        "proto",
        "_caffe",
        "pycaffe",
        "net_spec",
        "classifier",
        "detector",
    }
    assert sorted(documented("caffe.md")) == sorted(f"caffe.{name}" for name in set(caffe.__all__) - aliases)
    types = importlib.import_module("caffe.layer_types")
    modules = [info.name for info in pkgutil.walk_packages(types.__path__, "caffe.layer_types.") if not info.ispkg]
    assert sorted(documented("layers.md")) == sorted(modules)
    stages = re.findall(r"^::: pipeline\.(\w+)\.\*$", (ROOT / "docs/api/steps.md").read_text(), re.MULTILINE)
    shown = [f"pipeline.{stage}.{path.stem}" for stage in stages for path in cli.commands()[stage].values()]
    assert sorted(shown) == sorted(steps())


def test_the_site_has_every_page():
    class Loader(yaml.SafeLoader):
        """Ignores the Python functions that mkdocs.yml names."""

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)
    text = (ROOT / "mkdocs.yml").read_text()
    listed = re.findall(r"[\w./-]+\.md", yaml.safe_dump(yaml.load(text, Loader)["nav"]))
    assert sorted(listed) == sorted(PAGES)


@pytest.mark.parametrize("experiment", ["base", "scratch", "finetuned"])
def test_the_readme_s_table_is_that_of_the_recorded_example(experiment):
    """The metrics that docs/logs/ has are the recorded ones to the byte, and the table's accuracies are taken from them."""
    recorded = json.loads((ROOT / "config/example.manifest.json").read_text())
    metrics = (ROOT / f"docs/logs/digits_{experiment}.csv").read_bytes()
    assert hashlib.sha256(metrics).hexdigest() == recorded["results"][f"experiments/{experiment}/train/metrics.csv"]["sha256"]
    tests = {row["iteration"]: float(row["test_accuracy"]) for row in csv.DictReader(metrics.decode().splitlines())}
    readme = (ROOT / "README.md").read_text()
    (row,) = re.findall(rf"^\| {experiment} \| digits.* \| (.*) \| (.*) \|$", readme, re.MULTILINE)
    early = f"{100 * tests['20']:.1f} %" if "20" in tests else "–"
    assert row == (early, f"{100 * recorded['accuracies'][experiment]['val']:.1f} %")
