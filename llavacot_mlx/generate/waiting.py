"""How code that needs tokens lets others run until the forward pass that computes them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Waiting:
    """Yielded among events where nothing can follow before the shared decoder's next step.

    Code that decodes for itself alone never yields it.
    """


WAITING = Waiting()
