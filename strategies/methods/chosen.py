"""What a run's settings choose."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from strategies.clustering.similarity import SIGNATURES, SignatureKind
from strategies.methods.base import METHODS, Method
from strategies.methods.declarations import Uses
from strategies.methods.parts import ASSIGNERS, AssignerKind
from strategies.methods.settings import StrategyConfig


@dataclass(frozen=True)
class Chosen:
    """What a run's settings choose: a method, and an assigner where the method takes one."""

    config: StrategyConfig

    @property
    def method(self) -> type[Method[Any]]:
        """The method; raise `ConfigError` if there is none of that name."""
        return METHODS[self.config.method]

    @property
    def assigner(self) -> AssignerKind | None:
        """The assigner; None: the method takes none."""
        return ASSIGNERS[self.config.clusterer] if self.method.uses.assigner else None

    @property
    def signature(self) -> SignatureKind | None:
        """What clients are compared by as the run's ``signature`` has it; None: they are not."""
        return SIGNATURES[self.config.signature] if self.assigner and self.assigner.by_signature else None

    def naming(self, what: Callable[[Uses], bool]) -> str | None:
        """Return the key, ``method`` or ``clusterer``, whose value takes something of a run; None: neither does."""
        if what(self.method.uses):
            return "method"
        return "clusterer" if self.assigner and what(self.assigner.uses) else None
