"""Grafana's dashboard and Prometheus' alerts: valid, and about metrics that there are."""

import json
import re

import yaml

from conftest import DEPLOY, NAMES, run

#: What no panel shows, and why not.
ABSENT = {
    "zrc_relay_geoip_build_timestamp_seconds": "it changes when somebody brings another file",
    "zrc_relay_raw_probes_answered_total": "it is the number of open raw channels, which a panel shows, by second",
    "zrc_relay_region_info": "it is there to give others its label, in queries over relays of several regions",
    "process_virtual_memory_bytes": "address space that is reserved and not used, which says nothing of memory",
}


def alerts() -> list[dict]:
    groups = yaml.safe_load((DEPLOY / "prometheus/zrc-relay.rules.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_the_search_finds_what_is_missing(metrics):
    for expression, missing in [
        ("rate(zrc_relay_connections_total[5m])", ["zrc_relay_connections_total"]),
        ('zrc_relay_refused_total{code="NONE"}', ['zrc_relay_refused_total{code="NONE"}']),
        ('zrc_relay_refused_total{code=~"CAPACITY|NONE"}', ['zrc_relay_refused_total{code="NONE"}']),
        ('zrc_relay_refused_total{why="CAPACITY"}', ['zrc_relay_refused_total{why="CAPACITY"}']),
        ("sum by (why) (rate(zrc_relay_refused_total[5m]))", ["zrc_relay_refused_total by why"]),
        ("process_open_files", ["process_open_files"]),
        ("sum by (le) (rate(zrc_relay_allocation_bytes_bucket[5m]))", []),
        ('sum by (code, job) (rate(zrc_relay_refused_total{code="CAPACITY", job="x"}[5m]))', []),
    ]:
        assert metrics.missing(expression) == missing


def test_alerts_name_metrics_that_there_are(metrics):
    rules = alerts()
    assert len(rules) >= 10
    for rule in rules:
        assert not metrics.missing(rule["expr"]), rule["alert"]
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"] and rule["annotations"]["description"]


def test_promtool_accepts_and_tries_the_alerts(tools):
    promtool = tools / "prometheus/usr/bin/promtool"
    folder = DEPLOY / "prometheus"
    run(promtool, "check", "rules", "--lint-fatal", folder / "zrc-relay.rules.yml")
    run(promtool, "check", "config", folder / "prometheus.yml")
    run(promtool, "test", "rules", folder / "zrc-relay.test.yml")
    tried = (folder / "zrc-relay.test.yml").read_text()
    for rule in alerts():
        assert rule["alert"] in tried, "an alert that no test lets fire"


def test_the_dashboard_shows_metrics_that_there_are(metrics):
    dashboard = json.loads((DEPLOY / "grafana/zrc-relay.json").read_text())
    panels = dashboard["panels"]
    ids = [panel["id"] for panel in panels]
    assert len(ids) == len(set(ids)) and len(panels) > 15
    shown = set()
    for panel in panels:
        if panel["type"] == "row":
            continue
        assert panel["title"] and panel["description"], panel["id"]
        for target in panel["targets"]:
            expression = target["expr"]
            assert not metrics.missing(expression), panel["title"]
            assert 'job="$job"' in expression and 'instance=~"$instance"' in expression, panel["title"]
            shown.update(re.findall(NAMES, expression))
            # A counter is only worth its rate, and a histogram what becomes of its buckets'.
            for name in re.findall(rf"{NAMES}_(?:total|bucket)", expression):
                assert re.search(rf"(rate|increase)\({name}", expression), (panel["title"], name)
    for query in [it["definition"] for it in dashboard["templating"]["list"] if "definition" in it]:
        assert not metrics.missing(query)
        shown.update(re.findall(NAMES, query))
    for note in dashboard["annotations"]["list"]:
        assert not metrics.missing(note["expr"])
        shown.update(re.findall(NAMES, note["expr"]))
    assert len(shown) > 20
    # What a relay counts and nobody sees is told why.
    families = {re.sub("_bucket$", "", name) for name in shown}
    assert metrics.types.keys() - families == ABSENT.keys()
    assert all(ABSENT.values())


def test_every_start_is_marked_and_nothing_else(tools, tmp_path):
    """Grafana asks each minute; relays are asked four times as often, and start whenever they like."""
    dashboard = json.loads((DEPLOY / "grafana/zrc-relay.json").read_text())
    (note,) = [it for it in dashboard["annotations"]["list"] if it["name"] == "Started"]
    expression = note["expr"].replace("$job", "zrc-relay").replace("$instance", ".*")
    labels, minutes = 'job="zrc-relay", instance="a"', 60
    # Without the first minutes, before which there is nothing at all.
    marks = f"count_over_time(({expression})[{minutes - 10}m:1m]) > 0"

    def tried(began, marked, version=str):
        """A relay, by when it began (None where it does not answer), and which starts are marked with their version."""
        began += began[-1:] * (4 * minutes - len(began))
        shown = lambda values: " ".join("stale" if it is None else str(it) for it in values)
        series = [{"series": f"process_start_time_seconds{{{labels}}}", "values": shown(began)}]
        versions = [None if it is None else version(it) for it in began]
        for one in set(versions) - {None}:
            ones = shown(1 if it == one else None for it in versions)
            series.append({"series": f'zrc_relay_build_info{{{labels}, version="{one}"}}', "values": ones})
        samples = [{"labels": f'{{{labels}, version="{version(it)}"}}', "value": 1} for it in marked]
        query = {"expr": f"clamp_max({marks}, 1)", "eval_time": f"{minutes}m", "exp_samples": samples}
        return {"interval": "15s", "input_series": series, "promql_expr_test": [query]}

    old, away = [-86_400], [None]
    # Started anew at any moment between two questions, away for none of Prometheus', one, or many; of another version or not.
    tests = [
        tried(old * at + away * missed + [15 * (at + missed) - 5], [15 * (at + missed) - 5], version)
        for at in range(80, 84)
        for missed in (0, 1, 6, 40)
        for version in (str, lambda _: "1")
    ]
    # Seen for the first time; and one that was out of reach for a while and ran on.
    tests.append(tried(away * 81 + [15 * 81 - 5], [15 * 81 - 5]))
    tests.append(tried(old * 80 + away * 40 + old, []))
    file = tmp_path / "started.test.yml"
    file.write_text(yaml.safe_dump({"evaluation_interval": "1m", "tests": tests}))
    run(tools / "prometheus/usr/bin/promtool", "test", "rules", file)


def test_what_is_rare_is_looked_at_over_an_hour():
    panels = json.loads((DEPLOY / "grafana/zrc-relay.json").read_text())["panels"]
    rare = [panel for panel in panels if re.search(r"quantile.*zrc_relay_allocation_", json.dumps(panel.get("targets")))]
    assert len(rare) == 4
    for panel in rare:
        # Allocations end now and then: between two questions there is none, or a single one.
        assert all("_bucket{" in it["expr"] and "[1h]" in it["expr"] for it in panel["targets"]), panel["title"]
        # And a value between two that are missing is a point.
        assert panel["fieldConfig"]["defaults"]["custom"]["showPoints"] == "auto", panel["title"]
        assert "in the last hour" in panel["description"], panel["title"]


def test_millions_of_sources_do_not_hide_how_often_the_guard_was_raised():
    panels = json.loads((DEPLOY / "grafana/zrc-relay.json").read_text())["panels"]
    apart = {}
    for panel in panels:
        legends = [it["legendFormat"] for it in panel.get("targets", [])]
        for override in panel.get("fieldConfig", {}).get("overrides", []):
            assert override["matcher"]["id"] == "byName" and override["matcher"]["options"] in legends, panel["title"]
            properties = {it["id"]: it["value"] for it in override["properties"]}
            apart[panel["title"], override["matcher"]["options"]] = properties.get("custom.axisPlacement")
    assert apart["Guard raised", "sources forgotten"] == "right"


def test_panels_do_not_lie_over_each_other():
    panels = json.loads((DEPLOY / "grafana/zrc-relay.json").read_text())["panels"]
    taken = {}
    for panel in panels:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        for place in [(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])]:
            assert taken.setdefault(place, panel["id"]) == panel["id"], panel["title"]
