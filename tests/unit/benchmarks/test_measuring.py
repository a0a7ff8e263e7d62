"""The arithmetic and the memory of the benchmarks."""

from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks.results import Aim, Results, read_lines
from benchmarks.stats import arrivals, percentile


def results(folder: Path, *, commit: str = "abc", again: bool = False) -> Results:
    return Results("b", setup="2 s", seed=7, folder=folder, commit=commit, again=again)


@pytest.mark.parametrize(("percent", "value"), [(50, 50), (95, 95), (99, 99), (100, 100), (0.1, 1)])
def test_percentile_is_a_value_that_was_seen(percent, value):
    assert percentile(range(100, 0, -1), percent) == value


@pytest.mark.parametrize(("values", "percent"), [([], 50), ([1], 0), ([1], 101)])
def test_percentile_refuses_what_has_none(values, percent):
    with pytest.raises(ValueError):
        percentile(values, percent)


def test_arrivals_keep_their_rate_and_repeat_with_their_seed():
    moments = list(arrivals(1000, 10, seed=3))

    assert 9_500 < len(moments) < 10_500
    assert all(one < other for one, other in pairwise(moments))
    assert moments[-1] < 10
    assert moments == list(arrivals(1000, 10, seed=3))
    assert moments != list(arrivals(1000, 10, seed=4))


def test_a_line_says_whether_its_aim_is_met(tmp_path):
    line = results(tmp_path).add("c", "rate", 50, "1/s", baseline=2, aim=Aim(25))

    assert (line.ratio, line.aim, line.is_met) == (25, "ratio >= 25", True)
    assert list(read_lines(tmp_path / "b.jsonl")) == [line]


def test_an_upper_bound_on_the_value_itself_can_be_missed(tmp_path):
    aim = Aim(5, is_at_least=False, of_ratio=False)

    assert results(tmp_path).add("c", "p99", 6, "ms", aim=aim).is_met is False


def test_only_a_finished_case_of_the_same_commit_is_passed_over(tmp_path):
    first = results(tmp_path)
    first.add("whole", "rate", 1, "1/s")
    first.finish("whole")
    first.add("broken off", "rate", 1, "1/s")

    later = results(tmp_path)

    assert (later.has("whole"), later.has("broken off")) == (True, False)
    assert later.value("whole", "rate") == 1
    assert not results(tmp_path, commit="def").has("whole")
    assert not results(tmp_path, again=True).has("whole")


def test_a_torn_line_is_passed_over(tmp_path):
    line = results(tmp_path).add("c", "rate", 1, "1/s")
    with (tmp_path / "b.jsonl").open("a") as file:
        file.write('{"bench": "b", "ca')

    assert list(read_lines(tmp_path / "b.jsonl")) == [line]
