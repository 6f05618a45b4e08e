"""What the documents say of files, held against what is read."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
from click import Group  # noqa: TID251 - the command line is what is compared

from ipbackend import config
from ipbackend.cli.healthmonitor import healthmonitor
from ipbackend.cli.listener import listener
from ipbackend.cli.pool import pool
from ipbackend.model import HealthMonitor, Listener, Pool, Resource

ROOT = Path(__file__).parents[2]
SETTINGS = (ROOT / "docs" / "settings.md").read_text()
PLAIN = {"id", "name", "description", "load_balancer", "protocol", "port", "pool", "members", "idle_timeout"}
PLAIN_OPTIONS = {"name", "lb", "protocol", "port", "pool", "idle_timeout", "description", "output", "rename", "no_pool"}


def readme_example() -> str:
    """The README's file, with all its settings that are commented."""
    (text,) = re.findall(r"```toml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return str(re.sub(r"^# (?=\S+ = |\[)", "", text, flags=re.MULTILINE))


def test_the_readme_s_example_can_be_run_with_all_that_it_shows() -> None:
    text = readme_example()
    have = config.parse(text, "README.md")
    assert not re.search(r"^#", text, re.MULTILINE)
    (web,), (http,), (monitor,) = have.pools.values(), have.listeners.values(), have.health_monitors.values()
    assert (web.algorithm, web.persistence, web.minimum_healthy) == ("LEAST_CONNECTIONS", 20, 1)
    assert (http.cps, len(http.ip_groups), monitor.url_path) == (2_000, 1, "/health")
    assert have.gateway
    assert have.gateway.health_address


@pytest.mark.parametrize("kind", [Pool, Listener, HealthMonitor])
def test_every_field_is_in_the_document(kind: type[Resource]) -> None:
    for field in fields(kind):
        if field.name not in {*PLAIN, "member_deletion_protection_enable"}:
            assert f"`{field.name}`" in SETTINGS, field.name


@pytest.mark.parametrize("noun", [pool, listener, healthmonitor])
def test_every_option_is_in_the_document(noun: Group) -> None:
    options = {option for verb in ("create", "set") for option in noun.commands[verb].params}
    for option in options:
        if option.name not in {*PLAIN_OPTIONS, "member_protection"}:
            assert f"`{option.opts[0]}`" in SETTINGS, option.opts
