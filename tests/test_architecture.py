"""The rules of the design, each a function from one file to what it finds, and each seen to find a broken snippet."""

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BACK_HALF = (
    *(f"difftool/{room}/" for room in ("acceleration", "components", "kernels", "media", "parallel", "pipeline")),
    *(f"difftool/{room}/" for room in ("platforms", "profiling", "stages")),
    *("difftool/builtin/", "difftool/engine.py", "difftool/worker.py"),
)
BACK_HALF_OF_A_FAMILY = re.compile(r"difftool/families/\w+/(?!facts\.py|__init__\.py)")
HEAVY = {"accelerate", "diffusers", "numpy", "torch", "transformers"}
OWN_HEAVY = {"difftool/report/statistics.py": {"numpy"}}  # imported by its functions, when dumps are compared
MAX_FILE, MAX_FUNCTION = 400, 60
CATCH_ALL = ("difftool/cli/main.py", "difftool/parallel/pool_rank.py", "difftool/worker.py")
FAMILIES = {path.parent.name for path in ROOT.glob("difftool/families/*/facts.py")}
FAMILY_KEYS = re.compile(r"(^|_)(family|pipeline_class)(_name)?$")
# put together here, so that this file does not hold what it forbids
OUTSIDE = re.compile(r"(?<![\w.])/(?:{})(?![\w-])|\.\./{}\b".format("work|tmp/venv", "shared"))


@dataclass(frozen=True)
class Source:
    """One file: its path from the repository's root, with slashes, and its text."""

    path: str
    text: str

    @cached_property
    def nodes(self) -> list[ast.AST]:
        return list(ast.walk(ast.parse(self.text)))


Findings = Iterator[tuple[int, str]]
Rule = Callable[[Source], Findings]


def is_front_half(path: str) -> bool:
    in_package = path.startswith("difftool/")
    return in_package and not path.startswith(BACK_HALF) and not BACK_HALF_OF_A_FAMILY.match(path)


def imported(node: ast.AST) -> list[str]:
    """The modules a node imports: by statement, or by `import_module` of a literal."""
    match node:
        case ast.Import():
            return [alias.name for alias in node.names]
        case ast.ImportFrom(module=str(module)):
            return [module, *(f"{module}.{alias.name}" for alias in node.names)]
        case ast.Call(
            func=ast.Name(id="import_module" | "__import__") | ast.Attribute(attr="import_module"),
            args=[ast.Constant(value=str(module)), *_],
        ):
            return [module]
    return []


def short_files(source: Source) -> Findings:
    length = len(source.text.splitlines())
    if length > MAX_FILE:
        yield length, f"{length} lines, more than {MAX_FILE}"


def short_functions(source: Source) -> Findings:
    for node in source.nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_FUNCTION:
                yield node.lineno, f"{node.name} has {length} lines, more than {MAX_FUNCTION}"


def light_front_half(source: Source) -> Findings:
    for node in source.nodes if is_front_half(source.path) else []:
        heavy = {name.partition(".")[0] for name in imported(node)} & HEAVY - OWN_HEAVY.get(source.path, set())
        if heavy:
            yield node.lineno, f"the front half imports {', '.join(sorted(heavy))}"


def families_apart(source: Source) -> Findings:
    """A family's folder is named by its own files only; everyone else asks `families.index` or the registry."""
    own = source.path.split("/")[2] if source.path.startswith("difftool/families/") else None
    for node in source.nodes:
        for name in imported(node):
            family = name.removeprefix("difftool.families.").partition(".")[0]
            if name.startswith("difftool.families.") and family in FAMILIES - {own}:
                yield node.lineno, f"imports the family {family}"


def no_family_tests(source: Source) -> Findings:
    for node in source.nodes if not source.path.startswith("difftool/families/") else []:
        match node:
            case ast.Compare():
                sides = [node.left, *node.comparators]
                if any(map(is_literal, sides)) and any(map(names_family, sides)) or any(map(holds_family, sides)):
                    yield node.lineno, "asks which family this is; let the family publish a fact"
            case ast.Match() if names_family(node.subject):
                yield node.lineno, "branches on the family; let the family publish a fact"


def is_literal(node: ast.expr) -> bool:
    """A string, or a collection of strings, written out."""
    items = node.elts if isinstance(node, ast.Tuple | ast.List | ast.Set) else [node]
    return bool(items) and all(isinstance(item, ast.Constant) and isinstance(item.value, str) for item in items)


def names_family(node: ast.expr) -> bool:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return bool(FAMILY_KEYS.search(name))
        case ast.Subscript(slice=ast.Constant(value=str(name))):
            return bool(FAMILY_KEYS.search(name))
    return False


def holds_family(node: ast.expr) -> bool:
    items = node.elts if isinstance(node, ast.Tuple | ast.List | ast.Set) else [node]
    return any(isinstance(item, ast.Constant) and item.value in FAMILIES for item in items)


def no_stubs(source: Source) -> Findings:
    for number, line in enumerate(source.text.splitlines(), 1):
        for word in re.findall(r"\b(?:NotImplementedError|TODO|FIXME|XXX)\b", line):
            yield number, f"leaves {word}"


def no_print(source: Source) -> Findings:
    for node in source.nodes if not source.path.startswith(("difftool/cli/", "scripts/")) else []:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            yield node.lineno, "prints; only the command line does"


def named_exceptions(source: Source) -> Findings:
    """A handler that ends by raising the same error again hides nothing, and may see every error."""
    for node in source.nodes if source.path not in CATCH_ALL else []:
        if isinstance(node, ast.ExceptHandler) and not is_raise(node.body[-1]):
            kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            if any(kind is None or ast.unparse(kind) in ("Exception", "BaseException") for kind in kinds):
                yield node.lineno, f"catches everything; only {' and '.join(CATCH_ALL)} do"


def is_raise(node: ast.stmt) -> bool:
    return isinstance(node, ast.Raise) and node.exc is None


def cuda_in_platforms(source: Source) -> Findings:
    for node in source.nodes if not source.path.startswith("difftool/platforms/") else []:
        by_name = isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.cuda"
        if by_name or any(name.startswith("torch.cuda") for name in imported(node)):
            yield node.lineno, "uses torch.cuda; ask the platform"


def self_contained(source: Source) -> Findings:
    for number, line in enumerate(source.text.splitlines(), 1):
        for found in OUTSIDE.findall(line):
            yield number, f"names a place outside the repository: {found}"


CODE_RULES: tuple[Rule, ...] = (
    short_files, short_functions, light_front_half, families_apart, no_family_tests, no_stubs, no_print,
    named_exceptions, cuda_in_platforms,
)  # fmt: skip


def code() -> list[Source]:
    paths = sorted([*ROOT.glob("difftool/**/*.py"), *ROOT.glob("scripts/**/*.py")])
    return [Source(path.relative_to(ROOT).as_posix(), path.read_text("utf-8")) for path in paths]


def texts() -> list[Source]:
    """Every text file of the repository: tracked, or new and not ignored."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    paths = [ROOT / name for name in listed.split("\0") if name]
    files = {path: path.read_bytes() for path in paths if path.is_file()}
    return [
        Source(path.relative_to(ROOT).as_posix(), data.decode("utf-8", "replace"))
        for path, data in files.items()
        if b"\0" not in data[:8192]
    ]


def complaints(rule: Rule, sources: list[Source]) -> list[str]:
    return [f"{source.path}:{line}: {found}" for source in sources for line, found in rule(source)]


@pytest.fixture(scope="module")
def found() -> dict[str, list[str]]:
    """What each rule finds in all the code: every file is parsed once, and let go of."""
    told: dict[str, list[str]] = {rule.__name__: [] for rule in CODE_RULES}
    for source in code():
        for rule in CODE_RULES:
            told[rule.__name__] += complaints(rule, [source])
        source.__dict__.pop("nodes", None)
    return told


@pytest.mark.parametrize("rule", CODE_RULES, ids=lambda rule: rule.__name__)
def test_the_code_keeps_the_rule(rule: Rule, found: dict[str, list[str]]) -> None:
    assert not found[rule.__name__]


def test_the_repository_names_no_place_outside_itself() -> None:
    assert not complaints(self_contained, texts())


BROKEN = [
    (short_files, "difftool/a.py", "x = 1\n" * (MAX_FILE + 1)),
    (short_functions, "difftool/a.py", "def f():\n" + "    x = 1\n" * MAX_FUNCTION),
    (short_functions, "scripts/a.py", "class A:\n    async def f(self):\n" + "        x = 1\n" * MAX_FUNCTION),
    (light_front_half, "difftool/planning/a.py", "import torch"),
    (light_front_half, "difftool/cli/a.py", "def f():\n    from torch.nn import Module"),
    (light_front_half, "difftool/errors.py", "if TYPE_CHECKING:\n    import numpy as np"),
    (light_front_half, "difftool/recipe/a.py", "import importlib\nimportlib.import_module('diffusers.models')"),
    (light_front_half, "difftool/families/flux1/facts.py", "from transformers import T5Config"),
    (light_front_half, "difftool/families/flux1/__init__.py", "import torch"),
    (light_front_half, "difftool/report/statistics.py", "import torch"),
    (light_front_half, "difftool/families/index.py", "import torch"),
    (families_apart, "difftool/pipeline/a.py", "from difftool.families.flux1.model import Flux1Config"),
    (families_apart, "difftool/families/other/model.py", "from difftool.families.flux1 import facts"),
    (families_apart, "difftool/planning/a.py", "from difftool.families import flux1"),
    (no_family_tests, "difftool/stages/a.py", "if plan.model.family == 'other': pass"),
    (no_family_tests, "difftool/stages/a.py", "x = 1 if pipeline_class in ('A', 'B') else 2"),
    (no_family_tests, "difftool/stages/a.py", "if name != 'flux1': pass"),
    (no_family_tests, "difftool/stages/a.py", "if kind in ['flux1', x]: pass"),
    (no_family_tests, "difftool/stages/a.py", "match model['family']:\n    case 'other': pass"),
    (no_stubs, "difftool/a.py", "def f():\n    raise NotImplementedError"),
    (no_stubs, "scripts/a.py", "# TODO: later"),
    (no_print, "difftool/launch/a.py", "print('x')"),
    (named_exceptions, "difftool/cli/plan.py", "try: pass\nexcept Exception: pass"),
    (named_exceptions, "difftool/engine.py", "try: pass\nexcept (ValueError, BaseException): pass"),
    (named_exceptions, "scripts/a.py", "try: pass\nexcept: pass"),
    (named_exceptions, "difftool/a.py", "try: pass\nexcept Exception as e: raise OSError from e"),
    (cuda_in_platforms, "difftool/stages/a.py", "torch.cuda.synchronize()"),
    (cuda_in_platforms, "difftool/profiling/a.py", "from torch import cuda"),
    (cuda_in_platforms, "difftool/worker.py", "import torch.cuda.nvtx"),
    (self_contained, "docs/a.md", "as in " + ".." + "/shared/design"),
    (self_contained, "Makefile", "cd " + "/" + "work/main"),
    (self_contained, "tests/a.py", "'" + "/" + "tmp/venv/bin/python'"),
]

ALLOWED = [
    (light_front_half, "difftool/families/flux1/model.py", "import torch"),
    (light_front_half, "difftool/worker.py", "import torch"),
    (light_front_half, "difftool/planning/a.py", "from difftool.facts import TORCH_DTYPES"),
    (light_front_half, "difftool/report/statistics.py", "def f():\n    import numpy"),
    (families_apart, "difftool/families/flux1/model.py", "from difftool.families.flux1.facts import FACTS"),
    (families_apart, "difftool/planning/a.py", "from difftool.families.index import family_facts"),
    (no_family_tests, "difftool/families/flux1/model.py", "if family == 'flux1': pass"),
    (no_family_tests, "difftool/planning/a.py", "if plan.model.family == facts.name: pass"),
    (no_print, "difftool/cli/a.py", "print('x')"),
    (named_exceptions, "difftool/worker.py", "try: pass\nexcept Exception: pass"),
    (named_exceptions, "difftool/engine.py", "try: pass\nexcept BaseException:\n    note()\n    raise"),
    (named_exceptions, "difftool/engine.py", "try: pass\nexcept (OSError, ValueError): pass"),
    (cuda_in_platforms, "difftool/platforms/cuda.py", "torch.cuda.synchronize()"),
    (self_contained, "docs/a.md", "https://host/a/work and frame/work/x and ./work/x"),
]


@pytest.mark.parametrize(("rule", "path", "text"), BROKEN, ids=lambda value: getattr(value, "__name__", None))
def test_a_broken_file_is_found(rule: Rule, path: str, text: str) -> None:
    assert complaints(rule, [Source(path, text)])


@pytest.mark.parametrize(("rule", "path", "text"), ALLOWED, ids=lambda value: getattr(value, "__name__", None))
def test_a_right_file_is_left_alone(rule: Rule, path: str, text: str) -> None:
    assert not complaints(rule, [Source(path, text)])


def loaded_by(*arguments: str) -> set[str]:
    """The top-level modules that a fresh interpreter imports while it runs `arguments`. Asserts that it succeeds."""
    ran = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=900
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    timed = [line for line in ran.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in timed}


def test_help_loads_nothing_heavy() -> None:
    assert not loaded_by("-m", "difftool", "--help") & HEAVY


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert not loaded_by("-c", "import difftool") & HEAVY


def test_a_heavy_import_is_noticed() -> None:
    assert loaded_by("-c", "import numpy") & HEAVY == {"numpy"}


@pytest.mark.parametrize(
    ("path", "code", "text"),
    [
        ("difftool/planning/a.py", "TID253", "import torch\n"),
        ("difftool/families/flux1/facts.py", "TID253", "import numpy\n"),
        ("difftool/launch/a.py", "T201", "print('x')\n"),
        ("difftool/engine.py", "BLE001", "try:\n    x = 1\nexcept Exception:\n    x = 2\n"),
        ("difftool/stages/a.py", "TID252", "from . import standard\n"),
    ],
)
def test_the_linter_notices(path: str, code: str, text: str) -> None:
    linter = [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format=concise"]
    ran = subprocess.run(
        [*linter, "--stdin-filename", path, "-"], input=text, cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert code in ran.stdout, ran.stdout + ran.stderr


@pytest.mark.parametrize(
    ("path", "text", "contract"),
    [
        ("difftool/planning/plan.py", "import torch", "The front half imports neither"),
        ("difftool/launch/__init__.py", "import difftool.worker", "The front half imports neither"),
        ("difftool/families/flux1/facts.py", "import difftool.stages.standard", "The front half imports neither"),
        ("difftool/session.py", "import difftool.engine", "The front half imports neither"),
        ("difftool/engine.py", "import typer", "The back half knows no command line"),
        ("difftool/worker.py", "import difftool.launch.events", "The back half knows no command line"),
        ("difftool/recipe/schema.py", "import difftool.planning.plan", "The front half imports downwards"),
        ("difftool/platforms/base.py", "import difftool.stages.standard", "The back half imports downwards"),
    ],
)
def test_an_import_upwards_breaks_a_contract(tmp_path: Path, path: str, text: str, contract: str) -> None:
    left_out = shutil.ignore_patterns("*.safetensors", "__pycache__")  # the latter changes while other tests run
    shutil.copytree(ROOT / "difftool", tmp_path / "difftool", ignore=left_out)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / path).open("a") as file:
        file.write(f"\n{text}\n")
    command = "import sys; sys.path.insert(0, '.'); from importlinter.cli import lint_imports_command as main; main()"
    ran = subprocess.run(
        [sys.executable, "-c", command, "--no-cache"], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    broken = [line for line in ran.stdout.splitlines() if " BROKEN" in line]
    assert any(line.startswith(contract) for line in broken), ran.stdout + ran.stderr
