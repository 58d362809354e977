"""A page of a search: whole, safe, without a network, and readable on a phone."""

from __future__ import annotations

import base64
import http.server
import io
import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fakes import GOOD_ANSWER, ScriptedRound
from PIL import Image
from traces import events_of, greedy, png, retracing, stopped, trace_of

from llavacot_mlx.cli.html.page import page
from llavacot_mlx.cli.html.page_picture import page_picture
from llavacot_mlx.cli.html.search_section import path_taken
from llavacot_mlx.errors import UserError
from llavacot_mlx.prompt.stages import Stage
from llavacot_mlx.trace.events import Retraced
from llavacot_mlx.trace.record import Trace

EVIL = (
    "</p></title></style><script>alert(1)</script><img src=x onerror=alert(1)>"
    "\"'&amp; \u202e\x1b[31m"
)
MAY_LEAD = {"a": "#c", "link": "data:,", "img": "data:image/"}


class Outline(HTMLParser):
    """What stands in a page: its elements, and the text of those that were asked for."""

    VOID = ("meta", "link", "img")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.headings: list[tuple[str, str]] = []
        self.candidates: dict[str, str] = {}
        """The class of each, by its id."""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {key: value or "" for key, value in attrs}
        self.elements.append((tag, attributes))
        if tag not in self.VOID and not (tag in ("circle", "path") and self._open):
            self._open.append(tag)
        if re.fullmatch(r"h\d", tag):
            self.headings.append((tag, ""))
        if tag == "li" and "id" in attributes:
            self.candidates[attributes["id"]] = attributes["class"]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and re.fullmatch(r"h\d", self._open[-1]):
            tag, text = self.headings.pop()
            self.headings.append((tag, text + data))


def words(text: str) -> str:
    """All that a page says, in one line."""
    body = text[text.index("<body>") :]
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", body)).split())


def evil() -> Trace:
    """A search in which every text that is not ours tries to be more than text."""
    rounds: list[ScriptedRound] = [
        {"stage": "summary", "texts": [f"<SUMMARY> {EVIL} </SUMMARY>"], "kept": [0]},
        {
            "stage": "caption",
            "texts": [f"<CAPTION> {EVIL} </CAPTION>", f"<CAPTION> {EVIL * 3} </CAPTION>"],
            "scores": [0.5, -7.25],
            "kept": [1],
        },
        {
            "stage": "conclusion",
            "texts": [f"<CONCLUSION> {EVIL} </CONCLUSION>"],
            "kept": [3],
        },
    ]
    trace = trace_of(events_of(rounds, question=EVIL, notices=(EVIL,)))
    search = replace(trace.search, plan={**trace.search.plan, "method": EVIL, "judge": EVIL})
    return replace(trace, image=EVIL, model=EVIL, search=replace(search, method=EVIL))


PAGES = {
    "search": lambda: page(retracing(), png()),
    "greedy": lambda: page(greedy(), png()),
    "no picture": lambda: page(retracing(), None),
    "evil": lambda: page(evil(), png()),
    "no stages": lambda: page(trace_of(events_of(text="Two.")), png()),
    "nothing": lambda: page(trace_of(events_of(text="")), None),
}


@pytest.fixture(params=PAGES)
def any_page(request: pytest.FixtureRequest) -> str:
    return PAGES[request.param]()


# -- what it says ---------------------------------------------------------------------------------


def test_question_answer_and_path_come_first_then_the_rounds_in_order() -> None:
    outline = Outline(page(retracing(), png()))
    assert outline.headings == [
        ("h1", "How many?"),
        ("h2", "Answer"),
        ("h2", "The path taken"),
        ("h3", "Summary"),
        ("h3", "Caption"),
        ("h3", "Reasoning"),
        ("h3", "Conclusion"),
        ("h2", "The search"),
        ("h3", "Summary · 1 candidate"),
        ("h3", "Caption · 2 candidates"),
        ("h3", "Reasoning · 2 candidates"),
        ("h3", "Caption · 2 candidates · round 2"),
        ("h3", "Reasoning · 2 candidates · round 2"),
        ("h3", "Conclusion · 2 candidates · round 2"),
        ("h2", "How it was asked"),
    ]


def test_the_path_taken_is_marked_in_the_tree_and_in_its_drawing() -> None:
    trace = retracing()
    assert path_taken(trace.search) == [0, 5, 7, 9]
    text = page(trace, None)
    marked = {f"c{node + 1}": "path" for node in (0, 5, 7, 9)}
    marked |= dict.fromkeys(("c3", "c5", "c7", "c9", "c11"), "dropped")
    marked |= {"c2": "kept", "c4": "kept"}
    assert Outline(text).candidates == marked
    drawn = re.findall(r'<title>(\d+): [^<]*</title><circle class="([a-z ]+)"', text)
    assert {f"c{number}": name.split()[0] for number, name in drawn} == marked
    assert dict(drawn)["5"] == "dropped cut"


def test_scores_tokens_parents_and_fates_are_told() -> None:
    said = words(page(retracing(), None))
    assert "4 0.41 kept There is one." in said
    assert "5 – not closed dropped None, so" in said
    assert "10 from 8 0.98 on the path 2" in said
    assert "11 from 4 0.40 dropped 1" in said
    assert re.search(r"continues 8 · \d+ tokens", said)
    assert "kept 8, 4 · 18 tokens" in said
    assert "↩ not good enough: back to the captions, round 2" in said
    assert "11 candidates · 1 retrace · 74 tokens decoded, 70 reused, 160 without reuse" in said
    assert "summary 1 → caption 4 (keep 2) → reasoning 4 (keep 2) → conclusion 2" in said
    assert "mind the gap" in said
    assert "Model demo Method swires" in said
    assert "Seed 0" in said


def test_a_bar_is_as_long_as_its_score() -> None:
    bars = re.findall(
        r'([\d.–-]+)<span class="bar"[^>]*><i style="width:([\d.]+)%', page(retracing(), None)
    )
    assert ("0.61", "61.0") in bars
    rounds: list[ScriptedRound] = [
        {
            "stage": "summary",
            "texts": ["<SUMMARY> a </SUMMARY>", "<SUMMARY> b </SUMMARY>"],
            "scores": [-3.0, -1.0],
            "kept": [1],
        },
    ]
    text = page(trace_of(events_of(rounds)), None)
    bars = re.findall(r'([\d.-]+)<span class="bar"[^>]*><i style="width:([\d.]+)%', text)
    least, most = (float(width) for _, width in bars)
    assert 0 < least < most == 100


def test_an_interrupted_search_says_so_and_shows_what_there_is() -> None:
    shown = page(stopped(), None)
    said = words(shown)
    assert "There is no conclusion. Stopped before its end" in said
    assert Outline(shown).candidates["c2"] == "path"
    assert "Reasoning · 2 candidates stopped here" in said


def test_candidates_that_wrote_the_same_say_so() -> None:
    rounds: list[ScriptedRound] = [
        {"stage": "summary", "texts": ["<SUMMARY> a </SUMMARY>"] * 3, "kept": [1]}
    ]
    assert "all 3 wrote the same · kept 2" in words(page(trace_of(events_of(rounds)), None))


def test_candidates_that_wrote_the_same_share_a_card() -> None:
    """Each keeps its line, and the place that the tree links to; the text stands there once."""
    caption = "<CAPTION> One dot. </CAPTION>"
    rounds: list[ScriptedRound] = [
        {"stage": "summary", "texts": ["<SUMMARY> a </SUMMARY>"], "kept": [0]},
        {"stage": "caption", "texts": [caption] * 3, "scores": [0.4, 0.6, 0.5], "kept": [2, 1]},
    ]
    shown = page(trace_of(events_of(rounds)), None)
    ids = re.findall(r'id="c(\d)"', shown)
    assert ids == ["1", "2", "3", "4"]
    assert shown.count("<details>") == 2
    assert shown.count("One dot.") == 2 + 1  # the path taken, the card's gist and its whole text
    assert "2 0.40 kept 3 0.60 on the path 4 0.50 dropped One dot." in words(shown)


def test_what_scores_mean_is_told_once() -> None:
    rounds: list[ScriptedRound] = [
        {"stage": stage, "texts": ["x", "y"], "scores": [0.5, 0.4], "judge": "self", "kept": [at]}
        for stage, at in (("caption", 0), ("reasoning", 2))
    ]
    said = words(page(trace_of(events_of(rounds)), None))
    assert said.count("scores by self: the model's own probability that the text is right") == 1


def test_why_a_search_went_back_is_told_once() -> None:
    trace = retracing()
    (before,) = [event for event in trace.events if isinstance(event, Retraced)]
    told = replace(before, after=Stage.REASONING, rank=2, score=0.17, threshold=0.85)
    events = tuple(told if event is before else event for event in trace.events)
    said = words(page(replace(trace, events=events), None))
    assert "↩ second best reasoning 0.17, needs 0.85: back to the captions, round 2" in said
    assert "had to score" not in said


def test_when_it_was_asked_is_told() -> None:
    trace = replace(greedy(), asked_at="2026-11-27T20:15:00+01:00")
    assert "Asked 2026-11-27 20:15:00+01:00 Model" in words(page(trace, None))
    assert "Asked" not in words(page(greedy(), None))


def test_a_picture_that_is_not_the_traces_own_says_so() -> None:
    remark = "Not in the trace; a file of its name lay beside it."
    assert remark in words(page(greedy(), png(), from_file=True))
    assert remark not in words(page(greedy(), png()))


def test_a_whole_answer_is_told_by_its_conclusion_and_shown_by_its_stages() -> None:
    rounds: list[ScriptedRound] = [
        {"stage": "summary", "texts": [GOOD_ANSWER, GOOD_ANSWER], "scores": [0.5, 0.4], "kept": [0]}
    ]
    said = words(page(trace_of(events_of(rounds, search="best-of-n")), None))
    assert "Answer · 2 candidates · their conclusions" in said
    assert "1 0.50 on the path 2 0.40 dropped 2 Summary I need to count the red circles." in said


def test_long_candidates_are_told_from_where_they_differ() -> None:
    begin = "a square, " * 12
    texts = [f"<SUMMARY> {begin}a {what} </SUMMARY>" for what in ("dot", "dog")]
    rounds: list[ScriptedRound] = [{"stage": "summary", "texts": texts, "kept": [0]}]
    said = words(page(trace_of(events_of(rounds)), None))
    assert "dropped …dog a square, a square" in said
    assert "9 0.03 dropped 1 + 2 = 3." in words(page(retracing(), None))


def test_a_huge_tree_has_no_drawing() -> None:
    texts = [f"<SUMMARY> {n} </SUMMARY>" for n in range(200)]
    rounds: list[ScriptedRound] = [
        {"stage": "summary", "texts": ["<SUMMARY> I </SUMMARY>"], "kept": [0]},
        {"stage": "caption", "texts": texts, "kept": [1]},
    ]
    text = page(trace_of(events_of(rounds)), None)
    assert "<svg" not in text
    assert len(Outline(text).candidates) == 201


# -- the picture ----------------------------------------------------------------------------------


def opened(url: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


def test_a_large_picture_becomes_smaller_and_a_small_one_stays() -> None:
    large = page_picture(png((3000, 1500)))
    assert (large.width, large.height) == (1120, 560)
    small = page_picture(png((16, 12)))
    assert opened(small.url).size == (small.width, small.height) == (16, 12)
    assert small.url.startswith("data:image/png;base64,")


def test_a_picture_stands_upright_and_keeps_no_place_where_it_was_taken() -> None:
    image = Image.effect_noise((60, 20), 90).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    exif.get_ifd(0x8825)[1] = "N"
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif)
    shown = page_picture(buffer.getvalue())
    assert (shown.width, shown.height) == (20, 60)
    assert not opened(shown.url).getexif()


@pytest.mark.parametrize("form", ["GIF", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_any_picture_becomes_one_that_browsers_show(form: str, mode: str) -> None:
    buffer = io.BytesIO()
    image = Image.new("RGBA", (9, 9), (255, 0, 0, 0)).convert(mode)
    (image if form != "BMP" or mode != "RGBA" else image.convert("RGB")).save(buffer, form)
    assert re.match("data:image/(png|jpeg);base64,", page_picture(buffer.getvalue()).url)


def test_what_is_no_picture_is_named() -> None:
    with pytest.raises(UserError, match=r"^picture: the picture is not a picture that can"):
        page(greedy(), b"no picture")


# -- safe, and without a network ------------------------------------------------------------------


def test_nothing_leads_out_of_the_page(any_page: str) -> None:
    for tag, attributes in Outline(any_page).elements:
        for name in ("src", "href", "action", "data", "srcset", "poster", "background"):
            if name in attributes:
                assert attributes[name].startswith(MAY_LEAD[tag]), (tag, attributes)
        assert not any(name.startswith("on") for name in attributes)
        assert tag not in ("script", "iframe", "object", "embed", "base", "form")
    style = any_page[any_page.index("<style>") : any_page.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style


def test_the_policy_forbids_everything_else(any_page: str) -> None:
    (policy,) = (
        attributes["content"]
        for tag, attributes in Outline(any_page).elements
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")
    assert any_page.index("Content-Security-Policy") < any_page.index("<title>")


def test_every_text_is_shown_as_it_is() -> None:
    text = page(evil(), png())
    assert "<script" not in text
    assert text.count("<style>") == text.count("</style>") == 1
    assert "\x1b" not in text
    # question, answer, model, method, judge, notice, four stages, candidates
    assert words(text).count("<script>alert(1)</script>") >= 12
    Outline(text)


def test_question_and_answer_are_escaped() -> None:
    said = '<script>alert("1 & 2")</script>'
    trace = trace_of(events_of(text=f"<CONCLUSION> {said} </CONCLUSION>", question=said))
    text = page(trace, None)
    escaped = "&lt;script&gt;alert(&#34;1 &amp; 2&#34;)&lt;/script&gt;"
    # title, heading, answer, and the stage
    assert (text.count(escaped), text.count("<script")) == (4, 0)


def test_a_page_is_utf_8_whatever_the_trace_has() -> None:
    trace = replace(retracing(), question="\ud800 漢字", image="b\udce4r.png")
    assert "漢字" in page(trace, None).encode(errors="replace").decode()


# -- in a browser ---------------------------------------------------------------------------------

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--force-device-scale-factor=1",
    "--enable-logging=stderr",
]

WRAPPER = """<!doctype html><body style="margin:0"><iframe src="page.html"
width="{width}" height="700" style="border:0"></iframe><pre id="found"></pre><script>
addEventListener("load", () => {{
  const inside = document.querySelector("iframe").contentDocument;
  const root = inside.documentElement;
  const small = [...inside.querySelectorAll("p, dd, li, .gist")].filter(
    (e) => parseFloat(inside.defaultView.getComputedStyle(e).fontSize) < 15.9 && e.textContent);
  const wide = [...inside.querySelectorAll("body *:not(svg *)")].filter(
    (e) => e.getBoundingClientRect().right > {width} + 0.5 && !e.closest(".bar"));
  const image = inside.querySelector("img");
  document.querySelector("#found").textContent = JSON.stringify({{
    scroll: root.scrollWidth, width: root.clientWidth, small: small.length,
    wide: wide.map((e) => e.tagName + "." + e.className),
    image: image ? image.naturalWidth : 0, scripts: inside.scripts.length,
    paper: inside.defaultView.getComputedStyle(inside.body).backgroundColor,
  }});
}});
</script>"""


class Server:
    """Serves one folder on loopback, and knows what was asked for."""

    def __init__(self, folder: Path) -> None:
        self.requests: list[str] = []
        server = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def __init__(self, *arguments: object) -> None:
                super().__init__(*arguments, directory=str(folder))  # type: ignore[arg-type]

            def log_message(self, format: str, *arguments: object) -> None:
                server.requests.append(self.path)

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "served").mkdir()
    server = Server(tmp_path / "served")
    yield server
    server.http.shutdown()
    server.http.server_close()


def measured(
    server: Server, tmp_path: Path, text: str, width: int, *, dark: bool = False
) -> dict[str, object]:
    """What a browser makes of a page in a window of `width` pixels."""
    folder = tmp_path / "served"
    (folder / "page.html").write_text(text, encoding="utf-8", errors="replace")
    (folder / "index.html").write_text(WRAPPER.format(width=width), encoding="utf-8")
    assert CHROMIUM is not None
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    done = subprocess.run(
        [
            CHROMIUM,
            *QUIET,
            scheme,
            profile,
            "--window-size=1400,900",
            "--dump-dom",
            f"{server.address}/index.html",
        ],
        capture_output=True,
        text=True,
        timeout=90,
        env={**os.environ, "HOME": str(tmp_path)},
    )
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    assert console == []
    found = re.search(r'<pre id="found">(\{.*?\})</pre>', done.stdout, re.DOTALL)
    assert found is not None, done.stdout[-2000:] + done.stderr[-2000:]
    value: dict[str, object] = json.loads(unescape(found[1]))
    return value


def wordy() -> Trace:
    """Long words, long numbers and many candidates: what makes a page too wide."""
    word = "Donaudampfschifffahrtsgesellschaftskapitänsmütze" * 4
    texts = [f"<CAPTION> {word} {n} </CAPTION>" for n in range(12)]
    rounds: list[ScriptedRound] = [
        {"stage": "summary", "texts": [f"<SUMMARY> {word} </SUMMARY>"], "kept": [0]},
        {"stage": "caption", "texts": texts, "scores": [-123456.789] * 12, "kept": [3, 1]},
        {
            "stage": "reasoning",
            "parents": [3, 1],
            "texts": ["<REASONING> so", "<REASONING> no"],
            "scores": [None, 9876543.21],
            "kept": [14],
        },
        {"stage": "conclusion", "texts": [f"<CONCLUSION> {word} </CONCLUSION>"], "kept": [15]},
    ]
    trace = trace_of(events_of(rounds, question=word, notices=(word,)))
    return replace(trace, model=f"/{word}/{word}", image=word)


needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


@pytest.mark.processes
@needs_chromium
@pytest.mark.parametrize("width", [320, 360, 1280])
@pytest.mark.parametrize("name", ["search", "wordy", "open"])
def test_it_fits_the_window(server: Server, tmp_path: Path, name: str, width: int) -> None:
    trace = retracing() if name == "search" else wordy()
    text = page(trace, png((1200, 300)))
    if name == "open":
        text = text.replace("<details>", "<details open>")
    found = measured(server, tmp_path, text, width)
    assert (found["wide"], found["scroll"], found["width"]) == ([], width, width)
    assert found["small"] == 0, "text smaller than 16 px"
    assert found["image"] == 1120


@pytest.mark.processes
@needs_chromium
def test_it_asks_for_nothing_and_runs_nothing(server: Server, tmp_path: Path) -> None:
    found = measured(server, tmp_path, page(evil(), png()), 360)
    assert found["scripts"] == 0
    assert set(server.requests) <= {"/index.html", "/page.html", "/favicon.ico"}
    # The wrapper has no icon, so a browser may look for one; the page alone never makes it look.
    server.requests.clear()
    assert CHROMIUM is not None
    subprocess.run(
        [
            CHROMIUM,
            *QUIET,
            f"--user-data-dir={tmp_path / 'other'}",
            "--dump-dom",
            f"{server.address}/page.html",
        ],
        capture_output=True,
        timeout=90,
        env={**os.environ, "HOME": str(tmp_path)},
        check=True,
    )
    assert server.requests == ["/page.html"]


@pytest.mark.processes
@needs_chromium
def test_it_is_dark_where_the_system_is(server: Server, tmp_path: Path) -> None:
    text = page(retracing(), png())
    light = measured(server, tmp_path, text, 360)["paper"]
    dark = measured(server, tmp_path, text, 360, dark=True)["paper"]
    assert (light, dark) == ("rgb(251, 250, 247)", "rgb(22, 24, 28)")
