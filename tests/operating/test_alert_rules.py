"""Rules of alerts, their runbooks, settings and Prometheus rules are held to each other."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from django.conf import settings
from django.core.management import get_commands
from django.db import connection, transaction
from django.urls import resolve

from kafka_bridge.metrics import exposition
from kafka_bridge.models import Alert, AlertNotification
from kafka_bridge.operating.alerts import AlertRule, alert_rules, open_alert
from kafka_bridge.relaying.id_assignment import SEQUENCE

ROOT = Path(__file__).parents[2]
RUNBOOKS = ROOT / "docs" / "runbooks"
PROMETHEUS_RULES = ROOT / "docs" / "prometheus" / "alerts.yml"


def _registered() -> dict[str, AlertRule]:
    """The rules of all processes: each process registers those of the modules that it imports."""
    rules: dict[str, AlertRule] = {}
    for package in ("kafka_bridge", "coupons", "orders", "couponsite"):
        for path in sorted((ROOT / package).rglob("*.py")):
            if "alert_rule(" in path.read_text():
                module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
                rules |= {value.name: value for value in vars(module).values() if isinstance(value, AlertRule)}
    assert rules.items() <= alert_rules().items()
    return rules


RULES = _registered()
PAGES = sorted(path for path in RUNBOOKS.glob("*.md") if path.name != "README.md")
of_each_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
of_each_page = pytest.mark.parametrize("page", [*PAGES, RUNBOOKS / "README.md"], ids=lambda page: page.stem)


def example_settings() -> dict[str, str]:
    lines = (ROOT / ".env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def page_of(rule: AlertRule) -> str:
    return (ROOT / rule.runbook).read_text()


# Runbooks


@of_each_rule
def test_a_rule_has_a_page_with_its_name_its_severity_and_what_to_do(rule: AlertRule) -> None:
    page = page_of(rule)
    assert page.startswith(f"# {rule.name}: ")
    assert re.search(rf"^{rule.severity.capitalize()}\. ", page, re.MULTILINE)
    assert re.findall(r"^## (.+)$", page, re.MULTILINE) == ["What it means", "What to look at", "What to do"]


def test_a_page_belongs_to_a_rule() -> None:
    assert {page.stem for page in PAGES} == set(RULES)


def test_the_index_lists_every_rule_with_its_severity() -> None:
    rows = re.findall(r"^\| \[([\w-]+)\]\(([\w.-]+)\) \| (\w+) \|", (RUNBOOKS / "README.md").read_text(), re.MULTILINE)
    assert rows == [(name, f"{name}.md", RULES[name].severity) for name in sorted(RULES)]


@of_each_rule
def test_a_page_names_the_settings_of_its_rule_with_their_defaults(rule: AlertRule) -> None:
    example, page = example_settings(), page_of(rule)
    assert set(rule.settings) <= set(example)
    missing = [name for name in rule.settings if f"`{name}` ({example[name] or 'default'}" not in page]
    assert not missing
    assert rule.settings or "No settings." in page


@of_each_rule
def test_the_example_has_the_default_of_each_setting_of_a_rule(rule: AlertRule) -> None:
    example = example_settings()
    for name in rule.settings:
        if example[name]:
            assert float(example[name]) == float(getattr(settings, name)), name


def anchor_of(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@of_each_page
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        name, _, anchor = target.partition("#")
        linked = (page.parent / name).resolve()
        assert linked.is_file(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", linked.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}, (
                target
            )


@of_each_page
def test_commands_and_addresses_on_a_page_exist(page: Path) -> None:
    text = page.read_text()
    assert set(re.findall(r"manage\.py (\w+)", text)) <= set(get_commands())
    for address in re.findall(r"`(/ops/[\w/-]*)`", text):
        resolve(address)


@pytest.mark.django_db(transaction=True)
@of_each_page
def test_statements_on_a_page_run(page: Path) -> None:
    for statements in re.findall(r"^ *```sql\n(.*?)^ *```", page.read_text(), re.MULTILINE | re.DOTALL):
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(statements)
            transaction.set_rollback(True)


@pytest.mark.django_db(transaction=True)
def test_an_alert_that_an_operator_ends_by_its_runbook_is_ended_and_notified() -> None:
    open_alert(SEQUENCE, "it was set back")
    (statement,) = re.findall(r"```sql\n(.*?)```", page_of(SEQUENCE), re.DOTALL)
    with connection.cursor() as cursor:
        cursor.execute(statement)
    assert Alert.objects.get().ended_at is not None
    assert set(AlertNotification.objects.values_list("phase", flat=True)) == {"start", "end"}


# Prometheus


def prometheus_rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(PROMETHEUS_RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


@of_each_rule
def test_prometheus_has_the_rule_with_its_severity_and_its_thresholds(rule: AlertRule) -> None:
    (found,) = (one for one in prometheus_rules() if one["annotations"]["runbook"] == rule.runbook)
    assert found["alert"] == "".join(word.capitalize() for word in rule.name.split("-"))
    assert found["labels"] == {"severity": rule.severity}
    expression = found["expr"]
    if "alert_open" in expression:
        assert f'rule="{rule.name}"' in expression or f'rule=~"{rule.name}-.*"' in expression
        return
    # Units of Prometheus are seconds.
    numbers = {float(number) for number in re.findall(r"[<>]=? ([\d.]+)", expression)} | {seconds_of(found.get("for"))}
    for name in rule.settings:
        default = float(example_settings()[name])
        assert (default / 1000 if name.endswith("_MS") else default) in numbers, name


def seconds_of(duration: str | None) -> float:
    number, unit = re.fullmatch(r"(\d+)([sm])", duration or "0s").groups()  # type: ignore[union-attr]
    return float(number) * {"s": 1, "m": 60}[unit]


def test_prometheus_rules_are_complete_and_their_names_unique() -> None:
    rules = prometheus_rules()
    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"]
        assert (ROOT / rule["annotations"]["runbook"].partition("#")[0]).is_file()


@pytest.mark.django_db(transaction=True)
def test_metrics_of_the_prometheus_rules_exist() -> None:
    exposed = {line.split()[2] for line in exposition().decode().splitlines() if line.startswith("# TYPE ")}
    for rule in prometheus_rules():
        named = re.findall(r"\b([a-z]\w*_\w+)\b(?=[\[{) ]|$)", re.sub(r"by \([^)]*\)", "", rule["expr"]))
        assert named, rule["alert"]
        assert set(named) <= exposed, rule["alert"]


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool (Debian: prometheus) is not installed")
def test_promtool_takes_the_rules() -> None:
    checked = subprocess.run(
        ["promtool", "check", "rules", str(PROMETHEUS_RULES)], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert json.dumps(len(prometheus_rules())) in checked.stdout
