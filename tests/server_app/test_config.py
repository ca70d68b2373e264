"""Parts with a key of their own: a part, its settings and one registration. Nothing else knows the key."""

import pickle
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Context, RecordDict
from pydantic import Field
from safetensors.torch import load_file
from tests_support import calls_of
from torch import Tensor

from client_app.app import app as client_app
from client_app.client import LocalClient
from disue import load_run
from disue.config import ClientConfig, Settings
from disue.errors import ConfigError
from disue.models import State
from disue_cli.commands.compare import make_cells, shared_keys
from disue_cli.config_table import config_table
from disue_cli.engines.inline import InlineGrid, simulated_nodes
from server_app.checks import check_names
from server_app.config import RunConfig
from server_app.run import execute
from strategies.aggregation.average import weighted_average
from strategies.aggregation.robust import AGGREGATORS
from strategies.clustering.estimators import CLUSTERERS
from strategies.distillation.teachers import TEACHERS, TeacherInputs, Weighing
from strategies.distillation.universal import UniversalDistillation
from strategies.methods import METHODS
from strategies.methods.base import Method, MethodState, Step
from strategies.methods.cfl import CFLSettings
from strategies.methods.declarations import Supports
from strategies.methods.disue_settings import DisUESettings
from strategies.methods.parts import ASSIGNERS, Parts, by_signature
from strategies.methods.settings import StrategyConfig
from strategies.rounds.round import Round
from strategies.stored import stored
from strategies.updates import Contribution, Weighted

SMALL = {"model": "mlp", "num-server-rounds": 2, "local-epochs": 1, "report": False}


class MomentumSettings(Settings):
    """Method `averaged-with-momentum`."""

    averaging_momentum: float = Field(0.9, ge=0.0, lt=1.0, description="share of the last step in the next")


@stored
@dataclass(frozen=True)
class MomentumState(MethodState):
    velocity: Mapping[str, Tensor] = field(default_factory=dict)


class AveragedWithMomentum(Method[MomentumState]):
    state_type = MomentumState
    supports = Supports(sums=True)

    def __init__(self, main: str, momentum: float) -> None:
        super().__init__(main)
        self.momentum = momentum

    @classmethod
    def check(cls, config: StrategyConfig) -> None:
        if config.privacy == "secure" and MomentumSettings.of(config).averaging_momentum:
            raise ConfigError("averaging-momentum: use 0 with privacy=secure")

    @classmethod
    def build(cls, parts: Parts) -> "AveragedWithMomentum":
        return cls(parts.main, MomentumSettings.of(parts.config).averaging_momentum)

    def step(self, state: MomentumState, updates: Sequence[Contribution], round: Round) -> Step[MomentumState]:
        average, before = self.aggregator(updates), state.universals[self.main]
        last = state.velocity or {name: torch.zeros_like(tensor) for name, tensor in before.items()}
        velocity = {name: self.momentum * last[name] + average[name] - before[name] for name in before}
        universal: State = {name: before[name] + velocity[name] for name in before}
        return Step(replace(state, universals={self.main: universal}, velocity=velocity), {self.main: average})


@pytest.fixture
def _registered() -> Iterator[None]:
    with METHODS.scope():
        METHODS.register("averaged-with-momentum", MomentumSettings)(AveragedWithMomentum)
        yield


@pytest.mark.usefixtures("_registered")
def test_a_run_takes_the_key_of_a_method_that_nothing_else_knows(tmp_path: Path) -> None:
    directories = {}
    for momentum in (0.0, 0.5):
        values = {"method": "averaged-with-momentum", "averaging-momentum": momentum}
        directories[momentum] = tmp_path / str(momentum)
        config = RunConfig.from_flower(SMALL | values | {"output-dir": str(directories[momentum])})
        grid = InlineGrid(client_app, config.to_flower(), simulated_nodes(3))
        assert execute(config, grid)["status"] == "completed"
    plain = tmp_path / "fedavg"
    config = RunConfig.from_flower(SMALL | {"method": "fedavg", "output-dir": str(plain)})
    execute(config, InlineGrid(client_app, config.to_flower(), simulated_nodes(3)))
    models = {key: (place / "universal.safetensors").read_bytes() for key, place in directories.items()}
    assert models[0.0] != models[0.5]
    found, expected = (load_run(place).universal.module.state_dict() for place in (directories[0.0], plain))
    assert all(torch.allclose(found[name], expected[name], atol=1e-6) for name in expected)  # without it, FedAvg
    written = tomllib.loads((directories[0.5] / "config.toml").read_text())["run"]
    assert written["averaging-momentum"] == 0.5


@pytest.mark.usefixtures("_registered")
def test_its_key_is_checked_shown_and_may_be_set_for_it_alone(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^averaging-momentum: got 1.0; input should be less than 1$"):
        RunConfig.from_flower({"averaging-momentum": 1.0})
    with pytest.raises(ConfigError, match=r"^averaging-momentun: no such .* \(did you mean 'averaging-momentum'\?\)"):
        RunConfig.from_flower({"averaging-momentun": 0.5})
    assert "| `averaging-momentum` | `0.9` | float, at least 0, below 1 | share of the last step in the next |" in (
        config_table()
    )
    assert "averaging-momentum" not in shared_keys()
    label = "averaged-with-momentum:averaging-momentum=0.3"
    (cell,) = make_cells([label], ["iid"], [0], ["digits"], 3, {}, tmp_path)
    assert MomentumSettings.of(cell.config).averaging_momentum == 0.3
    assert pickle.loads(pickle.dumps(cell)) == cell  # as worker processes get it


@pytest.mark.usefixtures("_registered")
def test_a_method_refuses_what_its_key_does_not_go_with() -> None:
    values = {"method": "averaged-with-momentum", "privacy": "secure"}
    with pytest.raises(ConfigError, match="^averaging-momentum: use 0 with privacy=secure$"):
        check_names(RunConfig.from_flower(values))
    check_names(RunConfig.from_flower(values | {"averaging-momentum": 0.0}))


@pytest.mark.usefixtures("_registered")
def test_a_client_that_has_no_such_method_ignores_its_key() -> None:
    run_config = RunConfig.from_flower({"averaging-momentum": 0.5, "seed": 3}).to_flower()
    config = ClientConfig.from_flower(run_config)
    assert config.seed == 3
    assert not hasattr(config, "averaging_momentum")
    context = Context(1, 1, {"partition-id": 0, "num-partitions": 3}, RecordDict(), run_config)
    assert LocalClient(context, None).config == config
    with pytest.raises(ConfigError, match=r"^seed: got -1"):
        ClientConfig.from_flower(run_config | {"seed": -1})


def test_a_run_is_read_where_its_method_is_not_installed(spoilt: Path) -> None:
    path = spoilt / "config.toml"
    path.write_text(path.read_text().replace("[run]\n", "[run]\naveraging-momentum = 0.5\n"))
    config = load_run(spoilt).config
    assert (config.method, config.averaging_momentum) == ("disue", 0.5)  # type: ignore[attr-defined]
    assert MomentumSettings.of(config).averaging_momentum == 0.5
    assert DisUESettings.of(config).expert_memory == 0.5
    assert StrategyConfig.of(config).clusterer == "agglomerative"


def test_one_made_by_hand_has_the_keys_of_all_methods_too() -> None:
    config = RunConfig(method="cfl", cfl_eps1=0.2)
    assert config == RunConfig.from_flower({"method": "cfl", "cfl-eps1": 0.2})
    assert CFLSettings.of(config).cfl_eps1 == 0.2
    with pytest.raises(ValueError, match="cfl_eps3"):
        RunConfig(cfl_eps3=0.2)


def test_two_owners_of_one_key_are_refused() -> None:
    class Other(Settings):
        """Method `other`."""

        cfl_eps1: float = Field(0.1, ge=0.0, le=1.0, description="something else")

    with METHODS.scope():
        METHODS.register("other", Other)(AveragedWithMomentum)
        with pytest.raises(ValueError, match="cfl-eps1 is declared twice"):
            RunConfig.complete()


def test_a_method_may_take_over_the_keys_of_another() -> None:
    class Wider(CFLSettings):
        """Method `wider`."""

        wider_by: float = Field(2.0, ge=1.0, le=10.0, description="so many times")

    with METHODS.scope():
        METHODS.register("wider", Wider)(AveragedWithMomentum)
        config = RunConfig.from_flower({"wider-by": 3.0, "cfl-eps1": 0.2})
        assert Wider.of(config).wider_by == 3.0
        assert Wider.of(config).cfl_eps1 == CFLSettings.of(config).cfl_eps1 == 0.2


# --- parts that are functions ----------------------------------------------------------------------


class ShrunkSettings(Settings):
    """Aggregator `shrunk-mean`."""

    shrunk_by: float = Field(0.5, ge=0.0, le=1.0, description="factor of the mean")


def shrunk_mean(updates: Sequence[Weighted], settings: ShrunkSettings) -> State:
    return {name: settings.shrunk_by * tensor for name, tensor in weighted_average(updates).items()}


class OneSettings(Settings):
    """Teacher `one-expert`."""

    teaching_expert: int = Field(0, ge=0, le=10, description="the expert whose vote counts")


def one_expert(inputs: TeacherInputs, settings: OneSettings) -> Weighing:
    weights = torch.zeros(*inputs.expert_logits.shape[:2], 1)
    weights[settings.teaching_expert] = 1.0
    return Weighing(weights)


class DealtSettings(Settings):
    """Clusterer `dealt`."""

    dealt_into: int = Field(2, ge=1, le=10, description="clusters that clients are dealt into")


class Dealt:
    def __init__(self, num_clusters: int, random_state: int, min_cluster_size: int = 1, *, settings: DealtSettings):
        self.number = settings.dealt_into

    def fit_predict(self, X: np.ndarray) -> np.ndarray:
        return np.arange(len(X)) % self.number


@pytest.fixture
def _parts() -> Iterator[None]:
    with AGGREGATORS.scope(), TEACHERS.scope(), CLUSTERERS.scope(), ASSIGNERS.scope():
        AGGREGATORS.register("shrunk-mean", ShrunkSettings)(shrunk_mean)
        TEACHERS.register("one-expert", OneSettings)(one_expert)
        CLUSTERERS.register("dealt", DealtSettings)(Dealt)
        ASSIGNERS.register("dealt")(by_signature("dealt"))
        yield


@pytest.mark.usefixtures("_parts")
def test_an_aggregator_gets_the_key_that_it_owns(run) -> None:  # type: ignore[no-untyped-def]
    settings = {"method": "fedavg", "num_server_rounds": 1}
    plain = load_file(run(**settings).directory / "universal.safetensors")
    for factor in (1.0, 0.5, 0.25):
        shrunk = run(**settings, aggregator="shrunk-mean", shrunk_by=factor)
        found = load_file(shrunk.directory / "universal.safetensors")
        assert all(torch.equal(found[name], factor * plain[name]) for name in plain)


@pytest.mark.usefixtures("_parts")
@pytest.mark.parametrize("expert", [0, 1])
def test_a_teacher_gets_the_key_that_it_owns(run, monkeypatch: pytest.MonkeyPatch, expert: int) -> None:  # type: ignore[no-untyped-def]
    lessons = calls_of(monkeypatch, UniversalDistillation, "teach")
    run(num_clusters=2, num_server_rounds=1, teacher="one-expert", teaching_expert=expert)
    weights = lessons[0].result.votes.weights
    assert weights.shape[0] == 2
    assert weights.sum(dim=1).tolist() == [weights.shape[1] * (own == expert) for own in (0, 1)]


@pytest.mark.usefixtures("_parts")
@pytest.mark.parametrize("number", [2, 3])
def test_a_clusterer_gets_the_key_that_it_owns(run, number: int) -> None:  # type: ignore[no-untyped-def]
    result = run(clients=6, num_server_rounds=1, clusterer="dealt", dealt_into=number)
    assert result.summary["num_clusters"] == number


@pytest.mark.usefixtures("_parts")
@pytest.mark.parametrize(
    ("key", "own", "line", "wrong"),
    [
        (
            "shrunk-by",
            "aggregator=shrunk-mean:shrunk-by=0.25",
            "| `shrunk-by` | `0.5` | float, at least 0, at most 1 | factor of the mean |",
            2.0,
        ),
        (
            "teaching-expert",
            "teacher=one-expert:teaching-expert=1",
            "| `teaching-expert` | `0` | int, at least 0, at most 10 | the expert whose vote counts |",
            -1,
        ),
        (
            "dealt-into",
            "clusterer=dealt:dealt-into=3",
            "| `dealt-into` | `2` | int, at least 1, at most 10 | clusters that clients are dealt into |",
            0,
        ),
    ],
)
def test_the_keys_of_parts_are_checked_shown_and_may_be_set_for_one_method(
    tmp_path: Path, key: str, own: str, line: str, wrong: object
) -> None:
    with pytest.raises(ConfigError, match=f"^{key}: got {wrong}; "):
        RunConfig.from_flower({key: wrong})
    assert line in config_table()
    assert key not in shared_keys()
    (cell,) = make_cells([f"disue:{own}"], ["iid"], [0], ["digits"], 3, {}, tmp_path)
    check_names(cell.config)
    assert str(cell.config.to_flower()[key]) == own.rpartition("=")[2]


def test_what_parts_own_is_forgotten_with_them() -> None:
    with AGGREGATORS.scope():
        AGGREGATORS.register("shrunk-mean", ShrunkSettings)(shrunk_mean)
        assert "shrunk-by" in RunConfig.complete().declared_keys()
    with pytest.raises(ConfigError, match="^shrunk-by: no such run config key"):
        RunConfig.from_flower({"shrunk-by": 0.5})
