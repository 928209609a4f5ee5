"""A worker without a model: speaks the event protocol and then behaves, or misbehaves, as its first argument says.

One that stays behaves as the words of `succeed,kill` say: one for each plan, and the last for all that follow.
"""

import faulthandler
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from difftool.platforms.host import die_with_parent


def main() -> None:
    behaviours, plan_file, _, descriptor = sys.argv[1:]
    events = os.fdopen(int(descriptor), "w", buffering=1)

    def send(event: str, **fields: object) -> None:
        events.write(json.dumps({"event": event, **fields}) + "\n")

    faulthandler.register(signal.SIGUSR1)
    send("started", pid=os.getpid())
    send("load_started")
    send("component_loaded", name="transformer", detail="2.8M bf16 -> fp32", seconds=0.25)
    send("loaded", seconds=0.5)
    behaviour, *later = behaviours.split(",")
    for file in [plan_file] if plan_file != "-" else told():
        BEHAVIOURS[behaviour](json.loads(Path(file).read_text()), Path(file).parent, send)
        behaviour, *later = later or [behaviour]


def told():
    """The plans that the launcher names on stdin; what is written between two goes to the second one's log."""
    die_with_parent(os.getppid())
    for line in sys.stdin:
        task = json.loads(line)
        for descriptor in (1, 2):
            os.dup2(os.open(task["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
        print("makes", task["plan"], flush=True)
        yield task["plan"]


def succeed(plan, records, send, quality=None):
    folder = Path(plan["output"]["dir"])
    total = 0.0
    todo = json.loads((records / "todo.json").read_text())
    tasks = todo["tasks"]
    for number, item in enumerate(plan["items"]):
        if not tasks[number]["make"]:
            continue
        begin(plan, send, number)
        for stage, ms in (("text_encoding", 1.5), ("denoising", 40.0), ("decoding", 8.5)):
            send("stage_started", item=number, stage=stage)
            for step in range(2) if stage == "denoising" else ():
                send("step", item=number, step=step, steps=2)
            send("stage_finished", item=number, stage=stage, ms=ms)
        send("save_started", item=number, stage="save")
        if plan["output"]["save"]:
            media = folder / (plan["output"]["file"] or f"{item['id']}.png")
            media.write_bytes(f"{item['prompt']} {item['seed']}".encode())
            data = media.read_bytes()
            sha256 = hashlib.sha256(data).hexdigest()
            send("output", item=number, path=str(media.absolute()), sha256=sha256, size=len(data))
        if todo["raw_dir"]:
            write_raw(Path(todo["raw_dir"]), number)
        send("item_finished", item=number, total_ms=50.0)
        total += 50.0
    perf = records / "perf.json"
    perf.write_text(json.dumps(perf_dump(plan, perf.parent, total) | {"quality": quality}))
    send("perf", path=str(perf.absolute()))
    send("finished")


def write_raw(folder, number):
    """A gray picture of 2 x 2 pixels for item 0, a lighter one for each that follows."""
    import numpy as np

    folder.mkdir(exist_ok=True)
    np.savez(folder / f"{number}.npz", pixels=np.full((3, 2, 2), (50 + number) / 255, np.float32))


def make_black(plan, records, send):
    """Everything is made, and the second picture is black."""
    outputs = [{"item": 0, "psnr": 38.21, "ssim": 0.981, "max_abs": 0.2}, {"item": 1, "tripwires": ["black"]}]
    wanted = {key: plan["quality"][key] for key in ("tier", "reference")}
    reasons = ["output 0 of item 1 fails the tripwire black", "one", "more", "and the last"]
    succeed(plan, records, send, {**wanted, "per_output": outputs, "passed": False, "reasons": reasons})


def fail_some(plan, records, send):
    """The first item fails, the others are made."""
    begin(plan, send)
    place = {"item": 0, "item_id": plan["items"][0]["id"], "stage": "denoising"}
    send("item_failed", kind="KeyError", message="'rope'", traceback=TRACEBACK, **place)
    todo = json.loads((records / "todo.json").read_text())
    todo["tasks"][0]["make"] = False
    (records / "todo.json").write_text(json.dumps(todo))
    succeed(plan, records, send)


def perf_dump(plan, folder, total):
    outputs = [
        {"path": os.path.relpath(media, folder), "sha256": "0" * 64, "width": 64, "height": 64}
        for media in sorted(Path(plan["output"]["dir"]).glob("*.png"))
    ]
    sample = {
        "item": 0,
        "id": "0",
        "repeat": 0,
        "seed": 7,
        "total_ms": total,
        "save_ms": 1.0,
        "stages_ms": {"denoising": total},
        "denoise_steps_ms": [],
        "memory_checkpoints": {},
        "peak_memory_mb": 0.0,
        "peak_host_memory_mb": 1.0,
        "outputs": outputs,
    }
    recipe = {"name": "circles", "sha256": "0" * 64, "workload_sha256": "1" * 64, "resolved": {}, "provenance": {}}
    measure = {
        "warmup": 0,
        "warmup_ms": [],
        "repeats": 1,
        "order": "sequential",
        "clock": "perf_counter",
        "synced": "once per stage",
        "load_ms": 500.0,
        "cold_start_ms": 600.0,
        "accounting_error_pct": 0.0,
    }
    return {
        "schema": "difftool.perf/v1",
        "status": "ok",
        "timestamp": "2026-11-21T11:00:00Z",
        "request_id": "20261121T110000Z-000000",
        "commit_hash": "unknown",
        "tag": None,
        "total_duration_ms": total,
        "steps": [],
        "denoise_steps_ms": [],
        "memory_checkpoints": {},
        "meta": {},
        "stages_ms": {},
        "run": {"id": "20261121T110000Z-000000", "difftool": "0.1.0", "world_size": 1},
        "recipe": recipe,
        "env": {},
        "measure": measure,
        "samples": [sample],
        "summary": {},
        "throughput": None,
        "ranks": [],
        "effective": {},
        "warnings": [],
    }


def begin(plan, send, number=0):
    item = plan["items"][number]
    send(
        "item_started",
        item=number,
        items=len(plan["items"]),
        id=item["id"],
        output=item["output"],
        prompt=item["prompt"],
        seed=item["seed"],
        phase="sample",
        sample=0,
        steps=2,
    )


def in_denoising(plan, send):
    begin(plan, send)
    send("stage_started", item=0, stage="denoising")
    send("step", item=0, step=0, steps=2)
    Path(plan["output"]["dir"], ".half.png.difftool-tmp").write_bytes(b"half a picture")


def report(kind, exit_code, message, hint=None, traceback=None):
    def behave(plan, records, send):
        in_denoising(plan, send)
        place = {"stage": "denoising", "item": 0}
        failed = {"status": "failed", "error": {"kind": kind, "message": message, **place}}
        (records / "perf.json").write_text(json.dumps({**perf_dump(plan, records, 0.0), **failed}))
        send(
            "error",
            kind=kind,
            exit_code=exit_code,
            message=message,
            hint=hint,
            stage="denoising",
            item=0,
            item_id="red",
            traceback=traceback,
        )
        sys.exit(exit_code)

    return behave


def end_by(number):
    def behave(plan, records, send):
        in_denoising(plan, send)
        print("last words of the worker", flush=True)
        os.kill(os.getpid(), number)
        time.sleep(60)

    return behave


def leave_with_3(plan, records, send):
    in_denoising(plan, send)
    print("\x1b[31mlast words of the worker\x1b[0m", flush=True)
    os._exit(3)


def leave_early(plan, records, send):
    sys.exit(0)


def fail_at_import(plan, records, send):
    import no_such_module_of_difftool  # noqa: F401


def hang_in_the_denoiser(plan, records, send):
    in_denoising(plan, send)
    time.sleep(60)


def hang_deaf(plan, records, send):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    hang_in_the_denoiser(plan, records, send)


def hang_with_grandchild(plan, records, send):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    (records / "grandchild").write_text(str(child.pid))
    hang_in_the_denoiser(plan, records, send)


def leave_grandchild(plan, records, send):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    (records / "grandchild").write_text(str(child.pid))
    succeed(plan, records, send)


def crash_after_the_end(plan, records, send):
    succeed(plan, records, send)
    os.kill(os.getpid(), signal.SIGSEGV)


def need_streamed_blocks(plan, records, send):
    """Memory lasts for the first item; for the second, only where the denoiser's blocks are streamed."""
    asked = plan["stages"]["denoising"]["offload"]
    if asked == "layerwise" or (isinstance(asked, dict) and asked["name"] == "layerwise"):
        succeed(plan, records, send)
        return
    todo = json.loads((records / "todo.json").read_text())
    if todo["tasks"][0]["make"]:
        media = Path(plan["output"]["dir"], f"{plan['items'][0]['id']}.png")
        media.write_bytes(b"the first one")
        begin(plan, send)
        sha256 = hashlib.sha256(b"the first one").hexdigest()
        send("output", item=0, path=str(media.absolute()), sha256=sha256, size=13)
        send("item_finished", item=0, total_ms=50.0)
    begin(plan, send, 1)
    send("stage_started", item=1, stage="denoising")
    place = {"stage": "denoising", "item": 1, "item_id": plan["items"][1]["id"]}
    send("error", kind="OutOfMemoryError", exit_code=5, message="a card ran out of memory", hint="less", **place)
    sys.exit(5)


def print_environment(plan, records, send):
    print(json.dumps(dict(os.environ)))
    print("stdin:", repr(sys.stdin.read()), file=sys.stderr)
    succeed(plan, records, send)


def garble(plan, records, send):
    send("started", pid="not a number")
    time.sleep(60)


def cut_a_line(plan, records, send):
    send("heartbeat")
    os.write(int(sys.argv[-1]), b'{"event": "finis')
    os._exit(3)


TRACEBACK = "Traceback (most recent call last):\n  File \"denoising.py\", line 7, in step\nKeyError: 'rope'"
BEHAVIOURS = {
    "succeed": succeed,
    "black": make_black,
    "fail-some": fail_some,
    "weights": report("WeightsError", 4, "transformer.safetensors ends early", "fetch it again"),
    "recipe": report("RecipeError", 2, "the checkpoint has no negative branch"),
    "memory": report("MemoryError", 5, "MemoryError", "use a smaller size"),
    "need-streamed-blocks": need_streamed_blocks,
    "bug": report("KeyError", 1, "'rope'", traceback=TRACEBACK),
    "exit-3": leave_with_3,
    "exit-0": leave_early,
    "import-error": fail_at_import,
    "segfault": end_by(signal.SIGSEGV),
    "kill": end_by(signal.SIGKILL),
    "hang": hang_in_the_denoiser,
    "deaf": hang_deaf,
    "hang-with-grandchild": hang_with_grandchild,
    "leave-grandchild": leave_grandchild,
    "crash-after-the-end": crash_after_the_end,
    "environment": print_environment,
    "garble": garble,
    "cut-a-line": cut_a_line,
}

if __name__ == "__main__":
    main()
