"""`difftool models`: what can be run, from the families' facts, the built-in models and what this version applies."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from difftool.cli.panels import PanelCommand, PanelGroup
from difftool.cli.usage import UsageError

if TYPE_CHECKING:
    from difftool.facts import FamilyFacts

JsonFlag = Annotated[bool, typer.Option("--json", help="print one JSON object")]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="a model of the list, or a family")]
OWN_LICENSE = "that of difftool"
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
    extra: tuple[str, ...]
    features: Mapping[str, list[str] | None]  # recipe key -> the values that take effect; None: every one


def register(app: typer.Typer) -> None:
    models = typer.Typer(cls=PanelGroup, help="List the models that run, and what each supports.")
    models.callback(invoke_without_command=True)(choose)
    models.command("list", cls=PanelCommand)(show_list)
    models.command("show", cls=PanelCommand)(show_one)
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
        typer.echo(table([HEAD, *(row(model) for model in models)]))


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
    """The built-in ones first, then every published checkpoint of every family."""
    from difftool.families.index import all_families
    from difftool.planning.checkpoint import BUILTIN, builtin_models, find_checkpoint

    for name in builtin_models():
        found = find_checkpoint(BUILTIN + name, None, None)
        yield describe(
            found.model.name, found.family, found.model.pipeline_class, found.transformer, found.defaults, OWN_LICENSE
        )
    for family in all_families():
        for known in family.checkpoints:
            yield describe(known.hub_id, family, known.pipeline_class, known.transformer, known.sampling, known.license)


def describe(
    name: str,
    family: "FamilyFacts",
    pipeline_class: str,
    transformer: Mapping[str, object],
    own_sampling: Mapping[str, object],
    license_name: str,
) -> Model:
    """A guidance key that the transformer's config does not know is none of its settings."""
    sampling = {**family.sampling, **own_sampling}
    ignored = [key for key, flag in family.guidance.items() if flag is not None and not transformer.get(flag)]
    return Model(
        name=name,
        family=family.name,
        title=family.title,
        task=family.pipeline_classes[pipeline_class],
        pipeline_class=pipeline_class,
        license=license_name,
        sampling={key: value for key, value in sampling.items() if key not in ignored},
        size_multiple=family.size_multiple,
        extra=tuple(family.extra),
        features=features(),
    )


def features() -> dict[str, list[str] | None]:
    """Recipe keys of accelerations with the values that take effect here, without those that only say off."""
    from difftool.facts import AXES
    from difftool.planning.availability import ANY, AVAILABLE, OFF, UNAVAILABLE_AXES

    found: dict[str, list[str] | None] = {}
    for key, values in AVAILABLE.items():
        if not any(key == section or key.startswith(f"{section}.") for section in ACCELERATING):
            continue
        if key == "parallel":
            found |= {f"parallel.{axis}": None for axis in AXES if axis not in UNAVAILABLE_AXES}
        elif values is ANY:
            found[key] = None
        elif set(values or ()) - set(OFF):
            found[key] = [str(value) for value in values or ()]
    return found


HEAD = ("MODEL", "FAMILY", "TASK", "SIZE", "STEPS", "FEATURES")


def row(model: Model) -> tuple[str, ...]:
    sampling = model.sampling
    size = f"{sampling.get('width', '-')}x{sampling.get('height', '-')}"
    if sampling.get("num_frames") is not None:
        size += f"x{sampling['num_frames']}"
    kinds = dict.fromkeys(key.rpartition(".")[2] for key in model.features)
    return model.name, model.family, model.task, size, str(sampling.get("num_inference_steps", "-")), ", ".join(kinds)


def table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(cells[i]) for cells in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(f"{cell:<{w}}" for cell, w in zip(r, widths, strict=True)).rstrip() for r in rows)


def page(model: Model) -> str:
    """Everything of one model."""
    head: list[tuple[str, Any]] = [
        ("family", f"{model.family} ({model.title})"),
        ("task", model.task),
        ("pipeline", model.pipeline_class),
        ("license", model.license or "not recorded"),
        ("sizes", f"multiples of {model.size_multiple}"),
        ("extra", ", ".join(model.extra) or "none"),
    ]
    values = [(f"sampling.{key}", json.dumps(value)) for key, value in model.sampling.items()]
    applied = [(key, ", ".join(given) if given else "every value") for key, given in model.features.items()]
    return "\n".join(
        [model.name, *lines(head), "defaults", *lines(values), "takes effect in this version", *lines(applied)]
    )


def lines(pairs: list[tuple[str, Any]]) -> list[str]:
    return [f"  {key:<34}  {value}" for key, value in pairs]
