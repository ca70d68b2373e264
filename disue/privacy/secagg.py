"""Sums of which nobody sees the parts: the arithmetic of secure aggregation that clients and server share.

Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS 2017, with the sparse graph
of Bell et al., "Secure Single-Server Aggregation with (Poly)Logarithmic Overhead", CCS 2020 (SecAgg+).

Key agreement, encryption and secret sharing are Flower's. Two of its primitives are not used. `pseudo_rand_gen` folds a
key to 32 bits, of which 28 vary, and seeds a Mersenne twister with them: who sees a masked vector can try all masks.
`quantize` rounds at random to 32 bits. Here a mask is the key stream of AES-256, and numbers are in fixed point, in 64
bits.
"""

import base64
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from flwr.common.secure_aggregation.crypto.symmetric_encryption import generate_shared_key
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, public_key_to_bytes
from numpy.typing import NDArray
from torch import Tensor

from disue.covariance import looked_at, triangle
from disue.fields import LARGEST_COVARIANCE, LARGEST_FEATURE, LARGEST_LOSS, LARGEST_PARAMETER
from disue.models import State, num_features, num_parameters, unflatten
from disue.signature import Signature, SignatureParts

Words = NDArray[np.uint64]

FRACTION_BITS = 32
LARGEST_SUM = 2.0 ** (62 - FRACTION_BITS)
FEWEST = 3
"""Members of a sum: with two, each knows the other's part."""
MOST_NEIGHBOURS = 20
"""With whom a member of a large cluster shares masks: the cost for each stays the same however many there are."""
SEED_BYTES = 15
"""Of a member's own mask: one block of Flower's secret sharing, which pads and takes its time for each block."""
CURVE = ec.SECP384R1()
SCALAR_BYTES = 48
SEED_SHARE_BYTES, KEY_SHARE_BYTES = 4 + 16, 4 + 64
"""A share is its number, and as many bytes as the secret has after padding to blocks of 16."""


def new_private_key() -> bytes:
    """Return a private key, as the bytes of its number: far fewer than a file of it, for they are shared out."""
    return ec.generate_private_key(CURVE).private_numbers().private_value.to_bytes(SCALAR_BYTES, "big")


def public_key(private: bytes) -> bytes:
    """Return the public key that belongs to a private one; raise `ValueError` if there is none."""
    return public_key_to_bytes(_private(private).public_key())


def agreed_key(private: bytes, public: bytes) -> bytes:
    """Return the key that two agree on, each with its own private and the other's public one, as Fernet takes it.

    Raises
    ------
    ValueError
        If one of them is no key.
    """
    return generate_shared_key(_private(private), read_public_key(public))


def read_public_key(public: bytes) -> ec.EllipticCurvePublicKey:
    """Return a public key; raise `ValueError` if it is none, or none of the curve that is used here."""
    try:
        key = bytes_to_public_key(public)
    except UnsupportedAlgorithm as error:
        raise ValueError(str(error)) from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != CURVE.name:
        raise ValueError(f"it is not of the curve {CURVE.name}")
    return key


def _private(private: bytes) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(int.from_bytes(private, "big"), CURVE)


def pair_mask(private: bytes, public: bytes, length: int) -> Words:
    """Return the mask that two members share: one adds it, the other takes it away."""
    return _key_stream(base64.urlsafe_b64decode(agreed_key(private, public)), length)


def own_mask(seed: bytes, length: int) -> Words:
    """Return the mask that a member adds for itself, so that a part that comes too late stays hidden."""
    return _key_stream(hashlib.sha256(seed).digest(), length)


def _key_stream(key: bytes, length: int) -> Words:
    """Return uniform words; a key serves once, so that the counter begins at zero."""
    encryptor = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    return np.frombuffer(encryptor.update(bytes(8 * length)), dtype="<u8").astype(np.uint64)


def to_words(values: Tensor, members: int = 1) -> Words:
    """Return numbers, float64, in fixed point, of which as many as there are members can be added modulo 2**64.

    Raises
    ------
    ValueError
        If one is not finite, or so large that a sum could run over.
    """
    largest = float(values.abs().max()) if len(values) else 0.0
    if not math.isfinite(largest) or largest * members >= LARGEST_SUM:
        raise ValueError(f"a number is too large, or none; expected numbers below {LARGEST_SUM / members:.3g}")
    return (values * 2.0**FRACTION_BITS).round().to(torch.int64).numpy().view(np.uint64)


def from_words(words: Words) -> Tensor:
    """Return the numbers, float64."""
    return torch.from_numpy(words.view(np.int64).copy()).double() / 2.0**FRACTION_BITS


def neighbours(members: Sequence[str], name: str, most: int = MOST_NEIGHBOURS) -> list[str]:
    """Return those of the members with whom one of them shares masks, in their order: all others, or the nearest.

    Examples
    --------
    >>> neighbours(["a", "b", "c", "d", "e", "f"], "a", most=2)
    ['b', 'f']
    """
    count, own = len(members), members.index(name)
    if count - 1 <= most:
        return [other for other in members if other != name]
    reach = {(own + step) % count for step in range(-(most // 2), most // 2 + 1)} - {own}
    return [members[i] for i in sorted(reach)]


def needed(share: float, holders: int) -> int:
    """Return how many of those who hold a share of a secret must give it, so that it is known."""
    return max(FEWEST, math.ceil(share * holders - 1e-9))


@dataclass(frozen=True)
class Contribution:
    """All that a method needs of a client, or of several together, as numbers that can be added.

    Attributes
    ----------
    num_examples : int
    train_loss : float
        Mean over the examples.
    steps : int
    state : State
        The model, or the mean of the models, weighted by examples.
    signature : Signature or None
        Label counts, prototypes weighted by these, and covariances weighted by their sum.
    """

    num_examples: int
    train_loss: float
    steps: int
    state: State
    signature: Signature | None = None

    def to_vector(self) -> Tensor:
        """Return the numbers, float64, each weighted so that the sum of several is that of all their examples."""
        n = self.num_examples
        parts = [torch.tensor([n, n * self.train_loss, self.steps], dtype=torch.float64)]
        if self.signature is not None:
            counts, points = self.signature.label_counts.double(), self.signature.prototypes.double()
            parts += [counts, (counts.unsqueeze(1) * points).reshape(-1)]
            if self.signature.covariance is not None:
                parts.append(counts.sum() * self.signature.covariance.double() + _between(counts, points))
        parts += [n * tensor.double().reshape(-1) for tensor in self.state.values()]
        return torch.cat(parts)

    @classmethod
    def from_vector(cls, vector: Tensor, like: State, parts: SignatureParts) -> "Contribution":
        """Return what several contributed together, of whose vectors this is the sum.

        Parameters
        ----------
        vector : Tensor
        like : State
            A model of the clients' architecture.
        parts : SignatureParts
            Of the clients' signatures.

        Raises
        ------
        ValueError
            If no clients can have contributed this.
        """
        sizes = vector_sizes(like, parts)
        (n, loss, steps), told, weights = vector.split(sizes)
        if n < 1 or n != n.round():
            raise ValueError(f"it is of {float(n):g} examples")
        signature = None
        if parts.num_strata:
            shape = parts.num_strata, num_features(like)
            counts, sums, second = told.tensor_split([shape[0], shape[0] * (1 + shape[1])])
            means = sums.view(shape) / counts.clamp(min=1e-12).unsqueeze(1)
            covariance = None
            if parts.covariance:
                covariance = ((second - _between(counts, means)) / counts.sum().clamp(min=1e-12)).float()
            signature = Signature(counts.float(), means.float(), covariance)
            if counts.sum() > n:
                raise ValueError(f"it counts the labels of {float(counts.sum()):g} examples, of {float(n):g}")
        state = {name: part.to(like[name].dtype) for name, part in unflatten(weights / n, like).items()}
        _require_usual(state, signature, float(loss / n))
        return cls(int(n), float(loss / n), int(steps), state, signature)


def _between(counts: Tensor, points: Tensor) -> Tensor:
    """Return the sum of the points' squares, each as often as it counts, as a triangle.

    With the covariances within strata it makes sums of squares, which add up over clients whose means differ.
    """
    seen = looked_at(points.float()).double()
    return triangle((counts.unsqueeze(1) * seen).T @ seen)


def _require_usual(state: State, signature: Signature | None, loss: float) -> None:
    """Raise `ValueError` for means that no client may send by itself."""
    bounded = {name: (tensor, LARGEST_PARAMETER) for name, tensor in state.items()}
    if signature is not None:
        bounded["prototypes"] = signature.prototypes, LARGEST_FEATURE
        if signature.covariance is not None:
            bounded["covariance"] = signature.covariance, LARGEST_COVARIANCE
    for name, (tensor, most) in bounded.items():
        if float(tensor.abs().max()) > most:
            raise ValueError(f"{name} has values beyond {most:g}")
    if abs(loss) > LARGEST_LOSS:
        raise ValueError(f"its loss is {loss:g}")


def vector_sizes(like: State, parts: SignatureParts) -> list[int]:
    """Return the lengths of the parts of a vector: of three numbers, of what is told of the data, and of a model."""
    return [3, parts.numbers(like), num_parameters(like)]
