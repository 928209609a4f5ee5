"""The process a rank runs: a Plan in; media, a perf dump and a stream of events out."""

import argparse
import faulthandler
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

PROCESS_STARTED = time.perf_counter()


class Events:
    """Writes one JSON object a line to the launcher, and remembers where the run is for the report of a failure."""

    def __init__(self, stream: TextIO | None):
        self.stream = stream
        self.stage: str | None = None
        self.item: int | None = None
        self.item_id: str | None = None

    def __call__(self, event: str, **values: Any) -> None:
        if event == "item_started":
            self.item, self.item_id, self.stage = values["item"], values["id"], None
        elif event in ("stage_started", "load_started", "save_started"):
            self.stage = values.get("stage", event.partition("_")[0])
        elif event in ("stage_finished", "loaded", "output"):
            self.stage = None
        elif event == "item_finished":
            self.item = self.item_id = None
        if self.stream is not None:
            item = {} if self.item is None or "item" in values else {"item": self.item}
            self.stream.write(json.dumps({"event": event, **item, **values}) + "\n")
            self.stream.flush()

    def failed(self, error: BaseException, exit_code: int, hint: str | None) -> None:
        """The last event of a run that failed: what, where, and the traceback."""
        text = "".join(traceback.format_exception(error))
        sys.stderr.write(text)  # to the log
        kind, message = type(error).__name__, getattr(error, "message", None) or str(error) or type(error).__name__
        place = {"stage": self.stage, "item": self.item, "item_id": self.item_id}
        self("error", kind=kind, exit_code=exit_code, message=message, hint=hint, traceback=text, **place)


def run(plan_file: Path, events: Events) -> int:
    """Runs a plan; every failure is reported as an event. Returns the exit code."""
    from difftool.errors import DifftoolError

    try:
        from difftool.engine import run_plan

        run_plan(plan_file, events, PROCESS_STARTED)
    except DifftoolError as error:
        events.failed(error, error.exit_code, error.hint)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        memory = out_of_memory(error)
        hint = "use a smaller size, or fewer outputs at once" if memory else None
        events.failed(error, 5 if memory else 1, hint)
        return 5 if memory else 1
    events("finished")
    return 0


def out_of_memory(error: Exception) -> bool:
    """Whether the device or the host ran out, in any of the ways torch says so."""
    import torch

    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m difftool.worker PLAN.json --events-fd N`: what the launcher starts."""
    parser = argparse.ArgumentParser(prog="difftool.worker")
    parser.add_argument("plan", type=Path)
    parser.add_argument("--events-fd", type=int)
    args = parser.parse_args(argv)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # how the launcher asks where a stalled run hangs
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    from difftool.platforms.host import die_with_parent

    die_with_parent(os.getppid())
    stream = None if args.events_fd is None else os.fdopen(args.events_fd, "w")
    events = Events(stream)
    events("started", pid=os.getpid())
    return run(args.plan, events)


if __name__ == "__main__":
    sys.exit(main())
