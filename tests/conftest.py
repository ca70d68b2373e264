"""How tests are run. What they share is in `tests/common.py`."""

from functools import cache
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling


def pytest_configure(config: pytest.Config) -> None:
    """Import fixtures, and all that they are made of; in a process that only hands tests out nobody needs them."""
    if config.getoption("dist", "no") == "no" or hasattr(config, "workerinput"):
        config.pluginmanager.import_plugin("common")


@cache
def _one_process(file: str) -> bool:
    return file.endswith(".py") and 'scope="module"' in (Path(__file__).parents[1] / file).read_text()


class ByFixtures(LoadScopeScheduling):
    """Tests go to whichever process is free, but those of a file that share a fixture to one, which makes it once."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::", 1)[0]
        return file if _one_process(file) else nodeid


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByFixtures | None:
    """Distribute tests so, if the command says nothing else of it than how many processes there are."""
    return ByFixtures(config, log) if config.getoption("dist") == "load" else None
