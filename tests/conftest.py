"""What holds for every test: marks by folder, and no skip is forgiven in CI."""

from __future__ import annotations

import os
import pathlib

import pytest
from hypothesis import settings

import ddpd

CI = os.environ.get("CI") == "true"
HERE = pathlib.Path(__file__).parent

settings.register_profile("house", deadline=None, derandomize=CI, print_blob=True)
settings.load_profile("house")


@pytest.fixture(autouse=True)
def _the_log_is_full_of_tokens() -> None:
    """What one test has caused keeps no line of the next from being seen."""
    ddpd.log.kinds.clear()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What lies in tests/netns makes namespaces."""
    for item in items:
        if HERE / "netns" in item.path.parents:
            item.add_marker("netns")


def skipped(config: pytest.Config) -> list[str]:
    """Where and why, one line for every test or file that did not run."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    reports = reporter.stats.get("skipped", []) if reporter else []
    return [f"{report.nodeid}: {report.longrepr[2]}" for report in reports]


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """In CI a test that did not run has failed: green must mean proved."""
    if CI and exitstatus == pytest.ExitCode.OK and skipped(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    lines = skipped(terminalreporter.config)
    if CI and lines:
        terminalreporter.section("skipped, and CI=true: this run has failed", red=True, bold=True)
        for line in lines:
            terminalreporter.line(line)
