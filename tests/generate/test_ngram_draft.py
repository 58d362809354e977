"""What is drafted from earlier text, and when nothing is."""

from __future__ import annotations

import pytest

from llavacot_mlx.generate.ngram_draft import DraftMemory, NgramDraft, PassCost

PHRASE = [11, 12, 13, 14, 15, 16]


def taught(*texts: list[int], cost: float = 0.2) -> DraftMemory:
    memory = DraftMemory(texts)
    memory.cost.of_a_draft = cost
    return memory


def written(memory: DraftMemory, tokens: list[int]) -> NgramDraft:
    draft = NgramDraft(memory, [])
    for token_id in tokens:
        draft.push(token_id)
    return draft


def test_what_followed_before_follows_again() -> None:
    """In the question, earlier in the text, and in earlier texts."""
    memory = taught(cost=0.01)
    assert NgramDraft(memory, [*PHRASE, 1, 2, 11, 12]).next_tokens(4) == [13, 14, 15, 16]
    assert written(memory, [*PHRASE, 1, 2, 11, 12]).next_tokens(4) == [13, 14, 15, 16]
    assert NgramDraft(taught(PHRASE, cost=0.01), [11]).next_tokens(4) == [12, 13, 14, 15]


def test_the_longest_context_decides() -> None:
    texts = [[1, 2, 3, 30], [9, 2, 3, 40], [9, 2, 3, 40]]
    assert NgramDraft(taught(*texts), [1, 2, 3]).next_tokens(1) == [30]
    assert NgramDraft(taught(*texts), [7, 2, 3]).next_tokens(1) == [40]


def test_this_text_counts_more_than_a_few_others() -> None:
    """What followed last in this text weighs as much as half of all that others say."""
    texts = [[5, 6], [5, 7], [5, 8]]
    assert NgramDraft(taught(*texts), [5, 8, 5]).next_tokens(1) == [8]
    assert NgramDraft(taught(*[[5, 6]] * 3, [5, 7]), [5, 8, 5]).next_tokens(1) == [6]


def test_a_text_without_repetition_has_no_draft() -> None:
    assert written(taught(), list(range(100))).next_tokens(8) == []


def test_a_draft_has_a_limit() -> None:
    memory = taught([1] * 50, cost=0.0)
    assert NgramDraft(memory, [1, 1, 1, 1]).next_tokens(3) == [1, 1, 1]
    assert NgramDraft(memory, [1, 1, 1, 1]).next_tokens(0) == []
    assert len(NgramDraft(memory, [1, 1, 1, 1]).next_tokens(100)) == 16


def test_guesses_that_fail_are_no_longer_made() -> None:
    """A text that pretends to repeat itself and never does."""
    memory = taught(cost=0.3)
    draft = NgramDraft(memory, [])
    drafted = []
    for number in range(200):
        draft.push(5)
        drafted.append(len(draft.next_tokens(4)))
        draft.push(1000 + number)
    assert any(drafted[:10])
    assert not any(drafted[20:])


def test_guesses_that_hold_are_drafted_further() -> None:
    memory = taught(cost=0.3)
    draft = NgramDraft(memory, [])
    lengths = []
    for _ in range(12):
        for token_id in PHRASE:
            draft.push(token_id)
        lengths.append(len(draft.next_tokens(16)))
    assert lengths[0] < lengths[-1]
    assert lengths[-1] > 6


@pytest.mark.parametrize(("cost", "most"), [(0.9, 0), (0.2, 2)])
def test_a_dear_pass_verifies_less(cost: float, most: int) -> None:
    """Untried guesses are right with even chance: two of them with a quarter."""
    assert len(NgramDraft(taught(PHRASE, cost=cost), [11]).next_tokens(8)) == most


def test_old_texts_are_forgotten() -> None:
    memory = DraftMemory([[1, 2, 3]], most_tokens=10)
    texts = [[50 + number, 60 + number, 70 + number, 80 + number] for number in range(5)]
    for text in texts:
        memory.add(text)
    assert [bool(memory.counts((text[0],))) for text in texts] == [False, False, False, True, True]
    assert memory.counts((1, 2)) == {3: 1}
    only = DraftMemory([[1, 2, 3]])
    for text in texts[-2:]:
        only.add(text)
    assert memory._counts == only._counts  # nothing of the old texts is left


def test_the_cost_of_a_drafted_token_is_measured() -> None:
    """As a share of a pass of one token, from 0 to 1."""
    cost = PassCost()
    before = cost.of_a_draft
    cost.measure(5, 1.0)  # nothing to compare with yet
    assert cost.of_a_draft == before
    for _ in range(100):
        cost.measure(1, 0.010)
        cost.measure(5, 0.030)
    assert cost.of_a_draft == pytest.approx(0.5, abs=0.01)
    for _ in range(100):
        cost.measure(5, 9.0)
    assert cost.of_a_draft <= 1
