"""Recommendations on made-up corpora whose truth is known: rarely wrong, found with enough speech, and what
docs/recommending.md says of them."""

import pytest

from recipes.study.recommending import GRIDS, PAGE, UTTERANCES, corpus, point, simulate
from wq.study.score.noninferiority import LEVEL

CORPORA = 200


def lines() -> dict[tuple[str, int], tuple[float, ...]]:
    """The table of the docs: shares in %, by grid and number of utterances."""
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in PAGE.read_text(encoding="utf-8").split("<!-- simulation -->")[1].splitlines()
        if "%" in line
    ]
    return {
        (grid, int(utterances.replace(",", ""))): tuple(float(share.rstrip("%")) for share in shares)
        for grid, utterances, *shares in cells
    }


def test_truth_is_as_said():
    made = point(0.012, 0.01, 0.002)
    assert made.change == pytest.approx(0.012)
    scene, truth = corpus([made], 20_000, 0)
    (row,) = (row for row in scene.rows if row is not scene.reference)
    assert row["wer_delta"] == pytest.approx(truth[row["point"]], abs=0.002)


def test_the_docs_hold_every_grid_and_no_claim_beyond_the_level():
    found = lines()
    assert found.keys() == {(grid, n) for grid in GRIDS for n in UTTERANCES}
    assert max(wrong for wrong, _, _ in found.values()) <= 100 * LEVEL
    assert max(zero for _, _, zero in found.values()) > 90


@pytest.mark.slow
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("utterances", [30, 300, 1000])
def test_recommendations_are_as_the_docs_say(grid, utterances):
    found = simulate(GRIDS[grid], utterances, CORPORA)
    shares = tuple(100 * n / CORPORA for n in (found.wrong, found.found, found.zero_wrong))
    assert shares == pytest.approx(lines()[grid, utterances], abs=0.051)
    assert found.wrong <= LEVEL * CORPORA
