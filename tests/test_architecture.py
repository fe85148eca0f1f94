"""The plan of the house, checked on every file's syntax tree: floors, rooms, vocabulary."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "convgen").rglob("*.py"))

FLOORS = {
    "errors": 0, "types": 0, "affine": 0, "target": 0, "knobs": 0, "version": 0,
    "symbolic": 1, "ir": 1,
    "layers": 2, "schedule": 2, "backends": 2,
    "passes": 3,
    "runtime": 4,
    "zoo": 5, "inspect": 5, "interop": 5, "bench": 5,
    "__init__": 6, "__main__": 6, "commands": 6, "demo": 6,
}  # fmt: skip
GROUND = {room for room, floor in FLOORS.items() if floor == 0}
DOORS = {room for room, floor in FLOORS.items() if floor == 5}
FACE = {room for room, floor in FLOORS.items() if floor == 6}
LAZY = ("__init__.py", "__main__.py", "commands/")  # import what they need when it is asked for

# What a room below floor 4 may know beside the ground, where that is less than all floors below.
KNOWS = {
    "layers": {"symbolic"},
    "schedule": {"ir"},
    "backends": {"ir"},
    "passes": {"symbolic", "ir", "layers", "schedule"},
}

# Where a foreign word may be spoken: prefixes of paths below convgen/.
PEERS = ("interop/", "inspect/", "bench/")
CLOCKS = ("runtime/", "bench/")
SPOKEN_IN = {
    "sympy": ("symbolic/", "layers/", "passes/lower"),
    "typing_extensions": ("",),  # assert_never, for Python 3.10
    "mpmath": ("symbolic/",),  # sympy's own arithmetic
    "llvmlite": ("backends/llvm",),
    "numpy": ("ir/interpret", "runtime/", "zoo/", *PEERS, "demo.py"),
    "torch": PEERS, "jax": ("interop/",), "onnx": PEERS, "onnxruntime": PEERS, "openvino": PEERS, "jinja2": PEERS,
    "matplotlib": PEERS,
    "click": ("__main__.py", "commands/", "demo.py", "runtime/train"),
    "rich": ("__main__.py", "commands/", "demo.py", "runtime/train", "runtime/progress"),
    "safetensors": ("runtime/",), "platformdirs": ("runtime/",), "PIL": ("runtime/",),
    "sklearn": ("demo.py", "runtime/data"),
    "threading": CLOCKS, "_thread": CLOCKS, "concurrent": CLOCKS, "multiprocessing": CLOCKS,
    "time": CLOCKS, "timeit": CLOCKS,
}  # fmt: skip
OPTIONAL = {
    "torch",
    "jax",
    "onnx",
    "onnxruntime",
    "openvino",
    "jinja2",
    "matplotlib",
    "sklearn",
    "PIL",
}
FORBIDDEN_STANDARD = {"pickle", "shelve", "marshal"}

NAMED_LAYERS = {"conv", "convolution", "pooling", "lenet"}
MACHINE_WORDS = {"loop", "buffer", "lane"}
VOCABULARY = [
    (("symbolic/", "ir/", "schedule/", "passes/", "backends/"), NAMED_LAYERS),
    (("symbolic/", "layers/"), MACHINE_WORDS),
]


def room_of(path: str) -> str:
    """The room of a path below convgen/: a folder, or a file of the top."""
    return path.split("/")[0].removesuffix(".py")


def imports_of(path: str, tree: ast.Module):
    """(line, dotted module, inside a function) of every import; ours without the leading package."""
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    package = ["convgen", *path.split("/")[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base += node.module.split(".") if node.module else []
            # A name imported from the package itself may be a room or something of the face.
            found = [".".join([*base, a.name] if base == ["convgen"] else base) for a in node.names]
        else:
            continue
        for module in dict.fromkeys(found):
            yield node.lineno, module, id(node) in inside


def identifiers_of(tree: ast.Module):
    """(line, name) of everything the code names: variables, attributes, arguments, definitions."""
    for node in ast.walk(tree):
        for field in ("id", "attr", "arg", "name", "asname", "module", "rest"):
            value = getattr(node, field, None)
            if isinstance(value, str):
                yield getattr(node, "lineno", 0), value


def words_of(identifier: str) -> set[str]:
    """The words of snake_case and CamelCase names, lower case, without a plural s."""
    parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", identifier)
    return {word for p in parts for word in (p.lower(), p.lower().removesuffix("s"))}


def check_own_import(path: str, module: str) -> str | None:
    here = room_of(path)
    there = module.split(".")[1] if "." in module else "__init__"
    if there not in FLOORS:
        there = "__init__"  # `from convgen import compile`: a name of the face
    if here == there or here in FACE:
        return None
    if there in FACE:
        return "the face is imported by nobody in the house"
    if there in DOORS:
        return f"{there}/ is a door: nobody in the house imports it"
    if here in GROUND and there in GROUND:
        return None
    if FLOORS[there] >= FLOORS[here]:
        return f"{here} (floor {FLOORS[here]}) may not import {there} (floor {FLOORS[there]})"
    if there not in GROUND | KNOWS.get(here, set(FLOORS)):
        return f"{here} does not know {there}"
    return None


def check_imports(path: str, tree: ast.Module):
    lazy = path.startswith(LAZY)
    for line, module, inside in imports_of(path, tree):
        root = module.split(".")[0]
        problem = None
        if root == "convgen":
            problem = check_own_import(path, module)
        elif root in SPOKEN_IN:
            if not path.startswith(SPOKEN_IN[root]) and not (lazy and inside):
                problem = f"{root} is not spoken here, only in {', '.join(SPOKEN_IN[root])}"
        elif root not in sys.stdlib_module_names:
            problem = f"{root} is a third party of no room"
        elif root in FORBIDDEN_STANDARD:
            problem = f"{root} is nowhere in convgen"
        if problem:
            yield line, problem
        if inside and not lazy and root not in OPTIONAL:
            yield line, f"import of {module} inside a function"


def check_words(path: str, tree: ast.Module):
    for rooms, forbidden in VOCABULARY:
        if not path.startswith(rooms):
            continue
        for word in sorted(words_of(Path(path).stem) & forbidden):
            yield 0, f"the file is named after a {word}"
        for line, identifier in identifiers_of(tree):
            for word in sorted(words_of(identifier) & forbidden):
                yield line, f"{identifier} speaks of a {word}"


def check_calls(path: str, tree: ast.Module):
    for node in ast.walk(tree):
        name = node.attr if isinstance(node, ast.Attribute) else None
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            name = next((a.name for a in node.names if a.name in ("environ", "getenv")), None)
        if name in ("environ", "environb", "getenv", "putenv") and path != "knobs.py":
            yield node.lineno, f"os.{name} belongs to knobs.py"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id in ("eval", "exec", "__import__"):
                yield node.lineno, f"{node.func.id} is nowhere in convgen"
        if name == "import_module" and not path.startswith(LAZY):
            yield node.lineno, "imports by name are for the lazy faces"


def violations(path: str, source: str) -> list[str]:
    """What is wrong with a file at `path` below convgen/."""
    if room_of(path) not in FLOORS:
        return [f"{path}: {room_of(path)} is not in the plan"]
    tree = ast.parse(source)
    found = [*check_imports(path, tree), *check_words(path, tree), *check_calls(path, tree)]
    return [f"{path}:{line}: {problem}" for line, problem in sorted(found)]


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.relative_to(ROOT / "convgen").as_posix())
def test_file_keeps_the_plan(file):
    path = file.relative_to(ROOT / "convgen").as_posix()
    assert violations(path, file.read_text(encoding="utf-8")) == []


MUTANTS = [
    ("target.py", "from convgen.ir.nodes import Op", "floor 0"),
    ("symbolic/a.py", "from convgen.ir import nodes", "floor 1"),
    ("ir/a.py", "from convgen.symbolic.expr import Access", "floor 1"),
    ("ir/a.py", "from ..symbolic.expr import Access", "floor 1"),
    ("ir/a.py", "from convgen import symbolic", "floor 1"),
    ("ir/a.py", "import sympy", "not spoken here"),
    ("ir/a.py", "import numpy as np", "not spoken here"),
    ("ir/a.py", "import llvmlite.binding", "not spoken here"),
    ("ir/a.py", "from convgen.passes.lower import lower", "floor 3"),
    ("ir/a.py", "if TYPE_CHECKING:\n    from convgen.runtime.kernel import K", "floor 4"),
    ("layers/a.py", "from convgen.ir.nodes import Op", "layers does not know ir"),
    ("schedule/a.py", "from convgen.symbolic.expr import Tensor", "does not know symbolic"),
    ("schedule/a.py", "from convgen.backends.llvm import load", "floor 2"),
    ("backends/a.py", "from convgen.schedule.recipes.default import x", "floor 2"),
    ("backends/a.py", "import llvmlite", "not spoken here"),
    ("passes/a.py", "from convgen.backends.protocol import Artifact", "does not know backends"),
    ("passes/a.py", "import sympy", "not spoken here"),
    ("passes/a.py", "from convgen.bench import cases", "a door"),
    ("runtime/a.py", "from convgen.zoo import lenet5", "a door"),
    ("runtime/a.py", "from convgen import compile", "the face"),
    ("runtime/a.py", "import convgen as cg", "the face"),
    ("bench/a.py", "from convgen.inspect import html", "a door"),
    ("runtime/a.py", "import torch", "not spoken here"),
    ("runtime/a.py", "def f():\n    from convgen.runtime import cache", "inside a function"),
    ("runtime/a.py", "def f():\n    import numpy", "inside a function"),
    ("runtime/a.py", "import pandas", "third party of no room"),
    ("runtime/a.py", "import pickle", "nowhere in convgen"),
    ("runtime/a.py", "x = eval('1')", "eval is nowhere"),
    ("runtime/a.py", "import importlib\nm = importlib.import_module('x')", "imports by name"),
    ("runtime/a.py", "import os\nx = os.environ['A']", "belongs to knobs.py"),
    ("runtime/a.py", "from os import getenv", "belongs to knobs.py"),
    ("passes/a.py", "import time", "not spoken here"),
    ("schedule/a.py", "from threading import Lock", "not spoken here"),
    ("demo.py", "import time", "not spoken here"),
    ("schedule/a.py", "def tile_conv(x): pass", "speaks of a conv"),
    ("passes/a.py", "class ConvPass: pass", "speaks of a conv"),
    ("ir/a.py", "x.pooling = 1", "speaks of a pooling"),
    ("backends/conv.py", "", "named after a conv"),
    ("symbolic/a.py", "def f(loops): pass", "speaks of a loop"),
    ("symbolic/a.py", "f(lane=3)", "speaks of a lane"),
    ("layers/a.py", "out_buffer = 1", "speaks of a buffer"),
    ("bench/a.py", "from convgen.commands.options import JSON", "the face"),
    ("utils/a.py", "", "not in the plan"),
]


@pytest.mark.parametrize(("path", "source", "message"), MUTANTS)
def test_mutants_are_caught(path, source, message):
    assert any(message in line for line in violations(path, source)), violations(path, source)


ALLOWED = [
    ("passes/lower/body.py", "import sympy\nfrom convgen.symbolic import expr\nfrom convgen.ir import nodes"),
    ("passes/pipeline.py", "from convgen.schedule.recipes.default import default_schedule"),
    ("backends/llvm.py", "import llvmlite.binding\nfrom convgen.ir.nodes import Op"),
    ("ir/interpret.py", "import numpy as np\nfrom convgen import knobs\nfrom . import nodes"),
    ("runtime/kernel.py", "import time, threading\nfrom convgen.backends.llvm import load"),
    ("bench/conv.py", "def peer():\n    import torch\n    return torch"),
    ("__main__.py", "import click\ndef f():\n    from convgen.bench import conv"),
    ("commands/a.py", "import click\ndef f():\n    from convgen.bench import conv"),
    ("ir/a.py", "import convgen.ir.nodes\nfrom convgen.types import f32\nconverted = 1"),
    ("symbolic/a.py", "relane_d = planes = 1"),
    ("knobs.py", "import os\nx = os.environ"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "source"), ALLOWED)
def test_the_plan_allows(path, source):
    assert violations(path, source) == []


def test_every_file_of_the_house_is_read():
    assert {room_of(f.relative_to(ROOT / "convgen").as_posix()) for f in FILES} >= {
        "symbolic",
        "ir",
    }


def is_there(module: str, name: str) -> bool:
    """Whether a name can be imported, if only what is optional were installed."""
    try:
        if hasattr(importlib.import_module(module), name):
            return True
        importlib.import_module(f"{module}.{name}")
        return True
    except ImportError:
        pass
    # A process of its own: pytest leaves modules half made where their doctests cannot be imported.
    code = f"from {module} import {name}"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    wanted = re.search(r"^ModuleNotFoundError: No module named '(\w+)", run.stderr, re.MULTILINE)
    return run.returncode == 0 or (wanted is not None and wanted[1] in OPTIONAL)


def missing_names(source: str) -> list[str]:
    """What a file imports from convgen and is not there; modules of packages that are not installed
    are left out. (pytest skips a file whose imports fail: doctests of optional parts need that.)"""
    return [
        f"{node.lineno}: {node.module}.{alias.name}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "convgen"
        for alias in node.names
        if not is_there(node.module, alias.name)
    ]


@pytest.mark.parametrize("file", sorted(Path(__file__).parent.rglob("*.py")), ids=lambda f: f.name)
def test_tests_import_what_is_there(file):
    assert missing_names(file.read_text(encoding="utf-8")) == []


def test_imports_of_nothing_are_seen():
    assert missing_names("from convgen.errors import UserError, Nothing") == [
        "1: convgen.errors.Nothing"
    ]
    assert missing_names("import os\ndef f():\n    from convgen.nowhere import x")
    assert not missing_names("from convgen import errors\nfrom convgen.ir import nodes")


def test_a_half_made_module_does_not_count(monkeypatch):
    half = importlib.import_module("convgen.version")
    monkeypatch.delattr(half, "__version__")
    assert not missing_names("from convgen.version import __version__")
