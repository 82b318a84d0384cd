"""The layout is a promise: each package imports only those above it, and the names of the public API exist."""

import ast
import importlib
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import nestling

SOURCE = Path(nestling.__file__).parent
BASE = ("errors", "settings", "quiet")  # plain modules that anything may import, and that import only each other
ORDER = (
    *("ops", "memory", "optim", "levels", "layers", "models"),
    *("train", "continual", "evals", "report", "cli", "serve"),
)
PACKAGES = [p.stem for p in sorted(SOURCE.iterdir()) if p.suffix == ".py" or any(p.glob("*.py"))]


def imported(path: Path, package: str) -> Iterator[str]:
    """Packages of the library that a file imports anywhere in it, functions included ("" is the library's root)."""
    inside = ["nestling", package, *path.parent.parts[len(SOURCE.parts) + 1 :]] if package else ["nestling"]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(inside[: len(inside) - node.level + 1]) + "." if node.level else ""
            module = (base + (node.module or "")).strip(".")
            names = [f"{module}.{alias.name}" if module == "nestling" else module for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "nestling":
                yield [*name.split("."), ""][1]


def faults(package: str, files: list[Path]) -> list[str]:
    """Imports that go the wrong way, as `file imports package`."""
    allowed = {package, *BASE}
    if package in ORDER:
        allowed |= set(ORDER[: ORDER.index(package)])
    return [
        f"{file.name} imports nestling.{name}"
        for file in files
        for name in imported(file, package)
        if name not in allowed
    ]


@pytest.mark.parametrize("package", [p for p in PACKAGES if p != "__init__"])
def test_a_package_imports_only_those_above_it(package):
    """In reading order, in which the optimisers stand above levels, layers and models; nothing imports the root."""
    assert package in (*ORDER, *BASE), f"{package} has no place in the reading order"
    folder = SOURCE / package
    files = sorted(folder.rglob("*.py")) if folder.is_dir() else [SOURCE / f"{package}.py"]
    assert faults(package, files) == []


@pytest.mark.parametrize(
    "line",
    [
        "from nestling.models import HopeConfig",
        "import nestling.models.hope",
        "def f():\n    from nestling.layers import Linear",
        "from nestling import models",
        "import nestling",
        "from ..layers import Linear",
    ],
)
def test_the_walk_finds_what_goes_the_wrong_way(line, tmp_path, monkeypatch):
    """Each way to write an import from `levels` to what stands below it is a fault; upwards it is none."""
    (tmp_path / "levels").mkdir()
    file = tmp_path / "levels" / "new.py"
    monkeypatch.setattr(sys.modules[__name__], "SOURCE", tmp_path)
    file.write_text("from nestling.memory import MLP\nfrom ..ops import scan\nimport torch\nfrom .level import Level\n")
    assert faults("levels", [file]) == []
    file.write_text(line + "\n")
    assert len(faults("levels", [file])) == 1


API = {
    "nestling": ["AssociativeMemory", "HopeConfig", "HopeForCausalLM", "Learner", "Level"],
    "nestling.ops": ["scan", "ScanState"],
    "nestling.memory": ["Matrix", "MLP", "L2", "DotProduct", "GradientDescent", "DeltaGradientDescent", "RetainSeen"],
    "nestling.layers": ["SelfModifyingTitans", "ContinuumMemory"],
    "nestling.levels": ["Level", "LevelOptimizer", "StepOf", "describe"],
    "nestling.models": ["HopeConfig", "HopeForCausalLM", "HopeCache"],
    "nestling.continual": ["Learner"],
    "nestling.train": ["train", "TrainConfig"],
}


@pytest.mark.parametrize("home", API)
def test_the_public_names_exist(home):
    """Those of the design that are built so far."""
    module = importlib.import_module(home)
    assert [name for name in API[home] if not hasattr(module, name)] == []


@pytest.mark.parametrize("package", [p for p in PACKAGES if (SOURCE / p).is_dir()])
def test_what_a_package_lists_it_has(package):
    """Every name of `__all__` is there, and is listed once."""
    module = importlib.import_module(f"nestling.{package}")
    names = getattr(module, "__all__", [])
    assert len(set(names)) == len(names) and [name for name in names if not hasattr(module, name)] == []


def test_what_the_root_lists_it_has():
    """Names are imported when they are first used; each one leads somewhere, and a wrong one raises."""
    assert [name for name in nestling.__all__ if getattr(nestling, name, None) is None] == []
    assert set(nestling._HOMES) <= set(nestling.__all__) <= set(dir(nestling))
    with pytest.raises(AttributeError, match="'nothing'"):
        _ = nestling.nothing


SIGNATURES = {
    "ops.scan": "q k u alpha=None eps=None theta=None mask=None state=None read='inclusive' chunk_size=64",
    "AssociativeMemory": "network objective rule=None chunk_size=64 read='token'",
    "Level": "period lr=0.0 rule=GradientDescent(momentum=False) reset=None",
    "layers.SelfModifyingTitans": "dim heads",
    "layers.ContinuumMemory": "dim levels=() variant='sequential'",
    "Learner.observe": "self text user='default'",
    "Learner.generate": "self prompt user='default'",
    "Learner.forget": "self user='default'",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_are_those_of_the_design(name):
    """Names, order and defaults of the arguments that the design fixes; more may follow."""
    found = nestling
    for part in name.split("."):
        found = getattr(found, part)
    parameters = inspect.signature(found).parameters.values()
    told = [p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters]
    expected = SIGNATURES[name].split()
    assert told[: len(expected)] == expected


@pytest.mark.parametrize("module", ["nestling", "nestling.cli", "nestling.errors", "nestling.settings"])
def test_an_import_is_quick(module):
    """Neither torch nor transformers is imported before it is needed."""
    code = f"import sys, {module}; print(*sorted({{'torch', 'transformers'}} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert out.stdout.strip() == ""
