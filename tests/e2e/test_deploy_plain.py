"""Plain processes on one host, as docs/DEPLOY.md starts them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from deployment import Deployment, check_run_directory, deployed, simulate

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployed(tmp_path_factory.mktemp("plain"), "data", "plain", "trial") as deployment:
        yield deployment


def test_the_blocks_of_the_page_give_what_a_simulation_gives(deployment: Deployment, tmp_path: Path) -> None:
    assert "finished:completed" in (deployment.work / "blocks.log").read_text()
    check_run_directory(deployment.work / "runs" / "plain", 2, simulate(tmp_path / "run"))


def test_a_run_that_fails_is_status_1_with_the_reason_in_the_last_line(deployment: Deployment) -> None:
    done = deployment.run("disue", "run", "plain", "--set", "min-clients=5", "--set", "join-timeout=1")
    assert done.returncode == 1, done.stdout
    assert done.stdout.splitlines()[-1].startswith("disue: min-clients: 4 clients joined within 1 s and 5 are needed")
