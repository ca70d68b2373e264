"""The data of a simulated federation: who holds what, the global test set, and the proxy set."""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch

from disue.config import ClientConfig
from disue.data.client_data import MIN_TEST_EXAMPLES, MIN_TRAIN_EXAMPLES, ClientData
from disue.data.datasets import Dataset, Examples, load_dataset
from disue.data.pool import POOL, load_pool
from disue.data.scenarios import NO_GROUP, SCENARIOS, IntArray, Scenario, ScenarioInput, split_by_shares
from disue.errors import ConfigError, DataError
from disue.seeding import derive_seed, numpy_rng
from disue.tasks import ImageClassification, ImageShape, Task

MIN_PROXY_SIZE = 10
KEPT_BYTES = 2**28
"""Clients' data are kept for the next round, in each process, as long as all of them, if like the last, fit into it."""


class RunData(Protocol):
    """What the server knows of a run's data."""

    @property
    def task(self) -> Task:
        """What the run is about."""

    @property
    def has_groups(self) -> bool:
        """Whether groups are planted."""

    def global_test(self) -> Examples | None:
        """Return the server's test set, or None where only the clients can test."""

    def proxy(self) -> torch.Tensor:
        """Return unlabelled inputs of the task's own data, (proxy-size, *shape)."""


@dataclass(frozen=True)
class Federation:
    """Indices into one dataset; tensors are made when asked for.

    Clients train, and the proxy set is drawn, from the dataset's training part; clients test, and the global test set
    is drawn, from its test part. The five index sets are disjoint, and so are the clients'. With ``reuse-examples``
    clients of different planted groups may hold the same examples.
    """

    dataset: Dataset
    scenario: Scenario
    train_parts: tuple[IntArray, ...]
    test_parts: tuple[IntArray, ...]
    proxy_indices: IntArray
    test_indices: IntArray
    seed: int
    _opened: dict[int, ClientData] = field(default_factory=dict, repr=False, compare=False)

    @property
    def num_clients(self) -> int:
        """Number of clients."""
        return len(self.train_parts)

    @property
    def task(self) -> ImageClassification:
        """What the run is about."""
        return self.dataset.task

    @property
    def has_groups(self) -> bool:
        """Whether the scenario plants groups."""
        return bool(self.scenario.groups.min() > NO_GROUP)

    def client(self, index: int) -> ClientData:
        """Return the data of client ``index``, as its planted group sees them; they must not be changed."""
        if index in self._opened:
            return self._opened[index]
        group = int(self.scenario.groups[index])
        opened = ClientData(
            train=self._as_seen_by(self.dataset.train[self.train_parts[index]], group),
            test=self._as_seen_by(self.dataset.test[self.test_parts[index]], group),
            group=group,
        )
        if (len(self._opened) + 1) * opened.nbytes <= KEPT_BYTES:
            self._opened[index] = opened
        return opened

    def global_test(self) -> Examples:
        """Return the balanced global test set; the planted groups' views have equal parts in it."""
        return self._as_seen_by_all(self.dataset.test[self.test_indices], "test")

    def proxy(self) -> torch.Tensor:
        """Return the unlabelled proxy inputs, (proxy-size, channels, height, width)."""
        return self._as_seen_by_all(self.dataset.train[self.proxy_indices], "proxy").x

    def _as_seen_by(self, examples: Examples, group: int) -> Examples:
        seen = self.scenario.transform(examples, max(group, 0))
        return Examples(self.dataset.normalise(seen.x).contiguous(), seen.y)

    def _as_seen_by_all(self, examples: Examples, purpose: str) -> Examples:
        rng = numpy_rng(self.seed, "views", purpose)
        views = rng.permutation(np.arange(len(examples)) % self.scenario.num_groups)
        x = torch.empty(len(examples), *self.dataset.shape)
        y = torch.empty_like(examples.y)
        for group in range(self.scenario.num_groups):
            members = torch.from_numpy(np.flatnonzero(views == group))
            seen = self._as_seen_by(examples[members], group)
            x[members], y[members] = seen.x, seen.y
        return Examples(x, y)


def build_federation(config: ClientConfig, num_clients: int) -> Federation:
    """Divide the configured dataset among ``num_clients`` clients and the server.

    Every process that calls it with the same config and number gets the same division.

    Raises
    ------
    ConfigError
        If there is no such dataset or scenario, or the scenario cannot reuse examples.
    DataError
        If the dataset is missing, or too small for this many clients and this proxy set.
    """
    return federation_of(
        config.dataset,
        config.data_dir,
        config.shape,
        config.test_fraction,
        config.scenario,
        config.num_groups,
        config.alpha,
        config.train_examples,
        config.test_examples,
        config.reuse_examples,
        config.global_test_size,
        config.proxy_size,
        config.seed,
        num_clients,
    )


@lru_cache(maxsize=4)
def federation_of(
    dataset_name: str,
    data_dir: str,
    shape: ImageShape,
    test_fraction: float,
    scenario_name: str,
    num_groups: int,
    alpha: float,
    train_examples: int,
    test_examples: int,
    reuse_examples: bool,
    global_test_size: int,
    proxy_size: int,
    seed: int,
    num_clients: int,
) -> Federation:
    """Return what `build_federation` returns; kept in memory for the next caller in this process."""
    make_scenario = SCENARIOS[scenario_name]
    if dataset_name.startswith(POOL):
        dataset = load_pool(dataset_name.removeprefix(POOL), shape, test_fraction)
    else:
        dataset = load_dataset(dataset_name, data_dir)
    train_labels, test_labels = dataset.train.y.numpy(), dataset.test.y.numpy()
    if 0 < train_examples < MIN_TRAIN_EXAMPLES:
        raise DataError(f"train-examples: got {train_examples}; use 0 (all) or at least {MIN_TRAIN_EXAMPLES}")
    if 0 < proxy_size < MIN_PROXY_SIZE:
        raise DataError(f"proxy-size: got {proxy_size}; use 0 (chosen) or at least {MIN_PROXY_SIZE}")

    rng = numpy_rng(seed, "federation")
    proxy, train_pool = _draw_proxy(train_labels, proxy_size, num_clients, dataset.name, rng)
    test, test_pool = _draw_balanced(test_labels, global_test_size, rng)
    train_pool = _cap(train_pool, train_examples * num_clients, rng)
    test_pool = _cap(test_pool, test_examples * num_clients, rng)
    if len(test_pool) < MIN_TEST_EXAMPLES * num_clients:
        raise DataError(
            f"{dataset.name} has {len(test_pool)} test examples for {num_clients} clients; use fewer clients"
        )

    scenario = make_scenario(
        ScenarioInput(
            num_clients=num_clients,
            class_counts=np.bincount(train_labels[train_pool], minlength=dataset.num_classes),
            num_groups=num_groups,
            alpha=alpha,
            rng=rng,
        )
    )
    if reuse_examples and not scenario.changes_data:
        raise ConfigError(
            f"reuse-examples: got true; scenario '{scenario_name}' shows all groups the same data; use false, or a "
            "scenario that does not, e.g. rotation"
        )
    train_parts, test_parts = (
        _divide(labels[pool], pool, wanted, scenario, reuse_examples, rng, minimum)
        for labels, pool, wanted, minimum in (
            (train_labels, train_pool, train_examples, MIN_TRAIN_EXAMPLES),
            (test_labels, test_pool, test_examples, MIN_TEST_EXAMPLES),
        )
    )
    return Federation(
        dataset=dataset,
        scenario=scenario,
        train_parts=train_parts,
        test_parts=test_parts,
        proxy_indices=proxy,
        test_indices=test,
        seed=derive_seed(seed, "federation"),
    )


def _draw_proxy(
    labels: IntArray, proxy_size: int, num_clients: int, name: str, rng: np.random.Generator
) -> tuple[IntArray, IntArray]:
    most = len(labels) - MIN_TRAIN_EXAMPLES * num_clients
    if most < 0:
        raise DataError(f"{name} has {len(labels)} training examples for {num_clients} clients; use fewer clients")
    if proxy_size > most:
        raise DataError(
            f"proxy-size: got {proxy_size}; {name} has {len(labels)} training examples, "
            f"and with {num_clients} clients at most {most} of them can be the proxy set"
        )
    size = proxy_size or min(2000, len(labels) // 6, most)
    order = rng.permutation(len(labels))
    return np.sort(order[:size]), np.sort(order[size:])


def _draw_balanced(labels: IntArray, size: int, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
    """Take the same number of every class, at most half of the rarest, and return (taken, left)."""
    classes, counts = np.unique(labels, return_counts=True)
    per_class = max(1, min(size // len(classes), int(counts.min()) // 2))
    taken = np.concatenate([rng.permutation(np.flatnonzero(labels == label))[:per_class] for label in classes])
    return np.sort(taken), np.setdiff1d(np.arange(len(labels)), taken)


def _cap(pool: IntArray, size: int, rng: np.random.Generator) -> IntArray:
    return pool if size == 0 or size >= len(pool) else np.sort(rng.choice(pool, size, replace=False))


def _divide(
    labels: IntArray,
    pool: IntArray,
    wanted: int,
    scenario: Scenario,
    reuse: bool,
    rng: np.random.Generator,
    minimum: int,
) -> tuple[IntArray, ...]:
    """Return the examples of each client, as indices like those in ``pool``.

    With ``reuse``, and fewer examples than ``wanted`` (0: all) for each client, every planted group divides the pool.
    """
    clients = np.arange(len(scenario.shares))
    if not reuse or 0 < wanted * len(clients) <= len(pool):
        return tuple(pool[part] for part in split_by_shares(labels, scenario.shares, rng, minimum))
    parts: dict[int, IntArray] = {}
    for group in range(scenario.num_groups):
        members = clients[scenario.groups == group]
        drawn = _cap(np.arange(len(pool)), wanted * len(members), rng)
        shares = scenario.shares[members] / scenario.shares[members].sum(axis=0)
        split = split_by_shares(labels[drawn], shares, rng, minimum)
        parts |= {member: pool[drawn[part]] for member, part in zip(members.tolist(), split, strict=True)}
    return tuple(parts[client] for client in clients.tolist())
