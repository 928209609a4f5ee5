"""`difftool models fetch`: what a recipe needs of the hub, downloaded by a child process."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from difftool.cli.checkpoint import size
from difftool.cli.options import ConfigOption, RecipeArgument, RecipeArguments, SetOption
from difftool.errors import DifftoolError, WeightsError, WorkerCrashed

if TYPE_CHECKING:
    from difftool.planning.plan import LoraPlan, ModelPlan
    from difftool.recipe.load import Override

RevisionOption = Annotated[
    str | None,
    typer.Option("--revision", metavar="REVISION", help="commit, branch or tag of the hub repository"),
]
JsonFlag = Annotated[bool, typer.Option("--json", help="print one JSON object")]
FETCHER = (sys.executable, "-m", "difftool.pipeline.fetch")
EVERY_S, PLAIN_EVERY_S = 0.5, 15.0  # between two lines of progress: on a terminal, and in a log
EVERYTHING = "*"  # of a pipeline that no family runs


class FetchFailed(DifftoolError):
    """What the fetching process told."""

    def __init__(self, message: str, hint: str | None, exit_code: int):
        super().__init__(message, hint=hint)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Wanted:
    """What a recipe needs: the model's components, and what replaces or changes them."""

    model: "ModelPlan"
    components: Sequence[str]
    loras: "Sequence[LoraPlan]"

    @property
    def repositories(self) -> list[str]:
        ids = [self.model.hub_id, *(part.hub_id for part in self.model.components.values())]
        ids += [lora.hub_id for lora in self.loras]
        return list(dict.fromkeys(hub_id for hub_id in ids if hub_id is not None))

    def told(self) -> str:
        loras = [lora.model_dump() for lora in self.loras if lora.hub_id is not None]
        return json.dumps({"model": self.model.model_dump(), "components": list(self.components), "loras": loras})


def fetch(
    recipe: RecipeArgument = None,
    *,
    config: ConfigOption = None,
    sets: SetOption = None,
    revision: RevisionOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Download only what a recipe needs, and print the model's folder."""
    from difftool.cli.prepare import chosen_recipe, read_overrides

    given = RecipeArguments(recipe=recipe, config=config, sets=tuple(sets or ()), flags={"--revision": revision})
    wanted = wanted_by(chosen_recipe(given), read_overrides(given))
    told = run(wanted)
    repositories = list(dict.fromkeys([*wanted.repositories, *told["repositories"]]))
    typer.echo(json.dumps({"folder": told["folder"], "repositories": repositories}) if as_json else told["folder"])


def wanted_by(recipe: str, overrides: "Sequence[Override]") -> Wanted:
    """Of a model that nobody knows yet, the index is fetched to learn what it is made of."""
    from difftool.planning.checkpoint import checkpoint_folder, find_checkpoint, known_checkpoints
    from difftool.planning.components import base_of, place
    from difftool.planning.loras import plan_loras
    from difftool.planning.plan import ModelPlan
    from difftool.recipe.load import load_recipe

    model = load_recipe(recipe, overrides).recipe.model.model_dump(mode="json")
    path, components = base_of(model)
    known = any(path.lower() == checkpoint.hub_id.lower() for checkpoint in known_checkpoints())
    if not known and _may_be_a_hub_id(path) and checkpoint_folder(path, model["revision"]) is None:
        unknown = {"family": "", "pipeline_class": "", "builtin": False, "folder": None}
        run(Wanted(ModelPlan(name=path, hub_id=path, revision=model["revision"], **unknown), (), ()))
    found = find_checkpoint(path, model["id"], model["revision"], model["backend"], model["code"])
    replaced = {name: place(name, **given) for name, given in components.items()}
    plan = found.model.model_copy(
        update={"components": replaced, "trust_remote_code": model["trust_remote_code"] and bool(model["revision"])}
    )
    pipeline = found.pipeline
    names = (*pipeline.components, *pipeline.optional) if plan.backend == "native" else (EVERYTHING,)
    return Wanted(plan, names, plan_loras(model, found))


def _may_be_a_hub_id(path: str) -> bool:
    return path.count("/") == 1 and not path.startswith((".", "/", "~")) and not Path(path).expanduser().exists()


def run(wanted: Wanted) -> dict[str, Any]:
    """The model's `folder`, and the `repositories` of its family. Raises FetchFailed with what the hub answered."""
    process = subprocess.Popen(
        FETCHER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    try:
        answer, errors = _wait(process, wanted)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    try:
        told: dict[str, Any] = json.loads(answer)
    except ValueError:
        lines = errors.strip().splitlines() or [f"exit code {process.returncode}"]
        raise WorkerCrashed(f"fetching {wanted.model.name} ended early: {lines[-1]}") from None
    if "error" in told:
        raise FetchFailed(told["error"], told["hint"], told["exit_code"])
    if not Path(told["folder"]).is_dir():
        raise WeightsError(f"{wanted.model.name} was not fetched to {told['folder']}")
    return told


def environment() -> Mapping[str, str]:
    """The shell's, and with it the token and the offline mode of the hub."""
    return {**os.environ, "HF_HUB_DISABLE_TELEMETRY": "1"}


def _wait(process: "subprocess.Popen[str]", wanted: Wanted) -> tuple[str, str]:
    """What the process wrote. Until then what has arrived on the disk is shown."""
    live, told, before = sys.stderr.isatty(), time.monotonic(), on_disk()
    text: str | None = wanted.told()
    while True:
        try:
            answer = process.communicate(text, timeout=EVERY_S)
        except subprocess.TimeoutExpired:
            text = None  # it was written
            if live or time.monotonic() - told >= PLAIN_EVERY_S:
                told = time.monotonic()
                line = f"fetches {wanted.model.name}: {size(max(0, on_disk() - before))}"
                print(f"\r{line}" if live else line, end="" if live else "\n", file=sys.stderr, flush=True)
        else:
            if live:
                print("\r\x1b[K", end="", file=sys.stderr)
            return answer


def on_disk() -> int:
    """Bytes in the hub's cache, finished or not: of all repositories, as only the child knows those of a family."""
    from huggingface_hub import constants

    found = 0
    for path in Path(constants.HF_HUB_CACHE).glob("models--*/blobs/*"):
        try:
            found += path.stat().st_size
        except FileNotFoundError:  # it has got its final name meanwhile
            continue
    return found
