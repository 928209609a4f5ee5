"""`difftool doctor --model`: a checkpoint examined in a child process, without loading it."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from difftool.cli.usage import UsageError
from difftool.errors import WeightsError, WorkerCrashed

if TYPE_CHECKING:
    from difftool.facts import FamilyFacts

EXAMINER = (sys.executable, "-m", "difftool.pipeline.examine")
LIBRARIES = ("diffusers", "transformers")  # whose classes an index names by themselves


@dataclass(frozen=True)
class Examined:
    """What was found: one mapping for each component, with a `fault` where there is one, and what of it is `unchecked`.
    A file has no pipeline. `unchecked` is what nothing here can tell of the whole.
    """

    path: str
    pipeline_class: str | None
    components: Sequence[Mapping[str, Any]]
    unchecked: str | None = None

    @property
    def faults(self) -> list[Mapping[str, Any]]:
        return [component for component in self.components if "fault" in component]

    @property
    def complete(self) -> bool:
        """Whether everything was checked."""
        return self.unchecked is None and not any("unchecked" in component for component in self.components)


def examine(model: str, environment: Mapping[str, str], code: str | None = None) -> Examined:
    """`code` is the folder of an out-of-tree family. Raises WeightsError for what is no model of this machine, or names
    no pipeline; RecipeError for a wrong name, UsageError for a pipeline that nothing here knows the components of.
    """
    from difftool.planning.checkpoint import checkpoint_folder, read_model_index

    path = Path(model).expanduser()
    if path.is_file():
        if code is not None:
            raise UsageError(f"--code is for the folder of a model, and {path} is one file", hint="leave it out")
        return Examined(str(path), None, ask(path, [], environment))
    folder = checkpoint_folder(model)
    if folder is None:
        raise WeightsError(f"{model} is not on this machine", hint=f"difftool models fetch {model}")
    index = read_model_index(folder)
    pipeline_class: str = index["_class_name"]
    family = run_by(model, pipeline_class, code)
    listed = [name for name, entry in index.items() if isinstance(entry, list) and len(entry) == 2 and entry[0]]
    needed = family.pipelines[pipeline_class].components if family is not None else ()
    names = list(dict.fromkeys([*needed, *listed]))
    unknown = f"{pipeline_class} is no pipeline of a family here or of diffusers"
    if not names:
        raise UsageError(
            f"{model} cannot be checked: {unknown}, and its model_index.json lists no component",
            hint="name the folder of its family with --code",
        )
    found = ask(folder, names, environment, own_classes(index, names, family, code))
    unlisted = f"what the index does not list, as {unknown}" if family is None else None
    return Examined(str(folder), pipeline_class, found, unlisted)


def run_by(model: str, pipeline_class: str, code: str | None) -> "FamilyFacts | None":
    """What runs the pipeline; None where neither a family nor diffusers does. Raises RecipeError."""
    from difftool.families.index import native_family
    from difftool.planning.checkpoint import family_for
    from difftool.planning.foreign import foreign_facts

    if code is not None:
        return family_for(model, pipeline_class, backend="auto", code=code)
    return native_family(pipeline_class) or foreign_facts(pipeline_class)


def own_classes(
    index: Mapping[str, Any], names: Sequence[str], family: "FamilyFacts | None", code: str | None
) -> dict[str, Any] | None:
    """The family whose own classes and weight sources count, if any: they are not looked up where the index names a
    library's class for every component of a family of difftool's own.
    """
    from difftool.families.index import family_sha256
    from difftool.planning.foreign import NAME as FOREIGN

    if family is None or family.name == FOREIGN:
        return None
    pipeline_class = index["_class_name"]
    digest = family_sha256(pipeline_class, code)
    if digest is None and all((index.get(name) or [None])[0] in LIBRARIES for name in names):
        return None
    return {"family": family.name, "pipeline_class": pipeline_class, "code": code, "digest": digest}


def ask(
    path: Path, names: Sequence[str], environment: Mapping[str, str], own: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    """The answers of the process that reads. It downloads nothing."""
    ran = subprocess.run(
        EXAMINER,
        input=json.dumps({"path": str(path), "names": list(names), "own": own}).encode(),
        capture_output=True,
        env={**environment, "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    if ran.returncode:
        lines = ran.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {ran.returncode}"]
        raise WorkerCrashed(f"the examination of {path} ended early: {lines[-1]}")
    answers = [json.loads(line) for line in ran.stdout.splitlines()]
    return sorted(answers, key=lambda answer: names.index(answer["name"]) if answer["name"] in names else 0)


def render(found: Examined) -> str:
    """The verdict, then a line for each component, and its fault below."""
    what = f"{found.path}, {found.pipeline_class}" if found.pipeline_class else found.path
    sound = "sound" if found.complete else "sound, as far as it was checked"
    verdict = f"{what}: {len(found.faults)} of {len(found.components)} damaged" if found.faults else f"{what}: {sound}"
    width = max(len(component["name"]) for component in found.components)
    rest = [] if found.unchecked is None else [f"  not checked: {found.unchecked}"]
    return os.linesep.join([verdict, *(line for c in found.components for line in lines(c, width)), *rest])


def lines(component: Mapping[str, Any], width: int) -> list[str]:
    head = f"  {component['name']:<{width}}  "
    if "fault" in component:
        hint = [f"{'':<{len(head)}}hint: {component['hint']}"] if component["hint"] else []
        return [f"{head}{component['fault']}", *hint]
    if "files" not in component:
        return [f"{head}no weights"]
    files = f"{component['files']} file" + "s" * (component["files"] != 1)
    tensors = f"{component['tensors']} tensor" + "s" * (component["tensors"] != 1)
    rest = f"; not checked: {component['unchecked']}" if "unchecked" in component else ""
    return [f"{head}{files}, {tensors}, {size(component['bytes'])}{rest}"]


def size(count: int) -> str:
    """Bytes as a disk's maker counts them."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
