"""docker compose, as docs/DEPLOY.md starts it: the demo, what its containers may do, and what is in the image."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from deployment import CLIENTS, ROOT, blocks, check_run_directory, simulate, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

SERVICES = {"superlink", "serverapp", *(f"{kind}-{i}" for kind in ("supernode", "clientapp") for i in range(1, 5))}
KEY = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----\s+[A-Za-z0-9+/=]{40}")
MB = 10**6
PUBLIC_AUTHORITIES = ("/certifi/cacert.pem", "/grpc/_cython/_credentials/roots.pem")


def lacking() -> str:
    """Return what is missing for containers here, or nothing."""
    if shutil.which("docker") is None:
        return "docker is not installed"
    if subprocess.run(["docker", "info"], capture_output=True, check=False).returncode:
        return "no Docker engine answers"
    return "" if compose() else "neither docker compose nor docker-compose is installed"


@cache
def compose() -> str:
    """Return how compose is called here."""
    for command in ("docker compose", "docker-compose"):
        try:
            if not subprocess.run([*command.split(), "version"], capture_output=True, check=False).returncode:
                return command
        except FileNotFoundError:
            continue
    return ""


def output(*command: str) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, timeout=600)
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-3000:]
    return done.stdout.decode(errors="replace")


@dataclass
class Demo:
    """The demo after its run."""

    checkout: Path
    environment: dict[str, str]
    log: str
    status: int

    def compose(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*compose().split(), "-f", "docker/compose.yml", *arguments],
            cwd=self.checkout,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=900,
        )

    def container(self, service: str) -> str:
        (found,) = containers(self.environment["COMPOSE_PROJECT_NAME"], service)
        return found

    def inside(self, service: str, *command: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            ["docker", "exec", self.container(service), *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=120,
        )

    @property
    def image(self) -> str:
        return self.environment["DISUE_IMAGE"]

    @property
    def results(self) -> Path:
        (directory,) = (self.checkout / "results").iterdir()
        return directory


def check_out(target: Path) -> None:
    """Copy what is, or would be, under version control."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    if reason := lacking():
        if os.environ.get("DISUE_REQUIRE_CONTAINERS"):
            pytest.fail(f"containers are required here, and {reason}")
        pytest.skip(reason)
    checkout = tmp_path_factory.mktemp("checkout")
    check_out(checkout)
    name = f"disue-test-{os.getpid()}"
    environment = os.environ | {"COMPOSE_PROJECT_NAME": name, "DISUE_IMAGE": name, "DISUE_ROUNDS": "1"}
    demo = Demo(checkout, environment, "", -1)
    log = checkout.parent / "up.log"
    script = blocks("compose").replace("docker compose", compose())
    with log.open("wb") as file:
        up = subprocess.Popen(
            ["bash", "-ec", f"exec {script}"], cwd=checkout, env=environment, stdout=file, stderr=file
        )
    try:
        wait_for(lambda: up.poll() is not None or containers(name, "run", "status=exited"), 1500, "the run has ended")
        demo.log = re.sub(r"\x1b\[[0-9;]*m", "", log.read_text(errors="replace"))
        assert up.poll() is None, demo.log[-5000:]
        demo.status = json.loads(output("docker", "inspect", demo.container("run")))[0]["State"]["ExitCode"]
        yield demo
    finally:
        up.send_signal(signal.SIGKILL)
        up.wait()
        down = demo.compose("down", "-v", "-t", "5")
        subprocess.run(["docker", "rmi", "-f", name], capture_output=True, check=False)
        assert down.returncode == 0, down.stdout


def containers(project: str, service: str, *filters: str) -> list[str]:
    """Return the containers of a service, also those that have come to their end."""
    labels = {"project": project, "service": service, "oneoff": "False"}
    filters += tuple(f"label=com.docker.compose.{name}={value}" for name, value in labels.items())
    return output("docker", "ps", "-aq", *(word for one in filters for word in ("--filter", one))).split()


def inspected(demo: Demo) -> dict[str, dict[str, Any]]:
    return {service: json.loads(output("docker", "inspect", demo.container(service)))[0] for service in SERVICES}


def test_up_alone_gives_a_finished_demo(demo: Demo, tmp_path: Path) -> None:
    assert demo.status == 0, demo.log[-8000:]
    said = [line for line in demo.log.splitlines() if re.search(r"\brun[-_]1\b", line)]
    for words in ("[ROUND 1/1]", "finished:completed", "4 clients take part; the names of 4 belong"):
        assert any(words in line for line in said), words
    check_run_directory(demo.results, 1, simulate(tmp_path / "run"))


def test_the_clients_have_different_data_each_its_own(demo: Demo) -> None:
    seen = {i: demo.inside(f"clientapp-{i}", "ls", "/data").stdout.split() for i in range(1, 5)}
    assert seen == {
        1: ["0", "1", "2", "3", "4"],
        2: ["images.npz"],
        3: ["5", "6", "7", "8", "9"],
        4: ["images.npz"],
    }
    assert len(CLIENTS) == len(seen)
    assert demo.inside("supernode-1", "ls", "/data").returncode != 0


def test_the_containers_are_healthy_unprivileged_and_read_only(demo: Demo) -> None:
    for service, container in inspected(demo).items():
        host = container["HostConfig"]
        assert container["State"]["Health"]["Status"] == "healthy", service
        assert container["Config"]["User"] == "10001:10001", service
        assert host["ReadonlyRootfs"], service
        assert host["CapDrop"] == ["ALL"], service
        assert not host["CapAdd"], service
        assert any(option.startswith("no-new-privileges") for option in host["SecurityOpt"]), service
        assert host["RestartPolicy"]["Name"] == "unless-stopped", service
        assert min(host["Memory"], host["NanoCpus"], host["PidsLimit"]) > 0, service
        assert not host["PortBindings"], service
    for service in ("superlink", "clientapp-1"):
        assert demo.inside(service, "id", "-u").stdout.strip() == "10001"
        for place in ("/x", "/opt/disue/x", "/work/x", "/keys/x"):
            assert "Read-only file system" in demo.inside(service, "touch", place).stdout
    assert "Read-only file system" in demo.inside("clientapp-1", "touch", "/data/x").stdout


CONNECT = """
import socket, sys
from concurrent.futures import ThreadPoolExecutor

def connect(place):
    host, _, port = place.rpartition(":")
    try:
        socket.create_connection((host, int(port)), 2).close()
    except OSError as error:
        return f"{type(error).__name__}: {error}"
    return "reached"

with ThreadPoolExecutor(len(sys.argv)) as pool:
    print(*pool.map(connect, sys.argv[1:]), sep="\\n")
"""


def test_a_container_reaches_what_the_page_says_and_nothing_else(demo: Demo) -> None:
    """The networks of all services are compared with the page in tests/test_docker.py.

    To look a name up in vain takes ten seconds, so that is tried once, beside the rest.
    """

    def tried(service: str, *places: str) -> list[str]:
        """Return for each place `reached`, or the error."""
        done = demo.inside(service, "python", "-c", CONNECT, *places)
        assert done.returncode == 0, done.stdout
        return done.stdout.splitlines()

    def address(service: str, port: int) -> str:
        """Return the address of a service in the network of the first node."""
        network = f"{demo.environment['COMPOSE_PROJECT_NAME']}_node-1"
        return f"{networks[service][network]['IPAddress']}:{port}"

    networks = {service: container["NetworkSettings"]["Networks"] for service, container in inspected(demo).items()}
    executor, by_address, by_name = tried("clientapp-1", "supernode:9094", address("superlink", 8000), "superlink:8000")
    assert executor == "reached"
    assert by_name.startswith("gaierror: "), by_name
    server, other_node = tried("supernode-1", "superlink:8000")[0], tried("supernode-2", address("supernode-1", 9094))
    assert server == "reached"
    for error in (by_address, *other_node, *tried("serverapp", address("supernode-1", 9094))):
        assert re.search("unreachable|timed out", error), error
    names = set().union(*networks.values())
    assert len(names) == 10
    for network in json.loads(output("docker", "network", "inspect", *names)):
        assert network["Internal"], network["Name"]


ACQUIRE_TASK = """
import ssl, sys, urllib.error, urllib.request
address = sys.argv[1]
trust = ssl.create_default_context(cafile="/keys/public/ca.pem") if address.startswith("https:") else None
request = urllib.request.Request(
    address + "/v1/runtime/acquire-task", data=b"", headers={"content-type": "application/protobuf"}
)
try:
    print(urllib.request.urlopen(request, timeout=20, context=trust).status)
except urllib.error.HTTPError as error:
    print(error.code, error.read().decode())
"""


@pytest.mark.parametrize(
    ("stranger", "address"), [("supernode-2", "https://superlink:8000"), ("superlink", "http://supernode-1:9094")]
)
def test_a_stranger_in_the_network_gets_no_task_of_an_executor(demo: Demo, stranger: str, address: str) -> None:
    """Whoever has not the secret that a server shares with its own executor is given no work, and so no token."""
    answer = demo.inside(stranger, "python", "-c", ACQUIRE_TASK, address)
    assert re.match("40[13] ", answer.stdout), answer.stdout
    assert "authent" in answer.stdout.lower()


def test_run_has_the_exit_status_of_the_job_and_a_second_start_changes_no_key(demo: Demo) -> None:
    before = secrets(demo)
    fails = ["/opt/disue/share/connect.sh", "disue", "run", "disue", "--set=min-clients=9", "--set=join-timeout=1"]
    done = demo.compose("run", "--rm", "run", *fails)
    assert done.returncode == 1, done.stdout[-3000:]
    assert "min-clients: 4 clients joined within 1 s and 9 are needed" in done.stdout
    assert secrets(demo) == before


def secrets(demo: Demo) -> dict[str, bytes]:
    """Return everything that `certs` has made."""
    volume = f"{demo.environment['COMPOSE_PROJECT_NAME']}_keys-authority"
    command = ["docker", "run", "--rm", "-v", f"{volume}:/keys:ro", demo.image, "tar", "-C", "/keys", "-c", "."]
    packed = subprocess.run(command, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        return {member.name: read(archive, member) for member in archive.getmembers() if member.isfile()}


def read(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    assert file is not None
    return file.read()


def tell_tales(demo: Demo) -> dict[str, bytes]:
    """Return a part of every key and certificate by which it would be seen anywhere."""
    found = {}
    for name, content in secrets(demo).items():
        if name.endswith(".secret"):
            found[name] = content
        elif not name.endswith(".pub"):
            found[name] = content.splitlines()[2 if b"OPENSSH" in content else 1]
    assert {"./superlink.secret", "./made/ca.key", "./made/server.key", "./made/nodes/node-4"} <= found.keys()
    return found


def test_no_secret_or_certificate_is_in_a_layer_the_repository_a_log_line_or_a_result(demo: Demo) -> None:
    tales = tell_tales(demo)
    places: dict[str, bytes] = {"log of up": demo.log.encode()}
    for line in output("docker", "ps", "-aq", "--filter", f"name={demo.image}").split():
        places[f"log of {line}"] = output("docker", "logs", line).encode()
    for path in (path for path in demo.checkout.rglob("*") if path.is_file()):
        places[str(path.relative_to(demo.checkout))] = path.read_bytes()
    assert len(places) > 100
    for place, content in places.items():
        assert not KEY.search(content), place
        for name, tale in tales.items():
            assert tale not in content, (name, place)
    assert layers_without(demo, tales) > 10


def layers_without(demo: Demo, tales: dict[str, bytes]) -> int:
    """Look through our layers of the image, deleted files included, and return how many files there were."""
    base = set(json.loads(output("docker", "inspect", base_image()))[0]["RootFS"]["Layers"])
    saved = demo.checkout.parent / "image.tar"
    output("docker", "save", "-o", str(saved), demo.image)
    count = 0
    with tarfile.open(saved) as image:
        manifest = json.loads(read(image, image.getmember("manifest.json")))[0]
        config = json.loads(read(image, image.getmember(manifest["Config"])))
        assert not [entry for entry in config["config"]["Env"] if re.search("KEY|SECRET|TOKEN|PASSWORD", entry)]
        ours = [
            layer
            for layer, digest in zip(manifest["Layers"], config["rootfs"]["diff_ids"], strict=True)
            if digest not in base
        ]
        assert ours
        for layer in ours:
            with tarfile.open(fileobj=image.extractfile(layer)) as files:
                for member in (member for member in files if member.isfile()):
                    count += 1
                    content = read(files, member)
                    assert not KEY.search(content), member.name
                    assert not any(tale in content for tale in tales.values()), member.name
                    if re.search(r"\.(pem|key|crt|pub)$", member.name):
                        assert member.name.endswith(PUBLIC_AUTHORITIES), member.name
    saved.unlink()
    return count


def base_image() -> str:
    return os.environ.get("BASE_IMAGE", "python:3.11-slim-bookworm")


def test_the_image_is_small_and_has_neither_ray_nor_build_tools(demo: Demo) -> None:
    size, base = (
        json.loads(output("docker", "image", "inspect", name))[0]["Size"] for name in (demo.image, base_image())
    )
    run = ("docker", "run", "--rm", "--network", "none", demo.image)
    torch_size = int(output(*run, "sh", "-c", "du -sb /opt/disue/lib/python3*/site-packages/torch").split()[0])
    added = (size - base - torch_size) / MB
    assert 0 < added < 600, f"{added:.0f} MB over the base image and torch"
    code = "import importlib.util as u; print([n for n in ('ray', 'pip', 'setuptools', 'hatchling') if u.find_spec(n)])"
    assert output(*run, "/opt/disue/bin/python", "-c", code).strip() == "[]"
    found = "for tool in gcc cc g++ make cmake git; do command -v $tool; done; true"
    assert output(*run, "sh", "-c", found) == ""
    config = json.loads(output("docker", "image", "inspect", demo.image))[0]["Config"]
    assert config["User"] == "10001:10001"
    assert config["Healthcheck"]["Test"][0] == "CMD"


def test_the_gpu_file_asks_for_gpus_where_models_are_computed(demo: Demo) -> None:
    command = [*compose().split(), "-f", "docker/compose.yml", "-f", "docker/compose.gpu.yml", "config"]
    text = subprocess.run(
        command, cwd=demo.checkout, env=demo.environment, capture_output=True, text=True, check=True
    ).stdout
    assert text.count("driver: nvidia") == 5
    assert "TORCH_INDEX_URL: https://download.pytorch.org/whl/cu" in text
