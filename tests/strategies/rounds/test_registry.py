import time
from collections.abc import Iterable, Sequence

import pytest
from flwr.app import Error, Message
from flwr.common.constant import ErrorCode
from tests_support import ChangingGrid, answering_app

from disue.errors import ConfigError, DataError, FederationError
from disue.naming import by_name, client_name
from disue_cli.engines.inline import InlineGrid
from strategies.rounds.registry import Client, ClientRegistry


def grid(names: list[str]) -> ChangingGrid:
    return ChangingGrid(answering_app(), {}, [{"name": name} for name in names])


def registry_of(names: list[str], seed: int = 0) -> ClientRegistry:
    made = ClientRegistry(seed)
    made.gather(grid(names), min_clients=1, join_timeout=1.0)
    return made


def test_clients_are_known_by_name_in_natural_order() -> None:
    assert [client.name for client in registry_of(["client-10", "client-2", "ward"]).clients] == [
        "client-2",
        "client-10",
        "ward",
    ]


def test_the_sample_depends_on_seed_purpose_and_round_and_not_on_node_ids() -> None:
    names = [f"client-{i}" for i in range(20)]
    one, other = registry_of(names), registry_of(list(reversed(names)))  # the same clients under other node ids

    def sample(made: ClientRegistry, *arguments: object) -> list[str]:
        return [client.name for client in made.sample(0.3, *arguments)]  # type: ignore[arg-type]

    assert len(sample(one, "train", 1)) == 6
    assert sample(one, "train", 1) == sample(other, "train", 1)
    assert sample(one, "train", 1) != sample(one, "train", 2)
    assert sample(one, "train", 1) != sample(one, "evaluate", 1)
    assert sample(one, "train", 1) != sample(registry_of(names, seed=1), "train", 1)


def test_who_is_asked_again_are_first_the_others_then_those_that_were_well() -> None:
    names = [f"client-{i}" for i in range(10)]
    tried = {"client-0": True, "client-1": False, "client-2": True, "client-3": False}
    one, other = registry_of(names), registry_of(list(reversed(names)))

    def sample(made: ClientRegistry, fraction: float, server_round: int = 1) -> set[str]:
        return {client.name for client in made.sample(fraction, "train", server_round, tried)}

    untried = set(names) - tried.keys()
    for server_round in range(20):
        assert sample(one, 0.3, server_round) < untried
        assert sample(one, 0.3, server_round) == sample(other, 0.3, server_round)
        seven = sample(one, 0.7, server_round)
        assert untried < seven
        assert seven - untried < {"client-0", "client-2"}
    assert sample(one, 0.6) == untried
    assert sample(one, 0.8) == untried | {"client-0", "client-2"}
    assert len({frozenset(sample(one, 0.3, server_round)) for server_round in range(20)}) > 5
    assert sample(one, 1.0) == set(names)


def test_a_fraction_of_one_is_everybody_and_a_tiny_one_is_somebody() -> None:
    made = registry_of(["a", "b", "c"])
    assert [client.name for client in made.sample(1.0, "train", 1)] == ["a", "b", "c"]
    assert len(made.sample(0.01, "train", 1)) == 1


def test_too_few_clients_is_an_error_within_the_timeout() -> None:
    started = time.monotonic()
    with pytest.raises(FederationError, match="min-clients: 2 clients joined within 0.5 s and 3 are needed"):
        ClientRegistry(0).gather(grid(["a", "b"]), min_clients=3, join_timeout=0.5)
    assert time.monotonic() - started < 2.0


def test_a_second_client_of_the_same_name_does_not_take_part() -> None:
    made = registry_of(["a", "a", "b"])
    assert [client.name for client in made.clients] == ["a", "b"]


def test_a_client_that_comes_back_under_a_new_node_id_keeps_its_name() -> None:
    before = grid(["a", "b"])
    made = ClientRegistry(0)
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
    made = ClientRegistry(0)
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
    made = ClientRegistry(0)
    made.gather(nodes, 2, 1.0)
    (dead,) = (client.node_id for client in made.clients if client.name == "a")
    nodes.add_node({"name": "a"})
    made.refresh(nodes)  # both are listed
    nodes.forget(dead)
    made.refresh(nodes)
    assert [client.name for client in made.clients] == ["a", "b"]
    assert made.clients[0].node_id != dead


def test_a_node_that_cannot_say_hello_is_asked_every_round_and_logged_once(messages: list[str]) -> None:
    asked: list[str] = []

    def refuse(name: str) -> None:
        asked.append(name)
        if name == "b":
            raise RuntimeError("no data here")

    nodes = ChangingGrid(answering_app(on_hello=refuse), {}, [{"name": "a"}, {"name": "b"}])
    made = ClientRegistry(0)
    made.gather(nodes, min_clients=1, join_timeout=1.0)
    made.refresh(nodes)
    assert [client.name for client in made.clients] == ["a"]
    made.refresh(nodes)
    assert sorted(asked) == ["a", "b", "b", "b"]  # both at once at first, in whatever order
    assert messages.count("node 1001 cannot take part: RuntimeError: no data here") == 1
    with pytest.raises(FederationError, match="1 clients answered and 2 are needed; the first problem was: .*no data"):
        ClientRegistry(0).gather(nodes, min_clients=2, join_timeout=1.0)


def only_mlp(model: str) -> None:
    if model != "mlp":
        raise ConfigError(f"model: got '{model}'; all must have mlp")


def test_an_architecture_that_cannot_take_part_costs_that_client_alone(messages: list[str]) -> None:
    nodes = ChangingGrid(answering_app(), {}, [{"name": "a"}, {"name": "b", "model": "cnn"}])
    made = ClientRegistry(0)
    made.gather(nodes, 2, 1.0)
    assert [client.model for client in made.clients] == ["mlp", "cnn"]
    nodes.add_node({"name": "c", "model": "mpl"})
    made = ClientRegistry(0, check_model=only_mlp)
    made.gather(nodes, 1, 1.0)
    assert [client.name for client in made.clients] == ["a"]
    assert any("cannot take part: b: model: got 'cnn'; all must have mlp" in said for said in messages)
    with pytest.raises(FederationError, match="1 clients answered and 2 .*: b: model: got 'cnn'; all must have mlp$"):
        ClientRegistry(0, check_model=only_mlp).gather(nodes, 2, 0.3)


def test_another_number_of_partitions_costs_that_client_alone(messages: list[str]) -> None:
    nodes = ChangingGrid(answering_app(), {}, [{"name": name, "partitions": 4} for name in "abc"])
    nodes.add_node({"name": "d", "partitions": 10**6})
    made = ClientRegistry(0)
    made.gather(nodes, 3, 1.0)
    assert [client.name for client in made.clients] == ["a", "b", "c"]
    nodes.add_node({"name": "e", "partitions": 5})  # later, too
    nodes.add_node({"name": "f", "partitions": 4})
    made.refresh(nodes)
    assert [client.name for client in made.clients] == ["a", "b", "c", "f"]
    said = "cannot take part: {}: num-partitions: got {}; the run has 4, give all nodes the same"
    for name, number in (("d", 10**6), ("e", 5)):
        assert any(said.format(name, number) in line for line in messages)


def test_who_is_refused_for_its_partitions_is_not_counted_among_those_that_are_waited_for() -> None:
    nodes = ChangingGrid(answering_app(), {}, [{"name": "a", "partitions": 3}, {"name": "b", "partitions": 9}])
    later = iter([{"name": "c", "partitions": 3}])
    seen = nodes.get_node_ids

    def joining() -> list[int]:
        if made.clients:  # after the first two said hello, in a tie
            for node in later:
                nodes.add_node(node)
        return list(seen())

    made = ClientRegistry(0)
    nodes.get_node_ids = joining  # type: ignore[method-assign]
    made.gather(nodes, 2, 5.0)
    assert [client.name for client in made.clients] == ["a", "c"]


def test_clients_that_cannot_take_part_beside_the_others_are_not_counted_among_those_that_are_waited_for(
    messages: list[str],
) -> None:
    def unfit(clients: Sequence[Client], task: object) -> dict[str, str]:
        return {client.name: "it is odd" for client in clients if client.name == "odd"}

    nodes, tries = grid(["a", "odd"]), list[int]()

    def later() -> list[int]:
        tries.append(1)
        if len(tries) == 4:
            nodes.add_node({"name": "b"})
        return ChangingGrid.get_node_ids(nodes)

    nodes.get_node_ids = later  # type: ignore[method-assign]
    made = ClientRegistry(0, unfit=unfit)
    made.gather(nodes, 2, 5.0)
    assert [client.name for client in made.clients] == ["a", "b"]
    assert len([line for line in messages if "cannot take part: odd: it is odd" in line]) == 1
    with pytest.raises(FederationError, match="1 clients answered and 2 are needed; the first .* was: odd: it is odd"):
        ClientRegistry(0, unfit=unfit).gather(grid(["a", "odd"]), 2, 0.3)


def test_a_run_that_goes_on_keeps_its_number_of_partitions(messages: list[str]) -> None:
    nodes = ChangingGrid(answering_app(), {}, [{"name": name, "partitions": 9} for name in "bcdef"])
    nodes.add_node({"name": "a", "partitions": 4})
    later = ClientRegistry(0, partitions=4)
    later.gather(nodes, 1, 0.3)
    later.refresh(nodes)
    assert [client.name for client in later.clients] == ["a"]
    assert len([line for line in messages if "num-partitions: got 9; the run has 4" in line]) == 5
    with pytest.raises(FederationError, match="1 clients answered and 2 are needed; .* num-partitions: got 9"):
        ClientRegistry(0, partitions=4).gather(nodes, 2, 0.3)


def test_a_node_has_one_name(messages: list[str]) -> None:
    """Or one that leaves and comes as another, again and again, would count as many that are away."""
    nodes = ChangingGrid(answering_app(), {}, [{"name": "a"}, {"name": "b"}])
    made = ClientRegistry(0)
    made.gather(nodes, 2, 1.0)
    node = next(client.node_id for client in made.clients if client.name == "b")
    context = nodes.forget(node)
    made.refresh(nodes)
    context.node_config["name"] = "c"
    nodes.bring_back(context)
    made.refresh(nodes)
    assert [client.name for client in made.clients] == ["a"]
    assert list(made.away) == ["b"]
    assert any("it says that it is 'c', and was 'b' before" in said for said in messages)


def test_a_newcomer_with_an_architecture_that_cannot_take_part_does_not() -> None:
    nodes = ChangingGrid(answering_app(), {}, [{"name": "a"}])
    made = ClientRegistry(0, check_model=only_mlp)
    made.gather(nodes, 1, 1.0)
    nodes.add_node({"name": "b", "model": "cnn"})
    nodes.add_node({"name": "c", "model": "mlp"})
    assert [str(problem) for problem in made.refresh(nodes)] == ["b: model: got 'cnn'; all must have mlp"]
    assert [client.name for client in made.clients] == ["a", "c"]


def test_clients_that_come_back_on_each_others_nodes_keep_their_names() -> None:
    before = ChangingGrid(answering_app(), {}, [{"name": name} for name in "abc"])
    made, later = ClientRegistry(0), ClientRegistry(0)
    made.gather(before, 3, 1.0)
    later.known = made.clients
    later.gather(ChangingGrid(answering_app(), {}, [{"name": name} for name in "cab"]), 3, 1.0)
    assert {client.name: later.name_of(client.node_id) for client in later.clients} == {name: name for name in "abc"}


def test_names_come_from_the_node_config() -> None:
    assert client_name({"name": "hospital-a", "partition-id": 3}) == "hospital-a"
    assert client_name({"partition-id": 3}) == "client-3"
    with pytest.raises(DataError, match="neither 'name' nor 'partition-id'"):
        client_name({})


def test_any_text_is_a_name() -> None:
    assert by_name(["²", "10", "9", "a10", "a9", ""]) == ["", "9", "10", "a9", "a10", "²"]


def test_a_silent_node_is_waited_for_once_and_takes_part_when_it_answers(messages: list[str]) -> None:
    nodes = grid(["a", "b"])
    nodes.silent.add(1001)
    made = ClientRegistry(0, timeout=1.0)
    started = time.monotonic()
    made.gather(nodes, min_clients=1, join_timeout=5.0)
    assert 1.0 <= time.monotonic() - started < 2.0
    started = time.monotonic()
    for _ in range(5):
        made.refresh(nodes)
    assert time.monotonic() - started < 1.0
    assert [client.name for client in made.clients] == ["a"]
    nodes.silent.clear()
    made.refresh(nodes)
    assert [client.name for client in made.clients] == ["a", "b"]
    assert made.returned == []  # it had never been there


def test_a_client_that_is_left_out_comes_back_by_saying_hello(messages: list[str]) -> None:
    nodes = grid(["a", "b"])
    made = ClientRegistry(0, timeout=0.5)
    made.gather(nodes, 2, 1.0)
    nodes.silent.add(1001)
    made.leave_out([1001])
    assert [client.name for client in made.clients] == ["a"]
    assert list(made.away) == ["b"]
    assert made.name_of(1001) == "b"
    assert [line for line in messages if "going on" in line] == ["client b did not answer; going on without it"]
    made.refresh(nodes)
    assert list(made.away) == ["b"]
    nodes.silent.clear()
    made.refresh(nodes)
    assert [client.name for client in made.clients] == ["a", "b"]
    assert (made.returned, made.away) == (["b"], {})
    made.refresh(nodes)
    assert made.returned == []


def test_a_silent_client_that_starts_again_as_another_node_takes_over_at_once() -> None:
    nodes = grid(["a", "b"])
    made = ClientRegistry(0, timeout=0.5)
    made.gather(nodes, 2, 1.0)
    nodes.silent.add(1001)
    made.leave_out([1001])
    nodes.add_node({"name": "b"})
    made.refresh(nodes)
    (back,) = (client for client in made.clients if client.name == "b")
    assert back.node_id != 1001
    assert made.returned == ["b"]
    nodes.silent.clear()  # the dead one was only slow: the name is taken now
    assert "a second client calls itself 'b'" in str(made.refresh(nodes)[0])
    assert back in made.clients


def test_a_client_whose_node_is_gone_is_away(messages: list[str]) -> None:
    nodes = grid(["a", "b"])
    made = ClientRegistry(0)
    made.gather(nodes, 2, 1.0)
    nodes.forget(1001)
    made.refresh(nodes)
    assert list(made.away) == ["b"]
    assert "client b is no longer connected; going on without it" in messages


def test_the_superlinks_word_on_a_node_that_is_gone_is_no_refusal(messages: list[str]) -> None:
    class Telling(ChangingGrid):
        def answer(self, message: Message) -> Message:
            if message.metadata.dst_node_id in self.silent:
                return Message(Error(ErrorCode.NODE_UNAVAILABLE, "gone"), reply_to=message)
            return super().answer(message)

        def pull_messages(self, message_ids):  # type: ignore[no-untyped-def]
            return super(ChangingGrid, self).pull_messages(message_ids)

    nodes = Telling(answering_app(), {}, [{"name": "a"}, {"name": "b"}])
    nodes.silent.add(1001)
    made = ClientRegistry(0)
    made.gather(nodes, 1, 1.0)
    assert made.refresh(nodes) == []
    assert not [line for line in messages if "cannot take part" in line]
    nodes.silent.clear()
    made.refresh(nodes)
    assert [client.name for client in made.clients] == ["a", "b"]


def test_the_start_waits_for_answers_as_long_as_for_nodes() -> None:
    tries: list[str] = []

    def later(name: str) -> None:
        tries.append(name)
        if tries.count("b") < 3:
            raise RuntimeError("not ready yet")

    nodes = ChangingGrid(answering_app(on_hello=later), {}, [{"name": "a"}, {"name": "b"}])
    made = ClientRegistry(0)
    made.gather(nodes, min_clients=2, join_timeout=10.0)
    assert [client.name for client in made.clients] == ["a", "b"]


def test_what_clients_say_of_their_data_is_checked_and_stops_nobody_else() -> None:
    def never(summary: object, task: object) -> None:
        raise DataError("no such classes here")

    made = ClientRegistry(0, check_summary=never)
    with pytest.raises(FederationError, match="0 clients answered and 1 are needed; the first problem was: a: no such"):
        made.gather(grid(["a", "b"]), min_clients=1, join_timeout=0.5)


def test_a_hello_that_is_lost_with_the_process_that_fetched_it_is_said_again() -> None:
    """A node that is restarted between two rounds is listed in both; its new process knows nothing of the old one's."""
    nodes = grid(["a", "b"])
    made = ClientRegistry(0, timeout=0.3)
    made.gather(nodes, 2, 1.0)
    nodes.silent.add(1001)
    made.leave_out([1001])
    made.refresh(nodes)
    (lost,) = nodes.waiting
    pulled: list[str] = []

    def pull(ids: Iterable[str]) -> list[Message]:
        pulled.extend(wanted := list(ids))
        return InlineGrid.pull_messages(nodes, [i for i in wanted if i != lost])

    nodes.pull_messages = pull  # type: ignore[method-assign]
    made.refresh(nodes)
    assert [client.name for client in made.clients] == ["a"]
    time.sleep(0.3)
    made.refresh(nodes)
    assert [client.name for client in made.clients] == ["a", "b"]
    assert lost in pulled
    pulled.clear()
    made.refresh(nodes)
    assert pulled == []  # nobody waits for it any more
