"""A comparison as JUnit XML: a test case for every metric that counts, and one for what outputs are worth."""

from collections.abc import Iterator
from xml.etree import ElementTree as ET

from difftool.report.compare import Comparison, Report
from difftool.report.verdict import Verdict

# what a CI system makes of a verdict; the others are passed cases
OUTCOMES = {
    Verdict.REGRESSED: "failure",
    Verdict.QUALITY_FAILED: "failure",
    Verdict.INCOMPARABLE: "error",
    Verdict.INCONCLUSIVE: "skipped",
}
COUNTED = {"failures": "failure", "errors": "error", "skipped": "skipped"}  # the attributes of a suite
Case = tuple[str, Verdict, str]


def render_junit(report: Report) -> str:
    """The whole document, a suite for each comparison, ending in a newline."""
    root = ET.Element("testsuites", name="difftool compare-perf")
    for comparison in report.comparisons:
        _add_suite(root, f"{report.base.path} -> {comparison.new.path}", list(_cases(comparison)))
    ET.indent(root)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{ET.tostring(root, encoding="unicode")}\n'


def _add_suite(root: ET.Element, name: str, cases: list[Case]) -> None:
    outcomes = [OUTCOMES.get(verdict) for _, verdict, _ in cases]
    counts = {key: str(outcomes.count(kind)) for key, kind in COUNTED.items()}
    suite = ET.SubElement(root, "testsuite", {"name": _legal(name), "tests": str(len(cases)), **counts})
    for title, verdict, detail in cases:
        case = ET.SubElement(suite, "testcase", classname=_legal(name), name=_legal(title))
        if verdict in OUTCOMES:
            ET.SubElement(case, OUTCOMES[verdict], message=_legal(f"{verdict}: {detail}"))


def _cases(comparison: Comparison) -> Iterator[Case]:
    for check in comparison.checks:
        if check.state == "different":
            yield check.key, Verdict.INCOMPARABLE, f"{check.base} -> {check.new}"
    for metric in comparison.metrics:
        if metric.gated:
            yield metric.name, metric.verdict, metric.detail
    quality = comparison.quality
    if quality is not None:
        verdict = {True: Verdict.NO_CHANGE, False: Verdict.QUALITY_FAILED, None: Verdict.INCONCLUSIVE}[quality.passed]
        yield "quality", verdict, "; ".join(quality.reasons)


def _legal(text: str) -> str:
    """Without what XML cannot hold."""
    return "".join(c if c in "\t\n\r" or (c >= " " and c not in "\ufffe\uffff") else " " for c in text)
