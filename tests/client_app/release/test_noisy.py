import math

import pytest
import torch
from flwr.app import Context, Error, Message, MessageType, RecordDict
from tests_support import numbered_classes

from client_app.describe import make_signature
from client_app.release import choose_policy, noisy, withhold_errors
from client_app.release.gaussian import Draw, from_the_system, gaussian_mechanism, seeded
from client_app.release.noisy import NoisyRelease
from disue.config import ClientConfig
from disue.data import Examples
from disue.errors import ConfigError, DataError, FederationError
from disue.models import build_model, flatten, get_state
from disue.nodes import NodeConfig
from disue.tasks import DataSummary
from disue.wire import EvaluateReply, HelloReply, HelloRequest, TrainReply
from disue_cli.engines.inline import InlineGrid

CPU = torch.device("cpu")
TASK = numbered_classes(4)
QUIET = ClientConfig(privacy="dp", dp_clip=0.5, dp_noise=1e-9)
"""So little noise that what is clipped can be seen."""


def private(config: ClientConfig = QUIET) -> NoisyRelease:
    return NoisyRelease(config, seeded("test"))


def examples(count: int = 60, classes: int = 4) -> Examples:
    g = torch.Generator().manual_seed(0)
    y = torch.arange(count) % classes
    return Examples(torch.randn(count, 1, 4, 4, generator=g) + y.view(-1, 1, 1, 1), y)


@pytest.mark.parametrize("scale", [0.0, 1e-3, 0.4, 0.6, 1.0, 1e4, 1e30, 3e38])
def test_no_update_is_longer_than_the_bound_however_large(scale: float) -> None:
    start = get_state(build_model("mlp", (1, 4, 4), 4))
    g = torch.Generator().manual_seed(1)
    direction = {name: torch.randn(tensor.shape, generator=g) for name, tensor in start.items()}
    length = float(flatten(list(direction.values())).norm())
    state = {name: tensor + scale * (direction[name] / length) for name, tensor in start.items()}
    sent = private().training(TrainReply(state, 7, 0.3, 2), start)
    moved = flatten([(sent.state[name] - start[name]).double() for name in start])
    assert float(moved.norm()) == pytest.approx(min(scale, 0.5), rel=1e-4, abs=1e-5)
    if scale:
        cosine = torch.cosine_similarity(moved, flatten(list(direction.values())).double(), dim=0)
        assert float(cosine) > 0.999
    assert sent.train_loss is None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_an_update_that_is_not_finite_is_sent_as_none(bad: float) -> None:
    start = get_state(build_model("mlp", (1, 4, 4), 4))
    state = {name: tensor.clone() for name, tensor in start.items()}
    state["head.bias"][1] = bad
    sent = private().training(TrainReply(state, 7, 0.3, 2), start).state
    for name in start:
        torch.testing.assert_close(sent[name], start[name], atol=1e-6, rtol=0.0)


@pytest.mark.parametrize("draw", [seeded("a test"), from_the_system], ids=["seeded", "system"])
def test_noise_is_gaussian_with_the_deviation_that_is_said(draw: Draw) -> None:
    """Bounds of five standard errors: of the mean, of the variance, of the kurtosis, of neighbours' correlation."""
    n, noise, bound = 200_000, 0.7, 3.0
    x = gaussian_mechanism(torch.zeros(n), bound, noise, draw) / (noise * bound)
    assert x.dtype == torch.float64
    assert abs(float(x.mean())) < 5 / math.sqrt(n)
    assert abs(float(x.var()) - 1.0) < 5 * math.sqrt(2.0 / n)
    assert abs(float((x**4).mean()) - 3.0) < 5 * math.sqrt(96.0 / n)
    assert abs(float((x[1:] * x[:-1]).mean())) < 5 / math.sqrt(n)


def test_noise_of_every_coordinate_of_an_update_has_the_deviation_that_is_said() -> None:
    config = ClientConfig(privacy="dp", dp_clip=0.25, dp_noise=2.0)
    start = get_state(build_model("mlp", (1, 8, 8), 10))
    sent = NoisyRelease(config, seeded("update")).training(TrainReply(start, 7, 0.3, 2), start).state
    moved = {name: (sent[name] - start[name]).double() for name in start}
    for name, tensor in moved.items():
        n = tensor.numel()
        assert abs(float(tensor.square().mean()) / 0.25 - 1.0) < 5 * math.sqrt(2.0 / n), name


def test_seeded_noise_is_repeated_and_the_systems_is_not() -> None:
    config = ClientConfig(privacy="dp")

    def drawn(node: NodeConfig, purpose: str = "train", server_round: int = 1) -> list[float]:
        rules = choose_policy(config, node, purpose, server_round)
        assert isinstance(rules, NoisyRelease)
        return rules.draw(3).tolist()

    simulated, other = (NodeConfig(partition_id=i, num_partitions=2) for i in range(2))
    assert drawn(simulated) == drawn(simulated)
    others = [drawn(simulated, server_round=2), drawn(simulated, "evaluate"), drawn(other)]
    assert all(numbers != drawn(simulated) for numbers in others)
    own = NodeConfig(name="hospital-a", data_path="/data")
    assert drawn(own) != drawn(own)


def test_a_client_that_wants_noise_takes_no_part_without() -> None:
    node = NodeConfig(name="hospital-a", data_path="/data", privacy="dp")
    assert isinstance(choose_policy(ClientConfig(privacy="dp"), node, "hello"), NoisyRelease)
    with pytest.raises(
        ConfigError, match="^privacy: got 'plain'; 'hospital-a' takes part in runs with privacy=dp only$"
    ):
        choose_policy(ClientConfig(), node, "hello")
    with pytest.raises(ConfigError, match="^node config of 'a': privacy: got 'none'; .*'plain', 'dp' or 'secure'"):
        NodeConfig.from_flower({"name": "a", "data-path": "/data", "privacy": "none"})


def test_how_features_vary_is_not_told() -> None:
    model, data = build_model("mlp", (1, 4, 4), 4), examples()
    assert private().signature(model, data, CPU, TASK).covariance is None
    with pytest.raises(FederationError, match="^privacy=dp: a client does not tell how its features vary$"):
        private().signature(model, data, CPU, TASK, covariance=True)


def test_no_signature_is_longer_than_the_bound_and_little_noise_changes_little(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = []

    def watched(vector: torch.Tensor, bound: float, noise: float, draw: Draw) -> torch.Tensor:
        lengths.append(float(vector.norm()) / bound)
        return gaussian_mechanism(vector, bound, noise, draw)

    monkeypatch.setattr(noisy, "gaussian_mechanism", watched)
    model, data = build_model("mlp", (1, 4, 4), 4), examples()
    exact, told = make_signature(model, data, CPU, TASK), private().signature(model, data, CPU, TASK)
    assert told.label_counts.sum() <= len(data)
    assert (told.label_counts - exact.label_counts).abs().max() <= 1.0  # whole numbers
    usual = noisy.usual_length(model, TASK, CPU) * noisy.LONGEST_PROTOTYPE
    longest = exact.prototypes.norm(dim=1, keepdim=True).clamp(min=usual)
    torch.testing.assert_close(told.prototypes, exact.prototypes * usual / longest, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        model.body[3].weight *= 1e6  # far from what the noise images say
    loud = Examples(data.x * 1e6, torch.zeros_like(data.y))  # one class: both parts are of unit length
    private().signature(model, loud, CPU, TASK)
    assert lengths[1] == pytest.approx(1.0, abs=1e-6)
    assert max(lengths) < 1.0 + 1e-6


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("noise", [0.05, 0.5, 5.0, 500.0])
def test_a_signature_stays_one_whatever_the_noise(noise: float, share: bool) -> None:
    config = ClientConfig(privacy="dp", dp_noise=noise, share_label_counts=share)
    model, data = build_model("mlp", (1, 4, 4), 4), examples(9)
    for seed in range(20):
        told = NoisyRelease(config, seeded(seed)).signature(model, data, CPU, TASK)
        assert 0 < told.label_counts.sum() <= len(data)
        assert share or set(told.label_counts.tolist()) <= {0.0, 1.0}
        assert bool((told.prototypes[told.label_counts == 0].abs().sum(dim=1) == 0).all()) or share


def test_accuracies_and_fits_are_released_together_and_stay_in_their_ranges() -> None:
    exact = EvaluateReply(30, 0.2, 1.7, 0.9, 0.8, 12, 99.0, 0.4)
    told = private().evaluation(exact, numbered_classes(10))
    assert told.universal_loss is None
    assert (told.num_examples, told.personal_steps) == (30, 12)
    assert told.universal_accuracy == pytest.approx(0.2)
    assert told.expert_accuracy == pytest.approx(0.9)
    assert told.personal_accuracy == pytest.approx(0.8)
    assert told.universal_fit == pytest.approx(2.0 * math.log(10))
    assert told.expert_fit == pytest.approx(0.4)
    values = []
    for seed in range(2000):
        loud = NoisyRelease(ClientConfig(privacy="dp", dp_noise=0.05), seeded(seed)).evaluation(
            EvaluateReply(30, 0.5, 1.7, 0.5), numbered_classes(10)
        )
        assert loud.personal_accuracy is None
        assert loud.universal_fit is None
        values.append(loud.expert_accuracy)
    # Two numbers: -1..1 over the root of two, so that one unit is the root of two halves.
    deviation = float(torch.tensor(values).std())
    assert deviation == pytest.approx(0.05 * math.sqrt(2.0) / 2.0, rel=0.1)


def test_a_description_is_of_unit_length_and_others_than_the_covered_are_refused() -> None:
    vector = torch.zeros(3, 4)
    vector[1, 2] = 1.0
    torch.testing.assert_close(private().description("initial-prototypes", vector), vector)
    loud = NoisyRelease(ClientConfig(privacy="dp", dp_noise=3.0), seeded(0)).description("initial-prototypes", vector)
    assert float(loud.norm()) == pytest.approx(1.0)
    with pytest.raises(ConfigError, match="^privacy: 'dp' does not cover the description 'subspace'$"):
        private().description("subspace", vector)


def test_a_choice_is_refused_by_the_client_itself() -> None:
    assert private().candidates(()) == ()
    with pytest.raises(ConfigError, match="^privacy: 'dp' does not cover the choice of a model$"):
        private().candidates(({},))


def test_a_second_model_is_refused_by_the_client_itself() -> None:
    state = get_state(build_model("mlp", (1, 4, 4), 4))
    with pytest.raises(ConfigError, match="^privacy: 'dp' does not cover a second model$"):
        private().training(TrainReply(state, 5, 0.5, 1, second=state), state)


def test_a_hello_tells_nothing_of_own_data() -> None:
    config = ClientConfig(privacy="dp", dataset="own", classes="a,b,c")
    told = private(config).hello(
        HelloReply("x", 9, -1, 0, "mlp", DataSummary(("a", "c"), (0.1,), (0.2,))), HelloRequest()
    )
    assert told == HelloReply("x", 9, -1, 0, "mlp", DataSummary(("a", "b", "c"), (0.5,), (0.25,)))
    with pytest.raises(DataError, match="'d'"):
        private(config).hello(HelloReply("x", 9, -1, 0, "mlp", DataSummary(("a", "d"), (0.1,), (0.2,))), HelloRequest())


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (DataError("secret.png cannot be read"), "the client failed; privacy=dp: what went wrong is in its own log"),
        (ValueError("secret"), "the client failed; privacy=dp: what went wrong is in its own log"),
        (ConfigError("device: got 'cuda'"), "device: got 'cuda'"),
    ],
)
def test_what_went_wrong_stays_in_the_clients_log(error: Exception, told: str, messages: list[str]) -> None:
    @withhold_errors
    def answer(message: Message, context: Context) -> Message:
        raise error

    InlineGrid(answer, {}, [])  # sets the identity that a message needs
    message = Message(RecordDict(), 1, MessageType.TRAIN)
    for mode, said in (("dp", told), ("plain", str(error))):
        with pytest.raises((FederationError, type(error))) as caught:
            answer(message, Context(1, 1, {}, RecordDict(), {"privacy": mode}))
        assert str(caught.value) == said
        assert caught.value.__cause__ is None
        reason = str(Error(2, repr(caught.value)))
        assert ("secret" in reason) == ("secret" in said)
    if "secret" in str(error):
        assert any("secret" in line for line in messages)
