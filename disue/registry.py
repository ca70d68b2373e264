"""Named parts: adding a dataset, model, scenario, clusterer or teacher is one function and one decorator."""

import difflib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Generic, TypeVar

from disue.config import Settings
from disue.errors import ConfigError

T = TypeVar("T")


def suggestion(word: str, allowed: list[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the allowed word nearest to ``word``, or an empty string."""
    near = difflib.get_close_matches(word, allowed, n=1)
    return f" (did you mean '{near[0]}'?)" if near else ""


class Registry(Mapping[str, T], Generic[T]):
    """A read-only mapping from config values to parts, filled by the decorator `register`.

    Parameters
    ----------
    key : str
        The config key whose values these are; it is named in errors.
    """

    def __init__(self, key: str) -> None:
        self.key = key
        self._parts: dict[str, T] = {}
        self._settings: dict[str, type[Settings]] = {}

    def register(self, name: str, settings: type[Settings] | None = None) -> Callable[[T], T]:
        """Return a decorator that enters a part under ``name``.

        Parameters
        ----------
        name : str
        settings : type of Settings, optional
            The keys of a run that belong to the part.
        """

        def enter(part: T) -> T:
            if name in self._parts:
                raise ValueError(f"{self.key} '{name}' is registered twice")
            self._parts[name] = part
            if settings is not None:
                self._settings[name] = settings
            return part

        return enter

    @property
    def settings(self) -> list[type[Settings]]:
        """The sections of the run config that belong to parts."""
        return list(self._settings.values())

    def configured(self, name: str, config: Settings) -> T:
        """Return the function called ``name``; one that has keys is given them, as its argument ``settings``."""
        part: Any = self[name]
        if name in self._settings:
            part = partial(part, settings=self._settings[name].of(config))
        configured: T = part
        return configured

    @contextmanager
    def scope(self, instead: Mapping[str, T] | None = None) -> Iterator[None]:
        """Forget at the end what was registered inside.

        Parameters
        ----------
        instead : mapping of str to part, optional
            Parts that stand inside for those of the same names.
        """
        before = dict(self._parts), dict(self._settings)
        self._parts |= instead or {}
        try:
            yield
        finally:
            self._parts, self._settings = before

    def __getitem__(self, name: str) -> T:
        """Return the part called ``name``; raise `ConfigError` that lists the names there are."""
        return self.pick(name, self.key)

    def pick(self, name: str, key: str) -> T:
        """Return the part called ``name``, which another key than the registry's own asks for."""
        if name not in self._parts:
            names = list(self._parts)
            raise ConfigError(
                f"{key}: '{name}' does not exist{suggestion(name, names)}; choose from {', '.join(names)}"
            )
        return self._parts[name]

    def __contains__(self, name: object) -> bool:
        return name in self._parts

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)
