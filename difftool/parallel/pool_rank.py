"""One rank of a pool: waits for tasks, calls the function each one names, answers with its result or its failure.

A task is a line `{"task": 3, "world": 2, "call": "package.module:function", "arguments": {…}}`; the function is called
as `function(world, **arguments)` inside a process group of `world` ranks, and returns what JSON can hold.
"""

import argparse
import faulthandler
import importlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from difftool.parallel.group import joined, leave, lost_peer
from difftool.parallel.world import World, answers_pipe, read_world, tasks_pipe
from difftool.platforms.host import die_with_parent


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="difftool.parallel.pool_rank")
    parser.add_argument("--ranks-folder", type=Path, required=True)
    parser.add_argument("--parent", type=int, required=True)
    args = parser.parse_args(argv)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    die_with_parent(args.parent)
    world = read_world(os.environ, args.ranks_folder)
    with open(answers_pipe(world), "w", buffering=1) as answers, open(tasks_pipe(world)) as tasks:
        answers.write(json.dumps({"event": "started", "pid": os.getpid()}) + "\n")
        for line in tasks:
            task = json.loads(line)
            answers.write(json.dumps({"task": task["task"], **perform(task, world)}) + "\n")


def perform(task: Mapping[str, Any], pool: World) -> dict[str, Any]:
    """`{"result": …}`, or `{"error": {…}, "lost_peer": …}` for whatever went wrong."""
    try:
        module, _, name = task["call"].partition(":")
        function = getattr(importlib.import_module(module), name)
        world = replace(pool, size=task["world"])
        with joined(world, "cpu", name=f"group-{task['task']}"):
            result = function(world, **task["arguments"])
            return {"result": json.loads(json.dumps(result))}
    except Exception as error:
        leave()
        text = "".join(traceback.format_exception(error))
        words = {"kind": type(error).__name__, "message": str(error), "traceback": text}
        return {"error": words, "lost_peer": lost_peer(error)}


if __name__ == "__main__":
    sys.exit(main())
