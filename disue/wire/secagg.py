"""Secure aggregation: what a client keeps, the shares of its secrets, its masked vector, and how masks are taken off.

Members of a sum know each other by name; the server passes on what they encrypt for each other.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from torch import Tensor

from disue.errors import WireError, quoted_value
from disue.fields import LARGEST_FEATURE, Arrays, Other, fields_of
from disue.privacy.secagg import CURVE, Words, read_public_key
from disue.source import client_hash
from disue.wire.arrays import read_state, to_record
from disue.wire.describe import Digest
from disue.wire.reading import read_config, read_fields, setting

SHARE = f"{MessageType.QUERY}.share"
MASK = f"{MessageType.QUERY}.mask"
UNMASK = f"{MessageType.QUERY}.unmask"

SUM = "a wrong one costs its cluster the round's sum; if `min-success-fraction` is missed by that, the run ends"


@dataclass(frozen=True)
class Turn:
    """Which round and which cluster a message is about."""

    server_round: Annotated[int, Other(SUM, record="config", must_be="the request's")]
    cluster: Annotated[int, Other(SUM, record="config", must_be="the request's")]

    def request(self, kind: str, node_id: int, values: Mapping[str, object]) -> Message:
        """Return a request of a kind for one node."""
        config = {"source-hash": client_hash(), "server-round": self.server_round, "cluster": self.cluster, **values}
        content = RecordDict({"config": ConfigRecord(config)})  # type: ignore[arg-type]
        return Message(content, node_id, kind, group_id=str(self.server_round))

    def reply(self, reply_to: Message, values: Mapping[str, object], arrays: ArrayRecord | None = None) -> Message:
        """Return a reply."""
        config = {"server-round": self.server_round, "cluster": self.cluster, **values}
        content = RecordDict({"config": ConfigRecord(config)})  # type: ignore[arg-type]
        if arrays is not None:
            content["arrays"] = arrays
        return Message(content, reply_to=reply_to)

    @classmethod
    def of(cls, config: ConfigRecord) -> "Turn":
        """Return what a config is about; raise `WireError` if it does not say."""
        values = [config.get(key) for key in ("server-round", "cluster")]
        if not all(type(value) is int for value in values):
            raise WireError(f"round and cluster are {' and '.join(map(quoted_value, values))}; expected integers")
        return cls(*values)  # type: ignore[arg-type]

    def check(self, message: Message) -> ConfigRecord:
        """Return the config of a reply; raise `WireError` if it is about something else."""
        config = message.content.config_records.get("config")
        if config is None:
            raise WireError("the message has no 'config' record")
        if (told := Turn.of(config)) != self:
            raise WireError(
                f"it is of round {told.server_round} and cluster {told.cluster}; "
                f"expected round {self.server_round} and cluster {self.cluster}"
            )
        return config


@dataclass(frozen=True)
class PublicKeys:
    """Of one member in one round: for masks, and for what only another member may read."""

    mask: Annotated[bytes, Other(SUM, record="config", key="mask-key", must_be=f"a public key of {CURVE.name}")]
    share: Annotated[bytes, Other(SUM, record="config", key="share-key", must_be="another public key")]


@dataclass(frozen=True)
class KeptReply:
    """The client trained and kept what came out: all that it says of it.

    Attributes
    ----------
    keys : PublicKeys
    sketch : (1, dimension) tensor or None
        Of the signature, where that is made from the update.
    digest : str or None
        Of the training data, where it was asked for.
    """

    keys: PublicKeys
    sketch: Annotated[
        Tensor | None,
        Arrays(
            "what the client is clustered by, as a direction: its length counts for nothing",
            record="signature",
            high=LARGEST_FEATURE,
            shape="(1, `sketch-size`)",
        ),
    ] = None
    digest: Digest = None

    def to_message(self, reply_to: Message) -> Message:
        """Return the reply."""
        config = ConfigRecord({"mask-key": self.keys.mask, "share-key": self.keys.share})
        if self.digest is not None:
            config["digest"] = self.digest
        content = RecordDict({"config": config})
        if self.sketch is not None:
            content["signature"] = to_record({"sketch": self.sketch})
        return Message(content, reply_to=reply_to)

    @classmethod
    def from_message(cls, message: Message, dimension: int) -> "KeptReply":
        """Read the reply, which has a sketch unless ``dimension`` is 0; raise `WireError` if it has another form."""
        config = message.content.config_records.get("config", ConfigRecord())
        mask, share = (_one_key(config.get(key), key) for key in ("mask-key", "share-key"))
        if mask == share:
            raise WireError("mask-key and share-key are the same")
        sketch = _read_sketch(message, dimension) if dimension else None
        return cls(PublicKeys(mask, share), sketch, **read_fields(cls, message))


@dataclass(frozen=True)
class ShareRequest:
    """These are the members of your sum: share your secrets out among your neighbours."""

    turn: Turn
    keys: Mapping[str, PublicKeys]
    """Of all members, in their order."""
    needed: int
    """How many must give their share of a secret."""

    def to_message(self, node_id: int) -> Message:
        """Return the request for one node."""
        values = {
            "members": list(self.keys),
            "mask-keys": [own.mask for own in self.keys.values()],
            "share-keys": [own.share for own in self.keys.values()],
            "needed": self.needed,
        }
        return self.turn.request(SHARE, node_id, values)

    @classmethod
    def from_message(cls, message: Message) -> "ShareRequest":
        """Read the request; raise `FederationError` if the server runs other source code."""
        config = read_config(message)
        members, mask, share = (setting(config, key, list) for key in ("members", "mask-keys", "share-keys"))
        if not len(members) == len(mask) == len(share):
            raise WireError(f"there are {len(members)} members, {len(mask)} mask-keys and {len(share)} share-keys")
        keys = {name: PublicKeys(*own) for name, *own in zip(members, mask, share, strict=True)}
        return cls(Turn.of(config), keys, setting(config, "needed", int))


@dataclass(frozen=True)
class Parcels:
    """Bytes by member: what one encrypted for others, or shares of their secrets."""

    turn: Turn
    content: Annotated[
        Mapping[str, bytes],
        Other(SUM, record="config", key="members, bytes", must_be="one of each neighbour, of the length of a share"),
    ]

    def to_message(self, reply_to: Message) -> Message:
        """Return the reply."""
        return self.turn.reply(reply_to, self._values())

    def to_request(self, node_id: int) -> Message:
        """Return the request to one node to mask its vector, with what others encrypted for it."""
        return self.turn.request(MASK, node_id, self._values())

    def _values(self) -> dict[str, object]:
        return {"members": list(self.content), "bytes": list(self.content.values())}

    @classmethod
    def from_request(cls, message: Message) -> "Parcels":
        """Read the request; raise `FederationError` if the server runs other source code."""
        config = read_config(message)
        return cls(Turn.of(config), _by_member(config))

    @classmethod
    def from_message(cls, message: Message, turn: Turn, expected: list[str]) -> "Parcels":
        """Read the reply; raise `WireError` if it is about something else or not for those who are expected."""
        content = _by_member(turn.check(message))
        if content.keys() != set(expected):
            wrong = sorted(content.keys() ^ set(expected))
            raise WireError(f"there is one of {sorted(content)}; expected {sorted(expected)} ({wrong} differ)")
        return cls(turn, content)


@dataclass(frozen=True)
class MaskedReply:
    """A client's vector under its masks: uniform numbers, for whoever does not know them."""

    turn: Turn
    words: Annotated[
        Words,
        Other(
            "added to its cluster's sum, with any weight and content: no cap can act on what nobody sees",
            record="arrays",
            key="masked",
            must_be="as many int64 as the sum has",
        ),
    ]

    def to_message(self, reply_to: Message) -> Message:
        """Return the reply."""
        return self.turn.reply(reply_to, {}, to_record({"masked": torch.from_numpy(self.words.view(np.int64))}))

    @classmethod
    def from_message(cls, message: Message, turn: Turn, length: int) -> "MaskedReply":
        """Read the reply; raise `WireError` if it is about something else or the vector has another form."""
        turn.check(message)
        masked = read_state(message, "arrays").get("masked")
        if masked is None:
            raise WireError("the arrays lack 'masked'")
        if masked.dtype != torch.int64 or tuple(masked.shape) != (length,):
            raise WireError(
                f"the masked vector is {masked.dtype} {tuple(masked.shape)}; expected torch.int64 ({length},)"
            )
        return cls(turn, masked.numpy().view(np.uint64))


@dataclass(frozen=True)
class UnmaskRequest:
    """Give the shares of the own masks of those whose vectors came, and of the keys of those whose did not."""

    turn: Turn
    present: list[str]
    missing: list[str]

    def to_message(self, node_id: int) -> Message:
        """Return the request for one node."""
        values = {"present": self.present, "missing": self.missing}
        return self.turn.request(UNMASK, node_id, {key: names for key, names in values.items() if names})

    @classmethod
    def from_message(cls, message: Message) -> "UnmaskRequest":
        """Read the request; raise `FederationError` if the server runs other source code."""
        config = read_config(message)
        return cls(Turn.of(config), _names(config, "present"), _names(config, "missing"))


def _names(config: ConfigRecord, key: str) -> list[str]:
    names = config.get(key, [])  # Flower keeps no empty list
    if not isinstance(names, list) or not all(type(name) is str for name in names):
        raise WireError(f"the request's {key} is {names!r}; expected names")
    return names  # type: ignore[return-value]


def _by_member(config: ConfigRecord) -> dict[str, bytes]:
    members, content = config.get("members"), config.get("bytes")
    if not isinstance(members, list) or not isinstance(content, list) or len(members) != len(content):
        raise WireError("members and bytes are not two lists of one length")
    if not all(type(own) is bytes for own in content) or not all(type(name) is str for name in members):
        raise WireError("members and bytes are not texts and bytes")
    return dict(zip(members, content, strict=True))  # type: ignore[arg-type]


def _one_key(value: object, key: str) -> bytes:
    if not isinstance(value, bytes):
        raise WireError(f"{key} is {quoted_value(value)}; expected bytes")
    try:
        read_public_key(value)
    except ValueError as error:
        raise WireError(f"{key} is no public key ({error})") from None
    return value


def _read_sketch(message: Message, dimension: int) -> Tensor:
    told = read_state(message, "signature").get("sketch")
    if told is None:
        raise WireError("the signature lacks 'sketch'")
    if told.dtype != torch.float32 or tuple(told.shape) != (1, dimension):
        raise WireError(f"the sketch is {told.dtype} {tuple(told.shape)}; expected torch.float32 (1, {dimension})")
    field, _ = fields_of(KeptReply)["sketch"]
    checked: Tensor = field.check(told, "sketch")
    return checked
