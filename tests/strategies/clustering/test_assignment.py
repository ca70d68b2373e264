"""Who belongs together when clients come late, come back, or say odd things."""

from collections.abc import Sequence

import pytest
import torch
from flwr.app import ArrayRecord, Context, Message
from flwr.clientapp import ClientApp
from tests_support import ChangingGrid, answering_app

from disue.errors import ConfigError
from disue.models import State
from disue.wire import DescribeReply
from strategies.clustering.assignment import ByChoice, BySignature, Planted
from strategies.clustering.estimators import CLUSTERERS
from strategies.clustering.similarity import SIGNATURES
from strategies.flower import FederatedStrategy
from strategies.methods.clustered import AssignedMethod
from strategies.rounds.registry import ClientRegistry
from strategies.rounds.stats import Participation
from strategies.updates import ClientUpdate

START: State = {"w": torch.zeros(3)}
EAST, WEST = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])


def describing_app(data: dict[str, torch.Tensor], asked: list[str]) -> ClientApp:
    """Return clients that describe their data as ``data`` says at the time, and fail without an entry."""
    app = answering_app()

    @app.query("describe")
    def describe(message: Message, context: Context) -> Message:
        name = str(context.node_config["name"])
        asked.append(name)
        return DescribeReply(data[name]).to_message(message)

    return app


class Federation:
    """Clients on a grid whose rounds are run one by one."""

    def __init__(self, data: dict[str, torch.Tensor], fraction: float = 1.0) -> None:
        self.data, self.asked = data, list[str]()
        self.grid = ChangingGrid(describing_app(data, self.asked), {}, [{"name": name} for name in data])
        self.registry = ClientRegistry(seed=0)
        self.registry.gather(self.grid, len(data), 1.0)
        name = "initial-prototypes"
        assigner = BySignature(name, SIGNATURES[name], CLUSTERERS["agglomerative"](2, 0))
        participation = Participation(num_rounds=9, fraction_train=fraction, min_success_fraction=0.01)
        self.strategy = FederatedStrategy(self.registry, participation, AssignedMethod("mlp", assigner))
        self.round = 0

    @property
    def clusters(self) -> dict[str, int]:
        return dict(self.strategy.reached().clusters)

    def run_round(self) -> None:
        self.round += 1
        arrays = ArrayRecord(START)
        messages = list(self.strategy.configure_train(self.round, arrays, None, self.grid))  # type: ignore[arg-type]
        self.strategy.aggregate_train(self.round, self.grid.send_and_receive(messages))


def four_clients() -> dict[str, torch.Tensor]:
    return {"a": EAST, "b": WEST, "c": EAST, "d": WEST}


def test_every_client_has_a_cluster_whoever_was_sampled() -> None:
    federation = Federation(four_clients(), fraction=0.25)
    federation.run_round()
    clusters = federation.clusters
    assert clusters.keys() == set("abcd")
    assert clusters["a"] == clusters["c"] != clusters["b"] == clusters["d"]
    assert len(federation.strategy.reached().experts) == 1  # only one client trained


def test_clients_are_asked_once_and_a_newcomer_joins_the_cluster_its_description_is_nearest_to() -> None:
    federation = Federation(four_clients())
    federation.run_round()
    first = federation.clusters
    federation.data["e"] = 0.9 * WEST + 0.1 * EAST
    federation.grid.add_node({"name": "e"})
    federation.run_round()
    assert federation.asked == ["a", "b", "c", "d", "e"]
    assert federation.clusters == first | {"e": first["b"]}


def test_a_newcomer_moves_nobody_until_newcomers_are_a_quarter_of_all() -> None:
    """Though a clustering of all would put the odd one alone and everybody else together."""
    federation = Federation(four_clients())
    federation.run_round()
    first = federation.clusters
    odd = -5.0 * (EAST + WEST)
    federation.data["odd"] = odd
    federation.grid.add_node({"name": "odd"})
    federation.run_round()
    assert federation.clusters == first | {"odd": federation.clusters["odd"]}
    assert federation.clusters["odd"] in first.values()
    federation.data["odder"] = odd
    federation.grid.add_node({"name": "odder"})
    federation.run_round()
    clusters = federation.clusters
    assert clusters["odd"] == clusters["odder"]
    assert clusters["odd"] not in {clusters[name] for name in "abcd"}


def test_who_comes_back_as_another_node_is_asked_again_and_has_its_cluster() -> None:
    federation = Federation(four_clients())
    federation.run_round()
    first = federation.clusters
    (node_id,) = (client.node_id for client in federation.registry.clients if client.name == "b")
    federation.grid.forget(node_id)
    federation.run_round()
    assert federation.clusters == first  # its signature is remembered
    federation.grid.add_node({"name": "b"})
    federation.run_round()
    assert federation.asked == ["a", "b", "c", "d", "b"]
    assert federation.clusters == first


def test_one_client_with_another_shape_does_not_decide_for_all() -> None:
    federation = Federation({"a": torch.ones(1, 3)} | dict.fromkeys("bcd", EAST))
    federation.run_round()
    assert federation.clusters.keys() == set("bcd")
    assert federation.strategy.stats.clients_ok == 3


def test_where_the_shape_is_known_most_clients_do_not_decide_it(messages: list[str]) -> None:
    federation = Federation({"a": EAST} | dict.fromkeys("bcd", torch.ones(1, 3)))
    federation.strategy.descriptions.shape = 1, 2
    federation.run_round()
    assert federation.clusters.keys() == {"a"}
    assert any("b: description rejected: it is (1, 3); expected (1, 2)" in line for line in messages)


@pytest.mark.parametrize(
    "odd", [None, torch.ones(1, 3), torch.full((1, 2), float("nan"))], ids=["raises", "shape", "nan"]
)
def test_who_cannot_describe_its_data_sits_out_and_is_asked_again(odd: torch.Tensor | None) -> None:
    federation = Federation(four_clients())
    if odd is None:
        del federation.data["d"]
    else:
        federation.data["d"] = odd
    federation.run_round()
    stats = federation.strategy.stats
    assert (stats.clients_ok, stats.clients_failed) == (3, 1)
    assert "d" not in federation.clusters
    federation.data["d"] = WEST
    federation.run_round()
    assert federation.strategy.stats.clients_ok == 4
    assert federation.clusters["d"] == federation.clusters["b"]


def chosen(updates: Sequence[ClientUpdate], choices: Sequence[int]) -> list[ClientUpdate]:
    return [ClientUpdate(u.name, u.start, u.state, 1, None, c) for u, c in zip(updates, choices, strict=True)]


def test_a_choice_holds_until_the_next_and_its_number_is_the_models(make_updates) -> None:  # type: ignore[no-untyped-def]
    """Cluster numbers say which model was chosen: no renaming, even if everybody moves."""
    models = [{"w": torch.full((1,), float(k))} for k in range(3)]
    assigner, updates = ByChoice(models), make_updates(4)
    first = assigner.assign(assigner.begin(), chosen(updates, [0, 0, 1, 1]), {}, {}, {})
    assert first.clusters == {u.name: c for u, c in zip(updates, [0, 0, 1, 1], strict=True)}
    expert = {"w": torch.tensor([9.0])}
    candidates = assigner.candidates(first.memory, {1: expert})
    assert candidates[1] is expert
    assert candidates[0] is models[0]
    second = assigner.assign(first.memory, chosen(updates[:2], [1, 1]), {}, {}, {1: expert})
    assert second.clusters == dict.fromkeys((u.name for u in updates), 1)
    assert assigner.candidates(second.memory, {})[1] is expert  # nobody chose it in between; it is not forgotten


def test_clients_that_know_no_group_have_no_oracle() -> None:
    planted = Planted()
    with pytest.raises(ConfigError, match="the oracle needs planted groups"):
        planted.assign(planted.begin(), [], {}, {"a": 0, "b": -1}, {})
