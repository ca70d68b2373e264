"""Secure sums on the server, with the client's own steps and clients that drop out, lie or come too late."""

import pickle
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Context, Message
from flwr.clientapp import ClientApp
from flwr.common.secure_aggregation.crypto.shamir import combine_shares
from tests_support import ChangingGrid, answering_app, shifted

from client_app.secagg import keep, mask, share_out, unmask
from disue.errors import FederationError
from disue.models import State, build_model, get_state
from disue.naming import client_name
from disue.privacy.secagg import KEY_SHARE_BYTES, Contribution, Words, pair_mask, to_words
from disue.wire import KeptReply, Parcels, ShareRequest, TrainRequest, Turn, UnmaskRequest
from strategies.flower import FederatedStrategy
from strategies.methods.base import MethodState, Step
from strategies.methods.clustered import ClusteredMethod
from strategies.rounds.collecting import SecureCollector
from strategies.rounds.registry import ClientRegistry
from strategies.rounds.round import Round
from strategies.rounds.secure_sums import SecAggGroup, SecureSums
from strategies.rounds.stats import Participation, RoundStats
from strategies.updates import ClientSketch, GroupSum

STAGES = ("train", "share", "mask", "unmask")
START: State = get_state(build_model("mlp", (1, 4, 4), 3))
Reply = Callable[[str, str, Message], Message | None]
"""Stage, client and reply -> another reply; None: the client's own."""


def number(name: str) -> int:
    return int(name.split("-")[1])


def contribution(name: str, start: State) -> Contribution:
    return Contribution(number(name) + 1, 0.5, 2, shifted(start, 0.1 * number(name)))


def keeping_app(change: Reply = lambda stage, name, reply: None) -> ClientApp:
    """Return an app without data whose clients go through the real steps; ``change`` alters what they say."""
    answering, app = answering_app(), ClientApp()

    def step(stage: str, name: str, reply: Message) -> Message:
        return change(stage, name, reply) or reply

    @app.query()
    def hello(message: Message, context: Context) -> Message:
        return answering(message, context)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return answering(message, context)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        request, name = TrainRequest.from_message(message), client_name(context.node_config)
        assert request.start is not None
        keys = keep(contribution(name, request.start).to_vector(), request.server_round, context)
        return step("train", name, KeptReply(keys).to_message(message))

    @app.query("share")
    def share(message: Message, context: Context) -> Message:
        name = client_name(context.node_config)
        return step("share", name, share_out(ShareRequest.from_message(message), name, context).to_message(message))

    @app.query("mask")
    def hide(message: Message, context: Context) -> Message:
        name = client_name(context.node_config)
        return step("mask", name, mask(Parcels.from_request(message), name, context).to_message(message))

    @app.query("unmask")
    def show(message: Message, context: Context) -> Message:
        name = client_name(context.node_config)
        return step("unmask", name, unmask(UnmaskRequest.from_message(message), context).to_message(message))

    return app


class Given(ClusteredMethod[MethodState]):
    """Clusters that are given; it keeps the sums that it is handed."""

    def __init__(self, clusters: dict[str, int]) -> None:
        super().__init__("mlp")
        self.given = clusters
        self.handed: list[Sequence[GroupSum]] = []

    def assign(self, state: MethodState, updates: Sequence[ClientSketch], round: Round) -> Step[MethodState]:
        return Step(replace(state, clusters=self.given))

    def step(self, state: MethodState, updates: Sequence[Any], round: Round) -> Step[MethodState]:
        self.handed.append(updates)
        return super().step(state, updates, round)


class Run(NamedTuple):
    """Secure rounds over a grid."""

    strategy: FederatedStrategy
    method: Given
    sums: SecureSums

    @property
    def stats(self) -> RoundStats:
        return self.strategy.stats

    @property
    def handed(self) -> list[Sequence[GroupSum]]:
        return self.method.handed

    @property
    def experts(self) -> dict[int, State]:
        return self.strategy.reached().experts_of("mlp")

    @classmethod
    def over(
        cls, registry: ClientRegistry, participation: Participation, clusters: dict[str, int], threshold: float
    ) -> "Run":
        method, sums = Given(clusters), SecureSums(threshold)
        return cls(FederatedStrategy(registry, participation, method, SecureCollector(sums)), method, sums)


class Recording(ChangingGrid):
    """Keeps what goes both ways."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.received: list[tuple[str, Message]] = []
        self.sent: list[Message] = []

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        messages = list(messages)
        self.sent += messages
        return super().push_messages(messages)

    def answer(self, message: Message) -> Message:
        reply = super().answer(message)
        self.received.append((message.metadata.message_type, reply))
        return reply


def rounds(
    change: Reply = lambda stage, name, reply: None,
    sizes: tuple[int, ...] = (5,),
    count: int = 1,
    min_success_fraction: float = 0.1,
    threshold: float = 0.6,
    between: Callable[[Recording, int], None] = lambda grid, server_round: None,
) -> tuple[Run, Recording]:
    """Run some rounds with clusters of these sizes, of clients in the order of their numbers."""
    clusters = [cluster for cluster, size in enumerate(sizes) for _ in range(size)]
    names = [f"client-{i}" for i in range(len(clusters))]
    grid = Recording(keeping_app(change), {}, [{"name": name} for name in names])
    registry = ClientRegistry(seed=0, timeout=60.0)
    registry.gather(grid, len(names), 1.0)
    participation = Participation(num_rounds=count, min_success_fraction=min_success_fraction)
    run = Run.over(registry, participation, dict(zip(names, clusters, strict=True)), threshold)
    arrays = ArrayRecord(START)
    for server_round in range(1, count + 1):
        result = run.strategy.start(grid, arrays, num_rounds=server_round, timeout=60.0, first_round=server_round)
        arrays = result.arrays
        between(grid, server_round)
    return run, grid


def mean_shift(names: Iterable[str]) -> float:
    own = list(names)
    return float(np.average([0.1 * number(name) for name in own], weights=[number(name) + 1 for name in own]))


def shift_of(state: State, start: State = START) -> float:
    shifts = torch.cat([(state[name] - start[name]).flatten() for name in start])
    assert float(shifts.max() - shifts.min()) < 1e-5
    return float(shifts.mean())


def named(*numbers: int) -> list[str]:
    return [f"client-{i}" for i in numbers]


@pytest.mark.parametrize("sizes", [(3,), (5, 4, 3)], ids=str)
def test_the_sum_of_a_cluster_is_the_weighted_mean_of_its_clients(sizes: tuple[int, ...]) -> None:
    run, _ = rounds(sizes=sizes, count=2 if len(sizes) > 1 else 1)
    first = 0
    for update, size in zip(run.handed[0], sizes, strict=True):
        own = named(*range(first, first + size))
        first += size
        assert (update.name, update.clients, update.steps) == (own[0], tuple(own), 2 * size)
        assert update.num_examples == sum(number(name) + 1 for name in own)
        assert shift_of(update.state) == pytest.approx(mean_shift(own), abs=1e-6)
    assert (run.stats.clients_ok, run.stats.clients_failed) == (first, 0)
    assert run.stats.train_loss == pytest.approx(0.5)
    if len(sizes) > 1:  # in the second round each starts from its own cluster's model
        assert shift_of(run.experts[1]) == pytest.approx(2 * mean_shift(named(5, 6, 7, 8)), abs=1e-5)


def test_vectors_are_summed_as_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    add = SecAggGroup.add

    def watch(circle: SecAggGroup, name: str, words: Words) -> None:
        events.append("add")
        add(circle, name, words)

    def change(stage: str, name: str, reply: Message) -> None:
        events.append(stage)

    monkeypatch.setattr(SecAggGroup, "add", watch)
    rounds(change)
    assert [event for event in events if event in ("mask", "add")] == ["mask", "add"] * 5


def test_of_a_clusters_vectors_only_their_sum_is_kept() -> None:
    rng = np.random.default_rng(0)
    vectors = {name: rng.integers(2**64, size=1000, dtype=np.uint64) for name in named(*range(50))}
    kept = []
    for names in (list(vectors), list(reversed(vectors))):
        circle = SecAggGroup(Turn(1, 0), {}, 3)
        for name in names:
            circle.add(name, vectors[name])
        kept.append(circle)
    assert kept[0].total is not None
    assert np.array_equal(kept[0].total, sum(vectors.values(), np.zeros(1000, dtype=np.uint64)))
    assert np.array_equal(kept[0].total, kept[1].total)
    assert kept[0].masked == vectors.keys()
    assert len(pickle.dumps(kept[0])) < 3 * 8 * 1000


def drops(at: str, who: Sequence[str]) -> Reply:
    def change(stage: str, name: str, reply: Message) -> None:
        if stage == at and name in who:
            raise RuntimeError("gone")

    return change


@pytest.mark.parametrize(("stage", "size"), [*((stage, 5) for stage in STAGES), ("mask", 30)])
def test_drop_outs_within_the_threshold_are_survived(stage: str, size: int) -> None:
    gone = named(0, 3) if size == 5 else named(0, 1, 2, 11, 20, 21)
    run, _ = rounds(drops(stage, gone), sizes=(size,))
    everybody = named(*range(size))
    left = everybody if stage == "unmask" else [name for name in everybody if name not in gone]
    (update,) = run.handed[0]
    assert update.clients == tuple(left)
    assert shift_of(update.state) == pytest.approx(mean_shift(left), abs=1e-6)
    assert (run.stats.clients_ok, run.stats.clients_failed) == (len(left), size - len(left))
    assert run.stats.metrics["clusters_lost"] == 0


@pytest.mark.parametrize(
    ("stage", "reason"),
    [
        ("train", "2 of its 2 members take part and 3 are needed"),
        ("share", "2 of its 5 members shared their secrets out and 3 are needed"),
        ("mask", "2 of its 5 members sent their vectors and 3 are needed"),
        ("unmask", "2 shares of the secret of client-0 came and 3 are needed"),
    ],
)
def test_beyond_the_threshold_the_cluster_goes_without_the_round(stage: str, reason: str, messages: list[str]) -> None:
    broken: list[str] = []

    def change(step: str, name: str, reply: Message) -> None:
        if step == stage and name in broken:
            raise RuntimeError("gone")

    run, _ = rounds(change, (5, 4), count=2, between=lambda grid, number: broken.extend(named(0, 1, 2)))
    assert any(f"cluster 0 goes without this round: {reason}" in message for message in messages)
    (update,) = run.handed[1]
    assert update.clients == ("client-5", "client-6", "client-7", "client-8")
    assert shift_of(run.experts[0]) == pytest.approx(mean_shift(named(0, 1, 2, 3, 4)), abs=1e-6)
    assert shift_of(run.experts[1]) == pytest.approx(2 * mean_shift(named(5, 6, 7, 8)), abs=1e-5)
    assert run.stats.metrics["clusters_lost"] == 1
    assert (run.stats.clients_ok, run.stats.clients_failed) == (4, 5)


def test_clients_in_no_sum_count_among_those_of_whom_enough_must_answer() -> None:
    with pytest.raises(FederationError, match="4 of 9 clients sent a usable update in round 1 and 5 are needed"):
        rounds(drops("mask", named(0, 1, 2)), (5, 4), min_success_fraction=0.5)


def test_a_round_of_too_small_sums_is_repeated() -> None:
    left: list[str] = named(0, 1, 2)

    def change(stage: str, name: str, reply: Message) -> None:
        if stage == "mask" and name in left:
            left.remove(name)
            raise RuntimeError("gone")

    run, _ = rounds(change, (5, 4), min_success_fraction=0.5)
    stats = run.stats
    assert (stats.repeats, stats.clients_ok, stats.clients_failed) == (1, 9, 5)
    assert [len(update.clients) for update in run.handed[-1]] == [5, 4]
    assert shift_of(run.experts[0]) == pytest.approx(mean_shift(named(0, 1, 2, 3, 4)), abs=1e-6)


def test_sums_that_were_seen_are_not_taken_again() -> None:
    """The difference of two sums of one round would be of the clients that are in one of them."""
    trained: list[str] = []

    def change(stage: str, name: str, reply: Message) -> None:
        trained.extend([name] * (stage == "train"))
        if stage == "unmask" and name in named(0, 1, 2):
            raise RuntimeError("gone")

    with pytest.raises(FederationError, match="4 of 9 clients sent .* no sum of this round may be taken again"):
        rounds(change, (5, 4), min_success_fraction=0.5)
    assert len(trained) == 9


def test_a_cluster_of_two_has_no_sum(messages: list[str]) -> None:
    run, grid = rounds(sizes=(3, 2))
    assert [update.name for update in run.handed[0]] == ["client-0"]
    assert any("cluster 1 goes without this round: 2 of its 2 members take part" in message for message in messages)
    masked = [reply for kind, reply in grid.received if kind == "query.mask"]
    assert len(masked) == 3


class Late(Recording):
    """Answers the messages of silent nodes when nobody waits for the replies any more."""

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        replies = list(super().send_and_receive(messages, timeout=timeout))
        for message in list(self.waiting.values()):
            self.answer(self.waiting.pop(message.metadata.message_id))
        return replies


def silent_after_sharing(kind: type[Recording]) -> tuple[Run, Recording, ArrayRecord]:
    """Run a round of four clients in which the second falls silent before it is asked for its vector."""

    def change(stage: str, name: str, reply: Message) -> None:
        if stage == "share" and name == "client-1":
            grid.silent.add(1001)

    everybody = named(0, 1, 2, 3)
    grid = kind(keeping_app(change), {}, [{"name": name} for name in everybody])
    registry = ClientRegistry(seed=0, timeout=60.0)
    registry.gather(grid, 4, 1.0)
    run = Run.over(registry, Participation(num_rounds=2), dict.fromkeys(everybody, 0), 0.6)
    arrays = run.strategy.start(grid, ArrayRecord(START), num_rounds=1, timeout=60.0).arrays
    (update,) = run.handed[0]
    assert len(update.clients) == 3
    assert shift_of(update.state) == pytest.approx(mean_shift(named(0, 2, 3)), abs=1e-6)
    return run, grid, arrays


def test_a_client_that_falls_silent_comes_back_under_another_node_id() -> None:
    run, grid, arrays = silent_after_sharing(Recording)
    grid.forget(1001)
    grid.add_node({"name": "client-1"})
    run.strategy.start(grid, arrays, num_rounds=2, timeout=60.0, first_round=2)
    assert len(run.handed[1][0].clients) == 4


def test_a_vector_that_comes_too_late_stays_hidden() -> None:
    """The server takes the client's masks with the others off, and the client's own is left."""
    _, grid, _ = silent_after_sharing(Late)
    (late,) = [reply for kind, reply in grid.received if kind == "query.mask" and reply.metadata.src_node_id == 1001]
    words = late.content["arrays"].to_torch_state_dict()["masked"].numpy().view(np.uint64)
    given = [reply.content["config"] for kind, reply in grid.received if kind == "query.unmask"]
    shares = [dict(zip(one["members"], one["bytes"], strict=True))["client-1"] for one in given]
    assert {len(share) for share in shares} == {KEY_SHARE_BYTES}  # and none of its seed
    key = combine_shares(shares)
    trained = [reply for kind, reply in grid.received if kind == "train"]
    keys = {f"client-{r.metadata.src_node_id - 1000}": KeptReply.from_message(r, 0).keys for r in trained}
    for i, name in enumerate(named(0, 2, 3)):
        pair = pair_mask(key, keys[name].mask, len(words))
        words = words + pair if i == 0 else words - pair
    true = to_words(contribution("client-1", START).to_vector())
    assert not (words == true).any()
    assert abs(np.corrcoef(words.view(np.int64).astype(float), true.view(np.int64).astype(float))[0, 1]) < 0.05


def altered(stage: str, who: str, change: Callable[[Message], None]) -> Reply:
    def alter(step: str, name: str, reply: Message) -> Message | None:
        if (step, name) != (stage, who):
            return None
        change(reply)
        return reply

    return alter


def set_config(key: str, value: Any) -> Callable[[Message], None]:
    return lambda reply: reply.content["config"].__setitem__(key, value)


def without_one(reply: Message) -> None:
    config = reply.content["config"]
    config["members"], config["bytes"] = config["members"][1:], config["bytes"][1:]


def set_bytes(change: Callable[[bytes], bytes]) -> Callable[[Message], None]:
    def apply(reply: Message) -> None:
        config = reply.content["config"]
        config["bytes"] = [change(own) for own in config["bytes"]]

    return apply


def set_masked(tensor: torch.Tensor) -> Callable[[Message], None]:
    return lambda reply: reply.content.__setitem__("arrays", ArrayRecord({"masked": tensor}))


def no_config(reply: Message) -> None:
    del reply.content["config"]


LENGTH = len(contribution("client-0", START).to_vector())
BAD: dict[str, tuple[str, Callable[[Message], None], str]] = {
    "no keys": ("train", no_config, "mask-key is missing; expected bytes"),
    "no key": ("train", set_config("mask-key", b"x"), "mask-key is no public key"),
    "two that are one": (
        "train",
        lambda reply: set_config("mask-key", reply.content["config"]["share-key"])(reply),
        "mask-key and share-key are the same",
    ),
    "another cluster": (
        "share",
        set_config("cluster", 3),
        "it is of round 1 and cluster 3; expected round 1 and cluster 0",
    ),
    "another round": ("mask", set_config("server-round", 0), "it is of round 0 and cluster 0; expected round 1"),
    "no round": ("mask", set_config("server-round", "1"), "round and cluster are '1' and 0; expected integers"),
    "no parcel for one": ("share", without_one, "there is one of"),
    "parcels for strangers": (
        "share",
        set_config("members", ["a", "b", "c", "d"]),
        "there is one of ['a', 'b', 'c', 'd']",
    ),
    "no list": ("share", set_config("bytes", b""), "members and bytes are not two lists of one length"),
    "no bytes": ("share", set_config("bytes", ["a"] * 4), "members and bytes are not texts and bytes"),
    "short vector": ("mask", set_masked(torch.zeros(3, dtype=torch.int64)), "the masked vector is torch.int64 (3,)"),
    "floats": ("mask", set_masked(torch.zeros(LENGTH)), f"the masked vector is torch.float32 ({LENGTH},)"),
    "no vector": ("mask", lambda reply: reply.content.__delitem__("arrays"), "the message has no 'arrays' record"),
    "a share missing": ("unmask", without_one, "there is one of"),
    "a short share": ("unmask", set_bytes(lambda own: own[:-1]), "its share of the secret of client-2 is not the one"),
    "a share of another": (
        "unmask",
        set_bytes(lambda own: (9).to_bytes(4, "little") + own[4:]),
        "its share of the secret of client-2 is not the one that it was given",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_message_is_rejected_with_the_clients_name_and_the_round_goes_on(case: str, messages: list[str]) -> None:
    stage, change, reason = BAD[case]
    run, _ = rounds(altered(stage, "client-2", change))
    kind = "update" if stage == "train" else "secure message"
    assert any(message.startswith(f"client-2: {kind} rejected: {reason}") for message in messages), messages
    left = named(0, 1, 2, 3, 4) if stage == "unmask" else named(0, 1, 3, 4)
    (update,) = run.handed[0]
    assert shift_of(update.state) == pytest.approx(mean_shift(left), abs=1e-6)
    stats = run.stats
    assert (stats.clients_ok, stats.clients_failed, stats.clients_rejected) == (len(left), 0, 5 - len(left))


@pytest.mark.parametrize(
    ("stage", "change", "reason"),
    [
        (
            "unmask",
            set_bytes(lambda own: own[:4] + bytes(len(own) - 4)),
            "secret of client-0 do not fit|sum cannot be one",
        ),
        ("mask", set_masked(torch.full((LENGTH,), 7)), "the sum cannot be one of clients' updates"),
    ],
)
def test_nonsense_of_the_right_form_costs_the_cluster_its_round(
    stage: str, change: Callable[[Message], None], reason: str
) -> None:
    with pytest.raises(FederationError, match=f"min-success-fraction: 0 of 5.*({reason})"):
        rounds(altered(stage, "client-0", change))


def test_wrong_parcels_stop_those_who_cannot_read_them() -> None:
    """The others see that the sum is of too few, and the server says whose parcel it was."""
    with pytest.raises(FederationError, match="client-0 failed: WireError: the parcel of client-2 cannot be read"):
        rounds(altered("share", "client-2", set_bytes(lambda own: b"x" + own[1:])))
