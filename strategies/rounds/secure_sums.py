"""Secure aggregation on the server: the sum of each cluster's updates, and nothing of any one of them.

The members of a cluster share their secrets out among their neighbours, mask their vectors, and help to take the masks
off the sum. Who drops out before its vector came is not in the sum; who drops out later is.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from flwr.app import Message
from flwr.common.secure_aggregation.crypto.shamir import combine_shares
from pydantic import Field

from disue.config import Settings
from disue.errors import WireError
from disue.models import State
from disue.privacy.secagg import (
    KEY_SHARE_BYTES,
    MOST_NEIGHBOURS,
    SEED_SHARE_BYTES,
    Contribution,
    Words,
    from_words,
    needed,
    neighbours,
    own_mask,
    pair_mask,
    public_key,
    vector_sizes,
)
from disue.signature import SignatureParts
from disue.wire import KeptReply, MaskedReply, Parcels, PublicKeys, ShareRequest, Turn, UnmaskRequest, error_reason
from strategies.aggregation.average import mean_of
from strategies.teams import members_of
from strategies.updates import ClientSketch, GroupSum

Ask = Callable[[list[Message]], Iterable[Message]]


class SecureSumSettings(Settings):
    """Secure sums."""

    secure_threshold: float = Field(
        0.6,
        ge=1e-6,
        le=1.0,
        description="with privacy=secure: share of a cluster's sampled clients, 3 at least, who must stay until its "
        "sum is unmasked, or the cluster goes without the round",
    )


class LostSumError(Exception):
    """The sum of a cluster cannot be had; the message says why."""


@dataclass(frozen=True)
class Member:
    """A client that kept what it trained: the node where that is, and its keys of the round."""

    node_id: int
    keys: PublicKeys


@dataclass
class SecAggGroup:
    """The members of one cluster in one round, in the order of their names, and what they sent.

    Attributes
    ----------
    turn : Turn
    members : dict of client to Member
    needed : int
        How many must give their share of a secret, so that it is known.
    parcels : dict of client to dict of client to bytes
        What the one encrypted for the other, of those who shared their secrets out.
    masked : set of client
        Those whose vectors came.
    total : words, optional
        The sum of these vectors, with all masks: modulo 2^64 it does not depend on the order in which they came.
    shares : dict of client to dict of client to bytes
        Of the secret of the one, what the other gave.
    """

    turn: Turn
    members: dict[str, Member]
    needed: int
    parcels: dict[str, Mapping[str, bytes]] = field(default_factory=dict)
    masked: set[str] = field(default_factory=set)
    total: Words | None = None
    shares: dict[str, dict[str, bytes]] = field(default_factory=dict)

    @property
    def came(self) -> list[str]:
        """The members whose vectors came, in their order."""
        return [name for name in self.members if name in self.masked]

    def near(self, name: str) -> list[str]:
        """Return a member's neighbours."""
        return neighbours(list(self.members), name)

    def present(self, name: str) -> list[str]:
        """Return a member and its neighbours, of those whose vectors came."""
        return [other for other in (name, *self.near(name)) if other in self.masked]

    def missing(self, name: str) -> list[str]:
        """Return a member's neighbours with whom it has a mask in common, and whose vectors did not come."""
        return [other for other in self.near(name) if other in self.parcels and other not in self.masked]

    def require(self, names: Collection[str], did: str) -> None:
        """Raise `LostSumError` if too few members did something, in the cluster or around one of them."""
        if len(names) < self.needed:
            raise LostSumError(f"{len(names)} of its {len(self.members)} members {did} and {self.needed} are needed")
        present = set(names)
        for name in names:
            left = 1 + sum(other in present for other in self.near(name))
            if left < self.needed:
                raise LostSumError(f"{left} around {name} {did} and {self.needed} are needed")

    def add(self, name: str, words: Words) -> None:
        """Add the vector of a member."""
        self.masked.add(name)
        self.total = words.copy() if self.total is None else np.add(self.total, words, out=self.total)

    def take_in(self, holder: str, shares: Mapping[str, bytes]) -> None:
        """Enter the shares that a member gave; raise `WireError` if one cannot be what it was given."""
        for owner, share in shares.items():
            length = SEED_SHARE_BYTES if owner in self.masked else KEY_SHARE_BYTES
            number = [owner, *self.near(owner)].index(holder) + 1
            if len(share) != length or int.from_bytes(share[:4], "little") != number:
                raise WireError(f"its share of the secret of {owner} is not the one that it was given")
        for owner, share in shares.items():
            self.shares.setdefault(owner, {})[holder] = share

    def sum(self, length: int) -> Words:
        """Return the sum of the vectors that came, without masks; raise `LostSumError` if they do not come off."""
        total = np.zeros(length, dtype=np.uint64) if self.total is None else self.total
        for name in self.came:
            total = total - own_mask(self._secret(name), length)
        names = list(self.members)
        for name in self.parcels.keys() - self.masked:
            key = self._key(name)
            for other in self.present(name):
                pair = pair_mask(key, self.members[other].keys.mask, length)
                total = total - pair if names.index(other) < names.index(name) else total + pair
        return total

    def _key(self, name: str) -> bytes:
        key = self._secret(name)
        try:
            if public_key(key) == self.members[name].keys.mask:
                return key
        except ValueError:
            pass
        raise LostSumError(f"the shares of the key of {name} give another key")

    def _secret(self, name: str) -> bytes:
        shares = list(self.shares.get(name, {}).values())
        if len(shares) < self.needed:
            raise LostSumError(f"{len(shares)} shares of the secret of {name} came and {self.needed} are needed")
        try:
            return combine_shares(shares[: self.needed])
        except ValueError:
            raise LostSumError(f"the shares of the secret of {name} do not fit each other") from None


class SecureSums:
    """Gets the sum of each cluster's updates: `begin` a round, `read` who trained, `gather` vectors, `unmask` the sums.

    Parameters
    ----------
    share_needed : float
        Share of a cluster's members, of a large one's neighbours, who must stay until the masks are off; three at
        least.
    dimension : int (default: 0)
        Of the sketch that goes with an update, where clients are compared by updates.

    Attributes
    ----------
    present : set of str
        Clients whose vectors came, and can be in a sum of this round.
    rejected : set of str
        Clients that sent what they must not.
    lost : dict of cluster to str
        Why its sum cannot be had.
    tell : callable
        Is told what goes wrong, in a line.
    """

    def __init__(self, share_needed: float, dimension: int = 0) -> None:
        self.share_needed = share_needed
        self.dimension = dimension
        self.tell: Callable[[str], None] = lambda what: None
        self.begin()

    def begin(self) -> None:
        """Begin a round."""
        self.rejected: set[str] = set()
        self.lost: dict[int, str] = {}
        self._members: dict[str, Member] = {}
        self._groups: list[SecAggGroup] = []

    @property
    def present(self) -> set[str]:
        """See above."""
        return {name for group in self._groups for name in group.masked}

    def read(self, message: Message, name: str) -> ClientSketch:
        """Return what a client tells when it has trained, and remember its keys; raise `WireError` for a bad reply."""
        reply = KeptReply.from_message(message, self.dimension)
        self._members[name] = Member(message.metadata.src_node_id, reply.keys)
        return ClientSketch(name, reply.sketch, reply.digest)

    def gather(
        self,
        server_round: int,
        trained: Sequence[ClientSketch],
        clusters: Mapping[str, int],
        length: int,
        ask: Ask,
    ) -> None:
        """Get the vectors of the clients, under masks.

        Parameters
        ----------
        server_round : int
        trained : sequence of ClientSketch
            As `read` returned them, sorted by client name.
        clusters : dict of client to cluster
        length : int
            Of a vector.
        ask : callable
            Sends requests and returns the replies.
        """

        def share(group: SecAggGroup, name: str) -> Message:
            keys = {name: member.keys for name, member in group.members.items()}
            return ShareRequest(group.turn, keys, group.needed).to_message(group.members[name].node_id)

        def take_parcels(group: SecAggGroup, name: str, reply: Message) -> None:
            group.parcels[name] = Parcels.from_message(reply, group.turn, group.near(name)).content

        def mask(group: SecAggGroup, name: str) -> Message:
            own = {other: group.parcels[other][name] for other in group.near(name) if other in group.parcels}
            return Parcels(group.turn, own).to_request(group.members[name].node_id)

        def take_vector(group: SecAggGroup, name: str, reply: Message) -> None:
            group.add(name, MaskedReply.from_message(reply, group.turn, length).words)

        self._groups = [
            self._group_of(Turn(server_round, cluster), own) for cluster, own in members_of(trained, clusters).items()
        ]
        self._each(lambda group: group.require(group.members, "take part"))
        self._step(lambda group: group.members, share, take_parcels, ask)
        self._each(lambda group: group.require(group.parcels, "shared their secrets out"))
        self._step(lambda group: group.parcels, mask, take_vector, ask)
        self._each(lambda group: group.require(group.came, "sent their vectors"))

    def unmask(self, like: State, parts: SignatureParts, starts: Mapping[str, State], ask: Ask) -> list[GroupSum]:
        """Return the sum of each cluster of which it can be had.

        Parameters
        ----------
        like : State
            A model of the clients' architecture.
        parts : SignatureParts
            What clients add of their signatures.
        starts : mapping of client to State
            What they started from.
        ask : callable
            Sends requests and returns the replies.
        """

        def unmask(group: SecAggGroup, name: str) -> Message:
            request = UnmaskRequest(group.turn, group.present(name), group.missing(name))
            return request.to_message(group.members[name].node_id)

        def take_shares(group: SecAggGroup, name: str, reply: Message) -> None:
            owners = [*group.present(name), *group.missing(name)]
            group.take_in(name, Parcels.from_message(reply, group.turn, owners).content)

        self._step(lambda group: group.came, unmask, take_shares, ask)
        sums: list[GroupSum] = []
        self._each(lambda group: sums.append(_group_sum(group, like, parts, starts)))
        self.rejected -= self.present
        return sums

    def _group_of(self, turn: Turn, trained: Sequence[ClientSketch]) -> SecAggGroup:
        members = {update.name: self._members[update.name] for update in trained}
        return SecAggGroup(turn, members, needed(self.share_needed, min(len(members), MOST_NEIGHBOURS + 1)))

    def _step(
        self,
        names: Callable[[SecAggGroup], Iterable[str]],
        request: Callable[[SecAggGroup, str], Message],
        take: Callable[[SecAggGroup, str, Message], None],
        ask: Ask,
    ) -> None:
        """Ask some members of all groups at once, and take in what they reply."""
        asked = [(group, name) for group in self._groups for name in names(group)]
        addressees = {group.members[name].node_id: (group, name) for group, name in asked}
        for reply in ask([request(group, name) for group, name in asked]) if asked else ():
            group, name = addressees[reply.metadata.src_node_id]
            if reply.has_error():
                self.tell(f"{name} failed: {error_reason(reply)}")
                continue
            try:
                take(group, name, reply)
            except WireError as error:
                self.rejected.add(name)
                self.tell(f"{name}: secure message rejected: {error}")

    def _each(self, step: Callable[[SecAggGroup], None]) -> None:
        """Take a step with each group, and go on with those with which it can be taken."""
        going_on = []
        for group in self._groups:
            try:
                step(group)
                going_on.append(group)
            except LostSumError as error:
                self.lost[group.turn.cluster] = str(error)
                self.tell(f"cluster {group.turn.cluster} goes without this round: {error}")
        self._groups = going_on


def _group_sum(group: SecAggGroup, like: State, parts: SignatureParts, starts: Mapping[str, State]) -> GroupSum:
    """Return what a group contributed together; raise `LostSumError` if it cannot be had."""
    total = from_words(group.sum(sum(vector_sizes(like, parts))))
    try:
        own = Contribution.from_vector(total, like, parts)
    except ValueError as error:
        raise LostSumError(f"the sum cannot be one of clients' updates: {error}") from None
    return GroupSum(
        name=group.came[0],
        clients=tuple(group.came),
        start=mean_of([(starts[name], 1.0) for name in group.came]),
        state=own.state,
        num_examples=own.num_examples,
        signature=own.signature,
        train_loss=own.train_loss,
        steps=own.steps,
    )
