"""Fronts known beforehand, and the definition itself on random points."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wq.study.pareto import front

nan, inf = math.nan, math.inf


@pytest.mark.parametrize(
    ("points", "on_front"),
    [
        ([], ""),
        ([(8, 0.05)], "*"),
        ([(4, 0.07), (8, 0.05), (8, 0.06), (16, 0.05)], "**--"),
        ([(16, 0.05), (8, 0.06), (8, 0.05), (4, 0.07)], "--**"),  # the order given does not matter
        ([(1, 0.4), (2, 0.3), (3, 0.2), (4, 0.1)], "****"),  # all of a falling line
        ([(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)], "*---"),  # one of a rising line
        ([(4, 0.1), (4, 0.1), (4, 0.1)], "***"),  # equal points stay together
        ([(4, 0.1), (4, 0.1), (2, 0.1)], "--*"),  # and go together
        ([(4, 0.1), (4, 0.2), (4, 0.1)], "*-*"),  # equal sizes: the fewest errors
        ([(4, 0.1), (2, 0.1), (3, 0.1)], "-*-"),  # equal errors: the smallest
        ([(4, 0.0), (2, 4.1), (1, 0.0)], "--*"),
        ([(4, None), (None, 0.1), (8, 0.1), (1, nan), (nan, 0.1), (inf, 0.0), (1, inf)], "--*----"),
        ([(None, None)], "-"),
    ],
)
def test_known_fronts(points, on_front):
    assert front(points) == [mark == "*" for mark in on_front]


coordinate = st.one_of(st.integers(0, 6).map(float), st.floats(0, 10), st.none(), st.just(nan))


@given(st.lists(st.tuples(coordinate, coordinate), max_size=30))
def test_equals_the_definition(points):
    def known(point):
        return all(value is not None and math.isfinite(value) for value in point)

    def beats(a, b):
        return known(a) and a[0] <= b[0] and a[1] <= b[1] and a != b

    assert front(points) == [
        known(point) and not any(beats(other, point) for other in points) for point in points
    ]
