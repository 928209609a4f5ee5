"""`difftool doctor`: what this machine can do, tried out rather than guessed."""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from difftool.cli.panels import PanelCommand
from difftool.cli.usage import UsageError

if TYPE_CHECKING:
    from difftool.cli.machine import Folder, Machine, Package

CANNOT_RUN = 3
DAMAGED = 4
NOT_YET = "not available yet"
PRECISIONS = ("fp32", "fp16", "bf16", "fp8")
Line = tuple[str, str]


def register(app: typer.Typer) -> None:
    app.command("doctor", cls=PanelCommand)(doctor)


ModelOption = Annotated[
    str | None, typer.Option("--model", metavar="MODEL", help="examine this folder, hub id or file without loading it")
]
CodeOption = Annotated[
    str | None, typer.Option("--code", metavar="FOLDER", help="of the model's family, as model.code of a recipe")
]


def doctor(
    *,
    model: ModelOption = None,
    code: CodeOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Say what this machine can do, or check a model's files."""
    if model is not None:
        return examine_model(model, code, as_json=as_json)
    if code is not None:
        raise UsageError("--code goes with --model", hint="difftool doctor --model FOLDER --code FAMILY")
    from difftool.cli import machine
    from difftool.cli.main import version

    if sys.stderr.isatty():
        print("tries out torch and its kernels; this takes a moment", file=sys.stderr)
    found = machine.examine(version(), os.environ)
    typer.echo(json.dumps(asdict(found), indent=2, ensure_ascii=False) if as_json else render(found))
    if found.faults:
        raise typer.Exit(CANNOT_RUN)


def examine_model(model: str, code: str | None, *, as_json: bool) -> None:
    from difftool.cli import checkpoint

    if sys.stderr.isatty():
        print("reads every weight; this takes as long as reading the files", file=sys.stderr)
    found = checkpoint.examine(model, os.environ, code)
    typer.echo(json.dumps(asdict(found), indent=2) if as_json else checkpoint.render(found))
    if found.faults:
        raise typer.Exit(DAMAGED)


def render(machine: "Machine") -> str:
    """The report, the verdict first."""
    sections = {
        "machine": host_lines(machine),
        "packages": [(package.name, package_text(package)) for package in machine.packages],
        "torch": torch_lines(machine),
        "attention": attention_lines(machine),
        "variables": [(v.name, f"{v.value}  ({v.remark})") for v in machine.variables],
    }
    shown = [(title, list(lines)) for title, lines in sections.items()]
    return "\n".join([*verdict(machine), *(text for title, lines in shown if lines for text in section(title, lines))])


def verdict(machine: "Machine") -> list[str]:
    if machine.faults:
        return [f"difftool {machine.difftool} cannot run here", *(f"  {fault}" for fault in machine.faults)]
    return [f"difftool {machine.difftool} runs here, on {machine.torch.found['torch']['auto']}"]


def section(title: str, lines: list[Line]) -> list[str]:
    width = max(13, *(len(name) for name, _ in lines if len(name) <= 24))
    return ["", title, *(f"  {name:<{width}}  {text}" for name, text in lines)]


def host_lines(machine: "Machine") -> Iterator[Line]:
    yield "python", f"{machine.python}, {machine.executable}"
    yield "platform", machine.platform
    yield "cpu", f"{machine.usable_cores} usable cores, {gib(machine.memory_mb)} of memory"
    yield "temporary", folder_text(machine.temporary)
    yield "hub cache", folder_text(machine.hub_cache) + (", offline" if machine.hub_offline else "")
    video, nsys = machine.ffmpeg, machine.nsys
    yield "ffmpeg", f"no mp4 or gif: {video['error']}" if "error" in video else f"{video['version']}, {video['path']}"
    yield "nsys", f"no --tool nsys: {nsys['error']}" if "error" in nsys else f"{nsys['version']}, {nsys['path']}"


def folder_text(folder: "Folder") -> str:
    return f"{folder.path}, {gib(folder.free_mb)} free"


def gib(mb: int) -> str:
    return f"{mb / 1024:.1f} GiB"


def package_text(package: "Package") -> str:
    if package.fault:
        return f"{package.version or ''}  {package.fault}: {package.install}".strip()
    if package.gives is None:
        return str(package.version)
    use = f"for {package.gives}" + ("" if package.available else f", {NOT_YET}")
    return f"{package.version}, {use}" if package.version else f"not installed; {use}: {package.install}"


def torch_lines(machine: "Machine") -> Iterator[Line]:
    """Devices, ranks and the compiler, as far as torch answered."""
    found = machine.torch.found
    if machine.torch.fault:
        yield "ended early", machine.torch.fault
    if "torch" in found:
        yield from build_lines(machine)
    if "devices" in found:
        for device in found["devices"]["devices"]:
            yield device["name"], device_text(device)
        pairs = found["devices"]["without_peer_access"]
        if pairs:
            yield "no peer access", ", ".join(f"{one} to {other}" for one, other in pairs)
    for name, fault in found.get("collectives", {}).items():
        yield name, f"no: {fault}" if fault else "works"
    if "compile" in found:
        compiled = found["compile"]
        fault = compiled.get("error")
        yield "torch.compile", f"no: {fault}" if fault else f"works; {compiled['seconds']} s for a small function"


def build_lines(machine: "Machine") -> Iterator[Line]:
    build = machine.torch.found["torch"]
    driver = f", driver {build['driver']}" if build["driver"] else ""
    yield "build", f"{build['version']}, {build['runtime'] or 'for CPUs'}{driver}"
    if build["driver"] and not build["runtime"]:
        yield "no gpu", "there is an NVIDIA driver, and this torch is built without CUDA: install one with it"
    elif build["no_accelerator"]:
        yield "no gpu", build["no_accelerator"]


def device_text(device: dict[str, object]) -> str:
    """`NVIDIA H100, capability 9.0, 79.1 of 79.6 GiB free; fp32, fp16, bf16, fp8` and why a precision is missing."""
    facts = [str(device["model"])]
    if "capability" in device:
        facts.append(f"capability {device['capability']}")
    memory, free = device.get("memory_mb"), device.get("free_mb")
    if isinstance(memory, int):
        facts.append(f"{free / 1024:.1f} of {gib(memory)} free" if isinstance(free, int) else gib(memory))
    refused = device["refused_precisions"]
    assert isinstance(refused, dict), device
    faults = "".join(f"; no {name}: {fault}" for name, fault in refused.items())
    return f"{', '.join(facts)}; {', '.join(name for name in PRECISIONS if name not in refused)}{faults}"


def attention_lines(machine: "Machine") -> Iterator[Line]:
    """Each value of `stages.denoising.attention`, tried out."""
    for name, found in machine.torch.found.items():
        if name.startswith("attention "):
            yield name.removeprefix("attention "), _works(found)


def _works(found: Mapping[str, Any]) -> str:
    if "error" in found:
        return f"no: {found['error']}" + (f"; install: {found['install']}" if "install" in found else "")
    by = f", by kernel {found['kernel']}" if "kernel" in found else ""
    return f"works{by}" + (f": {found['because']}" if "because" in found else "")
