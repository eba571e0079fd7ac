"""How far the predictions of two networks are apart."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autoprune.models.detection.comparing import Layout, disagreement

HEADS = {False: (2, 6, 15), True: (2, 15, 6)}
"""Shape of the predictions by whether the head is end-to-end."""


def predictions(end2end: bool, seed: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    found = torch.rand(HEADS[end2end], generator=random)
    if end2end:
        found[..., :4] *= 100
        found[..., 5] = torch.randint(3, found.shape[:2], generator=random)
    else:
        found[:, :4] *= 100
    return found


@given(seed=st.integers(0, 10_000), other=st.integers(0, 10_000), end2end=st.booleans())
def test_a_disagreement_is_a_share_and_symmetric(seed: int, other: int, end2end: bool) -> None:
    one, two = predictions(end2end, seed), predictions(end2end, other)
    apart = disagreement(one, two, layout=Layout(rows=end2end))
    assert 0 <= apart <= 1
    assert apart == pytest.approx(disagreement(two, one, layout=Layout(rows=end2end)), abs=1e-5)
    assert disagreement(one, one, layout=Layout(rows=end2end)) == pytest.approx(0, abs=1e-4)
    assert disagreement(one, torch.full_like(one, torch.nan), layout=Layout(rows=end2end)) == 1
    if end2end:
        assert disagreement(one, one[:, torch.randperm(15)], layout=Layout(rows=end2end)) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("end2end", [False, True], ids=["plain", "end2end"])
def test_sure_predictions_count_most(end2end: bool) -> None:
    one = predictions(end2end, 0)
    scores = one[..., 4] if end2end else one[:, 4:].amax(1)
    sure, unsure = one.clone(), one.clone()
    for moved, index in ((sure, int(scores[0].argmax())), (unsure, int(scores[0].argmin()))):
        if end2end:
            moved[0, index, :4] += 5
        else:
            moved[0, :4, index] += 5
    assert (
        disagreement(one, sure, layout=Layout(rows=end2end))
        > disagreement(one, unsure, layout=Layout(rows=end2end))
        > 0
    )
