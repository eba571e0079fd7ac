"""Which proposals of an iteration are scored."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from autoprune.workflows.netadapt_steps import score_promising

PROPOSALS = st.lists(st.tuples(st.floats(-1, 1), st.floats(0, 1)), min_size=1, max_size=30)


@given(PROPOSALS, st.integers(1, 5))
def test_the_best_are_found_if_no_proposal_is_worth_more_than_is_expected(
    proposals: list[tuple[float, float]], wanted: int
) -> None:
    true, expected = [score for score, _ in proposals], [score + slack for score, slack in proposals]
    scores: dict[int, float] = {}

    def score(places: Sequence[int]) -> None:
        scores.update({place: true[place] for place in places})

    found = score_promising(len(true), wanted, scores, score, lambda place: scores.get(place, expected[place]))
    assert [true[place] for place in found] == sorted(true, reverse=True)[:wanted]
    least = true[found[-1]]
    assert all(expected[place] >= least for place in scores)  # nothing is scored that could not be among them


def test_what_was_never_tried_is_scored() -> None:
    scores: dict[int, float] = {}
    expected, true = [float("inf"), 0.1, float("inf")], [0.5, 0.0, 0.4]
    asked: list[Sequence[int]] = []

    def score(places: Sequence[int]) -> None:
        asked.append(places)
        scores.update({place: true[place] for place in places})

    score_promising(3, 1, scores, score, lambda place: scores.get(place, expected[place]))
    assert asked == [[0, 2]], "and both at once, for workers"
    assert scores == {0: 0.5, 2: 0.4}
