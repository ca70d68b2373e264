"""How clients differ. A scenario is a matrix of class shares and, for some, a change of the data.

``shares[i, c]`` is the part of class ``c`` that client ``i`` holds; every column sums to one, so a
split by shares is complete and disjoint, and a client's test data follow its training data.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from disue.data.datasets import Examples
from disue.registry import Registry

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Transform = Callable[[Examples, int], Examples]

NO_GROUP = -1
ONE_GROUP = ("iid", "quantity")
"""Scenarios in which all clients are of one planted group, whatever ``num-groups`` is."""
USE_ALPHA = ("dirichlet", "label-groups", "quantity")
"""Scenarios in which ``alpha`` says how much clients differ."""


def _unchanged(examples: Examples, _group: int) -> Examples:
    return examples


@dataclass(frozen=True)
class Scenario:
    """What a scenario decides.

    Attributes
    ----------
    shares : (clients, classes) float
        Part of each class that each client holds; columns sum to one.
    groups : (clients,) int
        Planted group of each client, or `NO_GROUP` where the scenario plants none.
    transform : callable
        ``transform(examples, group)`` gives the examples as the group sees them.
    """

    shares: FloatArray
    groups: IntArray
    transform: Transform = _unchanged

    @property
    def num_groups(self) -> int:
        """Number of planted groups that have a client (at least one)."""
        return max(1, int(self.groups.max()) + 1)

    @property
    def changes_data(self) -> bool:
        """Whether the groups see the same examples differently."""
        return self.transform is not _unchanged


@dataclass(frozen=True)
class ScenarioInput:
    """What a scenario may look at: sizes, its two settings, and its random generator."""

    num_clients: int
    class_counts: IntArray
    num_groups: int
    alpha: float
    rng: np.random.Generator

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_counts)

    def round_robin_groups(self) -> IntArray:
        """Return group ``i % num_groups`` for client ``i``."""
        return np.arange(self.num_clients) % self.num_groups

    def equal_shares(self) -> FloatArray:
        """Return equal parts of every class."""
        return np.full((self.num_clients, self.num_classes), 1.0 / self.num_clients)


SCENARIOS: Registry[Callable[[ScenarioInput], Scenario]] = Registry("scenario")


@SCENARIOS.register("iid")
def _iid(given: ScenarioInput) -> Scenario:
    return Scenario(given.equal_shares(), np.zeros(given.num_clients, dtype=np.int64))


@SCENARIOS.register("dirichlet")
def _dirichlet(given: ScenarioInput) -> Scenario:
    shares = balanced_dirichlet_shares(given.class_counts, given.num_clients, given.alpha, given.rng)
    return Scenario(shares, np.full(given.num_clients, NO_GROUP))


@SCENARIOS.register("label-groups")
def _label_groups(given: ScenarioInput) -> Scenario:
    groups = given.round_robin_groups()
    sizes = np.bincount(groups)
    group_shares = balanced_dirichlet_shares(given.class_counts, len(sizes), given.alpha, given.rng, sizes)
    return Scenario(group_shares[groups] / sizes[groups, None], groups)


@SCENARIOS.register("rotation")
def _rotation(given: ScenarioInput) -> Scenario:
    def turn(examples: Examples, group: int) -> Examples:
        return Examples(rotate(examples.x, 360.0 * group / given.num_groups), examples.y)

    return Scenario(given.equal_shares(), given.round_robin_groups(), turn)


@SCENARIOS.register("label-swap")
def _label_swap(given: ScenarioInput) -> Scenario:
    orders = [torch.arange(given.num_classes)]
    orders += [torch.from_numpy(given.rng.permutation(given.num_classes)) for _ in range(1, given.num_groups)]

    def relabel(examples: Examples, group: int) -> Examples:
        return Examples(examples.x, orders[group][examples.y])

    return Scenario(given.equal_shares(), given.round_robin_groups(), relabel)


@SCENARIOS.register("quantity")
def _quantity(given: ScenarioInput) -> Scenario:
    sizes = given.rng.dirichlet(np.full(given.num_clients, given.alpha))
    return Scenario(np.repeat(sizes[:, None], given.num_classes, axis=1), np.zeros(given.num_clients, dtype=np.int64))


@SCENARIOS.register("shards")
def _shards(given: ScenarioInput) -> Scenario:
    """Two shards of label-sorted data per client (McMahan et al. 2017, section 3)."""
    shards_per_client = 2
    num_shards = shards_per_client * given.num_clients
    owners = given.rng.permutation(np.repeat(np.arange(given.num_clients), shards_per_client))
    # Class c lies on [class_edges[c], class_edges[c + 1]] of the sorted data, shard s on [s, s + 1] / num_shards.
    class_edges = np.concatenate([[0.0], np.cumsum(given.class_counts)]) / given.class_counts.sum()
    shard_edges = np.arange(num_shards + 1) / num_shards
    overlap = np.minimum(shard_edges[1:, None], class_edges[None, 1:]) - np.maximum(
        shard_edges[:-1, None], class_edges[None, :-1]
    )
    shares = np.zeros((given.num_clients, given.num_classes))
    np.add.at(shares, owners, np.clip(overlap, 0.0, None))
    totals = shares.sum(axis=0)
    shares = np.divide(shares, totals, out=given.equal_shares(), where=totals > 0.0)
    return Scenario(shares, np.full(given.num_clients, NO_GROUP))


def balanced_dirichlet_shares(
    class_counts: IntArray,
    num_parts: int,
    alpha: float,
    rng: np.random.Generator,
    part_sizes: IntArray | None = None,
) -> FloatArray:
    """Draw each class's shares from a Dirichlet, leaving out the parts that are full already.

    The usual label-skew benchmark (Yurochkin et al. 2019; Li et al. 2022, "NIID-Bench"): parts end up
    with very different labels and similar sizes.

    Parameters
    ----------
    class_counts : (classes,) int
        Examples per class.
    num_parts : int
        Number of clients, or of groups.
    alpha : float
        Dirichlet concentration.
    rng : numpy Generator
    part_sizes : (parts,) int, optional
        How much each part should hold, relative to the others. Default: all the same.

    Returns
    -------
    (parts, classes) float
        Columns sum to one.
    """
    sizes = np.ones(num_parts) if part_sizes is None else part_sizes.astype(float)
    wanted = class_counts.sum() * sizes / sizes.sum()
    held = np.zeros(num_parts)
    shares = np.zeros((num_parts, len(class_counts)))
    for label in rng.permutation(len(class_counts)):
        draw = rng.dirichlet(np.full(num_parts, alpha)) * (held < wanted)
        if draw.sum() <= 0.0:  # every part with a share is full: the emptiest takes the class
            draw = (np.arange(num_parts) == np.argmin(held / wanted)).astype(float)
        shares[:, label] = draw / draw.sum()
        held += shares[:, label] * class_counts[label]
    return shares


def split_by_shares(labels: IntArray, shares: FloatArray, rng: np.random.Generator, minimum: int) -> list[IntArray]:
    """Deal examples to clients by class shares.

    Parameters
    ----------
    labels : (examples,) int
    shares : (clients, classes) float
        Columns sum to one.
    rng : numpy Generator
    minimum : int
        Fewest examples per client; who has fewer is given some by who has most, of the class that it
        has the largest share of where possible.

    Returns
    -------
    list of (n_i,) int
        Indices into ``labels`` per client, sorted; disjoint, and complete together.
    """
    num_clients, num_classes = shares.shape
    if len(labels) < minimum * num_clients:
        raise ValueError(f"{len(labels)} examples cannot give {num_clients} clients {minimum} each")
    parts: list[list[int]] = [[] for _ in range(num_clients)]
    for label in range(num_classes):
        members = rng.permutation(np.flatnonzero(labels == label))
        cuts = np.rint(np.cumsum(shares[:, label])[:-1] * len(members)).astype(int)
        for part, chunk in zip(parts, np.split(members, cuts), strict=True):
            part.extend(chunk.tolist())
    for part, wish in zip(parts, shares.argmax(axis=1), strict=True):
        while len(part) < minimum:
            giver = max(parts, key=len)
            gift = next((index for index in giver if labels[index] == wish), giver[-1])
            giver.remove(gift)
            part.append(gift)
    return [np.array(sorted(part), dtype=np.int64) for part in parts]


def rotate(x: Tensor, degrees: float) -> Tensor:
    """Rotate images anticlockwise; exact for multiples of 90, bilinear with zeros outside otherwise.

    ``x``: (examples, channels, height, width), of any dtype, which is kept.
    """
    quarter_turns, rest = divmod(degrees, 90.0)
    if rest == 0.0 and (x.shape[-1] == x.shape[-2] or quarter_turns % 2 == 0):
        return torch.rot90(x, int(quarter_turns), dims=(-2, -1))
    angle = math.radians(degrees)
    cosine, sine, aspect = math.cos(angle), math.sin(angle), x.shape[-2] / x.shape[-1]
    matrix = torch.tensor([[cosine, -sine * aspect, 0.0], [sine / aspect, cosine, 0.0]])
    grid = F.affine_grid(matrix.expand(len(x), 2, 3), list(x.shape), align_corners=False)
    turned = F.grid_sample(x.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return turned if x.is_floating_point() else turned.round().to(x.dtype)
