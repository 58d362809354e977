"""Text that others wrote, made safe to print.

A model repeats what it reads in a picture, and file names come from anywhere. Printed as it is, an
escape character in such a text would recolour the terminal, rename its window, or worse.
"""

from __future__ import annotations

_KEPT = "\n\t"

# NUL … US have pictures of their own in Unicode (U+2400 …), and so has DEL; the C1 controls, which
# some terminals obey like ESC [, have none.
_SHOWN_AS = {
    **{code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in _KEPT},
    0x7F: "\u2421",
    **{code: f"\\x{code:02x}" for code in range(0x80, 0xA0)},
}


def printable(text: str) -> str:
    """`text` with its control characters visible: ESC becomes ␛. Line breaks and tabs stay."""
    return text.replace("\r\n", "\n").translate(_SHOWN_AS)


def printable_line(text: str) -> str:
    """`text` in one printable line, its runs of white space as single spaces."""
    return printable(" ".join(text.split()))
