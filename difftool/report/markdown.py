"""A comparison as markdown: the verdict first, then what it rests on, then the numbers."""

import json
from collections.abc import Callable, Iterable, Sequence

from difftool.report.comparable import Change, Check
from difftool.report.compare import Comparison, Metric, QualityCheck, Report, Side, StepPair
from difftool.report.perf import Summary
from difftool.report.quality import describe_accuracy
from difftool.report.reuse import cache_line
from difftool.report.scores import Score
from difftool.report.verdict import Verdict

BARS = "▁▂▃▄▅▆▇█"
WIDTH = 80
LONGEST_NAME = 48
SHOWN_STEPS = 5
SHOWN_REASONS = 5
MOVED = (Verdict.REGRESSED, Verdict.IMPROVED)
UNSAFE = {"\\": "&#92;", "|": "\\|", "<": "&lt;", "`": "'", "*": "\\*", "[": "\\["}  # text of a dump stays text
EQUAL = "nothing differs"


def render_markdown(report: Report) -> str:
    """The whole report, ending in a newline."""
    names = _names(report)
    shown = [(name, c) for name, c in zip(names, report.comparisons, strict=True) if c.metrics]
    sections = [
        [f"# {report.verdict}: {_plain(report.base.path)} -> {_paths(report.comparisons)}"],
        _files(report, names),
        _notes(report, names),
        _verdicts(report, names),
        *(_comparability(name, c) for name, c in zip(names, report.comparisons, strict=True)),
        *_number_sections(shown),
    ]
    return "\n\n".join("\n".join(section) for section in sections if section) + "\n"


def _number_sections(shown: Sequence[tuple[str, Comparison]]) -> list[list[str]]:
    if not shown:
        return []
    return [
        _metric_table("Summary", shown, lambda metric: metric.kind != "stage") + _advisory(shown),
        _metric_table("Stages", shown, lambda metric: metric.kind == "stage"),
        _scores(shown),
        _steps(shown),
        _memory(shown),
    ]


def _names(report: Report) -> list[str]:
    """Their tags where these tell all apart, as those of arms do; else `new`, or `new 1`, `new 2`, … of several."""
    tags, count = [comparison.new.tag for comparison in report.comparisons], len(report.comparisons)
    if all(tags) and len({*tags, report.base.tag, "base"}) == len({report.base.tag, "base"}) + count:
        return [_plain(tag, LONGEST_NAME) for tag in tags]
    return ["new"] if count == 1 else [f"new {i}" for i in range(1, count + 1)]


def _paths(comparisons: Sequence[Comparison]) -> str:
    return ", ".join(_plain(comparison.new.path) for comparison in comparisons)


def _files(report: Report, names: Sequence[str]) -> list[str]:
    sides = [("base", report.base), *((n, c.new) for n, c in zip(names, report.comparisons, strict=True))]
    return _table(
        ["", "file", "model", "device", "devices", "items", "runs", "outputs/s", "commit", "tag", "time"],
        [[name, *_file_row(side)] for name, side in sides],
        numbers=False,
    )


def _file_row(side: Side) -> list[str]:
    measured = [side.device_count, side.items, side.runs, _optional(side.outputs_per_s)]
    known = [side.path, side.model, side.device, *measured, side.commit_hash[:12], side.tag, side.timestamp]
    return [_plain("-" if value in (None, "") else value) for value in known]


def _notes(report: Report, names: Sequence[str]) -> list[str]:
    sides = [("base", report.base), *((n, c.new) for n, c in zip(names, report.comparisons, strict=True))]
    return [f"- {name}: {_plain(note, 400)}" for name, side in sides for note in side.notes]


def _verdicts(report: Report, names: Sequence[str]) -> list[str]:
    lines = ["## Verdict", ""]
    for name, comparison in zip(names, report.comparisons, strict=True):
        lines.append(f"- {name}: **{comparison.verdict}**{_total(comparison)}")
        lines += [f"  - {reason}" for reason in _reasons(comparison)]
    return lines


def _total(comparison: Comparison) -> str:
    total = next((metric for metric in comparison.metrics if metric.kind == "total"), None)
    if total is None:
        return ""
    return f", total {_amount(total.base, total.unit)} -> {_amount(total.new, total.unit)}, ratio {_ratio(total)}"


def _reasons(comparison: Comparison) -> list[str]:
    """Why: of every metric that counts, those that moved one by one, the others by what they have in common."""
    if comparison.verdict is Verdict.INCOMPARABLE:
        return [
            f"{check.key} differs; to look at the numbers all the same: --allow-mismatch {check.key}"
            for check in comparison.checks
            if check.state == "different"
        ]
    counted = [metric for metric in comparison.metrics if metric.gated]
    moved = [f"{m.verdict}: {_plain(m.name)} {m.detail}" for m in counted if m.verdict in MOVED]
    grouped: dict[str, list[str]] = {}
    for metric in counted:
        if metric.verdict is Verdict.INCONCLUSIVE:
            grouped.setdefault(f"{metric.reason}: {_plain(metric.detail, 400)}", []).append(_plain(metric.name))
    same = [_plain(metric.name) for metric in counted if metric.verdict is Verdict.NO_CHANGE]
    return [
        *_quality(comparison.quality),
        *moved,
        *(f"{why} ({', '.join(names)})" for why, names in grouped.items()),
        *([f"{Verdict.NO_CHANGE}: {', '.join(same)}"] if same else []),
        *([f"to decide: {_plain(comparison.decide, 400)}"] if comparison.decide else []),
    ]


def _quality(check: QualityCheck | None) -> list[str]:
    if check is None:
        return []
    state = {True: "passed", False: "**failed**", None: "cannot be said"}[check.passed]
    asked = "tripwires" if check.tier == "none" else check.tier
    reference = f", against {_plain(check.reference)}" if check.reference else ""
    more = len(check.reasons) - SHOWN_REASONS
    reasons = [_plain(reason, 200) for reason in check.reasons[:SHOWN_REASONS]] + [f"{more} more"] * (more > 0)
    return [f"quality: {asked} {state}{reference}{': ' if reasons else ''}{'; '.join(reasons)}"]


def _comparability(name: str, comparison: Comparison) -> list[str]:
    return [
        f"## What differs: base -> {name}",
        "",
        *(line for check in comparison.checks for line in _check(check)),
        *_changes("treatment", comparison.treatment),
        *_changes("environment", comparison.environment),
    ]


WORDS = {
    "same": "the same",
    "different": "**different**",
    "accepted": "different, accepted",
    "treatment": "different, as `parallel` is",
    "not_recorded": "not recorded",
}


def _check(check: Check) -> list[str]:
    value = f" ({_plain(str(check.base)[:16] if check.key == 'workload' else check.base)})"
    head = f"- {check.key}: {WORDS[check.state]}{value if check.state == 'same' else ''}"
    return [head, *(f"  - {_change(change)}" for change in check.differences)]


def _changes(title: str, changes: Sequence[Change]) -> list[str]:
    if not changes:
        return [f"- {title}: {EQUAL}"]
    return [f"- {title}:", *(f"  - {_change(change)}" for change in changes)]


def _change(change: Change) -> str:
    return f"{_plain(change.key)}: {_value(change.base)} -> {_value(change.new)}"


def _value(value: object) -> str:
    return _plain(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _metric_table(title: str, shown: Sequence[tuple[str, Comparison]], wanted: Callable[[Metric], bool]) -> list[str]:
    """Columns per dump against the first; a metric that only some comparisons have is `-` in the others."""
    by_name = [{metric.name: metric for metric in c.metrics if wanted(metric)} for _, c in shown]
    rows = []
    for key in dict.fromkeys(key for metrics in by_name for key in metrics):
        found = [metrics.get(key) for metrics in by_name]
        first = next(metric for metric in found if metric)
        base = _amount(first.base, first.unit)
        rows.append([_plain(key), base, *(cell for metric in found for cell in _metric_cells(metric))])
    columns = [cell for name, _ in shown for cell in (name, "ratio", "95 %", "verdict")]
    return [f"## {title}", "", *_table(["metric", "base", *columns], rows)] if rows else []


def _metric_cells(metric: Metric | None) -> list[str]:
    if metric is None:
        return ["-", "-", "-", "-"]
    reason = f" ({metric.reason})" if metric.reason else ""
    interval = f"{metric.ci95[0]:.3f} to {metric.ci95[1]:.3f}" if metric.ci95 else "-"
    return [_amount(metric.new, metric.unit), _ratio(metric), interval, f"{metric.verdict}{reason}"]


def _advisory(shown: Sequence[tuple[str, Comparison]]) -> list[str]:
    names = dict.fromkeys(_plain(m.name) for _, c in shown for m in c.metrics if not m.gated)
    return ["", f"No part of the verdict: {', '.join(names)}."] if names else []


def _scores(shown: Sequence[tuple[str, Comparison]]) -> list[str]:
    """The quality of the outputs, and of built-in models whether they show what their prompts say."""
    by_name = [{score.name: score for score in comparison.scores} for _, comparison in shown]
    names = dict.fromkeys(name for scores in by_name for name in scores)
    columns = [f"{name} {which}" for name in ("base", *(name for name, _ in shown)) for which in ("worst", "median")]
    rows = [_score_row(name, [scores.get(name) for scores in by_name]) for name in names]
    table = _table(["of the outputs", *columns], rows) if rows else []
    said = _accuracies(shown)
    lines = [*table, *([""] if table and said else []), *said]
    return ["## Quality", "", *lines] if lines else []


def _score_row(name: str, found: Sequence[Score | None]) -> list[str]:
    base = next(score.base for score in found if score)
    sides = [base, *(score.new if score else None for score in found)]
    cells = [("-", "-") if side is None else (_number(side.worst), _number(side.median)) for side in sides]
    return [f"{name}{' (dB)' if name == 'psnr' else ''}", *(cell for pair in cells for cell in pair)]


def _accuracies(shown: Sequence[tuple[str, Comparison]]) -> list[str]:
    found = [(name, comparison.accuracy) for name, comparison in shown if comparison.accuracy]
    sides = [("base", accuracy.base) for _, accuracy in found[:1]] + [(name, accuracy.new) for name, accuracy in found]
    return [f"- {name}: {describe_accuracy(accuracy)}" for name, accuracy in sides if accuracy]


def _steps(shown: Sequence[tuple[str, Comparison]]) -> list[str]:
    """A sparkline of every dump on one scale, and the steps that moved most."""
    pairs = [comparison.steps for _, comparison in shown]
    base = [(pair.base_ms, pair.base_kind) for pair in pairs[0] if pair.base_ms is not None]
    curves = [("base", base)] + [
        (name, [(pair.new_ms, pair.new_kind) for pair in c.steps if pair.new_ms is not None]) for name, c in shown
    ]
    highest = max((ms for _, curve in curves for ms, _ in curve if ms), default=0.0)
    if not highest:
        return []
    width = max(len(name) for name, _ in curves)
    lines = [f"{name:<{width}}  {_curve(curve, highest)}" for name, curve in curves if curve]
    return ["## Steps", "", "```", *lines, "```", *_reused(shown), *_step_table(shown)]


def _reused(shown: Sequence[tuple[str, Comparison]]) -> list[str]:
    """What caches did that the base does not have."""
    prefix, found = "effective.cache.", []
    for name, comparison in shown:
        applied = {change.key.removeprefix(prefix): change.new for change in comparison.treatment}
        found += [f"- {name}: {line}"] if (line := cache_line({"cache": applied})) else []
    return ["", *found] if found else []


def _curve(curve: Sequence[tuple[float | None, str | None]], highest: float) -> str:
    times = [ms for ms, _ in curve if ms is not None]
    cached = sum(kind != "compute" for _, kind in curve)
    words = f"{len(times)} steps" + (f", {cached} of them cached" if cached else "")
    return f"{sparkline(times, highest)}  {words}, {_number(min(times))} to {_number(max(times))} ms"


def sparkline(times: Sequence[float], highest: float) -> str:
    """One bar a step from 0 to `highest`; where there are too many steps, the slowest of each group."""
    size = -(-len(times) // WIDTH)
    groups = [max(times[i : i + size]) for i in range(0, len(times), size)]
    return "".join(BARS[min(int(len(BARS) * ms / highest), len(BARS) - 1)] for ms in groups)


def _step_table(shown: Sequence[tuple[str, Comparison]]) -> list[str]:
    rows = list(zip(*(_padded(c.steps, shown) for _, c in shown), strict=True))
    moved = {i: max(_moved(pair) for pair in row) for i, row in enumerate(rows)}
    chosen = sorted(sorted((i for i in moved if moved[i]), key=lambda i: -moved[i])[:SHOWN_STEPS])
    if not chosen:
        return []
    columns = [cell for name, _ in shown for cell in (f"{name} ms", "ratio")]
    table = _table(["step", "base ms", *columns], [_step_row(rows[i]) for i in chosen])
    count = sum(bool(move) for move in moved.values())
    more = f"The {len(chosen)} of {count} steps that moved most:" if count > len(chosen) else "The steps that moved:"
    return ["", more, "", *table]


def _padded(steps: Sequence[StepPair], shown: Sequence[tuple[str, Comparison]]) -> list[StepPair]:
    """As long as the longest of the comparisons."""
    longest = max((c.steps for _, c in shown), key=len)
    rest = [pair.model_copy(update={"new_ms": None, "new_kind": None}) for pair in longest[len(steps) :]]
    return [*steps, *rest]


def _moved(pair: StepPair) -> float:
    """By how many ms; a step that only one side has moved by all of its time."""
    return abs((pair.new_ms or 0.0) - (pair.base_ms or 0.0))


def _step_row(row: Sequence[StepPair]) -> list[str]:
    cells = [str(row[0].step), _step_time(row[0].base_ms, row[0].base_kind)]
    for pair in row:
        ratio = pair.new_ms / pair.base_ms if pair.new_ms is not None and pair.base_ms else None
        cells += [_step_time(pair.new_ms, pair.new_kind), _shown_ratio(ratio)]
    return cells


def _step_time(ms: float | None, kind: str | None) -> str:
    return "-" if ms is None else _number(ms) + ("" if kind == "compute" else f" ({kind})")


def _memory(shown: Sequence[tuple[str, Comparison]]) -> list[str]:
    """Peaks at every checkpoint; what is allocated between them is only in the JSON."""
    base = {(p.checkpoint, p.reading): p.base_mb for _, c in shown for p in c.memory}
    news = [{(p.checkpoint, p.reading): p.new_mb for p in c.memory} for _, c in shown]
    rows = []
    for key in base:
        if key[1].startswith("peak_"):
            cells = [cell for new in news for cell in _memory_cells(base[key], new.get(key))]
            rows.append([_plain(key[0]), _plain(key[1].removesuffix("_mb")), _optional(base[key]), *cells])
    columns = [cell for name, _ in shown for cell in (f"{name} MiB", "ratio")]
    return ["## Memory", "", *_table(["checkpoint", "reading", "base MiB", *columns], rows)] if rows else []


def _memory_cells(base: float | None, new: float | None) -> list[str]:
    return [_optional(new), _shown_ratio(new / base if new is not None and base else None)]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: bool = True) -> list[str]:
    """Text in the first column and in those that hold words, numbers to the right."""
    words = ("verdict", "reading")
    ruler = ["--:" if numbers and i and title not in words else "---" for i, title in enumerate(head)]
    return [f"| {' | '.join(cells)} |" for cells in (head, ruler, *rows)]


def _amount(summary: Summary | None, unit: str) -> str:
    return "-" if summary is None else f"{_number(summary.median)} {unit}"


def _optional(value: float | None) -> str:
    return "-" if value is None else _number(value)


def _ratio(metric: Metric) -> str:
    return _shown_ratio(metric.ratio)


def _shown_ratio(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.3f}"


def _number(value: float) -> str:
    """Three digits that count for small values, one decimal for large ones."""
    return f"{value:.1f}" if value >= 10 else f"{value:.3g}" if value else "0"


def _plain(value: object, longest: int = WIDTH) -> str:
    """Text of a dump that cannot become markup, on one line and not too long."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())
    cut = line if len(line) <= longest else line[: longest - 3] + "..."
    return "".join(UNSAFE.get(c, c) for c in cut)
