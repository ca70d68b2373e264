"""docker/compose.yml against the table of docs/DEPLOY.md: what each service mounts, and whom it reaches."""

import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "DEPLOY.md").read_text()
MORE_REACH = {"ports", "expose", "links", "external_links", "extra_hosts", "privileged", "pid", "ipc"}
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker" / "compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
NODES = range(1, 5)


def names_in(cell: str) -> list[str]:
    return re.findall("`(.+?)`", cell)


def table() -> dict[str, tuple[list[str], list[str]]]:
    """Return, of each service, the others on its networks and what it mounts, as patterns."""
    rows: dict[str, tuple[list[str], list[str]]] = {}
    for line in PAGE.split("<!-- services -->\n")[1].split("\n\n")[0].splitlines()[2:]:
        name, _, near, mounts = (cell.strip() for cell in line.strip("|").split("|"))
        for i in NODES if "-I" in name else (0,):
            own = [part.replace("-I", f"-{i}") for part in (name, near, mounts)]
            rows[names_in(own[0])[0]] = names_in(own[1]), names_in(own[2])
    return rows


def networks_of(service: str) -> set[str]:
    if SERVICES[service].get("network_mode") == "none":
        return set()
    return set(SERVICES[service].get("networks", ["default"]))


def reached(service: str) -> set[str]:
    return {other for other in SERVICES if other != service and networks_of(other) & networks_of(service)}


def mounted(service: str) -> dict[str, str]:
    """Return what a service mounts -> the mode."""
    found = {}
    for volume in SERVICES[service].get("volumes", []):
        source, _, *mode = volume.replace("${DISUE_RESULTS:-../results}", "results").split(":")
        found[source] = mode[0] if mode else "rw"
    return found


def assert_alike(actual: set[str], patterns: list[str]) -> None:
    for name in actual:
        assert any(fnmatch(name, pattern) for pattern in patterns), f"{name} is not on the page"
    for pattern in patterns:
        assert any(fnmatch(name, pattern) for name in actual), f"there is no {pattern}"


def test_the_page_names_every_service() -> None:
    assert table().keys() == SERVICES.keys()


@pytest.mark.parametrize("service", sorted(SERVICES))
def test_a_service_reaches_and_mounts_what_the_page_says(service: str) -> None:
    near, mounts = table()[service]
    assert_alike(reached(service), near)
    assert_alike(set(mounted(service)), mounts)


def test_no_network_leads_out_and_no_port_is_published() -> None:
    used = set().union(*(networks_of(service) for service in SERVICES))
    assert used == COMPOSE["networks"].keys()
    assert all(network == {"internal": True} for network in COMPOSE["networks"].values())
    for service in SERVICES.values():
        assert not service.keys() & MORE_REACH
        assert service.get("network_mode", "none") == "none"


def test_the_superlink_comes_before_the_others_where_cores_are_few() -> None:
    """Docker gives 1,024 shares to who names none."""
    shares = {name: service.get("cpu_shares", 1024) for name, service in COMPOSE["services"].items()}
    assert shares.pop("superlink") > max(shares.values())


def test_what_stays_up_writes_only_state_and_results_and_each_client_has_data_of_its_own() -> None:
    data = []
    for name, service in SERVICES.items():
        if service["restart"] != "no":
            assert {source for source, mode in mounted(name).items() if mode != "ro"} <= {"state", "results"}, name
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert ("cap_add" in service) == (name == "prepare") == service["user"].startswith("0:")
        if name.startswith("clientapp"):
            data += [source for source in mounted(name) if source.startswith("data-")]
    assert len(data) == len(set(data)) == len(NODES)


def test_the_override_of_the_page_leads_out_and_publishes_one_port() -> None:
    override = yaml.safe_load(re.search("<!-- override -->\n```yaml\n(.*?)```", PAGE, re.DOTALL).group(1))  # type: ignore[union-attr]
    assert override["services"].keys() == {"superlink"}
    assert override["services"]["superlink"] == {"ports": ["8000:8000"], "networks": ["outside"]}
    assert override["networks"] == {"outside": {}}
    command = SERVICES["superlink"]["command"]
    assert "--port=8000" in command
    assert "--enable-supernode-auth" in command


def test_the_base_image_of_the_page_is_that_of_both_files() -> None:
    (told,) = re.findall(r"\| `BASE_IMAGE` \| `(.+?)` \|", PAGE)
    assert f"ARG BASE_IMAGE={told}\n" in (ROOT / "docker" / "Dockerfile").read_text()
    assert SERVICES["prepare"]["build"]["args"]["BASE_IMAGE"] == f"${{BASE_IMAGE:-{told}}}"
