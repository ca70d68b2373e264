"""Who is asked, who is waited for, and what is said of the answers."""

import pytest
from tests_support import ChangingGrid, answering_app

from disue.errors import DataError, WireError
from disue.wire import HelloReply, HelloRequest
from strategies.rounds.hellos import Hellos


def grid_of(*names: str) -> ChangingGrid:
    return ChangingGrid(answering_app(), {}, [{"name": name} for name in names])


def test_those_who_take_no_part_are_asked_and_their_answers_come_by_node() -> None:
    grid = grid_of("a", "b", "c")
    first, second, third = grid.get_node_ids()
    answers = Hellos(HelloRequest(), 1.0).say(grid, [first, second, third], {second})
    assert {node: HelloReply.from_message(reply).name for node, reply in answers.items()} == {first: "a", third: "c"}


def test_a_silent_node_is_asked_again_when_its_time_is_up_and_one_that_left_is_forgotten() -> None:
    grid, hellos = grid_of("a", "b"), Hellos(HelloRequest(), 0.2)
    nodes = grid.get_node_ids()
    grid.silent = {nodes[1]}
    assert list(hellos.say(grid, nodes, ())) == nodes[:1]
    assert len(grid.waiting) == 1
    hellos.say(grid, nodes, nodes[:1])  # 0.2 seconds were waited
    assert len(grid.waiting) == 2
    hellos.say(grid, nodes[:1], nodes[:1])
    grid.silent = set()
    assert list(hellos.say(grid, nodes, nodes[:1])) == nodes[1:]
    assert len(grid.waiting) == 2  # nobody asks for the answers to the first two


def test_a_node_has_one_name() -> None:
    hellos = Hellos(HelloRequest(), 1.0)
    hellos.require_one_name(1, "a")
    hellos.require_one_name(1, "a")
    hellos.require_one_name(2, "b")
    with pytest.raises(WireError, match="it says that it is 'b', and was 'a' before"):
        hellos.require_one_name(1, "b")


def test_a_refusal_is_logged_once_until_it_is_another(messages: list[str]) -> None:
    hellos = Hellos(HelloRequest(), 1.0)
    for error in ("no data", "no data", "no model", "no data"):
        hellos.refuse(1, DataError(error))
    hellos.welcome(1)
    hellos.refuse(1, DataError("no data"))
    said = [line.removeprefix("node 1 cannot take part: ") for line in messages]
    assert said == ["no data", "no model", "no data", "no data"]
