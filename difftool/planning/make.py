"""Recipe to Plan: everything is decided here, once, torch-free; what is wrong is reported all at once."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from difftool.errors import PlanError, Problem, RecipeError
from difftool.planning.attention import attention_choice, check_attention
from difftool.planning.availability import check_available
from difftool.planning.caching import cache_choices, check_cache, check_cache_package
from difftool.planning.checkpoint import Checkpoint, find_checkpoint
from difftool.planning.compiling import compile_choice
from difftool.planning.components import base_of, replace_components
from difftool.planning.conflicts import Situation, check_conflicts
from difftool.planning.degrees import Asked, solve
from difftool.planning.every_stage import of_its_stages
from difftool.planning.foreign import check_foreign
from difftool.planning.holdings import budget_choices, plan_budget, streaming, unfit
from difftool.planning.items import Items, draw, draw_seeds, make_items
from difftool.planning.loras import lora_content, named, plan_loras
from difftool.planning.nodes import check_launch, counted, device_of, plan_nodes
from difftool.planning.outputs import RunOptions, format_problems, name_problems, plan_output
from difftool.planning.packages import check_packages
from difftool.planning.pictures import by_content, digests
from difftool.planning.plan import (
    BudgetPlan,
    Choice,
    Degrees,
    Item,
    LoraPlan,
    Plan,
    Prediction,
    ProfilePlan,
    QualityPlan,
)
from difftool.planning.prediction import predict
from difftool.planning.references import plan_quality, quality_problems, without_keys
from difftool.planning.sharing import check_sharing
from difftool.planning.tree import ancestors, leaves
from difftool.recipe.load import Loaded, lay_over
from difftool.recipe.prompts import read_prompts
from difftool.recipe.stages import TextEncoding

UNHASHED = ("schema", "name", "extends", "launch", "output", "serve", "perf")  # cannot change a picture
WORKLOAD = ("model", "sampling")
MAX_AUTO_THREADS = 4  # the same on one rank and many, and on most machines: CPU bytes depend on it
PRECISION = "fp32 on a CPU, bf16 on CUDA and MPS"


def make_plan(loaded: Loaded, *, run: RunOptions) -> Plan:
    """The complete plan. Raises RecipeError with every problem, WeightsError for a model folder that is not one, and
    PlanError for a package that the model needs and this machine lacks.

    A preview may have no items, and what this version does not do yet is in its `refused` instead of raised.
    """
    recipe = loaded.recipe.model_dump(mode="json", by_alias=True)
    problems, missing = list[Problem](), check_available(recipe)
    budget: BudgetPlan | list[Problem] | None = None
    try:
        checkpoint = _checkpoint(recipe["model"])
    except RecipeError as error:
        raise _located([*missing, *error.problems], loaded) from None
    components = (*checkpoint.pipeline.components, *checkpoint.pipeline.optional)
    loaded = of_its_stages(loaded, components)
    recipe["stages"] = loaded.recipe.stages.model_dump(mode="json", by_alias=True)
    drawn = run.recorded.recipe["sampling"] if run.recorded is not None else {}
    recipe["sampling"]["seed"] = draw(recipe["sampling"]["seed"], drawn.get("seed"))
    entries = draw_seeds(_entries(recipe["sampling"], loaded), drawn.get("prompts") or ())
    items = make_items(recipe["sampling"], entries, checkpoint)
    problems += items.problems
    if not items.items and not run.preview:
        missing.append(Problem("sampling", "sampling.prompt: there is nothing to make; give a prompt with -p"))
    problems += check_foreign(checkpoint.model)
    try:
        loras = plan_loras(recipe["model"], checkpoint)
    except RecipeError as error:
        problems, loras = [*problems, *error.problems], ()
    degrees = _degrees(counted(recipe), checkpoint, items.shared.values)
    if isinstance(degrees, Degrees):
        problems += check_conflicts(Situation(recipe, degrees, checkpoint.model.backend, components))
        problems += check_attention(recipe["stages"]["denoising"]["attention"], checkpoint, degrees, items.items)
        problems += check_cache(recipe["cache"], checkpoint, items.items, loaded.provenance)
        problems += check_sharing(degrees, items.items, checkpoint.family)
        problems += check_launch(recipe, degrees, keep_going=run.keep_going)
        budget = plan_budget(checkpoint, degrees, [item.sampling for item in items.items] or [_first(items)], recipe)
        problems += budget if isinstance(budget, list) else []
    else:
        problems += degrees
    problems += quality_problems(recipe["quality"], checkpoint.pipeline.makes)
    problems += _profile_problems(run.profile, items.items)
    problems += name_problems(recipe["output"]) + format_problems(recipe["output"], run, checkpoint, items.items)
    if problems or (missing and not run.preview) or not isinstance(degrees, Degrees):
        raise _located([*problems, *missing], loaded)
    check_packages(checkpoint)
    check_cache_package(recipe["cache"])
    recipe["model"]["lora"] = named(recipe["model"]["lora"], loras)
    resolved = _resolved(recipe, entries, items, degrees, loaded.name)
    assert not isinstance(budget, list)
    if (why := unfit(budget, recipe)) is not None and not run.preview:
        raise PlanError(why)
    plan = _plan(resolved, checkpoint, items, degrees, run, loras, _provenance(resolved, items, loaded), budget)
    quality = _quality(loaded, plan)
    prediction = _prediction(checkpoint, degrees, _first(items), resolved, budget) if run.preview else None
    told = _refusal(_located(missing, loaded).problems, why)
    return plan.model_copy(update={**told, "prediction": prediction, "quality": quality})


def _refusal(missing: Sequence[Problem], unfit: str | None) -> dict[str, object]:
    """Of a preview: why it cannot run, and the exit code that a run ends with for it."""
    code = RecipeError.exit_code if missing else PlanError.exit_code if unfit is not None else 0
    return {"refused": (*map(str, missing), *filter(None, [unfit])), "exit_code": code}


def _prediction(
    checkpoint: Checkpoint,
    degrees: Degrees,
    values: Mapping[str, Any],
    resolved: Mapping[str, Any],
    budget: BudgetPlan | None,
) -> Prediction | None:
    found = predict(checkpoint, degrees, values, resolved)
    if found is None:
        return None
    return found.model_copy(update={"streaming": streaming(found, checkpoint, degrees, values, resolved, budget)})


def _quality(loaded: Loaded, plan: Plan) -> QualityPlan:
    try:
        return plan_quality(plan, partial(_reference, loaded, plan))
    except RecipeError as error:
        raise RecipeError(_located(error.problems, loaded).problems, hint=error.hint) from None


def _reference(loaded: Loaded, plan: Plan) -> Plan:
    """The plan of the same recipe without the keys that `quality.reference.without` names; its seeds are those drawn.

    Raises RecipeError where they cannot be left out.
    """
    laid = lay_over(loaded, without_keys(plan.recipe["quality"]["reference"]["without"]))
    return make_plan(laid, run=RunOptions(output_dir=plan.output.dir, save_output=False, recorded=plan))


def _first(items: Items) -> Mapping[str, Any]:
    """The sampling values of the first item or, without any, those of the run."""
    return items.items[0].sampling if items.items else items.shared.values


def _checkpoint(model: Mapping[str, Any]) -> Checkpoint:
    """The checkpoint, with what the recipe says of how it is loaded and called."""
    path, components = base_of(model)
    found = find_checkpoint(path, model["id"], model["revision"], model["backend"], model["code"])
    said = {key: model[key] for key in ("diffusers_kwargs", "trust_remote_code")}
    found = replace(found, model=found.model.model_copy(update={**said, "name": model["path"]}))
    return replace_components(components, found)


def _entries(sampling: Mapping[str, Any], loaded: Loaded) -> Sequence[Mapping[str, Any]]:
    """One mapping per prompt, in order."""
    if sampling["prompts"] is not None:
        prompts = loaded.recipe.sampling.prompts
        assert prompts is not None
        return read_prompts(prompts, loaded.base)
    prompt = sampling["prompt"]
    every = [] if prompt is None else [prompt] if isinstance(prompt, str) else list(prompt)
    return [{"prompt": text} for text in every]


def _degrees(parallel: Mapping[str, Any], checkpoint: Checkpoint, values: Mapping[str, Any]) -> Degrees | list[Problem]:
    facts = checkpoint.family
    return solve(Asked(**parallel, heads=checkpoint.heads, branches=facts.branches(values), axes=facts.axes))


def _profile_problems(profile: ProfilePlan | None, items: Sequence[Item]) -> list[Problem]:
    """Of the first step nothing is recorded, unless every stage is."""
    if profile is None or profile.all_stages or all(item.sampling["num_inference_steps"] > 1 for item in items):
        return []
    key = "sampling.num_inference_steps"
    message = f"{key}=1 leaves no step to record after the one to warm up; record all stages (--profile-all-stages)"
    return [Problem(key, message)]


def _located(problems: Sequence[Problem], loaded: Loaded) -> RecipeError:
    """The error with each problem placed in the file that holds its key, in file order."""
    placed = [p if p.where else Problem(p.key, p.message, loaded.where(p.key)) for p in problems]
    return RecipeError(sorted(dict.fromkeys(placed), key=_file_order))


def _file_order(problem: Problem) -> tuple[str, int, int]:
    file, *position = problem.where.rsplit(":", 2)
    line, column = (int(p) for p in position) if len(position) == 2 and all(p.isdigit() for p in position) else (0, 0)
    return file, line, column


def _resolved(
    recipe: dict[str, Any], entries: Sequence[Mapping[str, Any]], items: Items, degrees: Degrees, file: str
) -> dict[str, Any]:
    """The recipe with every null and `auto` filled that planning decides; it makes the same plan again."""
    values = {key: value for key, value in items.shared.values.items() if key not in ("scheduler", "extra")}
    sampling = {**recipe["sampling"], **values}
    if sampling["prompts"] is not None:  # what a file held, and the seeds that were drawn, are part of the recipe
        sampling["prompts"] = [dict(entry) for entry in entries]
    parallel = {**degrees.model_dump(), "sp": degrees.ulysses * degrees.ring}
    perf = {**recipe["perf"], "warmup": _warmup(recipe["perf"])}
    name = recipe["name"] or (Path(file).stem if file else _short(recipe["model"]["path"]))
    return {**recipe, "name": name, "extends": None, "sampling": sampling, "parallel": parallel, "perf": perf}


def _short(model: str) -> str:
    return model.rstrip("/").rpartition("/")[2].rpartition(":")[2]


def _warmup(perf: Mapping[str, Any]) -> int:
    """`auto`: one warm-up run where there are repeats to compare, none for a single picture."""
    return int(perf["repeats"] > 1) if perf["warmup"] == "auto" else perf["warmup"]


def _provenance(resolved: Mapping[str, Any], items: Items, loaded: Loaded) -> dict[str, str]:
    """Where each leaf of the resolved recipe came from."""
    origins = {f"sampling.{key}": origin for key, origin in items.shared.origins.items()}
    found: dict[str, str] = {}
    for key, _ in leaves(resolved):
        given = next((loaded.provenance[name] for name in ancestors(key) if name in loaded.provenance), None)
        if key in loaded.provenance or (given is not None and key not in origins):
            found[key] = str(given)
        else:
            found[key] = origins.get(key) or ("solved" if key.startswith("parallel.") else "default")
    return found


def _sha256(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _plan(
    resolved: dict[str, Any],
    checkpoint: Checkpoint,
    items: Items,
    degrees: Degrees,
    run: RunOptions,
    loras: tuple[LoraPlan, ...],
    provenance: Mapping[str, str],
    budget: BudgetPlan | None,
) -> Plan:
    pictures = digests([item.sampling for item in items.items])
    model = {**resolved["model"], "lora": lora_content(loras), "code": checkpoint.model.code_sha256}
    content = {**resolved, "model": model, "sampling": by_content(resolved["sampling"], pictures)}
    hashed = {key: value for key, value in content.items() if key not in UNHASHED}
    launch, perf = resolved["launch"], resolved["perf"]
    return Plan(
        name=resolved["name"],
        task=checkpoint.pipeline.task(checkpoint.configs),
        model=checkpoint.model,
        loras=loras,
        degrees=degrees,
        device=device_of(launch),
        devices=launch["devices"],
        stages=resolved["stages"],
        items=items.items,
        pictures=pictures,
        output=plan_output(resolved["output"], run, checkpoint.pipeline.makes),
        profile=run.profile,
        keep_going=run.keep_going,
        warmup=perf["warmup"],
        repeats=perf["repeats"],
        tag=perf["tag"],
        threads=_threads(launch["threads"], checkpoint),
        stall_timeout_s=launch["stall_timeout_s"],
        budget=budget,
        pin_memory=launch["pin_memory"],
        on_oom=launch["on_oom"],
        prompt_embeds_dir=launch["prompt_embeds_dir"],
        puts_encoders_off=_puts_encoders_off(resolved, loras),
        launcher=launch["launcher"],
        nodes=plan_nodes(launch),
        choices=(
            *_choices(resolved, checkpoint),
            *compile_choice(resolved, items.items, native=checkpoint.model.backend == "native"),
            *cache_choices(resolved["cache"], items.items),
            *budget_choices(budget, resolved),
        ),
        recipe=resolved,
        provenance=provenance,
        recipe_sha256=_sha256(hashed),
        workload_sha256=_sha256({key: content[key] for key in WORKLOAD}),
    )


def _puts_encoders_off(resolved: Mapping[str, Any], loras: Sequence[LoraPlan]) -> bool:
    """Where encodings are kept, and the encoders are as their files have them: what changes them needs them there."""
    asked = resolved["stages"]["text_encoding"]
    plain = {**TextEncoding().model_dump(mode="json"), "precision": asked["precision"]}
    stays = asked == plain and resolved["memory"]["budget"] is None
    return resolved["launch"]["prompt_embeds_dir"] is not None and not loras and stays


def _threads(asked: int | str, checkpoint: Checkpoint) -> int:
    if isinstance(asked, int):
        return asked
    if checkpoint.threads is not None:
        return checkpoint.threads
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MAX_AUTO_THREADS, usable)


def _choices(resolved: Mapping[str, Any], checkpoint: Checkpoint) -> tuple[Choice, ...]:
    """What `auto` means here, said before anything runs."""
    stages, launch = resolved["stages"], resolved["launch"]
    kept = checkpoint.family.keep_fp32
    chosen = [
        Choice(key=f"stages.{role}.precision", value="fp32", reason=kept[role])
        if role in kept
        else Choice(key=f"stages.{role}.precision", value=PRECISION, reason="what each platform is made for")
        for role in ("text_encoding", "denoising", "decoding")
        if stages[role]["precision"] == "auto"
    ]
    if (attention := attention_choice(stages["denoising"]["attention"], checkpoint, device_of(launch))) is not None:
        chosen.append(attention)
    if resolved["model"]["backend"] == "auto" and checkpoint.model.backend == "diffusers":
        reason = f"no family runs {checkpoint.model.pipeline_class} natively"
        chosen.append(Choice(key="model.backend", value="diffusers", reason=reason))
    if stages["decoding"]["tiling"] == "auto":
        tiled = stages["decoding"]["parallel"] == "tiled"
        reason = "stages.decoding.parallel deals them out" if tiled else "tiles are blended, which is not exact"
        chosen.append(Choice(key="stages.decoding.tiling", value="on" if tiled else "none", reason=reason))
    if launch["device"] == "auto" and launch["devices"] is not None:
        chosen.append(Choice(key="launch.device", value="cuda", reason="launch.devices are CUDA's"))
    elif launch["device"] == "auto":
        chosen.append(Choice(key="launch.device", value="cuda, else mps, else cpu", reason="the fastest present"))
    if launch["threads"] == "auto":
        own = f"usable CPUs, at most {MAX_AUTO_THREADS}, alike on one rank and many"
        reason = own if checkpoint.threads is None else "the checkpoint asks for it"
        chosen.append(Choice(key="launch.threads", value=str(_threads("auto", checkpoint)), reason=reason))
    return tuple(chosen)
