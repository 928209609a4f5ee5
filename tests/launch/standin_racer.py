"""A worker without a model whose times were recorded: `standin_racer.py TIMES.json - --events-fd N`.

TIMES.json has for each tag of a plan, or `others`, the time of its repeats in ms, or what it fails with; the last one
goes on.
"""

import json
import os
import sys
from pathlib import Path

from launch.standin_worker import perf_dump, report, told


def main() -> None:
    times = json.loads(Path(sys.argv[1]).read_text())
    events = os.fdopen(int(sys.argv[-1]), "w", buffering=1)

    def send(event: str, **fields: object) -> None:
        events.write(json.dumps({"event": event, **fields}) + "\n")

    send("started", pid=os.getpid())
    send("loaded", seconds=0.5)
    for file in told():
        make(json.loads(Path(file).read_text()), Path(file).parent, times, send)


def make(plan, records, times, send):
    todo = json.loads((records / "todo.json").read_text())
    (repeat,) = todo["repeats"]
    recorded = times.get(plan["tag"], times.get("others"))
    if recorded == "memory":
        report("MemoryError", 5, "MemoryError")(plan, records, send)
    total = recorded[min(repeat, len(recorded) - 1)]
    dump = perf_dump(plan, records, total)
    sample = {**dump["samples"][0], "repeat": repeat, "outputs": []}
    sample["stages_ms"] = {"denoising": total - 60.0, "decoding": 60.0}
    sample["peak_memory_mb"] = 300.0
    recipe = {"name": plan["name"], "sha256": plan["recipe_sha256"], "workload_sha256": plan["workload_sha256"]}
    dump["recipe"] = {**recipe, "resolved": plan["recipe"], "provenance": {}}
    dump |= {"samples": [sample], "stages_ms": sample["stages_ms"], "tag": plan["tag"], "meta": {"model": "m"}}
    (records / "perf.json").write_text(json.dumps(dump))
    send("perf", path=str(records / "perf.json"))
    send("finished")


if __name__ == "__main__":
    main()
