"""What GitHub Actions shows of a comparison: an annotation for each one, and a comment that can be found again."""

from difftool.report.compare import Report
from difftool.report.markdown import render_markdown
from difftool.report.verdict import Verdict

LEVELS = {Verdict.NO_CHANGE: "notice", Verdict.IMPROVED: "notice", Verdict.INCONCLUSIVE: "warning"}
ESCAPED = {"%": "%25", "\r": "%0D", "\n": "%0A"}  # in a message; in a property `:` and `,` too
ESCAPED_IN_PROPERTY = {**ESCAPED, ":": "%3A", ",": "%2C"}


def annotations(report: Report) -> str:
    """A workflow command a comparison, each on a line: an error for what fails a gate whatever its flags.

    Source: docs.github.com, "Workflow commands for GitHub Actions".
    """
    lines = []
    for comparison in report.comparisons:
        moved = [f"{m.name} {m.detail}" for m in comparison.metrics if m.gated and m.verdict is comparison.verdict]
        said = "; ".join(moved[:3]) or f"{report.base.path} -> {comparison.new.path}"
        title = _escape(f"difftool: {comparison.verdict}", ESCAPED_IN_PROPERTY)
        lines.append(f"::{LEVELS.get(comparison.verdict, 'error')} title={title}::{_escape(said, ESCAPED)}\n")
    return "".join(lines)


def comment(report: Report) -> str:
    """The report behind a marker that every comparison with a base of this cohort has."""
    return f"<!-- difftool:{report.cohort} -->\n{render_markdown(report)}"


def _escape(text: str, table: dict[str, str]) -> str:
    return "".join(table.get(c, c) for c in text)
