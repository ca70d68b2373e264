"""What the server says of the task that clients with data of their own agree on."""

from types import SimpleNamespace

import pytest

from disue.tasks import DataSummary
from server_app.config import RunConfig
from server_app.run_data import prepare_data
from strategies.rounds.registry import Client


def client(name: str, num_examples: int, *class_names: str) -> Client:
    return Client(name, 1, num_examples, -1, 0, "mlp", DataSummary(class_names, (0.5,), (0.2,)))


def numbers(count: int) -> list[str]:
    return [str(value) for value in range(count)]


def said_of(messages: list[str], *clients: Client, **settings: object) -> list[str]:
    config = RunConfig(dataset="own", input_shape="1x8x8", **settings)  # type: ignore[arg-type]
    prepare_data(config, SimpleNamespace(clients=list(clients), task=None))  # type: ignore[arg-type]
    return [line.split(";")[0] for line in messages if "classes in" in line]


def test_a_regression_target_is_doubted_once_for_all_clients(messages: list[str]) -> None:
    clients = [client(name, 200, *numbers(214)) for name in "ab"]
    assert said_of(messages, *clients) == ["all clients together have 214 classes in 400 examples"]


def test_one_client_with_such_labels_is_named_among_others(messages: list[str]) -> None:
    clients = [client("a", 2000, *numbers(5)), client("b", 200, *numbers(90))]
    assert said_of(messages, *clients) == ["b has 90 classes in 200 examples"]


@pytest.mark.parametrize("privacy", ["secure", "dp"])
def test_where_clients_do_not_say_what_they_have_only_the_sum_counts(messages: list[str], privacy: str) -> None:
    classes = ",".join(numbers(40))
    silent = [client(name, 0 if privacy == "secure" else 100, *numbers(40)) for name in "ab"]
    assert not said_of(messages, *silent, privacy=privacy, classes=classes)


def test_usual_classes_are_not_doubted(messages: list[str]) -> None:
    assert not said_of(messages, client("a", 40, *numbers(10)), client("b", 6, "0", "1", "2"))
