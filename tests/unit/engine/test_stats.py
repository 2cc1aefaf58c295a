from chorus_workers.engine.stats import Histogram


def test_bounds_are_inclusive_and_the_last_count_has_none() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 2.5):
        histogram.observe(value)
    histogram.observe(9.0, weight=3)
    assert (histogram.counts, histogram.sum) == ([2, 2, 4], 7.5 + 27)
