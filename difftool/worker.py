"""The process a rank runs: a Plan in, or one after the other; media, perf dumps and a stream of events out."""

import argparse
import faulthandler
import fcntl
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from difftool.parallel.world import World, answers_pipe, read_beyond, read_world, tasks_pipe

PROCESS_STARTED = time.perf_counter()
STREAM = "-"  # in place of a plan
SPOKEN_BY_ALL = ("started", "heartbeat", "finished", "error")


class Events:
    """Writes one JSON object a line to the launcher, and remembers where the run is for the report of a failure."""

    def __init__(self, stream: TextIO | None, world: World):
        self.stream = stream
        self.world = world
        self.stage: str | None = None
        self.item: int | None = None
        self.item_id: str | None = None
        self.leads = True  # of the ranks that make an item together, whether this one speaks of it

    def __call__(self, event: str, **values: Any) -> None:
        if event == "item_started":
            self.item, self.item_id, self.stage = values["item"], values["id"], None
        elif event in ("stage_started", "load_started", "save_started"):
            self.stage = values.get("stage", event.partition("_")[0])
        elif event in ("stage_finished", "loaded", "output"):
            self.stage = None
        elif event in ("item_finished", "item_failed"):
            self.item = self.item_id = self.stage = None
        if self.stream is not None and (self.leads or event in SPOKEN_BY_ALL):
            item = {} if self.item is None or "item" in values else {"item": self.item}
            rank = {} if self.world.folder is None else {"rank": self.world.rank}
            self.stream.write(json.dumps({"event": event, **values, **item, **rank}) + "\n")
            self.stream.flush()

    def attempt(self, make: Callable[[], object], *, keep_going: bool) -> Mapping[str, Any] | None:
        """Makes one item. Where `keep_going` allows it, a failure is reported as an event and returned."""
        try:
            make()
        except Exception as error:
            if not keep_going or ends_the_run(error):
                raise
            values = {**describe(error), "stage": self.stage, "item": self.item}
            text = "".join(traceback.format_exception(error))
            sys.stderr.write(text)  # to the log
            self("item_failed", item_id=self.item_id, hint=getattr(error, "hint", None), traceback=text, **values)
            return values
        return None

    def failed(self, error: BaseException, exit_code: int, hint: str | None) -> None:
        """The last event of a run that failed: what, where, and the traceback."""
        text = "".join(traceback.format_exception(error))
        many = {} if self.world.folder is None else {"time": time.time(), "lost_peer": is_lost_peer(error)}
        # to the log, where the words of the rank that is gone should stay the last
        sys.stderr.write("another rank is gone\n" if many.get("lost_peer") else text)
        place = {"stage": self.stage, "item": self.item, "item_id": self.item_id}
        self("error", exit_code=exit_code, hint=hint, traceback=text, **describe(error), **place, **many)


def describe(error: BaseException) -> dict[str, str]:
    kind = type(error).__name__
    return {"kind": kind, "message": getattr(error, "message", None) or str(error) or kind}


def ends_the_run(error: Exception) -> bool:
    """Whether every other item would fail alike: the weights, the plan, the storage or the device is at fault.

    Memory is not: the next item may be smaller.
    """
    import torch

    from difftool.errors import CompositionError, OutputError, PlanError, WeightsError

    kinds = WeightsError | PlanError | CompositionError | OutputError | torch.AcceleratorError
    return isinstance(error, kinds) or is_lost_peer(error)


def run(plan_files: Iterable[Path], events: Events) -> int:
    """Runs the plans in turn, with the model that the first one loads. The first failure is reported as an event and
    ends it. Returns the exit code.
    """
    from difftool.errors import DifftoolError

    try:
        from difftool.engine import Kept, run_plan

        with ExitStack() as ends:
            kept = Kept(ends)
            for number, plan_file in enumerate(plan_files):
                started = time.perf_counter() if number else PROCESS_STARTED
                run_plan(plan_file, events, started, events.world, kept)
                events("finished")
    except DifftoolError as error:
        events.failed(error, error.exit_code, error.hint)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        memory = ran_out_of_memory(error)
        hint = "use a smaller size, or fewer outputs at once" if memory else None
        events.failed(error, 5 if memory else 1, hint)
        return 5 if memory else 1
    return 0


def plan_files(plan: str, world: World) -> Iterator[Path]:
    """The one plan; for `-` those that the launcher names while it wants more, each with the log that goes with it."""
    if plan != STREAM:
        yield from locked(Path(plan))
        return
    with sys.stdin if world.folder is None else tasks_pipe(world).open() as lines:
        for line in lines:
            task = json.loads(line)
            log = os.open(task["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            os.dup2(log, sys.stdout.fileno())
            os.dup2(log, sys.stderr.fileno())
            os.close(log)
            yield from locked(Path(task["plan"]))


def locked(plan: Path) -> Iterator[Path]:
    """The plan, with a lock that all its ranks share: while one of them makes it, the run cannot be taken up."""
    with plan.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield plan


def ran_out_of_memory(error: Exception) -> bool:
    """Whether the device or the host ran out, outside what a remedy is known for."""
    from difftool.profiling.exhausted import ran_out

    return ran_out(error)


def is_lost_peer(error: BaseException) -> bool:
    """Whether another rank's end is what this one fails by."""
    from difftool.parallel.group import lost_peer

    return lost_peer(error)


def end_once(number: int, frame: FrameType | None) -> None:
    """Ends the run like Ctrl-C; later requests must not break what is being tidied up."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m difftool.worker PLAN.json` with where its events go: a descriptor for one, a folder for many ranks.

    With `-` it stays, and is told its plans, lines of `{"plan": …, "log": …}`, on stdin or (many ranks) through pipes.
    """
    parser = argparse.ArgumentParser(prog="difftool.worker")
    parser.add_argument("plan")
    parser.add_argument("--events-fd", type=int)
    parser.add_argument("--ranks-folder", type=Path)
    parser.add_argument("--beyond", type=read_beyond)
    parser.add_argument("--parent", type=int, default=os.getppid())
    args = parser.parse_args(argv)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # how the launcher asks where a stalled run hangs
    signal.signal(signal.SIGTERM, end_once)
    from difftool.platforms.host import die_with_parent

    die_with_parent(args.parent)
    world = read_world(os.environ, args.ranks_folder, args.beyond)
    events = Events(open_events(args.events_fd, world), world)
    events("started", pid=os.getpid())
    return run(plan_files(args.plan, world), events)


def open_events(descriptor: int | None, world: World) -> TextIO | None:
    """Where this rank's events go; None where nobody asked."""
    if world.folder is not None:
        return open(answers_pipe(world), "w")
    return None if descriptor is None else os.fdopen(descriptor, "w")


if __name__ == "__main__":
    sys.exit(main())
