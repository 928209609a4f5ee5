"""A worker that stays: it loads once, and makes one plan after the other."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from difftool.errors import DifftoolError
from difftool.launch.child import WORKER
from difftool.launch.records import LOG_FILE, PLAN_FILE
from difftool.launch.start import Worker, start_worker
from difftool.planning.loading import loading
from difftool.planning.plan import Plan

ANSWER_S = 5.0  # for a worker that stays to take a plan up; one that takes longer is followed all the same


class LivingWorker:
    """Started by the first plan, and anew by the next one after a failure or where that loads something else.

    `hire` is what `supervise` takes. For one run at a time, from any thread.
    """

    def __init__(self, command: Sequence[str] = WORKER):
        self._command = command
        self._worker: Worker | None = None
        self._loading: dict[str, Any] = {}
        self._hurry: Callable[[], bool] = lambda: False
        self._stopped = threading.Event()

    @contextmanager
    def hire(self, plan: Plan, records: Path, *, holds: Sequence[int], hurry: Callable[[], bool]) -> Iterator[Worker]:
        """The worker, which makes the plan and stays; after an error it ends. Of `holds` it keeps nothing open."""
        self._hurry = hurry
        try:
            kept, worker = self._worker, self._told(plan, records)
            if worker is kept and not worker.answers(ANSWER_S):  # ended between two plans: its status tells that late
                self.stop()
                worker = self._told(plan, records)
            yield worker
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Ends the worker; the next plan starts another."""
        worker, self._worker = self._worker, None
        if worker is not None:
            with worker:
                pass
            self._stopped.set()

    def _told(self, plan: Plan, records: Path) -> Worker:
        worker = self._ready(plan, records / LOG_FILE)
        worker.send(records / PLAN_FILE, records / LOG_FILE)
        return worker

    def _ready(self, plan: Plan, log: Path) -> Worker:
        wanted = loading(plan)
        if self._worker is None or self._loading != wanted or not self._worker.ready():
            self.stop()
            self._worker = self._start(plan, log)
            self._loading = wanted
        return self._worker

    def _start(self, plan: Plan, log: Path) -> Worker:
        """Starts it from a thread that outlives it: the caller's own may end, and a worker ends with its thread."""
        started: Future[Worker] = Future()
        stopped = self._stopped = threading.Event()

        def keep() -> None:
            try:
                started.set_result(start_worker(self._command, plan, log, plan_file=None, hurry=lambda: self._hurry()))
            except (DifftoolError, OSError) as error:
                started.set_exception(error)
                return
            stopped.wait()

        threading.Thread(target=keep, name="difftool-worker", daemon=True).start()
        return started.result()
