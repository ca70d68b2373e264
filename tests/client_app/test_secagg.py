"""A client's steps of secure aggregation, and what it refuses to do."""

import pytest
import torch
from flwr.app import Context, RecordDict
from flwr.common.serde import context_from_proto, context_to_proto

from client_app.secagg import keep, mask, share_out, unmask
from disue.errors import FederationError, WireError
from disue.privacy.secagg import from_words, own_mask, pair_mask
from disue.wire import Parcels, PublicKeys, ShareRequest, Turn, UnmaskRequest

NAMES = ["a", "b", "c", "d"]
TURN = Turn(1, 0)
VECTORS = {name: torch.arange(5, dtype=torch.float64) * (i + 1) for i, name in enumerate(NAMES)}


class Clients:
    """Four clients that have trained, up to a step."""

    def __init__(self, step: str = "keep") -> None:
        self.contexts = {name: Context(1, i, {}, RecordDict(), {}) for i, name in enumerate(NAMES)}
        self.keys = {name: keep(VECTORS[name], 1, context) for name, context in self.contexts.items()}
        if step in ("share", "mask"):
            self.share()
        if step == "mask":
            self.mask()

    def share(self) -> None:
        request = ShareRequest(TURN, self.keys, 3)
        self.parcels = {name: share_out(request, name, context).content for name, context in self.contexts.items()}

    def mask(self) -> None:
        self.masked = {name: mask(self.parcels_for(name), name, self.contexts[name]).words for name in NAMES}

    def parcels_for(self, name: str, senders: str = "abcd") -> Parcels:
        return Parcels(TURN, {sender: self.parcels[sender][name] for sender in senders if sender != name})


def test_masks_of_pairs_cancel_and_what_is_left_is_each_ones_own() -> None:
    clients = Clients("share")
    seeds = {name: context.state["secure"]["seed"] for name, context in clients.contexts.items()}
    total = sum(mask(clients.parcels_for(name), name, clients.contexts[name]).words for name in NAMES)
    for seed in seeds.values():
        total = total - own_mask(seed, 5)
    assert from_words(total).tolist() == sum(VECTORS.values()).tolist()


def test_what_is_kept_survives_where_flower_writes_it_down_between_messages() -> None:
    """As SuperNodes and Ray do, for which each message may be another process."""
    clients = Clients()
    for step in ("share", "mask", "unmask"):
        clients.contexts = {name: context_from_proto(context_to_proto(own)) for name, own in clients.contexts.items()}
        if step == "share":
            clients.share()
        elif step == "mask":
            clients.mask()
    given = unmask(UnmaskRequest(TURN, NAMES, []), clients.contexts["a"])
    assert given.content.keys() == set(NAMES)


def test_a_vector_has_masks_with_those_only_whose_parcels_came() -> None:
    clients = Clients("share")
    kept = clients.contexts["b"].state["secure"]
    seed, private = kept["seed"], kept["mask_private"]
    words = mask(clients.parcels_for("b", "ac"), "b", clients.contexts["b"]).words
    words = words - own_mask(seed, 5)
    words = words + pair_mask(private, clients.keys["a"].mask, 5) - pair_mask(private, clients.keys["c"].mask, 5)
    assert from_words(words).tolist() == VECTORS["b"].tolist()


@pytest.mark.parametrize(
    ("present", "missing", "reason"),
    [
        ("abcd", "d", "expected each of"),
        ("abc", "", "expected each of"),
        ("abce", "d", "expected each of"),
        ("ab", "cd", "2 of 3 who are needed are left"),
    ],
)
def test_it_gives_one_share_of_each_and_shows_no_sum_of_two(present: str, missing: str, reason: str) -> None:
    clients = Clients("mask")
    with pytest.raises(FederationError, match=reason):
        unmask(UnmaskRequest(TURN, list(present), list(missing)), clients.contexts["a"])
    given = unmask(UnmaskRequest(TURN, ["a", "b", "c"], ["d"]), clients.contexts["a"])
    assert [len(given.content[name]) for name in NAMES] == [20, 20, 20, 68]
    assert set(clients.contexts["a"].state) == {"secure-summed"}


def test_each_step_is_done_once_and_in_its_order() -> None:
    clients = Clients("mask")
    context = clients.contexts["a"]
    with pytest.raises(FederationError, match="the last was 'mask' of round 1, expected 'keep' of round 1"):
        share_out(ShareRequest(TURN, clients.keys, 3), "a", context)
    with pytest.raises(FederationError, match="the last was 'mask' of round 1, expected 'share' of round 1"):
        mask(clients.parcels_for("a"), "a", context)
    with pytest.raises(FederationError, match="the last was 'mask' of round 1, expected 'mask' of round 2"):
        unmask(UnmaskRequest(Turn(2, 0), NAMES, []), context)
    unmask(UnmaskRequest(TURN, NAMES, []), context)
    with pytest.raises(FederationError, match="this client has nothing of round 1 to add"):
        unmask(UnmaskRequest(TURN, NAMES, []), context)


def test_of_one_round_a_client_is_in_one_sum() -> None:
    clients = Clients("mask")
    context = clients.contexts["a"]
    unmask(UnmaskRequest(TURN, NAMES, []), context)
    with pytest.raises(FederationError, match="this client is in a sum of round 1; a second one could show its update"):
        keep(VECTORS["a"], 1, context)
    keep(VECTORS["a"], 2, context)


def test_training_anew_forgets_what_was_kept() -> None:
    clients = Clients("share")
    keys = keep(VECTORS["a"], 1, clients.contexts["a"])
    assert keys != clients.keys["a"]
    with pytest.raises(FederationError, match="the last was 'keep' of round 1"):
        mask(clients.parcels_for("a"), "a", clients.contexts["a"])


@pytest.mark.parametrize(("members", "needed"), [("ab", 3), ("ab", 2), ("abc", 4), ("abcd", 2), ("abcd", 1)])
def test_a_sum_that_would_hide_nobody_is_refused(members: str, needed: int) -> None:
    clients = Clients()
    keys = {name: clients.keys[name] for name in members}
    with pytest.raises(FederationError, match="shares are needed; expected 3 or more"):
        share_out(ShareRequest(TURN, keys, needed), "a", clients.contexts["a"])


def test_a_sum_without_this_client_or_with_other_keys_for_it_is_refused() -> None:
    clients = Clients()
    swapped = clients.keys | {"a": PublicKeys(clients.keys["a"].share, clients.keys["a"].mask)}
    for keys in ({name: clients.keys[name] for name in "bcd"}, swapped):
        with pytest.raises(FederationError, match="do not include this client with the keys that it sent"):
            share_out(ShareRequest(TURN, keys, 3), "a", clients.contexts["a"])


def test_parcels_of_others_and_for_others_are_refused() -> None:
    clients = Clients("share")
    parcels = clients.parcels_for("a").content
    with pytest.raises(WireError, match="the parcel of b cannot be read"):
        mask(Parcels(TURN, {**parcels, "b": clients.parcels["b"]["c"]}), "a", clients.contexts["a"])
    with pytest.raises(WireError, match="who are not all neighbours"):
        mask(Parcels(TURN, {**parcels, "e": b""}), "a", clients.contexts["a"])
    with pytest.raises(FederationError, match="2 of 3 who are needed are left"):
        mask(Parcels(TURN, {"b": parcels["b"]}), "a", clients.contexts["a"])
