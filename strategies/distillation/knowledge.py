"""What the experts' clients told of their data, in the feature space of the newest universal expert.

There is one feature space for each architecture. What clients told in an earlier round is moved there (`moving`), so
that those count who were not sampled this round.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

from torch import Tensor

from disue.covariance import looked_at
from disue.fields import LARGEST_FEATURE
from disue.models import State, same_model
from disue.signature import Signature
from strategies.distillation.moving import Move
from strategies.distillation.server import Server
from strategies.stored import stored

stored(Signature)
ENOUGH = 500
"""Samples on which two spaces are compared: with four times as many heads came out alike within 0.002."""


@stored
@dataclass(frozen=True)
class Knowledge:
    """See the module.

    Attributes
    ----------
    told : mapping of client to Signature
        What clients told last; of a group whose sum the server got, what it told together, under one of its names.
    models : mapping of client to str
        Their architectures.
    spaces : mapping of architecture to State
        The universal experts in whose features that is.
    clients : mapping of client to tuple of str
        Where several told something together, who they were.
    """

    told: Mapping[str, Signature]
    models: Mapping[str, str]
    spaces: Mapping[str, State]
    clients: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def nothing(cls) -> Self:
        """Return that nobody told anything."""
        return cls({}, {}, {})

    def moved(self, server: Server, spaces: Mapping[str, State], inputs: Tensor | None) -> "Knowledge":
        """Return what is known in other spaces; of those that cannot be compared with the old ones, nothing.

        ``inputs``: (samples, *shape), on which they are compared, or None.
        """
        known = self
        for model in sorted(set(self.models.values())):
            of_model = [name for name in self.told if self.models[name] == model]
            before, after = self.spaces[model], spaces[model]
            if same_model(before, after):
                continue
            if inputs is None:
                known = known.less(of_model)
                continue
            (told,) = self.under(server, [after], model, [of_model], inputs)
            known = replace(known, told={**known.told, **dict(zip(of_model, told, strict=True))})
        return replace(known, spaces=dict(spaces))

    def under(
        self, server: Server, states: Sequence[State], model: str, names: Sequence[Sequence[str]], inputs: Tensor
    ) -> list[list[Signature]]:
        """Return what clients of an architecture told as they would tell it of the features of other models of it.

        ``names``: for each of the ``states``, the clients whose knowledge is asked for. ``inputs`` as in `moved`; some
        of them do.
        """
        some = server.some_of(inputs, ENOUGH)
        before = bounded(server.features(self.spaces[model], some, model))
        found = []
        for state, own in zip(states, names, strict=True):
            told = [self.told[name] for name in own]
            if not same_model(state, self.spaces[model]):
                after = bounded(server.features(state, some, model))
                told = list(map(Move.between(before, after), told))
            found.append(told)
        return found

    def has_axes_of(self, names: Sequence[str]) -> bool:
        """Return whether there are clients, and all told axes of each stratum."""
        covariances = [self.told[name].covariance for name in names]
        return bool(names) and all(own is not None and own.ndim == 3 for own in covariances)

    def less(self, names: Sequence[str]) -> "Knowledge":
        """Return what the others told."""
        left_out = set(names)
        told = {name: own for name, own in self.told.items() if name not in left_out}
        clients = {name: own for name, own in self.clients.items() if name in told}
        return replace(self, told=told, models={name: self.models[name] for name in told}, clients=clients)

    def with_told(
        self,
        told: Mapping[str, Signature],
        models: Mapping[str, str],
        clients: Mapping[str, tuple[str, ...]] | None = None,
    ) -> "Knowledge":
        """Return what is known after clients, of which several may have done so together, told something.

        It is in the present spaces.
        """
        known = {**self.models, **{name: models[name] for name in told}}
        together = {name: own for name, own in (clients or {}).items() if name in told and len(own) > 1}
        before = {name: own for name, own in self.clients.items() if name not in told}
        return replace(self, told={**self.told, **told}, models=known, clients={**before, **together})

    def behind(self, name: str) -> tuple[str, ...]:
        """Return who told what is kept under a name."""
        return self.clients.get(name, (name,))


def features_of(server: Server, state: State, inputs: Tensor, model: str) -> Tensor:
    """Return the features that covariances are of, (samples, features)."""
    return looked_at(bounded(server.features(state, inputs, model)))


def bounded(features: Tensor) -> Tensor:
    """Return features as far as clients may tell of them: those of a model that diverged are no numbers."""
    return features.nan_to_num(0.0).clamp(-LARGEST_FEATURE, LARGEST_FEATURE)
