"""What clients with data of their own agree on, when one of them lies about its own."""

import math
from collections.abc import Callable
from functools import partial

import pytest
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from tests_support import ChangingGrid

from disue.errors import DataError, FederationError
from disue.tasks import DataSummary
from disue.wire import EvaluateReply, HelloReply
from server_app.config import RunConfig
from server_app.run_data import prepare_data, unfit
from server_app.scoring import by_clients
from strategies.aggregation.caps import Caps
from strategies.rounds.registry import Client, ClientRegistry

HONEST = DataSummary(("cat", "dog"), (0.4,), (0.3,))


@pytest.fixture
def gathered() -> Callable[..., ClientRegistry]:
    """Return the clients that said hello: ``gathered(config, a=(examples, summary), ...)``."""

    def gather(settings: RunConfig | None = None, **told: tuple[int, DataSummary]) -> ClientRegistry:
        app = ClientApp()

        @app.query()
        def hello(message: Message, context: Context) -> Message:
            name = str(context.node_config["name"])
            return HelloReply(name, told[name][0], -1, 0, "mlp", told[name][1]).to_message(message)

        settings = settings or config()
        registry = ClientRegistry(0, unfit=partial(unfit, settings))
        registry.gather(ChangingGrid(app, {}, [{"name": name} for name in told]), settings.min_clients, 0.2)
        return registry

    return gather


def config(**settings: object) -> RunConfig:
    return RunConfig.from_flower({"dataset": "own", "input-shape": "1x8x8", "proxy": "generator", **settings})


def test_a_client_that_claims_much_moves_the_normalisation_little(  # type: ignore[no-untyped-def]
    gathered, messages: list[str]
) -> None:
    black = DataSummary(("cat",), (0.0,), (0.0,))
    registry = gathered(a=(100, HONEST), b=(120, HONEST), c=(80, HONEST), d=(100, HONEST), e=(10**12, black))
    task = prepare_data(config(), registry).task
    weight = 1000 / 1400  # ten times the median of the others'
    mean = (1 - weight) * 0.4
    assert task.mean[0] == pytest.approx(mean)
    assert task.std[0] == pytest.approx(((1 - weight) * (0.3**2 + 0.4**2) - mean**2) ** 0.5)
    assert any("e says num-examples of 1e+12; it counts as 1000" in said for said in messages)
    honest = prepare_data(config(**{"max-weight": 1.0}), gathered(a=(100, HONEST), b=(100, HONEST), c=(10**12, black)))
    assert honest.task.mean[0] == pytest.approx(2 / 3 * 0.4)  # who needs more protection lowers it


def test_a_claim_beyond_all_measure_costs_that_client_alone(gathered, messages: list[str]) -> None:  # type: ignore[no-untyped-def]
    registry = gathered(a=(100, HONEST), b=(120, HONEST), c=(2**62, HONEST))
    assert [client.name for client in registry.clients] == ["a", "b"]
    assert any("num-examples is 4611686018427387904; expected an integer from 0 to 10^12" in said for said in messages)


def test_a_client_with_far_more_classes_than_the_others_is_refused(gathered, messages: list[str]) -> None:  # type: ignore[no-untyped-def]
    many = DataSummary(tuple(f"class {i}" for i in range(101)), (0.4,), (0.3,))
    registry = gathered(a=(100, HONEST), b=(120, HONEST), c=(100, many))
    assert prepare_data(config(), registry).task.class_names == ("cat", "dog")
    assert any("c: it has 101 classes, beside the other clients' at most 100 are allowed" in said for said in messages)
    every = ",".join([*HONEST.class_names, *many.class_names])
    named = config(classes=every)
    assert len(prepare_data(named, gathered(named, a=(1, HONEST), b=(1, many))).task.class_names) == 103
    with pytest.raises(FederationError, match="min-clients: 2 clients answered and 3 are needed; .* 101 classes"):
        gathered(config(**{"min-clients": 3}), a=(100, HONEST), b=(120, HONEST), c=(100, many))


def test_a_number_of_partitions_into_which_the_dataset_cannot_be_divided_costs_that_client_alone() -> None:
    told = {"a": 4, "b": 0, "c": 10**7, "d": 700}
    clients = [Client(name, i, 5, 0, number, "mlp") for i, (name, number) in enumerate(told.items())]
    digits = RunConfig.from_flower({"proxy-size": 600})
    refused = unfit(digits, clients, None)
    assert refused.keys() == {"b", "c", "d"}
    assert refused["b"] == "num-partitions: got 0; use at least 1"
    assert "num-partitions: got 10000000; digits has" in refused["c"]
    with pytest.raises(DataError, match="^proxy-size: got 1000000;"):  # which is nobody's fault but the config's
        unfit(RunConfig.from_flower({"proxy-size": 10**6}), clients, None)


def reply(accuracy: float, examples: int, loss: float | None) -> EvaluateReply:
    return EvaluateReply(examples, accuracy, loss, accuracy)


def test_a_client_that_claims_many_test_examples_does_not_decide_the_reported_accuracy(messages: list[str]) -> None:
    told = {name: reply(0.5, 10, 0.7) for name in "abcd"} | {"e": reply(1.0, 10**12, 1e9)}
    caps = Caps(10.0)
    for _ in range(2):
        found = by_clients(told, dict.fromkeys(told, "mlp"), "mlp", caps).universal
        assert found is not None
        assert found.metrics["accuracy"] == pytest.approx((40 * 0.5 + 100 * 1.0) / 140)
        assert found.loss == pytest.approx((40 * 0.7 + 100 * 10.0) / 140)
    assert len([line for line in messages if "e says num-examples to test on of 1e+12" in line]) == 1
    alike = by_clients(told, dict.fromkeys(told, "mlp"), "mlp", caps, alike=True).universal
    assert alike is not None
    assert alike.metrics["accuracy"] == pytest.approx((4 * 0.5 + 1.0) / 5)


def test_a_client_that_leaves_its_loss_out_leaves_it_out_for_itself_alone() -> None:
    told = {"a": reply(0.5, 10, 0.7), "b": reply(1.0, 30, None)}
    found = by_clients(told, dict.fromkeys(told, "mlp"), "mlp", Caps()).universal
    assert found is not None
    assert (found.metrics["accuracy"], found.loss) == (pytest.approx(0.875), pytest.approx(0.7))
    nobody = by_clients({"b": told["b"]}, {"b": "mlp"}, "mlp", Caps()).universal
    assert nobody is not None
    assert math.isnan(nobody.loss)
