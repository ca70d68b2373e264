"""A client's name belongs to its node's key, where nodes have keys that last."""

import re
from collections.abc import Iterable
from pathlib import Path

import pytest
from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID
from flwr.proto.control_pb2 import RegisterNodeRequest
from flwr.proto.fleet_pb2 import RegisterNodeFleetRequest
from flwr.server.superlink.linkstate import InMemoryLinkState
from flwr.supercore.auth.typing import AccountInfo
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes
from flwr.superlink.federation.noop_federation_manager import NoOpFederationManager
from flwr.superlink.servicer.control import control_handlers
from flwr.superlink.servicer.fleet import fleet_handlers
from tests_support import KeyedGrid, answering_app

from client_app.app import app as client_app
from disue_cli.engines.inline import simulated_nodes
from server_app.callbacks.checkpoint import packed, unpacked
from server_app.config import RunConfig
from server_app.resume import resumed_config
from server_app.run import execute
from strategies.rounds.keys import fingerprint, node_keys
from strategies.rounds.packing import PackedGrid
from strategies.rounds.registry import ClientRegistry
from strategies.rounds.state import restore, state_of

A, B, NEW = b"the key of a", b"the key of b", b"another key"


def grid(keys: Iterable[bytes] = (A, B)) -> KeyedGrid:
    """Return two nodes, a and b, registered with these keys."""
    made = KeyedGrid(answering_app(), {}, [{"name": "a"}, {"name": "b"}])
    made.registered = dict(zip(made.get_node_ids(), keys, strict=False))
    return made


def gathered(nodes: KeyedGrid) -> ClientRegistry:
    made = ClientRegistry(0)
    made.gather(nodes, 2, 1.0)
    return made


def node_of(made: ClientRegistry, name: str) -> int | None:
    return next((client.node_id for client in made.clients if client.name == name), None)


def replaced(nodes: KeyedGrid, old: int, key: bytes | None) -> int:
    """Let a node leave and another say hello with its name, and return the other's id."""
    new = nodes.add_node(nodes.forget(old).node_config)
    if key is not None:
        nodes.registered[new] = key
    return new


@pytest.mark.parametrize(
    ("key", "has"),
    [(NEW, "has the key [0-9a-f]{16}"), (B, "has the key [0-9a-f]{16}"), (None, "was registered without a key")],
    ids=["another key", "the key of another client", "no key"],
)
def test_another_node_does_not_get_the_name_of_a_client_that_left(key: bytes | None, has: str) -> None:
    nodes = grid()
    made = gathered(nodes)
    replaced(nodes, 1000, key)
    (problem,) = made.refresh(nodes)
    assert type(problem).__name__ == "WireError"  # which costs that node, and not the run
    assert [client.name for client in made.clients] == ["b"]
    assert list(made.away) == ["a"]
    assert made.returned == []
    words = rf"the name 'a' belongs in this run to the node with the key [0-9a-f]{{16}}, and this node {has}; start it "
    assert re.match(words, str(problem))


def test_the_same_key_gets_its_name_back_under_whichever_node_id() -> None:
    """As after a loss of the SuperLink's database, when the same keys are registered again."""
    nodes = grid()
    made = gathered(nodes)
    new = replaced(nodes, 1000, A)
    assert made.refresh(nodes) == []
    assert node_of(made, "a") == new
    assert made.returned == ["a"]


def test_a_name_that_no_key_binds_belongs_to_the_key_of_the_node_that_takes_it() -> None:
    """As DEPLOY.md says."""
    nodes = grid(keys=[A])
    made = gathered(nodes)
    replaced(nodes, 1001, None)
    assert made.refresh(nodes) == []
    replaced(nodes, node_of(made, "b") or 0, NEW)
    assert made.refresh(nodes) == []
    replaced(nodes, node_of(made, "b") or 0, None)
    (problem,) = made.refresh(nodes)
    assert "the name 'b' belongs in this run to the node with the key" in str(problem)


@pytest.mark.parametrize(("keys", "unbound"), [([A, B], []), ([A], ["'b'"]), ([], [])])
def test_names_that_no_key_binds_are_logged_once_where_others_have_keys(
    keys: list[bytes], unbound: list[str], messages: list[str]
) -> None:
    nodes = grid(keys)
    made = gathered(nodes)
    made.refresh(nodes)
    said = [line.rpartition(": ")[2] for line in messages if line.startswith("no key binds these names; ")]
    assert said == unbound


def test_a_stranger_that_was_refused_does_not_keep_the_owner_out() -> None:
    nodes = grid()
    made = gathered(nodes)
    away = nodes.forget(1000)
    nodes.add_node({"name": "a"})
    assert len(made.refresh(nodes)) == 1
    nodes.bring_back(away)
    assert len(made.refresh(nodes)) == 1
    assert node_of(made, "a") == 1000
    assert "a second client calls itself 'a'" in str(made.refresh(nodes)[0])


def test_a_client_that_is_only_silent_keeps_its_name() -> None:
    nodes = grid()
    made = gathered(nodes)
    made.leave_out([1000])
    nodes.silent.add(1000)
    nodes.add_node({"name": "a"})
    made.timeout = 0.3
    assert len(made.refresh(nodes)) == 1
    assert list(made.away) == ["a"]


def test_a_node_without_a_key_may_return_from_a_new_id() -> None:
    nodes = grid([])
    made = gathered(nodes)
    new = replaced(nodes, 1000, None)
    assert made.refresh(nodes) == []
    assert node_of(made, "a") == new


def test_a_client_that_gets_a_key_is_bound_from_then_on() -> None:
    nodes = grid([])
    made = gathered(nodes)
    new = replaced(nodes, 1000, A)
    assert made.refresh(nodes) == []
    assert node_of(made, "a") == new
    replaced(nodes, new, NEW)
    assert len(made.refresh(nodes)) == 1


@pytest.mark.parametrize(("keys", "problems"), [((A, B), 0), ((NEW, B), 1), ((B, A), 2), ((), 2)])
def test_the_binding_survives_a_checkpoint(keys: tuple[bytes, ...], problems: int) -> None:
    state = unpacked(packed(state_of(gathered(grid()))))
    made, nodes = ClientRegistry(0), grid(keys)
    restore(made, state)
    assert len(made.refresh(nodes)) == problems
    assert len(made.clients) == 2 - problems


def test_a_run_that_goes_on_after_a_break_refuses_who_says_the_name_of_another(
    tmp_path: Path, messages: list[str]
) -> None:
    directory = str(tmp_path / "run")
    values = {"method": "fedavg", "model": "mlp", "local-epochs": 1, "report": False, "join-timeout": 0.5}

    def carried_out(config: RunConfig, keys: tuple[bytes, ...]) -> dict[str, object]:
        nodes = KeyedGrid(client_app, config.to_flower(), simulated_nodes(3))
        nodes.registered = dict(zip(nodes.get_node_ids(), keys, strict=True))
        return execute(config, nodes)

    first = RunConfig.from_flower(values | {"num-server-rounds": 1, "output-dir": directory})
    assert carried_out(first, (A, B, NEW))["clients_ok"] == 3
    again = resumed_config({"resume-from": directory, "num-server-rounds": 2, "join-timeout": 0.5})
    assert carried_out(again, (A, B, b"a stranger's"))["clients_ok"] == 2
    assert "client client-2 is not there; going on without it" in messages
    refused = [line for line in messages if line.startswith("node 1002 cannot take part: the name 'client-2' belongs")]
    assert len(refused) == 1


def test_how_many_names_are_bound_is_logged(messages: list[str]) -> None:
    gathered(grid([A]))
    assert "2 clients take part; the names of 1 belong to their nodes' keys" in messages
    gathered(grid([]))
    assert "2 clients take part" in messages


def test_packed_clients_have_the_key_of_their_node() -> None:
    keys = node_keys(PackedGrid(grid([A]), 3))
    assert list(keys) == [*range(3000, 3006)]
    assert len({keys[client] for client in (3000, 3001, 3002)} - {""}) == 1
    assert {keys[client] for client in (3003, 3004, 3005)} == {""}


def test_flower_tells_registered_nodes_apart_from_those_that_registered_themselves() -> None:
    """Through Flower's own handlers of both ways to register."""
    state = InMemoryLinkState(NoOpFederationManager(), ObjectStoreFactory().store())
    public = [public_key_to_bytes(generate_key_pairs()[1]) for _ in range(4)]
    own = fleet_handlers.register_node(RegisterNodeFleetRequest(public_key=public[0]), state, False).node_id
    account = AccountInfo(flwr_aid=NOOP_FLWR_AID, account_name=NOOP_ACCOUNT_NAME)
    requests = [
        RegisterNodeRequest(public_key=public[1], name="node-1"),
        RegisterNodeRequest(public_key=public[2], location="52.5,13.4"),
        RegisterNodeRequest(public_key=public[3]),
    ]
    named, placed, bare = (control_handlers.register_node(r, account, state).node_id for r in requests)
    told = {node.node_id: fingerprint(node) for node in state.get_node_info()}
    assert told[own] == ""
    assert len({told[named], told[placed], ""}) == 3
    assert told[bare] == ""  # docs/DEPLOY.md: a node that is registered without a name is not told apart
