"""How metrics are shown: as text, on a port, on a dashboard; promtool and Prometheus judge them."""

from __future__ import annotations

import json
import shutil
import urllib.request
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import openmetrics, parser
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from typer.testing import CliRunner

from squadron.bridge.metrics.dashboard import PANELS, dashboard
from squadron.bridge.metrics.exposition import ScrapePort, text_of
from squadron.bridge.metrics.families import COUNTED, COUNTERS, GAUGES, MOST_TOPICS
from squadron.bridge.metrics.figures import Figures
from squadron.cli.app import app
from tests import prometheus

DATA = Path(__file__).parents[1] / "data"
ALERTS = files("squadron.bridge.metrics").joinpath("alerts.yml")


def everything() -> Figures:
    """A number for each metric that there is, with labels that need to be escaped."""
    cells: dict[tuple[str, ...], tuple[float, ...]] = {}
    for kind, (labels, buckets) in COUNTED.items():
        values = ['say "x"\n\\', "two"][:labels]
        cells[kind, *values] = (1.5, 0, 2) if buckets else (3,)
    gauges = [(name, tuple("x" for _ in family.labels), 4.0) for name, family in GAUGES.items()]
    return Figures({"desk": cells, "clerk": cells}, gauges)


def test_all_metrics_are_in_the_text_once_each_with_their_help() -> None:
    shown = {each.name: each for each in parser.text_string_to_metric_families(text_of(everything()))}
    assert len(shown) == len(COUNTERS) + len(GAUGES)
    for family in (*COUNTERS, *GAUGES.values()):
        metric = shown[family.name.removesuffix("_total")]
        assert (metric.type, metric.documentation) == (family.kind, family.help)
        for sample in metric.samples:
            assert sample.labels.keys() - {"le"} == set(family.labels)


def test_a_histogram_is_cumulative_and_its_count_is_its_last_bucket() -> None:
    shown = {each.name: each for each in parser.text_string_to_metric_families(text_of(everything()))}
    samples = shown["squadron_task_wait_seconds"].samples
    mine = [each for each in samples if each.labels["agent"] == "desk"]
    buckets = {each.labels["le"]: each.value for each in mine if each.name.endswith("_bucket")}
    assert [*buckets.values()] == [0, *[2] * (len(buckets) - 1)]
    assert [*buckets][-1] == "+Inf"
    assert {each.name: each.value for each in mine if "le" not in each.labels} == {
        "squadron_task_wait_seconds_count": 2,
        "squadron_task_wait_seconds_sum": 1.5,
    }


def test_the_port_speaks_both_formats_and_is_free_again_when_it_is_closed() -> None:
    endpoint = ScrapePort("127.0.0.1:0", everything)
    with urllib.request.urlopen(endpoint.url) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        assert answer.read().decode() == text_of(everything())
    asked = urllib.request.Request(endpoint.url, headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    with urllib.request.urlopen(asked) as answer:
        assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
        text = answer.read().decode()
    assert len([*open_metrics(text)]) == len(COUNTERS) + len(GAUGES)
    assert text.endswith("# EOF\n")
    assert openmetrics is not None
    endpoint.close()
    again = ScrapePort(endpoint.address, everything)
    again.close()


def test_the_port_answers_probes_beside_the_metrics() -> None:
    def probes(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [environ["PATH_INFO"].encode()]

    endpoint = ScrapePort("127.0.0.1:0", everything, probes)
    root = endpoint.url.removesuffix("/metrics")
    shown = {}
    for path in ("/healthz", "/readyz", "/metrics"):
        with urllib.request.urlopen(f"{root}{path}") as answer:
            shown[path] = answer.read().decode()
    endpoint.close()
    assert shown == {"/healthz": "/healthz", "/readyz": "/readyz", "/metrics": text_of(everything())}


def test_with_nothing_to_show_there_is_an_empty_page() -> None:
    assert text_of(Figures()) == ""


@pytest.mark.parametrize("of_ray", [False, True])
def test_the_dashboard_asks_for_metrics_and_labels_that_there_are(of_ray: bool) -> None:
    board = dashboard(of_ray=of_ray)
    assert {panel["type"] for panel in board["panels"]} == {"timeseries"}
    places = [tuple(panel["gridPos"].values()) for panel in board["panels"]]
    assert len(set(places)) == len(places)
    names = {family.name for family in (*COUNTERS, *GAUGES.values())}
    for panel in board["panels"]:
        for target in panel["targets"]:
            found = {
                word
                for word in prometheus.metrics_in(target["expr"])
                if word.startswith(("squadron_", "agent_task", "gen_ai_", "ray_"))
            }
            plain = {prometheus.plain(word, of_ray=of_ray) for word in found if "request_model" not in word}
            assert plain, target["expr"]
            assert plain <= names, target["expr"]
            assert not of_ray or "_bucket" not in target["expr"]
    assert len(board["panels"]) == sum(not (of_ray and panel.has_buckets) for panel in PANELS)


def test_dashboards_and_rules_are_written_where_one_says(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["metrics", "grafana", "--out", str(tmp_path / "boards")])
    assert done.exit_code == 0, done.output
    written = {path.name: json.loads(path.read_text()) for path in (tmp_path / "boards").iterdir()}
    assert {name: board["uid"] for name, board in written.items()} == {
        "squadron_grafana_dashboard.json": "squadron",
        "squadron_ray_grafana_dashboard.json": "squadronRay",
    }
    done = CliRunner().invoke(app, ["metrics", "alerts", "--out", str(tmp_path / "alerts.yml")])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "alerts.yml").read_text() == ALERTS.read_text()
    (tmp_path / "file").write_text("")
    done = CliRunner().invoke(app, ["metrics", "grafana", "--out", str(tmp_path / "file")])
    assert done.exit_code == 2


def test_the_page_lists_all_metrics_as_they_are() -> None:
    page = (Path(__file__).parents[2] / "docs/metrics.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `") and line.count(" | ") == 3]
    expected = []
    for each in (*COUNTERS, *GAUGES.values()):
        labels = ", ".join(f"`{name}`" for name in each.labels) or "none"
        expected.append(f"| `{each.name}` | {each.kind} | {labels} | {each.help} |")
    assert rows == expected


# --- judges --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a running Prometheus that scrapes nothing."""
    if why := prometheus.why_not():
        pytest.skip(why)
    with prometheus.server(tmp_path_factory.mktemp("prometheus")) as address:
        yield address


@pytest.mark.slow
@prometheus.needed
def test_promtool_is_content_with_all_metrics() -> None:
    assert prometheus.promtool("check", "metrics", stdin=text_of(everything())).strip() == ""


@pytest.mark.slow
@prometheus.needed
def test_promtool_is_content_with_the_most_topics_that_there_can_be() -> None:
    cells = {("turn", f"t.{number}"): (1.5, 1, 2) for number in range(MOST_TOPICS + 1)}
    text = text_of(Figures({f"agent{number}": cells for number in range(20)}))
    # Of each topic 17 series, once by topic, and once more of each agent.
    assert text.count("\n") == 20 * 17 * (MOST_TOPICS + 2) + 4
    assert prometheus.promtool("check", "metrics", stdin=text).strip() == ""


@pytest.mark.slow
@prometheus.needed
def test_alerts_fire_when_they_should_and_only_then(tmp_path: Path) -> None:
    (tmp_path / "alerts.yml").write_text(ALERTS.read_text())
    assert "SUCCESS" in prometheus.promtool("check", "rules", str(tmp_path / "alerts.yml"))
    shutil.copy(DATA / "alerts_test.yml", tmp_path)
    assert "SUCCESS" in prometheus.promtool("test", "rules", str(tmp_path / "alerts_test.yml"))
    tested = (DATA / "alerts_test.yml").read_text()
    for line in ALERTS.read_text().splitlines():
        if "alert: " in line:
            assert f"alertname: {line.rpartition(' ')[2]}\n        exp_alerts" in tested


@pytest.mark.slow
@prometheus.needed
@pytest.mark.parametrize("of_ray", [False, True])
def test_a_real_prometheus_reads_each_query_of_the_dashboard(of_ray: bool, judge: str) -> None:
    board: Any = dashboard(of_ray=of_ray)
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    assert len(queries) > 15
    for promql in queries:
        # Grafana puts these in.
        filled = promql.replace("$__rate_interval", "1m").replace("$agent", ".*")
        assert prometheus.call(judge, "format_query", query=filled)
    with pytest.raises(AssertionError, match="bad_data"):
        prometheus.call(judge, "format_query", query="sum by (agent (x)")
