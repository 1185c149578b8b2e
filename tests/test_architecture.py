"""Holds who may import whom (ARCHITECTURE.md), read from the code's own imports; names file and line."""

from __future__ import annotations

import ast
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOP_LEVEL = {
    "flows": {"flows", "tasks"},
    "tasks": {"tasks", "dgate_core", "reports", "finetune"},
    "reports": {"reports", "dgate_core"},
    "finetune": {"finetune", "dgate_core"},
    "dgate_core": {"dgate_core"},
}
# flows/cli*.py is the command line: it may also call the library for what needs no orchestration.
COMMAND_LINE = ("flows/cli", "flows/commands")
LAYERS = [
    {"errors"},
    {"registry", "storage", "config", "data_files"},
    {"manifest", "runs", "tracking", "telemetry", "postcards"},
    {"models", "safety", "kernels"},
    {"backends", "quant", "adapters", "video"},
    {"engine"},
    {"evaluation"},
    {"bench"},
    {"api"},
]
HEAVY = {"torch", "torchvision", "diffusers", "transformers", "tensorrt", "onnxruntime", "peft", "accelerate"}
HEAVY_ROOMS = (
    "finetune/",
    "dgate_core/backends/",
    "dgate_core/kernels/",
    "dgate_core/models/families/",
    "dgate_core/models/savers/",
    "dgate_core/quant/",
    "dgate_core/adapters/",
    "dgate_core/video/",
    "dgate_core/evaluation/features/",
    "dgate_core/evaluation/metrics/",
)
PREFECT_ROOMS = ("flows/", "tasks/")


class Import(NamedTuple):
    """One import statement: where it stands, what it names, whether it runs when the module is imported."""

    file: str
    line: int
    module: str
    at_module_level: bool


def list_sources() -> list[Path]:
    return sorted(path for top in TOP_LEVEL for path in (ROOT / top).rglob("*.py"))


def read_imports(path: Path) -> Iterator[Import]:
    file = path.relative_to(ROOT).as_posix()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    deferred = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) or is_type_checking(node)
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(file, node.lineno, alias.name, id(node) not in deferred)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno} relative import: write the module's whole name"
            for alias in node.names:
                yield Import(file, node.lineno, f"{node.module}.{alias.name}", id(node) not in deferred)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def all_imports() -> list[Import]:
    return [found for path in list_sources() for found in read_imports(path)]


def say(found: Import, why: str) -> str:
    return f"{found.file}:{found.line} imports {found.module}: {why}"


def layer_of(room: str) -> int | None:
    return next((level for level, rooms in enumerate(LAYERS) if room in rooms), None)


def room_of(dotted: str) -> str:
    return dotted.split(".")[1] if dotted.count(".") else ""


def test_top_level_rooms_import_only_what_they_may() -> None:
    wrong = []
    for found in all_imports():
        here, there = found.file.split("/")[0], found.module.split(".")[0]
        if here == "flows" and found.file.startswith(COMMAND_LINE):
            continue
        if there in TOP_LEVEL and there not in TOP_LEVEL[here]:
            wrong.append(say(found, f"{here} may import {sorted(TOP_LEVEL[here])}"))
    assert not wrong, "\n".join(wrong)


def test_layers_inside_dgate_core_point_downwards() -> None:
    wrong = []
    for found in all_imports():
        if not found.file.startswith("dgate_core/") or not found.module.startswith("dgate_core."):
            continue
        here = layer_of(Path(found.file).with_suffix("").parts[1])
        there = layer_of(room_of(found.module))
        if here is not None and there is not None and there > here:
            wrong.append(say(found, "a lower layer may not import a higher one"))
    assert not wrong, "\n".join(wrong)


def test_every_room_has_a_layer() -> None:
    rooms = {
        path.stem for path in (ROOT / "dgate_core").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert rooms - {"__init__", "__pycache__"} <= set().union(*LAYERS)


def test_prefect_stands_only_in_flows_and_tasks() -> None:
    wrong = [
        say(found, "Prefect only in flows/ and tasks/")
        for found in all_imports()
        if found.module.split(".")[0] == "prefect" and not found.file.startswith(PREFECT_ROOMS)
    ]
    assert not wrong, "\n".join(wrong)


def test_heavy_libraries_are_imported_only_in_their_rooms() -> None:
    wrong = [
        say(found, "import it inside the function that needs it")
        for found in all_imports()
        if found.at_module_level and found.module.split(".")[0] in HEAVY and not found.file.startswith(HEAVY_ROOMS)
    ]
    assert not wrong, "\n".join(wrong)


def test_there_are_no_import_cycles() -> None:
    modules = {
        path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__"): path
        for path in list_sources()
    }
    graph = {
        name: {
            target
            for found in read_imports(path)
            if found.at_module_level
            for target in (found.module, found.module.rpartition(".")[0])
            if target in modules and target != name
        }
        for name, path in modules.items()
    }
    finished: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, "import cycle: " + " → ".join((*trail[trail.index(name) :], name))
        if name not in finished:
            for target in sorted(graph[name]):
                visit(target, (*trail, name))
            finished.add(name)

    for name in graph:
        visit(name, ())


def test_datasets_holds_no_python() -> None:
    assert not list((ROOT / "datasets").rglob("*.py")), "datasets/ would shadow the package of that name"


def test_no_module_is_named_like_a_package_it_imports() -> None:
    wrong = [
        say(found, "the module carries the name of the package that it imports")
        for found in all_imports()
        if Path(found.file).stem == found.module.split(".")[0]
    ]
    assert not wrong, "\n".join(wrong)


def test_every_function_is_typed() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name} has no return type"
        for path in list_sources()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.returns is None and not is_kernel(node)
    ]
    assert not wrong, "\n".join(wrong)


def is_kernel(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Triton reads a kernel's annotations as its own."""
    return any(ast.unparse(each) == "triton.jit" for each in node.decorator_list)


@pytest.mark.parametrize("command", ["import dgate_core", "import flows.cli"])
def test_light_imports_stay_light(command: str) -> None:
    heavy = "{'torch', 'prefect', 'diffusers', 'pyarrow', 'boto3'}"
    report = f"{command}; import sys; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_help_is_quick() -> None:
    def measure() -> float:
        """Processor seconds of one call: waiting for a busy machine does not count."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "flows.cli", "--help"], capture_output=True, check=True, cwd=ROOT)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    fastest = min(measure() for _ in range(5))
    print(f"dgate --help: {fastest:.3f} s")
    assert fastest <= 0.3
