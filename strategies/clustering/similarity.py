"""What clients are compared by: each signature gives a vector per client, and a way to compare two of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from disue.comparing import FROM_UPDATE, SUBSPACE_DIMENSIONS
from disue.config import Settings
from disue.naming import by_name
from disue.registry import Registry
from strategies.updates import ClientSketch

FloatArray = NDArray[np.float64]


class SignatureSettings(Settings):
    """Signatures over the rounds."""

    signature_memory: float = Field(
        0.5,
        ge=0.0,
        lt=1.0,
        description="share of the past in a client's running signature, where that is made from updates",
    )


class Gram(Protocol):
    """Inner products."""

    def __call__(self, vectors: Sequence[Tensor], /, others: Sequence[Tensor] | None = None) -> Tensor:
        """Return those of ``vectors`` with ``others``, (vectors, others), or with each other."""


def cosines(vectors: Sequence[Tensor], others: Sequence[Tensor] | None = None) -> Tensor:
    """Return the cosines between vectors, (vectors, others) or (vectors, vectors), by one matrix product.

    Those with others are computed in single precision: there are many, and no spectrum is taken of them.
    """
    if others is None:
        stacked = _unit(vectors, torch.float64)
        return stacked @ stacked.T
    return (_unit(vectors, torch.float32) @ _unit(others, torch.float32).T).double()


def _unit(vectors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    return F.normalize(torch.stack([vector.reshape(-1) for vector in vectors]).to(dtype), dim=1)


def subspace_affinity(bases: Sequence[Tensor], others: Sequence[Tensor] | None = None) -> Tensor:
    """Return the mean squared cosine of the principal angles between subspaces, (bases, others) or (bases, bases).

    ``bases``: orthonormal columns, (inputs, dimensions); columns of another length count as if they had length one. In
    the embedding, distances are then chordal distances, sqrt(sum of squared sines), up to a factor (Golub & Van Loan,
    section 6.4.3).
    """
    stacked = _unit_columns(bases)
    second = stacked if others is None else _unit_columns(others)
    products = torch.einsum("idp,jdq->ijpq", stacked, second)
    sizes, second_sizes = (s.square().sum(dim=(1, 2)).sqrt() for s in (stacked, second))  # roots of their dimensions
    affinity: Tensor = products.square().sum(dim=(2, 3)) / torch.outer(sizes, second_sizes).clamp(min=1e-300)
    return affinity


def _unit_columns(bases: Sequence[Tensor]) -> Tensor:
    return F.normalize(torch.stack(list(bases)).double(), dim=1)


@dataclass(frozen=True)
class SignatureKind:
    """One way to compare clients.

    Attributes
    ----------
    from_update : callable or None
        From a `ClientUpdate` to its vector, or from a `ClientSketch` where sketches are compared. None: the client
        describes its data itself, before it trains, and again when they changed.
    gram : Gram
        From vectors to their inner products, (clients, clients), with ones on the diagonal.
    shape : callable or None
        From the numbers of strata, features, inputs and parameters to the shape of a description; None: it cannot be
        known.
    """

    from_update: Callable[[Any], Tensor] | None = None
    gram: Gram = cosines
    shape: Callable[[int, int, int, int], tuple[int, int]] | None = None


SIGNATURES: Registry[SignatureKind] = Registry("signature")


for _name, _from_update in FROM_UPDATE.items():
    SIGNATURES.register(_name)(SignatureKind(_from_update))
SIGNATURES.register("initial-prototypes")(
    SignatureKind(shape=lambda strata, features, inputs, parameters: (strata, features + 1))
)
SIGNATURES.register("subspace")(
    SignatureKind(
        gram=subspace_affinity, shape=lambda strata, features, inputs, parameters: (inputs, SUBSPACE_DIMENSIONS)
    )
)
SIGNATURES.register("anchor-gradient")(
    SignatureKind(shape=lambda strata, features, inputs, parameters: (1, parameters))
)


def of_sketches(kind: SignatureKind) -> SignatureKind:
    """Return how clients are compared that send sketches of this signature; only cosines are kept by them."""
    return SignatureKind(_own_sketch if kind.from_update else None)


def _own_sketch(sent: ClientSketch) -> Tensor:
    if sent.sketch is None:
        raise ValueError(f"{sent.name} sent no sketch")
    return sent.sketch


@dataclass(frozen=True)
class SignatureBook:
    """The last known signature of every client.

    Attributes
    ----------
    kind : SignatureKind
    vectors_by_client : mapping of client to Tensor
    """

    kind: SignatureKind
    vectors_by_client: Mapping[str, Tensor]

    @property
    def names(self) -> list[str]:
        """Clients with a known signature, sorted."""
        return by_name(self.vectors_by_client)

    def vectors(self, names: Sequence[str]) -> list[Tensor]:
        """Return the signatures of these clients."""
        return [self.vectors_by_client[name] for name in names]

    def gram(self, names: Sequence[str]) -> Tensor:
        """Return the inner products of these clients' signatures, (clients, clients); ones if alike."""
        return self.kind.gram(self.vectors(names))


def running_means(known: Mapping[str, Tensor], fresh: Mapping[str, Tensor], memory: float) -> dict[str, Tensor]:
    """Return every client's signature as a running mean over the rounds it took part in.

    Parameters
    ----------
    known, fresh : mapping of client to Tensor
        The means so far, and this round's signatures.
    memory : float
        Share of the past in the mean; 0 keeps the newest only.
    """
    return {**known} | {
        name: torch.lerp(vector, known[name], memory) if name in known else vector for name, vector in fresh.items()
    }


def embed(gram: Tensor) -> FloatArray:
    """Return points with these inner products, (points, points), in as few dimensions as are needed.

    The dimensions are the axes of their spread: coordinates of two of them are orthogonal.
    """
    values, basis = np.linalg.eigh(gram.numpy())
    kept = values > 1e-9 * max(values[-1], 1e-300)
    kept[-1] = True  # vectors that are all zero are one point
    coordinates: FloatArray = basis[:, kept] * np.sqrt(np.maximum(values[kept], 0.0))
    return coordinates
