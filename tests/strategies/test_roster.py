import time

import pytest
from tests_support import ChangingGrid, answering_app

from disue.errors import ConfigError, DataError, FederationError
from disue.naming import by_name, client_name
from strategies.roster import Roster


def grid(names: list[str]) -> ChangingGrid:
    return ChangingGrid(answering_app(), {}, [{"name": name} for name in names])


def roster(names: list[str], seed: int = 0) -> Roster:
    made = Roster(seed)
    made.gather(grid(names), min_clients=1, join_timeout=1.0)
    return made


def test_clients_are_known_by_name_in_natural_order() -> None:
    assert [client.name for client in roster(["client-10", "client-2", "ward"]).clients] == [
        "client-2",
        "client-10",
        "ward",
    ]


def test_the_sample_depends_on_seed_purpose_and_round_and_not_on_node_ids() -> None:
    names = [f"client-{i}" for i in range(20)]
    one, other = roster(names), roster(list(reversed(names)))  # the same clients under other node ids

    def sample(made: Roster, *arguments: object) -> list[str]:
        return [client.name for client in made.sample(0.3, *arguments)]  # type: ignore[arg-type]

    assert len(sample(one, "train", 1)) == 6
    assert sample(one, "train", 1) == sample(other, "train", 1)
    assert sample(one, "train", 1) != sample(one, "train", 2)
    assert sample(one, "train", 1) != sample(one, "evaluate", 1)
    assert sample(one, "train", 1) != sample(roster(names, seed=1), "train", 1)


def test_a_fraction_of_one_is_everybody_and_a_tiny_one_is_somebody() -> None:
    made = roster(["a", "b", "c"])
    assert [client.name for client in made.sample(1.0, "train", 1)] == ["a", "b", "c"]
    assert len(made.sample(0.01, "train", 1)) == 1


def test_too_few_clients_is_an_error_within_the_timeout() -> None:
    started = time.monotonic()
    with pytest.raises(FederationError, match="min-clients: 2 clients joined within 0.5 s and 3 are needed"):
        Roster(0).gather(grid(["a", "b"]), min_clients=3, join_timeout=0.5)
    assert time.monotonic() - started < 2.0


def test_a_second_client_of_the_same_name_does_not_take_part() -> None:
    made = roster(["a", "a", "b"])
    assert [client.name for client in made.clients] == ["a", "b"]


def test_a_client_that_comes_back_under_a_new_node_id_keeps_its_name() -> None:
    before = grid(["a", "b"])
    made = Roster(0)
    made.gather(before, min_clients=2, join_timeout=1.0)
    old = {client.name: client.node_id for client in made.clients}
    before.forget(old["a"])
    before.add_node({"name": "a"})
    made.refresh(before)
    new = {client.name: client.node_id for client in made.clients}
    assert new.keys() == old.keys()
    assert new["b"] == old["b"]
    assert new["a"] != old["a"]
    assert made.name_of(new["a"]) == "a"


def test_a_node_that_was_offline_for_a_round_takes_part_again() -> None:
    nodes = grid(["a", "b"])
    made = Roster(0)
    made.gather(nodes, 2, 1.0)
    (node_id,) = (client.node_id for client in made.clients if client.name == "a")
    away = nodes.forget(node_id)
    made.refresh(nodes)
    assert [client.name for client in made.clients] == ["b"]
    nodes.bring_back(away)
    made.refresh(nodes)
    assert [client.name for client in made.clients] == ["a", "b"]


def test_a_restarted_client_takes_over_once_its_dead_connection_is_gone() -> None:
    nodes = grid(["a", "b"])
    made = Roster(0)
    made.gather(nodes, 2, 1.0)
    (dead,) = (client.node_id for client in made.clients if client.name == "a")
    nodes.add_node({"name": "a"})
    made.refresh(nodes)  # both are listed
    nodes.forget(dead)
    made.refresh(nodes)
    assert [client.name for client in made.clients] == ["a", "b"]
    assert made.clients[0].node_id != dead


def test_a_node_that_cannot_say_hello_is_asked_once() -> None:
    asked: list[str] = []

    def refuse(name: str) -> None:
        asked.append(name)
        if name == "b":
            raise RuntimeError("no data here")

    nodes = ChangingGrid(answering_app(on_hello=refuse), {}, [{"name": "a"}, {"name": "b"}])
    made = Roster(0)
    made.gather(nodes, min_clients=1, join_timeout=1.0)
    made.refresh(nodes)
    assert [client.name for client in made.clients] == ["a"]
    assert asked == ["a", "b"]
    with pytest.raises(FederationError, match="1 clients answered and 2 are needed; the first problem was: .*no data"):
        Roster(0).gather(nodes, min_clients=2, join_timeout=1.0)


def only_mlp(model: str) -> None:
    if model != "mlp":
        raise ConfigError(f"model: got '{model}'; all must have mlp")


def test_an_architecture_that_cannot_take_part_ends_the_run_before_it_starts() -> None:
    nodes = ChangingGrid(answering_app(), {}, [{"name": "a"}, {"name": "b", "model": "cnn"}])
    made = Roster(0)
    made.gather(nodes, 2, 1.0)
    assert [client.model for client in made.clients] == ["mlp", "cnn"]
    with pytest.raises(FederationError, match="^b: model: got 'cnn'; all must have mlp$"):
        Roster(0, check_model=only_mlp).gather(nodes, 1, 1.0)
    nodes.add_node({"name": "c", "model": "mpl"})
    with pytest.raises(FederationError, match="^c: model: 'mpl' does not exist .*; choose from mlp, cnn"):
        Roster(0).gather(nodes, 1, 1.0)


def test_a_newcomer_with_an_architecture_that_cannot_take_part_does_not() -> None:
    nodes = ChangingGrid(answering_app(), {}, [{"name": "a"}])
    made = Roster(0, check_model=only_mlp)
    made.gather(nodes, 1, 1.0)
    nodes.add_node({"name": "b", "model": "cnn"})
    nodes.add_node({"name": "c", "model": "mlp"})
    assert [str(problem) for problem in made.refresh(nodes)] == ["b: model: got 'cnn'; all must have mlp"]
    assert [client.name for client in made.clients] == ["a", "c"]


def test_names_come_from_the_node_config() -> None:
    assert client_name({"name": "hospital-a", "partition-id": 3}) == "hospital-a"
    assert client_name({"partition-id": 3}) == "client-3"
    with pytest.raises(DataError, match="neither 'name' nor 'partition-id'"):
        client_name({})


def test_any_text_is_a_name() -> None:
    assert by_name(["²", "10", "9", "a10", "a9", ""]) == ["", "9", "10", "a9", "a10", "²"]
