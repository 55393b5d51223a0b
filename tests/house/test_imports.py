"""Imports go one way through the folders, in no circle, and help loads little."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Mapping

from tests.house.sources import PACKAGE, Module, modules

# Lowest first. A module may import from its own layer and from those before it.
LAYERS = (
    (
        "errors",
        "types",
        "child_start",
        "cpu_wait",
        "early_signals",
        "forked_work",
        "framing",
        "host",
        "interrupts",
        "machine",
        "param_values",
        "process_notes",
        "scratch",
        "sse",
    ),
    ("option", "options", "config", "history"),
    ("memory", "metal_kernels"),
    ("attention",),
    ("models",),
    ("text",),
    ("engine",),
    ("distributed",),
    ("clients", "conversation"),
    ("llm", "server", "tui"),
    ("bench",),
    ("commands",),
    ("cli",),
)
HEAVY = ("mlx.core", "msgspec", "numpy", "textual", "transformers")
MOST_MODULES = 150  # that `rvllm --help` loads; Python alone has some 60
Graph = Mapping[str, frozenset[str]]


def layer_of(module: Module) -> int:
    for index, layer in enumerate(LAYERS):
        if module.room in layer:
            return index
    raise AssertionError(f"{module.name} has no layer; give it one, in design.md too")


def imported(module: Module) -> frozenset[str]:
    """The product's modules that a module imports, in functions too."""
    names: set[str] = set()
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ImportFrom):
            names |= _imported_from(module, node)
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func):
            names |= {ast.literal_eval(arg) for arg in node.args if is_text(arg)}
    own = {name.removeprefix(f"{PACKAGE}.") for name in names}
    return frozenset((own & set(modules())) - {module.name})


def _imported_from(module: Module, node: ast.ImportFrom) -> set[str]:
    """A name is a module of the folder, or else comes from the folder's own module."""
    assert node.level == 0, f"{module.file}: a relative import hides its room"
    source = node.module or ""
    names = set()
    for alias in node.names:
        name = f"{source}.{alias.name}"
        is_module = name.removeprefix(f"{PACKAGE}.") in modules()
        names.add(name if is_module else source)
    return names


def is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


@functools.cache
def import_graph() -> Graph:
    return {name: imported(module) for name, module in modules().items()}


def circle_in(graph: Graph) -> list[str]:
    """The nodes of one circle; none if there is no circle."""
    is_done: dict[str, bool] = {}

    def visit(node: str, path: list[str]) -> list[str]:
        if is_done.get(node):
            return []
        if node in path:
            return path[path.index(node) :]
        for target in sorted(graph.get(node, ())):
            if circle := visit(target, [*path, node]):
                return circle
        is_done[node] = True
        return []

    for node in sorted(graph):
        if circle := visit(node, []):
            return circle
    return []


def folder_of(name: str) -> str:
    path = modules()[name].path
    return name if path.name == "__init__.py" else name.rpartition(".")[0]


def is_within(name: str, folder: str) -> bool:
    return f"{name}.".startswith(f"{folder}.")


def test_imports_go_one_way() -> None:
    upward = []
    for name, targets in import_graph().items():
        layer = layer_of(modules()[name])
        upward += [
            f"{name} imports {target}, which is above it"
            for target in targets
            if layer_of(modules()[target]) > layer
        ]
    assert upward == []


def test_a_layer_names_folders_and_files_of_the_package_alone() -> None:
    rooms = {module.room for module in modules().values()}
    assert {name for layer in LAYERS for name in layer} == rooms


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circle_in(import_graph()) == []


def test_no_folders_import_each_other_in_a_circle() -> None:
    """A folder and the folders within it are one room and may use each other."""
    graph: dict[str, frozenset[str]] = {}
    for name, targets in import_graph().items():
        folder = folder_of(name) or name
        others = {folder_of(target) or target for target in targets}
        apart = {
            other
            for other in others
            if not is_within(other, folder) and not is_within(folder, other)
        }
        graph[folder] = graph.get(folder, frozenset()) | apart
    assert circle_in(graph) == []


def test_a_circle_is_seen() -> None:
    graph = {"a": frozenset("b"), "b": frozenset("cd"), "d": frozenset("b")}
    assert circle_in(graph) == ["b", "d"]


def test_modules_are_not_loaded_by_a_name_put_together() -> None:
    """Such an import would be in no graph."""
    offenders = []
    for module in modules().values():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.JoinedStr) and ast.unparse(node)[2:].startswith(
                f"{PACKAGE}."
            ):
                offenders.append(f"{module.file}: {ast.unparse(node)}")
    assert offenders == []


def test_every_module_says_what_it_owns() -> None:
    silent = [one.file for one in modules().values() if not ast.get_docstring(one.tree)]
    assert silent == []


def test_help_loads_nothing_heavy_and_little_at_all() -> None:
    """Modules are counted, not seconds: those depend on who else works here."""
    code = (
        "import sys, rvllm_local.cli as cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        f"print([name for name in {HEAVY} if name in sys.modules])\n"
        "print(len(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    *_, heavy, count = done.stdout.splitlines()
    assert heavy == "[]"
    assert int(count) <= MOST_MODULES
