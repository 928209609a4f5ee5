"""`difftool models`: what can be run, from the families' facts, the built-in models and what this version applies."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from difftool.cli.completion import complete_model
from difftool.cli.fetch import fetch
from difftool.cli.panels import PanelCommand, PanelGroup
from difftool.cli.usage import UsageError
from difftool.recipe.flag_table import STAGE_OFFLOADS

if TYPE_CHECKING:
    from difftool.facts import Configs, FamilyFacts

JsonFlag = Annotated[bool, typer.Option("--json", help="print one JSON object")]
NameArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="a model of the list, or a family", autocompletion=complete_model)
]
OWN_LICENSE = "that of difftool"
PLANNED = (  # keys of features that `difftool plan` checks; of the others a run knows what this machine can do
    *("model", "memory", "parallel", "cache"),
    *("stages.denoising.attention", "stages.text_encoding.tp", *STAGE_OFFLOADS),
)
BY_PLAN, BY_WORKER = "checked by plan", "checked when it runs"
ACCELERATING = ("stages", "cache", "memory", "parallel", "model.lora", "model.components")  # recipe keys of features


@dataclass(frozen=True)
class Model:
    """One model that runs, with the sampling values it has where a recipe gives none."""

    name: str
    family: str
    title: str
    task: str
    pipeline_class: str
    license: str
    sampling: Mapping[str, object]
    size_multiple: int
    num_frames: tuple[int, int] | None  # (step, offset): a valid count is step * k + offset
    images: tuple[int, int]  # condition pictures, at least and at most
    extra: tuple[str, ...]
    features: Mapping[str, list[str] | None]  # recipe key -> the values that take effect; None: every one


def register(app: typer.Typer) -> None:
    models = typer.Typer(cls=PanelGroup, help="List the models that run and what each supports; fetch one.")
    models.callback(invoke_without_command=True)(choose)
    models.command("list", cls=PanelCommand)(show_list)
    models.command("show", cls=PanelCommand)(show_one)
    models.command("fetch", cls=PanelCommand)(fetch)
    app.add_typer(models, name="models")


def choose(context: typer.Context, *, as_json: JsonFlag = False) -> None:
    context.obj = as_json
    if context.invoked_subcommand is None:
        show_list(context, as_json=as_json)


def show_list(context: typer.Context, *, as_json: JsonFlag = False) -> None:
    """List every model that runs."""
    models = list(known_models())
    if as_json or context.obj:
        typer.echo(json.dumps({"models": [asdict(model) for model in models]}, indent=2, ensure_ascii=False))
    else:
        typer.echo(overview(models))


def show_one(context: typer.Context, name: NameArgument, *, as_json: JsonFlag = False) -> None:
    """Show what a model, or every model of a family, is and supports."""
    models = [model for model in known_models() if name.lower() in names(model)]
    if not models:
        raise UsageError(f"no model or family is called {name!r}", hint=way_out(name))
    if as_json or context.obj:
        typer.echo(json.dumps({"models": [asdict(model) for model in models]}, indent=2, ensure_ascii=False))
    else:
        typer.echo("\n\n".join(page(model) for model in models))


def names(model: Model) -> tuple[str, ...]:
    """What `show` takes for it, in lower case."""
    return (model.name.lower(), model.name.removeprefix("builtin:").lower(), model.family)


def way_out(name: str) -> str:
    from difflib import get_close_matches

    known = list(dict.fromkeys(known for model in known_models() for known in (model.name, model.family)))
    close = get_close_matches(name, known, n=2, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"there is {', '.join(known)}"


def known_models() -> Iterator[Model]:
    """The built-in ones first, then every published checkpoint that is known by name."""
    from difftool.planning.checkpoint import BUILTIN, builtin_models, family_for, find_checkpoint, known_checkpoints

    for name in builtin_models():
        found = find_checkpoint(BUILTIN + name)
        yield describe(
            found.model.name, found.family, found.model.pipeline_class, found.configs, found.defaults, OWN_LICENSE
        )
    for known in known_checkpoints():
        family = family_for(known.hub_id, known.pipeline_class, backend="auto")
        yield describe(known.hub_id, family, known.pipeline_class, known.configs, known.sampling, known.license)


def describe(
    name: str,
    family: "FamilyFacts",
    pipeline_class: str,
    configs: "Configs",
    own_sampling: Mapping[str, object],
    license_name: str,
) -> Model:
    """A key that the checkpoint's configs say it ignores is none of its settings."""
    from difftool.planning.foreign import NAME as FOREIGN

    pipeline = family.pipelines[pipeline_class]
    sampling = {**family.sampling, **pipeline.sampling, **family.configured_sampling(configs), **own_sampling}
    return Model(
        name=name,
        family=family.name,
        title=family.title,
        task=pipeline.task(configs),
        pipeline_class=pipeline_class,
        license=license_name,
        sampling={key: value for key, value in sampling.items() if family.understands(configs, key)},
        size_multiple=family.multiple(configs),
        num_frames=family.num_frames if pipeline.makes == "video" else None,
        images=pipeline.image_counts(configs),
        extra=(*family.extra, *pipeline.extra),
        features=features(
            family.axes,
            native=family.name != FOREIGN,
            sees=any(part.startswith("image_encoder") for part in (*pipeline.components, *pipeline.optional)),
        ),
    )


def features(axes: Sequence[str], *, native: bool, sees: bool = False) -> dict[str, list[str] | None]:
    """Recipe keys of accelerations with the values that take effect here, without those that only say off. Of the
    parallel ones those of the `axes`. A pipeline that is not native keeps its own components, each whole and
    on the device; one that `sees` has an image encoder.
    """
    from difftool.planning.availability import ANY, AVAILABLE, OFF

    found: dict[str, list[str] | None] = {}
    for key, values in AVAILABLE.items():
        if not any(key == section or key.startswith(f"{section}.") for section in ACCELERATING):
            continue
        whole = key in ("model.components", "stages.text_encoding.tp", "memory.budget") or key.endswith(".offload")
        if (whole and not native) or (key.startswith("stages.image_encoding.") and not sees):
            continue
        if key == "parallel":
            found |= {f"parallel.{axis}": None for axis in axes}
        elif values is ANY:
            found[key] = None
        elif set(values or ()) - set(OFF):
            found[key] = [str(value) for value in values or ()]
    return found


HEAD = ("MODEL", "FAMILY", "TASK", "SIZE", "STEPS", "LACKS")


def overview(models: list[Model]) -> str:
    """A line for each model, with the features that it lacks and another one has."""
    every = list(dict.fromkeys(kind for model in models for kind in kinds(model)))
    rows = [(*row(model), ", ".join(kind for kind in every if kind not in kinds(model))) for model in models]
    return table([HEAD, *rows])


def kinds(model: Model) -> list[str]:
    """Short names of its features, each once."""
    return list(dict.fromkeys(key.rpartition(".")[2] for key in model.features))


def row(model: Model) -> tuple[str, ...]:
    sides = [model.sampling.get(key) for key in ("width", "height", "num_frames")]
    size = "x".join(str(side) for side in sides if side is not None) or "-"
    return model.name, model.family, model.task, size, str(model.sampling.get("num_inference_steps", "-"))


def table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(cells[i]) for cells in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(f"{cell:<{w}}" for cell, w in zip(r, widths, strict=True)).rstrip() for r in rows)


def page(model: Model) -> str:
    """Everything of one model."""
    from difftool.planning.tree import ancestors

    head: list[tuple[str, Any]] = [
        ("family", f"{model.family} ({model.title})"),
        ("task", model.task),
        ("pipeline", model.pipeline_class),
        ("license", model.license or "not recorded"),
        ("sizes", f"multiples of {model.size_multiple}"),
        *frames(model),
        *pictures(model),
        ("extra", ", ".join(model.extra) or "none"),
    ]
    values = [(f"sampling.{key}", json.dumps(value, ensure_ascii=False)) for key, value in model.sampling.items()]
    applied = [
        (key, ", ".join(given) if given else BY_PLAN if set(PLANNED).intersection(ancestors(key)) else BY_WORKER)
        for key, given in model.features.items()
    ]
    return "\n".join(
        [model.name, *lines(head), "defaults", *lines(values), "takes effect in this version", *lines(applied)]
    )


def frames(model: Model) -> list[tuple[str, Any]]:
    return [] if model.num_frames is None else [("frames", "{}k + {}".format(*model.num_frames))]


def pictures(model: Model) -> list[tuple[str, Any]]:
    least, most = model.images
    return [("pictures", f"{least} to {most}" if least < most else str(most))] if most else []


def lines(pairs: list[tuple[str, Any]]) -> list[str]:
    return [f"  {key:<34}  {value}" for key, value in pairs]
