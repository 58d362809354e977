"""The conclusion that a person reads in what a model wrote, or none."""

from __future__ import annotations

import pytest

from llavacot_mlx.prompt.stages import (
    Closed,
    Opened,
    Stage,
    StageParser,
    Text,
    conclusion_among,
    stages_of,
)

S, C, R = (f"<{n}> {t} </{n}>\n\n" for n, t in (("SUMMARY", "I count."), ("CAPTION", "Six balls."),
                                               ("REASONING", "2 x 3 is 6.")))  # fmt: skip
LOWER = (S + C + R + "<CONCLUSION> 6 </CONCLUSION>").lower()

WRITTEN = {
    "as trained": (S + C + R + "<CONCLUSION> 6 </CONCLUSION>", "6"),
    "lower case": (LOWER, "6"),
    "mixed case": (S + C + R + "<Conclusion> 6 </Conclusion>", "6"),
    "opened in one case, closed in another": (R + "<conclusion> 6 </CONCLUSION>", "6"),
    "closed in another case": (R + "<CONCLUSION> 6 </conclusion>", "6"),
    "closed in another case, and a courtesy": (
        R + "<CONCLUSION> 6 </conclusion>\n\nI hope this helps.", "6"),
    "blanks in the tag": (R + "< CONCLUSION > 6 </ CONCLUSION >", "6"),
    "spoken in lower case": (
        R + "(here begins the conclusion stage) 6 (here ends the conclusion stage)", "6"),
    "bold tags": (R + "**<CONCLUSION>** 6 **</CONCLUSION>**", "6"),
    "bold tags and a bold answer": (R + "**<CONCLUSION>**\n**6**\n**</CONCLUSION>**", "**6**"),
    "a bold answer in plain tags": (R + "<CONCLUSION> **6**</CONCLUSION>", "**6**"),
    "a bold heading": (S + C + R + "**CONCLUSION:** 6", "6"),
    "a bold heading on its own line": (S + C + R + "**Conclusion**\n\n6", "6"),
    "the colon after the bold": (R + "**CONCLUSION**: 6", "6"),
    "all of it bold": (R + "**CONCLUSION: 6**", "6"),
    "a Markdown heading": (R + "### Conclusion\n6", "6"),
    "a plain heading": (R + "CONCLUSION: 6", "6"),
    "headings alone": (
        "**SUMMARY:** I count.\n**CAPTION:** Balls.\n**REASONING:** 2 x 3.\n**CONCLUSION:** 6",
        "6"),
    "a heading in a reasoning left open": ("<REASONING> 2 x 3.\n**CONCLUSION:** 6", "6"),
    "a heading, then the tag": (R + "**CONCLUSION:**\n<CONCLUSION> 6 </CONCLUSION>", "6"),
    "the caption is left open": (
        S + "<CAPTION> Six balls.\n\n<CONCLUSION> 6 </CONCLUSION>", "6"),
    "the caption is left open, and the conclusion too": (
        S + "<CAPTION> Six balls.\n\n<CONCLUSION> 6", "6"),
    "the caption is left open on the same line": (
        S + "<CAPTION> Six balls. <CONCLUSION> 6 </CONCLUSION>", "6"),
    "the summary is left open": (
        "<SUMMARY> I count.\n<REASONING> 2 x 3.\n<CONCLUSION> 6 </CONCLUSION>", "6"),
    "no stage is closed": (
        "<SUMMARY> I count. <CAPTION> Balls. <REASONING> 2 x 3 is 6. <CONCLUSION> 6", "6"),
    "on the reasoning's last line": (
        S + C + "<REASONING> 2 x 3, so 6. <CONCLUSION> 6 </CONCLUSION>", "6"),
    "amid the reasoning's last sentence": (
        "<REASONING> 2 x 3, so the answer is <CONCLUSION> 6 </CONCLUSION>", "6"),
    "on the reasoning's last line, left open": ("<REASONING> That makes 6. <CONCLUSION> 6", "6"),
    "after a quotation in the reasoning": (
        '<REASONING> It says "<CONCLUSION> EXIT </CONCLUSION>". So 6. <CONCLUSION> 6', "6"),
    "a courtesy after it": (
        "<REASONING> So 6. <CONCLUSION> 6 </CONCLUSION> I hope this helps!", "6"),
    "a wrong closing tag before it": (
        "<REASONING> 2 x 3 </CAPTION> <CONCLUSION> 6 </CONCLUSION>", "6"),
    "the next stage's closing tag before it": (
        "<REASONING> 2 x 3 </CONCLUSION>\n\n<CONCLUSION> 6 </CONCLUSION>", "6"),
    "a wrong closing tag two stages before": (
        "<CAPTION> Six. </SUMMARY>\n\n<CONCLUSION> 6 </CONCLUSION>", "6"),
    "a wrong closing tag after it": (R + "<CONCLUSION> 6 </REASONING>", "6"),
    "an opening tag after it": (R + "<CONCLUSION> 6 <CONCLUSION>", "6"),
    "two, the second a correction": (
        "<CONCLUSION> 5 </CONCLUSION>\n\nWait.\n\n<CONCLUSION> 6 </CONCLUSION>", "6"),
    "two, the second cut off": (
        "<CONCLUSION> 6 </CONCLUSION>\n\n<CONCLUSION> The ans", "6"),
    "two, the second empty": (
        "<CONCLUSION> 6 </CONCLUSION>\n\n<CONCLUSION> </CONCLUSION>", "6"),
    "the opening tag twice": (R + "<CONCLUSION>\n<CONCLUSION> 6 </CONCLUSION>", "6"),
    "all of it twice": (f"{S}{R}<CONCLUSION> 6\n\n{S}{R}<CONCLUSION> 6 </CONCLUSION>", "6"),
    "the closing tag is cut off": (R + "<CONCLUSION> 6 </CONCLUSION", "6"),
    "the closing tag is cut off early": (R + "<CONCLUSION> 6 <", "6"),
    "the bold closing tag is cut off": (R + "<CONCLUSION> 6 **</CONC", "6"),
    "the spoken closing tag is cut off": (R + "<CONCLUSION> 6 (Here ends the CONCL", "6"),
    "a comparison at the end": (R + "<CONCLUSION> 5 < 6 </CONCLUSION>", "5 < 6"),
    "HTML in the answer": (
        R + "<CONCLUSION> Use <summary>a</summary>. </CONCLUSION>", "Use <summary>a</summary>."),
    "only a conclusion": ("<CONCLUSION>6</CONCLUSION>", "6"),
    # None that a person would read:
    "nothing": ("", None),
    "no tags at all": ("There are six of them.", None),
    "no conclusion yet": (S + C + "<REASONING> 2 x 3", None),
    "three stages": (S + C + R, None),
    "the opening tag is cut off": (S + C + R + "<CONCLUSI", None),
    "a caption that quotes a sign": (
        '<CAPTION> A sign says "<CONCLUSION> EXIT </CONCLUSION>". </CAPTION>', None),
    "a caption that quotes a sign, cut off": (
        '<CAPTION> A sign says "<CONCLUSION> EXIT </CONCLUSION>" and below', None),
    "a caption that quotes a sign, cut off in it": (
        "<CAPTION> A sign reads <CONCLUSION> EXIT </CONCLUSION>", None),
    "a caption that quotes a sign of lines, cut off": (
        "<CAPTION> The sign reads:\n<CONCLUSION>\nEXIT\n</CONCLUSION>\nand below it are", None),
    "a caption of lines": (
        "<CAPTION> The sign:\n<CONCLUSION>\nEXIT\n</CONCLUSION>\n </CAPTION>", None),
    "a reasoning about tags": (
        "<REASONING> The form wants the <CONCLUSION> tag, so I will use it later", None),
    "a closing tag alone": ("There are 6 </CONCLUSION>", None),
    "a reasoning with its own conclusion": (
        "<REASONING> 2 x 3.\nConclusion: even. </REASONING>", None),
    "the word": ("In conclusion: there are six.", None),
}  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), WRITTEN.values(), ids=WRITTEN)
def test_the_conclusion_that_a_person_reads(text: str, expected: str | None) -> None:
    found = conclusion_among(stages_of(text))
    assert (None if found is None else found.text) == expected


@pytest.mark.parametrize(("text", "expected"), WRITTEN.values(), ids=WRITTEN)
def test_a_character_at_a_time(text: str, expected: str | None) -> None:
    """The same stages, and all of the text in its events."""
    parser = StageParser()
    events = [event for letter in text for event in parser.feed(letter)] + parser.finish()
    written = "".join(e.text if isinstance(e, Text) else e.written for e in events)
    assert written == text
    marks = [(type(e), e.stage) for e in events if isinstance(e, Opened | Closed)]
    whole = StageParser()
    at_once = whole.feed(text) + whole.finish()
    assert marks == [(type(e), e.stage) for e in at_once if isinstance(e, Opened | Closed)]


def test_the_record_says_how_it_was_found() -> None:
    def notes(text: str) -> list[tuple[bool, str]]:
        return [(record.closed, record.note) for record in stages_of(text)]

    assert notes(S + R) == [(True, "")] * 2
    assert notes("<conclusion> 6 </conclusion>") == [
        (True, "its tag was written <conclusion>; its tag was written </conclusion>")
    ]
    assert notes("<CONCLUSION> 6 </CONC") == [(False, "a tag was cut off")]
    assert notes("<REASONING> a </CAPTION>\n\n<CONCLUSION> 6") == [
        (False, "ended by </CAPTION>"),
        (False, ""),
    ]
    assert notes("**CONCLUSION:** 6") == [(False, "its tag was written **CONCLUSION:**")]


def test_exact_reads_what_training_data_must_look_like() -> None:
    def found(text: str) -> list[Stage]:
        parser = StageParser(exact=True)
        return [e.stage for e in parser.feed(text) + parser.finish() if isinstance(e, Opened)]

    assert found(S + C + R + "<CONCLUSION> 6 </CONCLUSION>") == list(Stage)
    assert found(LOWER) == found("**CONCLUSION:** 6") == []
    assert found("<CAPTION> a <CONCLUSION> 6 </CONCLUSION>") == [Stage.CAPTION]


def test_no_reading_takes_long() -> None:
    """Many tags that all may be quotations, in an answer as long as any."""
    text = "<CAPTION> a" + ' "<CONCLUSION> b ' * 700
    assert [record.stage for record in stages_of(text)] == [Stage.CAPTION]
    assert len(stages_of("<SUMMARY> a\n<REASONING> b. <CONCLUSION> " * 700)) > 1
