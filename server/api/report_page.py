"""A run's report as one HTML page: no script, nothing fetched, every word of a model escaped."""

import json
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from typing import Any

from server.api.schemas.runs import ReportView, RunView

_BAR_WIDTH, _BAR_HEIGHT = 220, 18

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --good: #1a7f37; --bad: #cf222e; --open: #9a6700; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; } caption { text-align: left; opacity: .75; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .6rem; text-align: left;
  vertical-align: top; overflow-wrap: anywhere; } td.n, th.n { text-align: right; }
.promote, .gained { color: var(--good); } .reject, .lost { color: var(--bad); }
.inconclusive { color: var(--open); } .what { opacity: .75; }
svg { display: block; } svg .zero { stroke: currentColor; opacity: .5; }
svg .range { stroke: currentColor; stroke-width: 3; } svg .seen { fill: currentColor; }
"""


_CURVES = ("curve", "steps")
"""What methods call their figures by step."""
_TOLD = {
    "majority": "most of the champion's own replies",
    "correction": "a user's correction",
    "verifier": "by the verifier",
    "contract": "in the form of the contract",
}
"""By grader, what stands behind a right answer where it is not simply the expected one."""


def render_report(report: ReportView) -> str:
    """The whole page."""
    run, exam = report.run, report.exam
    title = f"{run.adapter}: {run.verdict or run.status}"
    parts = [
        f"<h1>{_colour(run.verdict)}{escape(title)}</span></h1>",
        _facts(run),
        _sentences("Reasons", exam.get("reasons", [])),
        _needs(exam.get("needs", [])),
        _generalization(exam.get("generalization")),
        _slices(exam.get("slices", [])),
        _checks(exam.get("checks", [])),
        _material(run.report),
        _lesson(run.report),
        _curves(run.report),
        _lineage(report),
        _questions(report.questions),
        _settings(report.config),
    ]
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body>\n{body}\n</body></html>\n"
    )


def _facts(run: RunView) -> str:
    facts = [run.id, f"method {run.method}", f"{len(run.documents)} documents"]
    if run.version:
        facts.append(run.version)
    if run.finished_at:
        facts.append(f"ended {run.finished_at:%Y-%m-%d %H:%M} UTC")
    error = f'<p class="reject">{escape(run.error)}</p>' if run.error else ""
    return f'<p class="what">{escape(" · ".join(facts))}</p>{error}'


def _settings(config: Mapping[str, Any]) -> str:
    text = escape(json.dumps(config, indent=2))
    title = "<h2>Settings</h2><details><summary>All that it learnt with</summary>"
    return f"{title}<pre>{text}</pre></details>"


def _sentences(title: str, sentences: Iterable[str]) -> str:
    rows = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f"<h2>{title}</h2><ul>{rows}</ul>" if rows else ""


def _needs(needs: Iterable[Mapping[str, Any]]) -> str:
    sentences = [
        f"{need['slice']}: about {need['items']} more"
        + (f", about {', '.join(need['documents'])}" if need.get("documents") else "")
        for need in needs
    ]
    return _sentences("Questions that would decide it", sentences)


def _generalization(factor: float | None) -> str:
    if factor is None:
        return ""
    return f"<p>Generalization Factor (gains here and in general, beta 2): {factor:.3g}</p>"


def _slices(slices: Iterable[Mapping[str, Any]]) -> str:
    rows = [
        (
            escape(row["name"]),
            str(row["items"]),
            str(row["champion"]),
            str(row["challenger"]),
            f"+{row['gained']} −{row['lost']}",  # noqa: RUF001
            _bar(row),
            f"{row['p_gain']:.2g}",
            f"{row['p_loss']:.2g}",
            _verdict(row.get("verdict")),
        )
        for row in slices
    ]
    heads = (
        "slice",
        "n:items",
        "n:champion",
        "n:challenger",
        "n:changed",
        "difference, 95 %",
        "n:p gain",
        "n:p loss",
        "verdict",
    )
    return _table("Slices", "the same questions, answered by both", heads, rows)


def _bar(row: Mapping[str, Any]) -> str:
    """The interval as a line from -1 to 1, with what was seen as a dot."""
    items = row["items"] or 1
    low, high = row["interval"]
    seen = (row["challenger"] - row["champion"]) / items

    def x(share: float) -> str:
        return f"{(share + 1) / 2 * (_BAR_WIDTH - 8) + 4:.1f}"

    middle = _BAR_HEIGHT / 2
    label = f"{seen:+.0%}, between {low:+.0%} and {high:+.0%}"
    return (
        f'<svg width="{_BAR_WIDTH}" height="{_BAR_HEIGHT}" role="img" aria-label="{label}">'
        f"<title>{label}</title>"
        f'<line class="zero" x1="{x(0)}" x2="{x(0)}" y1="0" y2="{_BAR_HEIGHT}"/>'
        f'<line class="range" x1="{x(low)}" x2="{x(high)}" y1="{middle}" y2="{middle}"/>'
        f'<circle class="seen" cx="{x(seen)}" cy="{middle}" r="4"/></svg>'
    )


def _checks(checks: Iterable[Mapping[str, Any]]) -> str:
    rows = [
        (
            escape(check["name"]),
            _number(check["champion"]),
            _number(check["challenger"]),
            _number(check["limit"]),
            _verdict(check["verdict"]),
        )
        for check in checks
    ]
    heads = ("figure", "n:champion", "n:challenger", "n:bound", "verdict")
    return _table("Drift and form", "beside right and wrong", heads, rows)


def _material(report: Mapping[str, Any]) -> str:
    """What a run took of prompts and opinions, and what it left out and why."""
    taken = report.get("taken")
    if not isinstance(taken, dict):
        return ""
    asked = (report.get("quiz") or {}).get("prompts") or {}
    counted = [
        ("taken", {name: taken.get(name) for name in ("prompts", "opinions", "held_out")}),
        ("not learnt", taken.get("left_out")),
        ("asked in the exam", asked.get("asked")),
        *((f"not asked: {name}", why) for name, why in (asked.get("not_asked") or {}).items()),
    ]
    rows = [
        (escape(what), escape(str(name).replace("_", " ")), str(number))
        for what, counts in counted
        if isinstance(counts, dict)
        for name, number in counts.items()
        if number
    ]
    return _table("Prompts and opinions", "what became of them", ("", "what", "n:count"), rows)


def _curves(report: Mapping[str, Any]) -> str:
    """The figures of each loop of the method, step by step."""
    return "\n".join(_curve(where, points) for where, points in _find_curves(report, ()))


def _find_curves(
    said: Mapping[str, Any], where: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], list[dict[str, Any]]]]:
    for name, value in said.items():
        if isinstance(value, dict):
            yield from _find_curves(value, (*where, name))
        elif name in _CURVES and isinstance(value, list) and value:
            yield where, [point for point in value if isinstance(point, dict)]


def _curve(where: tuple[str, ...], points: list[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(name for point in points for name in point if name != "step"))
    rows = [
        (str(number), *(_number(_figure(point.get(name))) for name in names))
        for number, point in enumerate(points)
    ]
    heads = ("n:step", *(f"n:{name.replace('_', ' ')}" for name in names))
    return _table("Curve", ", ".join(where), heads, rows)


def _figure(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _lesson(report: Mapping[str, Any]) -> str:
    counts = report.get("self_edits")
    if not isinstance(counts, dict):
        return ""
    rows = [
        (escape(what), escape(str(name)), str(number))
        for what in ("written", "dropped")
        if isinstance(found := counts.get(what), dict)
        for name, number in found.items()
    ]
    return _table(
        "Lesson", "self-edits by kind, and why others fell", ("", "kind", "n:count"), rows
    )


def _lineage(report: ReportView) -> str:
    rows = [
        (
            escape(step.name),
            escape(step.status or ""),
            _verdict(step.verdict),
            "" if step.documents is None else str(step.documents),
            f"{step.created_at:%Y-%m-%d %H:%M}" if step.created_at else "",
        )
        for step in report.lineage
    ]
    heads = ("version", "status", "verdict", "n:documents", "made (UTC)")
    return _table("Lineage", "from this version to the base model", heads, rows)


def _questions(questions: Iterable[Mapping[str, Any]]) -> str:
    rows = [
        (
            _change(row),
            escape(row["prompt"]),
            _expected(row),
            escape(row["champion_reply"]),
            escape(row["challenger_reply"]),
            escape(row["document_id"] or row["kind"]),
        )
        for row in questions
    ]
    heads = ("", "question", "expected", "champion", "challenger", "about")
    return _table("Questions", "lost and gained ones first", heads, rows)


def _expected(row: Mapping[str, Any]) -> str:
    answers = escape(" / ".join(row["expected"]))
    if row.get("grader") in _TOLD:
        return f'{answers} <span class="what">{_TOLD[row["grader"]]}</span>'
    return answers


def _change(row: Mapping[str, Any]) -> str:
    before, after = row["champion_is_correct"], row["challenger_is_correct"]
    if before == after:
        return "right" if after else "wrong"
    word = "gained" if after else "lost"
    return f'<span class="{word}">{word}</span>'


def _table(title: str, caption: str, heads: Iterable[str], rows: Iterable[tuple[str, ...]]) -> str:
    """Cells are HTML already; a head that begins with "n:" is of a column of numbers."""
    heads, rows = list(heads), list(rows)
    if not rows:
        return ""
    is_number = [head.startswith("n:") for head in heads]

    def line(tag: str, cells: Iterable[str]) -> str:
        marked = zip(cells, is_number, strict=True)
        return "".join(
            f'<{tag} class="n">{cell}</{tag}>' if number else f"<{tag}>{cell}</{tag}>"
            for cell, number in marked
        )

    head = line("th", (escape(head.removeprefix("n:")) for head in heads))
    body = "\n".join(f"<tr>{line('td', row)}</tr>" for row in rows)
    return (
        f"<h2>{title}</h2><table><caption>{escape(caption)}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>"
    )


def _verdict(verdict: str | None) -> str:
    return f"{_colour(verdict)}{escape(verdict)}</span>" if verdict else ""


def _colour(verdict: str | None) -> str:
    return f'<span class="{escape(verdict or "")}">'


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
