"""Makes untrusted text safe to print.

A model repeats what it reads in an image, and file names come from anywhere. Printed unchanged, an
escape character in such a text could recolor the terminal, rename its window, or worse.
"""

from __future__ import annotations

_KEPT = "\n\t"
_MAX_LINE = 290  # characters of a message
_MAX_END = 100  # of which the last, which say what to do, are kept

# Unicode has a visible symbol for each of NUL … US (U+2400 …) and for DEL, but none for the C1
# controls, which some terminals obey like ESC [.
_SHOWN_AS = {
    **{code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in _KEPT},
    0x7F: "\u2421",
    **{code: f"\\x{code:02x}" for code in range(0x80, 0xA0)},
}


def printable(text: str) -> str:
    """`text` with its control characters visible: ESC becomes ␛. Line breaks and tabs stay."""
    return text.replace("\r\n", "\n").translate(_SHOWN_AS)


def printable_line(text: str) -> str:
    """`text` as one printable line, with each run of white space as a single space."""
    return printable(" ".join(text.split()))


def short_line(text: str) -> str:
    """`text` as one printable line of at most 290 characters, cut in its middle.

    A message says what is wrong where it begins, and what to do where it ends; a name or a value
    that a file made long is in between.
    """
    line = printable_line(text)
    if len(line) <= _MAX_LINE:
        return line
    return f"{line[: _MAX_LINE - _MAX_END - 3]} … {line[-_MAX_END:]}"
