"""Puts one model folder together from several: `assemble_checkpoint.py OUT CLASS NAME=FOLDER…`, then checks it.

    python scripts/assemble_checkpoint.py dots-model DotsPipeline transformer=a/weights vae=b/vae scheduler=b/scheduler

Each FOLDER (of a repository that was fetched before) becomes OUT/NAME, by hard links where the disk allows, else by
copies. model_index.json names the class of each component that its own config tells.
"""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path

from difftool.components.check import check_component
from difftool.errors import DifftoolError, WeightsError

LIBRARY_CONFIGS = ("config.json", "scheduler_config.json")


def link(source: str, target: str) -> str:
    """A hard link to the file itself, whatever links lead to it; a copy on another disk."""
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copy(source, target)
    return target


def entry_of(folder: Path) -> list[str] | None:
    """Library and class of a component folder, as model_index.json has them; None where no config tells."""
    for path in (folder / name for name in LIBRARY_CONFIGS):
        config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if "_class_name" in config:
            return ["diffusers", config["_class_name"]]
        if config.get("architectures"):
            return ["transformers", config["architectures"][0]]
    tokenizer = folder / "tokenizer_config.json"
    if tokenizer.is_file():
        return ["transformers", json.loads(tokenizer.read_text(encoding="utf-8"))["tokenizer_class"]]
    return None


def assemble(out: Path, pipeline_class: str, parts: dict[str, Path]) -> None:
    """Writes the folder. Raises WeightsError for a part that is missing or damaged, and for a folder that is there."""
    if out.exists():
        raise WeightsError(f"{out} is there already", hint="remove it, or choose another name")
    for name, folder in parts.items():
        if not folder.is_dir():
            raise WeightsError(f"{name}: no folder at {folder}", hint="fetch its repository first")
    index: dict[str, object] = {"_class_name": pipeline_class}
    for name, folder in parts.items():
        shutil.copytree(folder, out / name, copy_function=link)
        if (entry := entry_of(out / name)) is not None:
            index[name] = entry
            check_component(out / name, root=out)
    (out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description="Puts one model folder together from several.")
    parser.add_argument("out", type=Path)
    parser.add_argument("pipeline_class")
    parser.add_argument("parts", nargs="+", metavar="NAME=FOLDER")
    args = parser.parse_args()
    if wrong := [part for part in args.parts if "=" not in part]:
        parser.error(f"{wrong[0]}: write NAME=FOLDER")
    try:
        assemble(args.out, args.pipeline_class, {n: Path(f) for n, _, f in (p.partition("=") for p in args.parts)})
    except DifftoolError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return error.exit_code
    print(f"{args.out}: {args.pipeline_class} of {len(args.parts)} parts")
    return 0


if __name__ == "__main__":
    sys.exit(main())
