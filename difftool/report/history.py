"""What earlier sessions measured: append-only lines, a file for each cohort, of which one session may be blessed.

A folder holds `<cohort>.jsonl`. Milliseconds and MiB, as in a dump.
"""

import fcntl
import json
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from difftool.errors import DifftoolError
from difftool.files import make_folder, output_error
from difftool.report.comparable import cohort_of
from difftool.report.floors import MEMORY_METRICS
from difftool.report.measured import Measured
from difftool.report.perf import Part

SUFFIX = ".jsonl"
ENOUGH_SESSIONS = 5  # for what sessions differ by
RECENT = 20
NORMAL_MAD = 1.4826  # standard deviations of a normal distribution in its median absolute deviation
NOISE_DEVIATIONS = 3
DRIFT = 0.05  # how far the blessed session may be above the best of the recent ones
WATCHED = ("total", "peak_memory")


class HistoryError(DifftoolError):
    """A history cannot be read, or what was asked of it does not fit."""

    exit_code = 2


class Session(Part):
    """One dump, by the medians of its runs."""

    kind: Literal["session"] = "session"
    request_id: str
    timestamp: str
    commit_hash: str
    tag: str | None
    model: str | None
    device: str | None
    device_count: int | None
    runs: int
    medians: dict[str, float]


class Blessing(Part):
    """Somebody's word that a session is what later ones are measured by."""

    kind: Literal["blessing"] = "blessing"
    request_id: str
    replaces: str | None
    reason: str
    timestamp: str


LINE: TypeAdapter[Session | Blessing] = TypeAdapter(Annotated[Session | Blessing, Field(discriminator="kind")])


@dataclass(frozen=True)
class Cohort:
    """The sessions of one kind, oldest first, and who was blessed when."""

    name: str
    sessions: tuple[Session, ...] = ()
    blessings: tuple[Blessing, ...] = ()

    @property
    def blessed(self) -> Session | None:
        """The session that was blessed last."""
        return self.find(self.blessings[-1].request_id) if self.blessings else None

    def find(self, request_id: str) -> Session | None:
        return next((session for session in self.sessions if session.request_id == request_id), None)


def read_history(folder: Path) -> list[Cohort]:
    """Every cohort of a folder that has a session, by name. Raises HistoryError."""
    if not folder.is_dir():
        raise HistoryError(f"{folder} is no folder with a history", hint="difftool history add DUMP starts one")
    cohorts = [_read(path) for path in sorted(folder.glob(f"*{SUFFIX}"))]
    return [cohort for cohort in cohorts if cohort.sessions]


def read_cohort(folder: Path, name: str) -> Cohort:
    """One cohort; an empty one where nothing was added. Raises HistoryError."""
    path = folder / f"{name}{SUFFIX}"
    return _read(path) if path.exists() else Cohort(name)


def _read(path: Path) -> Cohort:
    sessions: list[Session] = []
    blessings: list[Blessing] = []
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeError) as error:
        raise HistoryError(f"{path} cannot be read: {error}") from None
    for number, text in enumerate(lines, 1):
        try:
            line = LINE.validate_json(text)
        except ValidationError as error:
            reason = error.errors(include_url=False)[0]["msg"]
            raise HistoryError(f"{path}, line {number}, is no line of a history: {reason}") from None
        if isinstance(line, Session):
            sessions.append(line)
        else:
            blessings.append(line)
    return Cohort(path.stem, tuple(sessions), tuple(blessings))


def add(folder: Path, dump: Measured) -> Cohort:
    """Appends a dump to its cohort, which is returned. Raises HistoryError for one that is there, and OutputError."""
    name = cohort_of(dump)
    if dump.workload is None:
        raise HistoryError(f"{dump.path} is a bare SGLang dump, which does not say what it ran on")
    if read_cohort(folder, name).find(dump.request_id) is not None:
        raise HistoryError(f"{dump.path} is in the history already: run {dump.request_id} of cohort {name}")
    session = Session(
        request_id=dump.request_id,
        timestamp=dump.timestamp,
        commit_hash=dump.commit_hash,
        tag=dump.tag,
        model=dump.model,
        device=dump.device,
        device_count=dump.device_count,
        runs=dump.runs,
        medians={metric: statistics.median(series.per_run) for metric, series in dump.series.items()},
    )
    make_folder(folder)
    _append(folder / f"{name}{SUFFIX}", session)
    return read_cohort(folder, name)


def bless(folder: Path, request_id: str, *, reason: str, timestamp: str) -> tuple[Cohort, Blessing]:
    """Makes a session the one that later ones are measured by. Raises HistoryError and OutputError."""
    holders = [cohort for cohort in read_history(folder) if cohort.find(request_id) is not None]
    if len(holders) != 1:
        where = "is in several cohorts" if holders else "is not in the history"
        raise HistoryError(f"run {request_id} {where} of {folder}", hint="difftool history show lists the runs")
    before = holders[0].blessed
    blessing = Blessing(
        request_id=request_id, replaces=before.request_id if before else None, reason=reason, timestamp=timestamp
    )
    _append(folder / f"{holders[0].name}{SUFFIX}", blessing)
    return read_cohort(folder, holders[0].name), blessing


def _append(path: Path, line: Part) -> None:
    """One line, whole, after what others may be adding at the same time."""
    try:
        with path.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(json.dumps(line.model_dump(), ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise output_error(path, error) from error


def noise(cohort: Cohort) -> dict[str, float]:
    """What sessions differ by though nothing changed, by metric; empty where there are too few to say.

    Three standard deviations, from the median absolute deviation of the recent sessions' medians.
    """
    recent = cohort.sessions[-RECENT:]
    if len(recent) < ENOUGH_SESSIONS:
        return {}
    names = dict.fromkeys(name for session in recent for name in session.medians)
    values = {name: [s.medians[name] for s in recent if name in s.medians] for name in names}
    return {name: NOISE_DEVIATIONS * NORMAL_MAD * _mad(found) for name, found in values.items()}


def _mad(values: Sequence[float]) -> float:
    middle = statistics.median(values)
    return statistics.median(abs(value - middle) for value in values)


def drifts(cohort: Cohort) -> list[str]:
    """What speaks against the blessed session: that it is worse than the best of the recent ones by more than DRIFT."""
    blessed, found = cohort.blessed, []
    for name in WATCHED if blessed else ():
        recent = [(s.medians[name], s) for s in cohort.sessions[-RECENT:] if name in s.medians]
        held = blessed.medians.get(name) if blessed else None
        if not recent or held is None:
            continue
        best, session = min(recent, key=lambda entry: entry[0])
        if held > best * (1 + DRIFT):
            unit = "MiB" if name in MEMORY_METRICS else "ms"
            found.append(
                f"{name} of the blessed run is {100 * (held / best - 1):.1f} % above the best of the last "
                f"{len(recent)}: {held:.1f} against {best:.1f} {unit} of {session.request_id}"
            )
    return found
