"""`difftool schema`: the JSON Schemas of the files and streams that others may read and write."""

import json
from collections.abc import Callable
from typing import Annotated, Any, Literal

import typer

from difftool.cli.panels import PanelCommand

Subject = Literal["recipe", "perf", "compare", "events"]


def register(app: typer.Typer) -> None:
    app.command("schema", cls=PanelCommand)(schema)


def schema(
    subject: Annotated[
        Subject,
        typer.Argument(metavar="SUBJECT", help="recipe, perf (dump), compare (report) or events (of --json)"),
    ],
) -> None:
    """Print the JSON Schema of recipes, dumps, reports or events."""
    typer.echo(json.dumps(SCHEMAS[subject](), indent=2, ensure_ascii=False))


def _recipe() -> dict[str, Any]:
    from difftool.recipe.schema import json_schema

    return json_schema()


def _perf() -> dict[str, Any]:
    from difftool.report.perf import json_schema

    return json_schema()


def _compare() -> dict[str, Any]:
    from difftool.report.compare import json_schema

    return json_schema()


def _events() -> dict[str, Any]:
    from difftool.launch.events import json_schema

    return json_schema()


SCHEMAS: dict[Subject, Callable[[], dict[str, Any]]] = {
    "recipe": _recipe,
    "perf": _perf,
    "compare": _compare,
    "events": _events,
}
