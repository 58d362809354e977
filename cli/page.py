"""An answer and the search for it as one HTML file that needs nothing else."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape

from llavacot_mlx import __version__
from llavacot_mlx.cli.candidates import Candidate, Round, SearchSoFar, retold, step_back
from llavacot_mlx.cli.figures import figures, search_figures, seconds, size
from llavacot_mlx.cli.page_map import tree_map
from llavacot_mlx.cli.page_picture import PagePicture, page_picture
from llavacot_mlx.cli.page_style import STYLE
from llavacot_mlx.cli.plain import not_closed
from llavacot_mlx.cli.printable import printable, printable_line
from llavacot_mlx.cli.retelling import retelling, unit_of
from llavacot_mlx.errors import UserError
from llavacot_mlx.events import (
    CandidateEnded,
    CandidateScored,
    CandidatesKept,
    CandidateStarted,
    CandidateText,
    FreeText,
    Retraced,
    StageEnded,
    StageStarted,
    StageText,
)
from llavacot_mlx.stages import Stage, StageRecord
from llavacot_mlx.trace import SearchRecord, Trace

# A browser obeys this even where something in the page should have slipped through unescaped.
_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'"
)
_SHORT_ANSWER = 60  # characters that are set in large type
_SHORT_GIST = 80  # characters that are seen whole on a phone as well


def page(trace: Trace, picture: bytes | None) -> str:
    """The whole page. Raises UserError where the picture is none."""
    shown = None
    if picture is not None:
        try:
            shown = page_picture(picture)
        except UserError as problem:
            raise UserError(f"picture: {problem}") from None
    body = [_asked(trace, shown), _taken(trace)]
    if trace.search.nodes:
        body.append(_search(trace))
    body += [_details(trace), _footer()]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{_line(trace.question)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{''.join(body)}</main>\n</body>\n</html>\n"
    )


def path_taken(search: SearchRecord) -> list[int]:
    """The nodes of the chosen path, the first first; before the end, of the best path so far."""
    if not search.nodes:
        return []
    kept = [choice.kept[0] for choice in search.choices if choice.kept]
    at: int | None = kept[-1] if kept else 0
    path: list[int] = []
    while at is not None:
        path.insert(0, at)
        at = search.nodes[at].parent
    return path


def _asked(trace: Trace, picture: PagePicture | None) -> str:
    """The picture, the question and the answer."""
    name = "" if trace.image in (None, "-") else f": {_line(str(trace.image))}"
    figure = ""
    if picture is not None:
        figure = (
            f'<figure><img src="{picture.url}" width="{picture.width}" height="{picture.height}" '
            f'alt="The picture that the question is about{name}"></figure>\n'
        )
    elif trace.image is not None:
        figure = f'<p class="soft">The picture is not in this trace{name}.</p>\n'
    pictured = " pictured" if picture is not None else ""
    return (
        f'<header class="asked{pictured}">\n{figure}<div>\n'
        f'<h1 dir="auto" lang="">{_text(trace.question)}</h1>\n{_answer(trace)}</div>\n</header>\n'
    )


def _answer(trace: Trace) -> str:
    stopped = '<p class="warn">Stopped before its end: this is the best so far.</p>\n'
    if trace.answer:
        long = " long" if len(trace.answer) > _SHORT_ANSWER else ""
        said = f'<p class="text{long}" dir="auto" lang="">{_text(trace.answer)}</p>\n'
    else:
        said = '<p class="warn">There is no conclusion.</p>\n'
    return (
        f'<section class="answer">\n<h2>Answer</h2>\n{said}'
        f"{stopped if trace.interrupted else ''}</section>\n"
    )


@dataclass
class _Part:
    """A stage of the path taken, or text outside any stage."""

    stage: Stage | None
    text: str = ""
    record: StageRecord | None = None
    """None where there is none, or where the stage was stopped in the middle."""


def _parts(trace: Trace) -> list[_Part]:
    parts: list[_Part] = []
    records = iter(trace.stages)
    for event in retold(trace):
        match event:
            case StageStarted(stage):
                parts.append(_Part(stage))
            case StageText(text=text):
                parts[-1].text += text
            case StageEnded():
                parts[-1].record = next(records)
            case FreeText(text):
                if not parts or parts[-1].stage is not None:
                    parts.append(_Part(None))
                parts[-1].text += text
    return [part for part in parts if part.stage is not None or part.text.strip()]


def _taken(trace: Trace) -> str:
    """The path taken, stage by stage."""
    items = []
    for part in _parts(trace):
        heading = part.stage.value.capitalize() if part.stage else "Outside any stage"
        facts = []
        if part.record is not None:
            record = part.record
            facts.append(f"{record.tokens} tokens")
            if record.candidates > 1:
                facts.append(f"one of {record.candidates} candidates")
            if record.score is not None:
                facts.append(f"score {record.score:.2f}")
            if not record.closed:
                facts.append(f'<span class="warn">{escape(not_closed(record.stage))}</span>')
        elif part.stage is not None:
            facts.append('<span class="warn">stopped here</span>')
        said = f'<p class="facts">{" · ".join(facts)}</p>\n' if facts else ""
        items.append(
            f'<li>\n<h3>{heading}</h3>\n{said}<p class="text" dir="auto" lang="">'
            f"{_text(part.text.strip())}</p>\n</li>\n"
        )
    if not items:
        return ""
    heading = "The path taken" if trace.search.nodes else "The four stages"
    return f'<section>\n<h2>{heading}</h2>\n<ol class="taken">\n{"".join(items)}</ol>\n</section>\n'


def _search(trace: Trace) -> str:
    """The tree, drawn and told."""
    search, path = trace.search, set(path_taken(trace.search))
    drawn = tree_map(search, path)
    if drawn:
        cut = (
            "" if all(node.closed for node in search.nodes) else '<span class="cut">cut off</span>'
        )
        drawn += (
            '\n<p class="legend"><span class="path">the path taken</span>'
            f'<span class="kept">kept</span><span class="dropped">dropped</span>{cut}</p>\n'
        )
    scales = _scales(search)
    told = []
    for entry in _story(trace):
        if isinstance(entry, Retraced):
            told.append(_step_back(entry, search))
        else:
            told.append(_round(entry, search, path, scales))
    return (
        f'<section>\n<h2>The search</h2>\n<p class="soft figures">{escape(search_figures(trace))}'
        f"</p>\n{drawn}{''.join(told)}</section>\n"
    )


def _story(trace: Trace) -> Iterator[Round | Retraced]:
    """The rounds and the steps back, in the order in which they happened."""
    so_far = SearchSoFar(unit_of(trace))
    for event in retelling(trace):
        match event:
            case CandidateStarted():
                so_far.started(event)
            case CandidateText() | CandidateEnded() | CandidateScored():
                so_far.take(event)
            case CandidatesKept():
                ended = so_far.chosen(event)
                if ended is not None:
                    yield ended
            case Retraced():
                yield event
    if so_far.round is not None:
        yield so_far.round


@dataclass(frozen=True)
class _Scale:
    """What the empty and the full bar of a score stand for."""

    least: float = 0.0
    most: float = 1.0
    threshold: float | None = None

    def share(self, score: float) -> float:
        return 100 * (score - self.least) / (self.most - self.least)


def _scales(search: SearchRecord) -> Mapping[int, _Scale]:
    """By node, the scale of its score: 0 to 1, or what that step's scores span where they leave it.

    A step's scores come from one judge, and those of two judges mean different things.
    """
    threshold, decides = None, None
    retrace = search.plan.get("retrace")
    if retrace:
        threshold = retrace.get("threshold")
        names = [step["write"] for step in search.plan["steps"]]
        decides = names.index(retrace["after"])
    steps: dict[int, list[int]] = {}
    for choice in search.choices:
        steps.setdefault(choice.step, []).extend(choice.nodes)
    scales: dict[int, _Scale] = {}
    for step, nodes in steps.items():
        limit = threshold if step == decides else None
        given = [score for node in nodes if (score := search.nodes[node].score) is not None]
        least, most = min([0.0, *given]), max([1.0, *given])
        if given and (least < 0 or most > 1):
            wanted = given if limit is None else [*given, limit]
            least, most = min(wanted), max(wanted)
            room = (most - least) / 10 or 1.0  # so that the least score has a bar as well
            least -= room
        scales.update(dict.fromkeys(nodes, _Scale(least, most, limit)))
    return scales


def _round(round: Round, search: SearchRecord, path: set[int], scales: Mapping[int, _Scale]) -> str:
    notes = []
    kept = ", ".join(map(str, round.kept))
    notes.append(f"kept {kept}" if kept else "stopped here")
    notes.append(f"{round.tokens} tokens")
    if round.identical:
        count = len(round.candidates)
        notes.insert(0, "both wrote the same" if count == 2 else f"all {count} wrote the same")
    items = [_candidate(candidate, round, path, scales) for candidate in round.candidates]
    return (
        f'<section class="round">\n<h3>{escape(round.title)}</h3>\n'
        f'<p class="soft">{" · ".join(notes)}</p>\n'
        f'<ol class="candidates">\n{"".join(items)}</ol>\n</section>\n'
    )


def _candidate(
    candidate: Candidate, round: Round, path: set[int], scales: Mapping[int, _Scale]
) -> str:
    node = candidate.number - 1
    name = "path" if node in path else "kept" if candidate.kept else "dropped"
    parts = [f'<span class="name">{candidate.number}</span>']
    if round.forked:
        parts.append(f'<span class="from">from {candidate.parent}</span>')
    if candidate.scored:
        parts.append(_score(candidate, scales.get(node, _Scale())))
    if not candidate.ended:
        parts.append('<span class="warn">not finished</span>')
    elif not candidate.closed:
        parts.append('<span class="warn">not closed</span>')
    fate = {"path": "on the path", "kept": "kept", "dropped": "dropped" if round.kept else ""}
    parts.append(f'<span class="fate">{fate[name]}</span>')
    gist = round.gist(candidate)
    if round.shared and len(gist) > _SHORT_GIST and not round.identical:
        gist = f"…{gist[round.shared :]}"  # where they differ says more than how they begin
    return (
        f'<li class="{name}" id="c{candidate.number}"><details><summary>'
        f'<span class="head">{"".join(parts)}</span>'
        f'<span class="gist" dir="auto" lang="">{_text(gist)}</span></summary>\n'
        f'<div class="whole">{_whole(candidate)}</div></details></li>\n'
    )


def _score(candidate: Candidate, scale: _Scale) -> str:
    if candidate.score is None:
        return '<span class="score" title="The judge came to no verdict">–</span>'
    bar = f'<i style="width:{scale.share(candidate.score):.1f}%"></i>'
    if scale.threshold is not None and scale.least <= scale.threshold <= scale.most:
        bar += f'<b style="left:calc({scale.share(scale.threshold):.1f}% - 1px)"></b>'
    return (
        f'<span class="score">{candidate.verdict}<span class="bar" aria-hidden="true">{bar}</span>'
        "</span>"
    )


def _whole(candidate: Candidate) -> str:
    """All that a candidate wrote, and what is known of it."""
    texts = [
        (stage, "".join(text for _, text in group).strip())
        for stage, group in itertools.groupby(candidate.parts, key=lambda part: part[0])
    ]
    texts = [(stage, text) for stage, text in texts if text]
    pieces = []
    for stage, text in texts:
        if len(texts) > 1:
            heading = stage.value.capitalize() if stage else "Outside any stage"
            pieces.append(f'<p class="stage">{heading}</p>')
        pieces.append(f'<p class="text" dir="auto" lang="">{_text(text)}</p>')
    facts = []
    if candidate.parent is not None:
        facts.append(f'goes on from <a href="#c{candidate.parent}">{candidate.parent}</a>')
    if candidate.ended:
        facts.append(f"{candidate.tokens} tokens")
    return f'{"".join(pieces)}<p class="facts">{" · ".join(facts)}</p>'


def _step_back(event: Retraced, search: SearchRecord) -> str:
    why = ""
    retrace = search.plan.get("retrace")
    if retrace and retrace.get("threshold") is not None:
        rank = retrace["rank"]
        best = "best" if rank == 1 else f"{_ordinal(rank)} best"
        why = (
            f'<span class="soft">The {best} {_line(retrace["after"])} of all rounds had to score '
            f"{retrace['threshold']:.2f}.</span>"
        )
    return f'<p class="retrace">{escape(step_back(event))}{why}</p>\n'


def _ordinal(number: int) -> str:
    words = {2: "second", 3: "third"}
    return words.get(number, f"{number}th")


def _details(trace: Trace) -> str:
    """How it was asked, and what it cost."""
    usage, timings, plan = trace.usage, trace.timings, trace.search.plan
    computed = usage.prefilled_tokens + usage.decoded_tokens + usage.judge_tokens
    rows = [("Model", _line(trace.model)), ("Method", _line(trace.search.method))]
    if trace.adapter is not None:
        rows.insert(1, ("Adapter", _line(trace.adapter)))
    if plan:
        rows += _plan_rows(plan, searched=bool(trace.search.nodes))
    rows += [
        ("Seed", str(trace.seed)),
        ("Longest answer", f"{trace.max_tokens} tokens"),
        ("Prompt", f"{usage.prompt_tokens} tokens, {_pictures(usage.images_encoded)}"),
        ("Decoded", f"{usage.decoded_tokens} tokens; the answer has {len(trace.token_ids)}"),
    ]
    if trace.search.nodes:
        rows += [
            ("Judged", f"{usage.judge_tokens} tokens"),
            (
                "Reused",
                f"{usage.reused_tokens} tokens; a run without reuse would have computed "
                f"{computed + usage.reused_tokens} instead of {computed}",
            ),
        ]
    rows.append(("Time", f"{seconds(timings.total_s)} in all"))
    memory = [f"{size(usage.kv_bytes)} of keys and values"] if usage.kv_bytes else []
    if trace.peak_memory_bytes:
        memory.insert(0, f"{size(trace.peak_memory_bytes)} at the peak")
    if memory:
        rows.append(("Memory", ", ".join(memory)))
    listed = "".join(f"<dt>{name}</dt><dd>{value}</dd>\n" for name, value in rows)
    notices = "".join(f"<li>{_line(notice)}</li>\n" for notice in trace.search.notices)
    noted = f'<ul class="notices">\n{notices}</ul>\n' if notices else ""
    return (
        f'<section>\n<h2>How it was asked</h2>\n{noted}<dl class="details">\n{listed}</dl>\n'
        f'<p class="soft figures">{escape(figures(trace))}</p>\n</section>\n'
    )


def _pictures(count: int) -> str:
    return "no picture" if not count else f"{count} picture{'s' if count != 1 else ''} encoded"


def _plan_rows(plan: Mapping[str, object], *, searched: bool) -> list[tuple[str, str]]:
    """A plan as it stands in the trace, in words."""
    rows = [("Drawn at", f"temperature {plan['temperature']:g}, top-p {plan['top_p']:g}")]
    if not searched:
        return rows
    steps = plan["steps"]
    assert isinstance(steps, list)
    said = []
    for step in steps:
        words = f"{step['write']} {step.get('candidates', 1)}"
        if step.get("candidates", 1) > 1:
            words += f" (keep {step.get('keep', 1)})"
        if "judge" in step:
            words += f" by {step['judge']}"
        said.append(_line(words))
    rows += [("Judge", _line(str(plan["judge"]))), ("Candidates", " → ".join(said))]
    retrace = plan.get("retrace")
    if isinstance(retrace, dict):
        threshold = retrace.get("threshold")
        below = "" if threshold is None else f" while that is below {threshold:g}"
        rows.append(
            (
                "Goes back",
                f"from {_line(retrace['after'])} to {_line(retrace['to'])}, at most "
                f"{retrace['most']} times{below}",
            )
        )
    return rows


def _footer() -> str:
    return (
        f'<footer class="soft">llavacot {__version__} · '
        "all of this page is in this one file</footer>\n"
    )


def _text(text: str) -> str:
    """Any text as HTML that shows it, with its line breaks."""
    return escape(printable(text))


def _line(text: str) -> str:
    """Any text as HTML that shows it in one line."""
    return escape(printable_line(text))
