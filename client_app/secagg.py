"""A client's part in secure aggregation: what it trained stays here until it is hidden in a sum.

Between messages everything is in ``context.state``, where Flower keeps it for the run. Each step is done once and in
its order, so that nobody can be asked for both shares of one member's secrets.
"""

import os
from dataclasses import dataclass, field

from cryptography.fernet import InvalidToken
from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.common.secure_aggregation.crypto.shamir import create_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import decrypt, encrypt
from flwr.common.secure_aggregation.secaggplus_utils import (
    share_keys_plaintext_concat,
    share_keys_plaintext_separate,
)
from torch import Tensor

from disue.errors import FederationError, WireError
from disue.privacy.secagg import (
    FEWEST,
    SEED_BYTES,
    agreed_key,
    neighbours,
    new_private_key,
    own_mask,
    pair_mask,
    public_key,
    to_words,
)
from disue.wire import MaskedReply, Parcels, PublicKeys, ShareRequest, UnmaskRequest

RECORD = "secure"
VECTOR = "secure-vector"
SUMMED = "secure-summed"


@dataclass
class SecAggClientState:
    """What a client remembers of a round from one step to the next, besides its vector.

    Attributes
    ----------
    done : str
        The last step: keep, share or mask.
    server_round, cluster : int
    mask_private, share_private : bytes
        Its keys of the round.
    seed : bytes
        Of its own mask.
    members : list of str
        Of the sum, in their order, and their public keys for masks.
    holders : list of str
        Of whom it has shares: itself and its neighbours.
    seed_shares, key_shares : list of bytes
        Theirs, of their seeds and of their keys for masks.
    """

    done: str
    server_round: int
    mask_private: bytes
    share_private: bytes
    cluster: int = -1
    needed: int = 0
    seed: bytes = b""
    members: list[str] = field(default_factory=list)
    mask_keys: list[bytes] = field(default_factory=list)
    share_keys: list[bytes] = field(default_factory=list)
    holders: list[str] = field(default_factory=list)
    seed_shares: list[bytes] = field(default_factory=list)
    key_shares: list[bytes] = field(default_factory=list)

    @classmethod
    def after(cls, step: str, context: Context, server_round: int) -> "SecAggClientState":
        """Return what is remembered; raise `FederationError` unless this was the last step of this round."""
        record = context.state.config_records.get(RECORD)
        if record is None:
            raise FederationError(
                f"this client has nothing of round {server_round} to add; it was restarted, or is done"
            )
        kept = cls(**record)  # type: ignore[arg-type]
        if (kept.done, kept.server_round) != (step, server_round):
            raise FederationError(
                f"it is not the time for this step: the last was '{kept.done}' of round {kept.server_round}, "
                f"expected '{step}' of round {server_round}"
            )
        return kept

    def save(self, context: Context) -> None:
        """Remember it."""
        context.state[RECORD] = ConfigRecord(dict(vars(self)))


def keep(vector: Tensor, server_round: int, context: Context) -> PublicKeys:
    """Keep the vector of a round, with fresh keys, in place of whatever was kept; return the public ones.

    Raises
    ------
    FederationError
        If the client is in a sum of this round already: the difference of two would show its vector.
    """
    last = context.state.config_records.get(SUMMED)
    if last is not None and last["round"] == server_round:
        raise FederationError(f"this client is in a sum of round {server_round}; a second one could show its update")
    kept = SecAggClientState("keep", server_round, new_private_key(), new_private_key())
    kept.save(context)
    context.state[VECTOR] = ArrayRecord({"vector": vector})
    return PublicKeys(public_key(kept.mask_private), public_key(kept.share_private))


def share_out(request: ShareRequest, name: str, context: Context) -> Parcels:
    """Share the seed of the own mask and the key for masks out among the neighbours, encrypted for each.

    Raises
    ------
    FederationError
        If this is not asked at its time, or the sum would hide nobody.
    """
    kept = SecAggClientState.after("keep", context, request.turn.server_round)
    if request.keys.get(name) != PublicKeys(public_key(kept.mask_private), public_key(kept.share_private)):
        raise FederationError("the members of the sum do not include this client with the keys that it sent")
    members = list(request.keys)
    holders = [name, *neighbours(members, name)]
    if not FEWEST <= request.needed <= len(holders):
        raise FederationError(f"{request.needed} of {len(holders)} shares are needed; expected {FEWEST} or more")
    seed = os.urandom(SEED_BYTES)
    seed_shares, key_shares = (
        create_shares(secret, request.needed, len(holders)) for secret in (seed, kept.mask_private)
    )
    parcels = {
        holder: encrypt(
            agreed_key(kept.share_private, request.keys[holder].share),
            share_keys_plaintext_concat(members.index(name), members.index(holder), seed_share, key_share),
        )
        for holder, seed_share, key_share in zip(holders[1:], seed_shares[1:], key_shares[1:], strict=True)
    }
    kept.done, kept.cluster, kept.needed, kept.seed, kept.members = (
        "share",
        request.turn.cluster,
        request.needed,
        seed,
        members,
    )
    kept.mask_keys, kept.share_keys = (
        [getattr(own, kind) for own in request.keys.values()] for kind in ("mask", "share")
    )
    kept.holders, kept.seed_shares, kept.key_shares = [name], seed_shares[:1], key_shares[:1]
    kept.save(context)
    return Parcels(request.turn, parcels)


def mask(parcels: Parcels, name: str, context: Context) -> MaskedReply:
    """Return the vector under a mask of the client's own and one with each neighbour whose parcel came; forget it.

    Raises
    ------
    FederationError, WireError
        If this is not asked at its time, too few neighbours are left, or what they sent cannot be read.
    """
    kept = SecAggClientState.after("share", context, parcels.turn.server_round)
    if not parcels.content.keys() <= set(neighbours(kept.members, name)):
        raise WireError(f"there are parcels of {sorted(parcels.content)}, who are not all neighbours")
    if len(parcels.content) + 1 < kept.needed:
        raise FederationError(f"{len(parcels.content) + 1} of {kept.needed} who are needed are left")
    own = kept.members.index(name)
    vector = context.state.array_records[VECTOR].to_torch_state_dict()["vector"]
    words = to_words(vector, len(kept.members)) + own_mask(kept.seed, len(vector))
    for sender, parcel in parcels.content.items():
        other = kept.members.index(sender)
        try:
            plain = decrypt(agreed_key(kept.share_private, kept.share_keys[other]), parcel)
        except InvalidToken:
            raise WireError(f"the parcel of {sender} cannot be read") from None
        source, destination, seed_share, key_share = share_keys_plaintext_separate(plain)
        if (source, destination) != (other, own):
            raise WireError(f"the parcel of {sender} is for someone else")
        pair = pair_mask(kept.mask_private, kept.mask_keys[other], len(vector))
        words = words + pair if own < other else words - pair
        kept.holders.append(sender)
        kept.seed_shares.append(seed_share)
        kept.key_shares.append(key_share)
    del context.state[VECTOR]
    kept.done, kept.mask_private, kept.share_private, kept.seed = "mask", b"", b"", b""
    kept.save(context)
    return MaskedReply(parcels.turn, words)


def unmask(request: UnmaskRequest, context: Context) -> Parcels:
    """Return shares of the seeds of those whose vectors came, and of the keys of the others; forget everything.

    Raises
    ------
    FederationError
        If this is not asked at its time, or would show a single vector.
    """
    kept = SecAggClientState.after("mask", context, request.turn.server_round)
    asked = [*request.present, *request.missing]
    if len(set(asked)) < len(asked) or set(asked) != set(kept.holders):
        raise FederationError(f"shares of {sorted(asked)} are asked for; expected each of {sorted(kept.holders)} once")
    if len(request.present) < kept.needed:
        raise FederationError(f"{len(request.present)} of {kept.needed} who are needed are left")
    del context.state[RECORD]
    context.state[SUMMED] = ConfigRecord({"round": kept.server_round})
    seeds, keys = (dict(zip(kept.holders, own, strict=True)) for own in (kept.seed_shares, kept.key_shares))
    shares = {name: seeds[name] for name in request.present} | {name: keys[name] for name in request.missing}
    return Parcels(request.turn, shares)
