"""The drawings show the newest figures, to scale."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.draw import Chart, Group, charts, main, number, svg
from benchmarks.results import Results

BAR = re.compile(r'<rect x="290" y="\d+" width="([\d.]+)" height="13"')


def results(folder: Path, bench: str) -> Results:
    return Results(bench, setup="1000000 rows beside 1000", seed=0, folder=folder, commit="abc")


def widths(chart: Chart) -> list[float]:
    return [float(width) for width in BAR.findall(svg(chart))]


def test_a_bar_is_as_long_as_its_value():
    chart = Chart("c", "t", "1/s", ("a", "b"), [Group("g", [100.0, 50.0])], False)

    assert widths(chart) == [440, 220]


def test_on_a_logarithmic_scale_ten_times_is_one_step():
    chart = Chart("c", "t", "ms", ("a", "b", "c"), [Group("g", [1.0, 10.0, 100.0])])

    one, ten, hundred = widths(chart)

    assert hundred - ten == pytest.approx(ten - one, abs=0.2)
    assert one > 0


def test_a_missing_figure_has_no_bar():
    chart = Chart("c", "t", "ms", ("a", "b"), [Group("g", [2.0, None])])

    assert len(widths(chart)) == 1


def test_words_cannot_break_the_drawing():
    chart = Chart("c", 'a "<b>" & c', "ms", ("<a>",), [Group("x < y & z", [1.0])])

    tree = ElementTree.fromstring(svg(chart))

    assert "x < y & z" in "".join(tree.itertext())


def test_the_newest_figures_are_drawn(tmp_path):
    of_gateway, of_store = results(tmp_path, "gateway"), results(tmp_path, "store")
    for rate in (1000.0, 2000.0):
        of_gateway.add("json, 16 clients", "everlearn: requests", rate, "1/s")
    of_gateway.add("json, half of saturation", "everlearn: p99", 3.0, "ms")
    of_store.add("sqlite: queries", "list: first page", 4.0, "ms", baseline=2.0)
    of_store.finish("sqlite: queries")

    drawn = {chart.name: chart for chart in charts(tmp_path) if chart.groups}

    assert drawn.keys() == {"gateway-json", "gateway-latency", "store-sqlite"}
    assert drawn["gateway-json"].groups == [Group("16 clients", [None, 2000.0, None])]
    assert drawn["store-sqlite"].groups == [Group("list: first page", [2.0, 4.0])]
    assert drawn["store-sqlite"].series == ("1,000 rows", "1,000,000 rows")


def test_a_chart_without_figures_says_so(tmp_path):
    results(tmp_path, "vllm").add("32 streams", "direct: tokens", 10.0, "1/s")

    main(tmp_path, tmp_path / "images")

    drawn = {path.name: path.read_text() for path in (tmp_path / "images").iterdir()}
    assert len(drawn) == 7
    assert [name for name, text in drawn.items() if "no figures yet" not in text] == [
        "bench-vllm.svg"
    ]
    for text in drawn.values():
        ElementTree.fromstring(text)


@pytest.mark.parametrize(
    ("value", "words"),
    [(61635.4, "61,635"), (12.34, "12.3"), (0.1234, "0.123"), (0.0, "0"), (0.00001, "0.0000")],
)
def test_numbers_have_three_figures(value, words):
    assert number(value) == words
