"""A plan as text, for `difftool plan`: what would run, every value with where it came from, and what auto chose."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from difftool.families.index import planned_family
from difftool.planning.plan import Degrees, Nodes, Plan
from difftool.planning.render_cost import render_cost
from difftool.planning.tree import leaves

SHOWN_ITEMS = 8
WIDTH = 60
PLAIN = re.compile(r"[A-Za-z][\w./{}-]*(:[\w./-]+)?( [A-Za-z][\w./-]*)*")
WORDS = ("null", "true", "false", "yes", "no", "on", "off", "y", "n")  # words some YAML reader takes for values


def render_plan(plan: Plan) -> str:
    """The whole page, ending in a newline."""
    head = [
        f"plan      {plan.name}",
        f"model     {plan.model.name} ({_title(plan)}, {plan.task}, {plan.model.pipeline_class})",
        f"weights   {_weights(plan)}",
        f"device    {plan.device}{_devices(plan)}, {plan.threads} CPU threads a process",
        f"ranks     {_topology(plan.degrees, plan.nodes)}",
        f"runs      {_runs(plan)}",
        f"output    {_output(plan)}",
        f"recipe    sha256 {plan.recipe_sha256[:16]}, workload {plan.workload_sha256[:16]}",
    ]
    sections = [head, *render_cost(plan), _items(plan), _choices(plan), _settings(plan), _refused(plan)]
    return "\n\n".join("\n".join(section) for section in sections if section) + "\n"


def _title(plan: Plan) -> str:
    """Whose pipeline it is."""
    model = plan.model
    native = model.backend != "diffusers"
    return planned_family(model.family, model.pipeline_class, model.code).title if native else "diffusers"


def render_resolved(plan: Plan, *, origins: bool = True) -> str:
    """The complete recipe as YAML, which makes the same plan again; `origins` adds where each value came from."""
    return render_recipe(plan.recipe, plan.provenance if origins else {})


def render_recipe(recipe: Mapping[str, Any], origins: Mapping[str, str]) -> str:
    """A recipe as YAML, one leaf a line, with the origin of a value as a comment beside it."""
    lines = list(_yaml_lines(recipe, origins, ""))
    width = min(72, max(len(line) for line, _ in lines))
    return "\n".join(f"{line:<{width}}  # {origin}" if origin else line for line, origin in lines) + "\n"


def _yaml_lines(tree: Mapping[str, Any], origins: Mapping[str, str], prefix: str) -> Iterator[tuple[str, str]]:
    """Block style for sections, one line of flow style for every leaf."""
    indent = "  " * prefix.count(".")
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield f"{indent}{key}:", ""
            yield from _yaml_lines(value, origins, f"{prefix}{key}.")
        else:
            origin = origins.get(f"{prefix}{key}", "")
            yield f"{indent}{key}: {_flow(value)}", "" if origin == "default" else origin


def _flow(value: Any) -> str:
    """JSON, which is YAML; without the quotes where a text cannot be taken for anything else."""
    if isinstance(value, str) and PLAIN.fullmatch(value) and value.lower() not in WORDS:
        return value
    return json.dumps(value, ensure_ascii=False)


def _weights(plan: Plan) -> str:
    if plan.model.builtin:
        return "ship with difftool"
    if plan.model.folder:
        return plan.model.folder
    return f"{plan.model.hub_id} at {plan.model.revision or 'its latest revision'}, fetched if missing"


def _devices(plan: Plan) -> str:
    """Which of this machine's, in the order of its ranks."""
    return "" if plan.devices is None else f" ({', '.join(map(str, plan.devices))})"


def _topology(degrees: Degrees, nodes: Nodes | None) -> str:
    axes = [f"{axis} {getattr(degrees, axis)}" for axis in ("dp", "cfg", "ring", "ulysses", "tp")]
    hsdp = "" if degrees.hsdp == "none" else f", weights sharded (hsdp {degrees.hsdp})"
    where = f", on {nodes.count} nodes that meet at {nodes.endpoint}" if nodes is not None else ""
    return f"{degrees.num_gpus} = {' x '.join(axes)}{hsdp}{where}"


def _runs(plan: Plan) -> str:
    count = len(plan.items)
    items = f"{count} item{'s' if count != 1 else ''}"
    return f"{items}, {plan.warmup} warm-up, {plan.repeats} measured run{'s' if plan.repeats != 1 else ''} each"


def _output(plan: Plan) -> str:
    if not plan.output.save:
        return "none is saved"
    return f"{plan.output.dir}/{plan.output.file or plan.output.name + '.' + plan.output.format}"


def _size(sampling: Mapping[str, Any]) -> str:
    """Width, height and, of a video, frames."""
    sides = [sampling[key] for key in ("width", "height", "num_frames") if sampling.get(key) is not None]
    return "x".join(str(side) for side in sides)


def _items(plan: Plan) -> list[str]:
    rows = [
        f"  {item.id:<8} seed {item.seed:<12} {_size(item.sampling)}, "
        f"{item.sampling['num_inference_steps']} steps  {_short(item.prompt)}"
        for item in plan.items[:SHOWN_ITEMS]
    ]
    if not rows:
        return ["items", "  none; give a prompt with -p"]
    more = len(plan.items) - SHOWN_ITEMS
    return ["items", *rows, *([f"  and {more} more"] if more > 0 else [])]


def _choices(plan: Plan) -> list[str]:
    rows = [f"  {c.key:<34} {c.value:<37} {c.reason}" for c in plan.choices]
    return ["auto chooses", *rows] if rows else []


def _refused(plan: Plan) -> list[str]:
    return ["refused: this plan cannot run", *(f"  {line}" for line in plan.refused)] if plan.refused else []


def _settings(plan: Plan) -> list[str]:
    """Every value that is not a default, and the sampling values whatever they are."""
    shown = {
        key: value
        for key, value in leaves(plan.recipe)
        if value not in (None, {}) and (key.startswith("sampling.") or plan.provenance[key] != "default")
    }
    rows = [f"  {key:<34} {_short(_flow(value)):<32} {plan.provenance[key]}" for key, value in shown.items()]
    return ["settings", *rows]


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= WIDTH else line[: WIDTH - 3] + "..."
