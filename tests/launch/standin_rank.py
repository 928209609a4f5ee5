"""A rank without a model: takes what the agent tells a rank, and behaves as its first argument says for its number.

`fail@1` makes rank 1 do what `fail` says, while the others stay in the middle of an item, and `hang@1+work` while they
go on with it. Nobody does anything before all are in the middle of theirs.
"""

import argparse
import faulthandler
import json
import os
import signal
import sys
import time
from pathlib import Path

from difftool.platforms.host import die_with_parent

parser = argparse.ArgumentParser()
parser.add_argument("behaviour")
parser.add_argument("plan")
parser.add_argument("--beyond", default="0:")
parser.add_argument("--ranks-folder", type=Path)
parser.add_argument("--parent", type=int)
TOLD = parser.parse_args()
HERE = int(os.environ["RANK"])
FIRST, _, BEYOND = TOLD.beyond.partition(":")
RANK, WORLD = int(FIRST) + HERE, int(BEYOND.partition(":")[0] or os.environ["WORLD_SIZE"])
BROKEN = ".broken.difftool-tmp"  # the rank that broke the rope has said so


def main() -> None:
    folder = TOLD.ranks_folder
    die_with_parent(TOLD.parent)
    pipe = os.fdopen(os.open(folder / f"answers-{HERE}", os.O_WRONLY), "w", buffering=1)

    def send(event: str, **fields: object) -> None:
        pipe.write(json.dumps({"event": event, **fields, "rank": RANK}) + "\n")

    faulthandler.register(signal.SIGUSR1)
    send("started", pid=os.getpid())
    for plan in [TOLD.plan] if TOLD.plan != "-" else told(folder):
        make(json.loads(Path(plan).read_text()), send)


def told(folder):
    """The plans that the launcher names."""
    for line in (folder / f"tasks-{HERE}").open():
        yield json.loads(line)["plan"]


def make(plan, send):
    what, _, who = TOLD.behaviour.partition("@")
    who, _, others = who.partition("+")
    item = plan["items"][RANK]
    place = {"item": RANK, "items": len(plan["items"]), "id": item["id"], "output": 0, "prompt": item["prompt"]}
    send("item_started", **place, seed=item["seed"], phase="sample", sample=0, steps=2)
    send("stage_started", item=RANK, stage="denoising")
    send("step", item=RANK, step=0, steps=2)
    folder = Path(plan["output"]["dir"])
    begun = [folder / f".{rank}.png.difftool-tmp" for rank in range(WORLD)]
    begun[RANK].write_bytes(b"half a picture")
    until_there(begun, send)
    BEHAVIOURS[what if who in ("", str(RANK)) else others or "wait"](folder, send)


def until_there(files, send):
    """Waits for what other ranks write, and is not silent meanwhile."""
    while not all(file.exists() for file in files):
        send("heartbeat")
        time.sleep(0.05)


def succeed(folder, send):
    send("item_finished", item=RANK, total_ms=50.0)
    send("finished")


def raise_error(folder, send, *, lost_peer=False):
    if lost_peer:
        until_there([folder / BROKEN], send)
    message = "Connection closed by peer" if lost_peer else "the rope broke"
    place = {"stage": "denoising", "item": RANK, "item_id": ("red", "blue", "third", "fourth")[RANK]}
    send("error", kind="ValueError", exit_code=1, message=message, **place, time=time.time(), lost_peer=lost_peer)
    if not lost_peer:
        (folder / BROKEN).touch()
        time.sleep(0.5)  # so that both are heard, the consequence too
    sys.exit(1)


def wait(folder, send):
    """Ends like a worker whose peer is gone, or that is asked to end."""
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(130))
    if TOLD.behaviour.startswith("error"):
        raise_error(folder, send, lost_peer=True)
    time.sleep(60)


def hang_there(folder, send):
    time.sleep(60)


def work(folder, send):
    for step in range(600):
        send("step", item=RANK, step=step, steps=600)
        time.sleep(0.1)


def work_for(seconds):
    def behave(folder, send):
        for step in range(steps := 10 * seconds):
            send("step", item=RANK, step=step, steps=steps)
            time.sleep(0.1)
        succeed(folder, send)

    return behave


def wait_deaf(folder, send):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(60)


def end_by(number):
    def behave(folder, send):
        print(f"last words of rank {RANK}", flush=True)
        os.kill(os.getpid(), number)
        time.sleep(60)

    return behave


def leave_with_3(folder, send):
    print(f"last words of rank {RANK}", flush=True)
    os._exit(3)


BEHAVIOURS = {
    "succeed": succeed,
    "work-a-moment": work_for(1),
    "work-a-while": work_for(5),
    "error": raise_error,
    "kill": end_by(signal.SIGKILL),
    "segfault": end_by(signal.SIGSEGV),
    "exit-3": leave_with_3,
    "wait": wait,
    "deaf": wait_deaf,
    "hang": hang_there,
    "work": work,
    "stop": end_by(signal.SIGSTOP),
}

if __name__ == "__main__":
    main()
