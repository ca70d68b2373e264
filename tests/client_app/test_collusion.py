"""Whom privacy=secure is against: what the server and colluding clients learn, and with one colluder fewer do not.

Everybody follows the protocol, up to the last test; the colluders tell the server all that they know. The limits are
those of docs/PRIVACY.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from flwr.app import Context, RecordDict
from flwr.common.secure_aggregation.crypto.shamir import combine_shares
from hypothesis import assume, given
from hypothesis import strategies as st

from client_app.secagg import SecAggClientState, keep, mask, share_out, unmask
from disue.privacy.secagg import (
    MOST_NEIGHBOURS,
    Words,
    from_words,
    needed,
    neighbours,
    own_mask,
    pair_mask,
    public_key,
    to_words,
)
from disue.wire import Parcels, ShareRequest, Turn, UnmaskRequest
from strategies.rounds.secure_sums import Member, SecAggGroup

TURN = Turn(1, 0)
LENGTH = 2000


@dataclass
class Sum:
    """A sum that the server got, with all that it and the colluders saw.

    Attributes
    ----------
    members : str
        A letter each.
    needed : int
        Who must stay.
    dropped : str
        Who is gone after its secrets were shared out, before its vector came.
    colluders : str
        Of those who stay.
    """

    members: str
    needed: int
    dropped: str = ""
    colluders: str = ""
    known: dict[str, SecAggClientState] = field(default_factory=dict)
    words: dict[str, Words] = field(default_factory=dict)

    def __post_init__(self) -> None:
        draw = torch.Generator().manual_seed(0)
        self.vectors = {name: torch.rand(LENGTH, generator=draw, dtype=torch.float64) for name in self.members}
        self.contexts = {name: Context(1, i, {}, RecordDict(), {}) for i, name in enumerate(self.members)}
        self.keys = {name: keep(self.vectors[name], 1, self.contexts[name]) for name in self.members}
        self.circle = SecAggGroup(
            TURN, {name: Member(i, self.keys[name]) for i, name in enumerate(self.members)}, self.needed
        )
        request = ShareRequest(TURN, self.keys, self.needed)
        self.circle.parcels = {n: share_out(request, n, context).content for n, context in self.contexts.items()}
        self.stay = [name for name in self.members if name not in self.dropped]
        secrets = {name: SecAggClientState.after("share", self.contexts[name], 1) for name in self.colluders}
        for name in self.stay:
            own = {other: self.circle.parcels[other][name] for other in self.members if other != name}
            self.words[name] = mask(Parcels(TURN, own), name, self.contexts[name]).words
            self.circle.add(name, self.words[name])
        for name, before in secrets.items():  # what it had, and the others' shares that came since
            self.known[name] = SecAggClientState.after("mask", self.contexts[name], 1)
            self.known[name].mask_private = before.mask_private

    def seen(self) -> Words:
        """Return the sum of the vectors of those who stay, as the server gets it."""
        for name in self.stay:
            request = UnmaskRequest(TURN, self.circle.present(name), self.circle.missing(name))
            self.circle.take_in(name, unmask(request, self.contexts[name]).content)
        return self.circle.sum(LENGTH)

    def others(self) -> Words:
        """Return the sum without the colluders' vectors."""
        total = self.seen()
        for name in self.colluders:
            total = total - to_words(self.vectors[name])
        return total

    def without_known_masks(self, name: str, seed: bytes, private: Mapping[str, bytes]) -> Words:
        """Return a client's vector without its own mask and those that it shares with the owners of private keys."""
        words = self.words[name] - own_mask(seed, LENGTH)
        for other, key in private.items():
            pair = pair_mask(key, self.keys[name].mask, LENGTH)
            words = words - pair if name < other else words + pair
        return words

    def shares(self, name: str, kind: str) -> list[bytes]:
        """Return the shares of a client's secret that the colluders hold."""
        return [getattr(own, kind)[own.holders.index(name)] for own in self.known.values()]

    def exact(self, name: str, words: Words) -> bool:
        """Return whether these are a client's vector, to the last bit."""
        return bool((words == to_words(self.vectors[name])).all())


def looks_uniform(words: Words) -> bool:
    """Return whether each of the 64 bits is set in half of the words, up to six deviations."""
    bits = np.unpackbits(words.view(np.uint8)).reshape(-1, 64).mean(axis=0)
    return bool(np.abs(bits - 0.5).max() < 3.0 / np.sqrt(LENGTH))


@pytest.mark.parametrize(
    ("members", "needed", "dropped", "colluders"),
    [
        ("abc", 3, "", "ab"),
        ("abcd", 3, "d", "ab"),
        ("abcde", 3, "de", "ab"),
        ("abcdef", 4, "ef", "abd"),
        ("abcde", 3, "", "abde"),
    ],
)
def test_the_only_honest_client_in_a_sum_is_read_to_the_last_bit(
    members: str, needed: int, dropped: str, colluders: str
) -> None:
    """One fewer colludes than are needed, and drop-outs leave no more than are needed; or all others collude."""
    view = Sum(members, needed, dropped, colluders)
    assert view.exact("c", view.others())


@pytest.mark.parametrize(
    ("members", "needed", "dropped", "colluders"),
    [("abcd", 3, "", "ab"), ("abc", 3, "", "a"), ("abcde", 3, "de", "a"), ("abcde", 4, "e", "ab")],
)
def test_with_one_colluder_fewer_only_the_sum_of_two_is_known(
    members: str, needed: int, dropped: str, colluders: str
) -> None:
    """Of each single vector all masks that are known are taken off; what is left is uniform words."""
    view = Sum(members, needed, dropped, colluders)
    pair = [name for name in view.stay if name not in colluders]
    assert len(pair) == 2
    total = view.others()
    assert (total == to_words(view.vectors[pair[0]]) + to_words(view.vectors[pair[1]])).all()
    private = {name: own.mask_private for name, own in view.known.items()}
    private |= {name: combine_shares(list(view.circle.shares[name].values())[:needed]) for name in dropped}
    for name, other in (pair, reversed(pair)):
        seed = combine_shares(list(view.circle.shares[name].values())[:needed])
        left = view.without_known_masks(name, seed, private)
        assert looks_uniform(left)
        assert not view.exact(name, left)
        assert not view.exact(name, total - left)
        assert not view.exact(other, total - left)
    assert not looks_uniform(to_words(view.vectors[pair[0]]))


def test_as_many_colluders_as_are_needed_read_everybody_without_any_drop_out() -> None:
    """They hold enough shares of both secrets of each."""
    view = Sum("abcdef", 3, colluders="abc")
    for name in "def":
        seed, key = (combine_shares(view.shares(name, kind)) for kind in ("seed_shares", "key_shares"))
        assert public_key(key) == view.keys[name].mask
        private = {other: combine_shares(view.shares(other, "key_shares")) for other in "def" if other != name}
        private |= {other: own.mask_private for other, own in view.known.items()}
        assert view.exact(name, view.without_known_masks(name, seed, private))


def test_the_shares_of_one_colluder_fewer_give_no_secret() -> None:
    view = Sum("abcdef", 4, colluders="abc")
    for name in "def":
        try:
            key = combine_shares(view.shares(name, "key_shares"))
        except ValueError:  # what comes out is not even padded as a secret is
            continue
        with pytest.raises((ValueError, AssertionError)):
            assert public_key(key) == view.keys[name].mask


def test_a_server_that_lies_reads_a_client_alone_where_half_or_fewer_are_needed() -> None:
    """It tells three that the vector came, and three that it did not. The page says so: no claim is made of it."""
    view = Sum("abcdef", 3)
    told: dict[str, list[bytes]] = {"seed": [], "key": []}
    for name in "abcdef":
        kind = "seed" if name in "abc" else "key"
        present = [other for other in "abcdef" if kind == "seed" or other != "a"]
        missing = [] if kind == "seed" else ["a"]
        told[kind].append(unmask(UnmaskRequest(TURN, present, missing), view.contexts[name]).content["a"])
    seed, key = (combine_shares(shares) for shares in told.values())
    words = view.words["a"] - own_mask(seed, LENGTH)
    for other in "bcdef":
        words = words - pair_mask(key, view.keys[other].mask, LENGTH)
    assert view.exact("a", words)
    torch.testing.assert_close(from_words(words), view.vectors["a"], rtol=0.0, atol=2.0**-33)


@given(st.data())
def test_in_a_large_cluster_no_honest_client_is_cut_off_by_few_around_it(data: st.DataObject) -> None:
    """Masks tie neighbours together; the server learns the sum of each part that they tie."""
    members = [f"client-{i}" for i in range(data.draw(st.integers(MOST_NEIGHBOURS + 2, 60)))]
    t = needed(data.draw(st.sampled_from([0.2, 0.4, 0.6])), MOST_NEIGHBOURS + 1)
    gone = data.draw(st.sets(st.sampled_from(members), max_size=len(members) // 2))
    near = {name: set(neighbours(members, name)) - gone for name in members}
    stay = [name for name in members if name not in gone]
    assume(all(len(near[name]) + 1 >= t for name in stay))  # or there is no sum
    colluders: set[str] = set()
    for name in data.draw(st.permutations(stay)):
        if all(len((colluders | {name}) & (near[other] | {other})) <= t - 2 for other in stay):
            colluders.add(name)
    honest = set(stay) - colluders
    assert colluders
    assert all(near[name] & honest for name in honest)
