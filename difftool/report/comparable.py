"""Whether two dumps measured the same work on the same kind of machine, and what was changed between them."""

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Literal

from difftool.report.measured import Measured
from difftool.report.perf import Part

ABSENT = "(absent)"
CACHE_SAMPLES = "effective.cache.samples"  # every step of every sample: its sums are beside it
WORKLOAD = ("model", "sampling")  # the sections that say what is made; the others say how
# recipe keys that change no measurement, or that the measurement block says better
NO_TREATMENT = (
    *("schema", "name", "extends", "perf", "serve", "sweep", "quality"),
    *("output.dir", "output.name", "output.on_collision"),
    *("launch.stall_timeout_s", "launch.rdzv_endpoint", "launch.node_rank"),
)
State = Literal["same", "different", "accepted", "treatment", "not_recorded"]


class Change(Part):
    """One value that differs; `(absent)` where that side does not have the key."""

    key: str
    base: Any
    new: Any


class Check(Part):
    """One condition of a comparison. `accepted`: different, and the user said to go on."""

    key: str
    state: State
    base: str | int | None
    new: str | int | None
    differences: list[Change]


def make_checks(base: Measured, new: Measured, accepted: Collection[str]) -> list[Check]:
    """Every condition, in order; `accepted` holds the keys of mismatches that do not count."""
    checks = [check(base, new) for check in CHECKS.values()]
    return [
        check.model_copy(update={"state": "accepted"})
        if check.state == "different" and check.key in accepted
        else check
        for check in checks
    ]


def list_treatment(base: Measured, new: Measured) -> list[Change]:
    """What was changed on purpose: recipe keys outside the workload, then what was really applied."""
    changes = [c for c in differences(base.recipe, new.recipe) if not _is_in(c.key, (*WORKLOAD, *NO_TREATMENT))]
    applied = differences(base.effective, new.effective, "effective.")
    return changes + [change for change in applied if change.key != CACHE_SAMPLES]


def cohort_of(dump: Measured) -> str:
    """A name for all runs of the same recipe on the same hardware and software: what only their noise sets apart."""
    how = [[key, value] for key, value in _leaves(dump.recipe) if not _is_in(key, (*WORKLOAD, *NO_TREATMENT))]
    work = dump.workload or [dump.model, dump.prompt, len(dump.steps)]
    content = [work, sorted(how, key=lambda entry: str(entry[0])), dump.device, dump.device_count, dump.fingerprint]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def list_environment(base: Measured, new: Measured) -> list[Change]:
    """Versions, host, variables and manner of measuring that differ."""
    return differences(base.environment, new.environment)


def differences(base: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[Change]:
    """Dotted keys whose values differ, in the order of `base`, then what only `new` has."""
    ours, theirs = dict(_leaves(base, prefix)), dict(_leaves(new, prefix))
    return [
        Change(key=key, base=ours.get(key, ABSENT), new=theirs.get(key, ABSENT))
        for key in dict.fromkeys([*ours, *theirs])
        if key not in ours or key not in theirs or ours[key] != theirs[key]
    ]


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _is_in(key: str, names: Collection[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _check_workload(base: Measured, new: Measured) -> Check:
    """By hash where both have one, with the recipe keys that differ; bare dumps by the little that they record."""
    found: list[Change] = []
    if base.workload is None or new.workload is None:
        found = [Change(key=key, base=ours, new=theirs) for key, ours, theirs in _recorded(base, new) if ours != theirs]
    elif base.workload != new.workload:
        found = [c for c in differences(base.recipe, new.recipe) if _is_in(c.key, WORKLOAD)]
        found = found or [Change(key="workload_sha256", base=base.workload, new=new.workload)]
    state: State = "different" if found else "same" if base.workload is not None else "not_recorded"
    return Check(key="workload", state=state, base=base.workload, new=new.workload, differences=found)


def _recorded(base: Measured, new: Measured) -> Iterator[tuple[str, Any, Any]]:
    """What two dumps say of their work, where one of them has no recipe."""
    yield "model", base.model, new.model
    if base.prompt is not None and new.prompt is not None:  # SGLang's server leaves it out
        yield "prompt", base.prompt, new.prompt
    yield "denoising steps", len(base.steps), len(new.steps)
    yield "workload_sha256", base.workload or ABSENT, new.workload or ABSENT


def _check_device(base: Measured, new: Measured) -> Check:
    return _check_value("device", base.device, new.device)


def _check_device_count(base: Measured, new: Measured) -> Check:
    """Another number of devices is what `parallel` is about; without a change there, it is a mismatch."""
    check = _check_value("device_count", base.device_count, new.device_count)
    parallel = differences({"parallel": base.recipe.get("parallel")}, {"parallel": new.recipe.get("parallel")})
    meant = check.state == "different" and parallel and base.recipe and new.recipe
    return check.model_copy(update={"state": "treatment"}) if meant else check


def _check_value(key: str, base: str | int | None, new: str | int | None) -> Check:
    if base == new:
        state: State = "not_recorded" if base is None else "same"
        return Check(key=key, state=state, base=base, new=new, differences=[])
    change = Change(key=key, base=ABSENT if base is None else base, new=ABSENT if new is None else new)
    return Check(key=key, state="different", base=base, new=new, differences=[change])


CHECKS: Mapping[str, Callable[[Measured, Measured], Check]] = {
    "workload": _check_workload,
    "device": _check_device,
    "device_count": _check_device_count,
}
