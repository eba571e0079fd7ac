"""What every runner of candidates promises; a new one is tested by its record alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from autoprune.evaluation.evaluator import Evaluator
from autoprune.evaluation.runners import Runner, SerialRunner
from autoprune.structure.space import Allocation


def check_runner(runner: Runner, make: Callable[[Runner], Evaluator], allocations: Sequence[Allocation]) -> None:
    """Assert that scores, their order and the journal do not depend on the runner.

    Args:
        runner: the runner.
        make: makes an evaluator that uses a runner, of the same network each time, with an empty journal.
        allocations: different ones.
    """
    serial = make(SerialRunner())
    expected = [serial([allocation])[0].score for allocation in allocations]
    check_batches(make(runner), allocations, expected)
    check_failure(make(runner), allocations, expected)


def check_batches(evaluator: Evaluator, allocations: Sequence[Allocation], expected: Sequence[float]) -> None:
    """Assert that a batch has the scores of single candidates, in order; known ones and copies are not computed."""
    evaluator(allocations[1:2])
    found = evaluator([*allocations, *allocations[::-1]])
    assert [one.allocation for one in found] == [*allocations, *allocations[::-1]]
    assert [one.score for one in found] == pytest.approx([*expected, *expected[::-1]], abs=1e-6)
    kept = [tuple(record.key) for record in evaluator.journal.records(evaluator.kind)]
    assert kept == [allocations[1], allocations[0], *allocations[2:]], "journalled once, in the order of asking"
    counts = evaluator.counts
    assert (counts.evaluations, counts.cache_hits) == (2 * len(allocations) + 1, len(allocations) + 1)
    assert counts.seconds == pytest.approx(sum(one.seconds for one in found[: len(allocations)]))


def check_failure(evaluator: Evaluator, allocations: Sequence[Allocation], expected: Sequence[float]) -> None:
    """Assert that the error of a candidate arrives, and that those before it are journalled."""
    impossible = allocations[0][:-1]  # lacks a unit
    for _ in range(2):  # the runner works on after an error
        with pytest.raises(Exception, match=r"\S") as caught:
            evaluator([*allocations[:2], impossible, *allocations[2:]])
        assert not isinstance(caught.value, StopIteration)
        kept = [record.value["score"] for record in evaluator.journal.records(evaluator.kind)]
        assert kept == pytest.approx(expected[:2], abs=1e-6)
    assert [one.score for one in evaluator(allocations)] == pytest.approx(list(expected), abs=1e-6)
