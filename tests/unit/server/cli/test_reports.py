"""Commands: reports of runs."""

from tests.support.scripted_server import LEARNT, RUN, run

SLICE = {
    "name": "new [documents]",
    "items": 8,
    "champion": 1,
    "challenger": 7,
    "interval": [0.5, 1.0],
    "verdict": "promote",
}


def test_a_report_is_a_table_of_slices(server):
    found = {"run": LEARNT, "exam": {"slices": [SLICE]}, "questions": [], "lineage": []}
    server.answers["GET /api/v1/runs/run_1/report"] = (200, found)

    result = run("runs", "run_1", "--report")

    assert result.exit_code == 0, result.output
    assert "6 gained, 0 lost" in result.stdout
    assert "new [documents]" in result.stdout
    assert "+0.50 +1.00" in result.stdout


def test_a_run_without_slices_has_a_report_of_its_reasons(server):
    found = {"run": LEARNT, "exam": {}, "questions": [], "lineage": []}
    server.answers["GET /api/v1/runs/run_1/report"] = (200, found)

    result = run("runs", "run_1", "--report")

    assert "6 gained, 0 lost" in result.stdout
    assert "challenger" not in result.stdout


def test_a_run_that_goes_on_has_no_report_yet_and_is_not_called_failed(server):
    found = {"run": RUN, "exam": {}, "questions": [], "lineage": []}
    server.answers["GET /api/v1/runs/run_1/report"] = (200, found)

    result = run("runs", "run_1", "--report")

    assert result.exit_code == 1
    assert "--follow" in result.stderr
    assert "no error was recorded" not in result.output


def test_a_report_is_written_as_a_page(server, tmp_path):
    server.answers["GET /api/v1/runs/run_1/report.html"] = (200, "<!doctype html><p>\u2212</p>")

    written = run("runs", "run_1", "--html", "report.html")
    refused = run("runs", "run_1", "--html", str(tmp_path / "nowhere" / "report.html"))

    assert written.exit_code == 0, written.output
    assert (tmp_path / "report.html").read_text() == "<!doctype html><p>\u2212</p>"
    assert refused.exit_code == 1
    assert "name another file" in refused.stderr
