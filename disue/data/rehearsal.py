"""A rehearsal: a simulation in which each client has data of its own, as on a real machine."""

import os
from pathlib import Path

from disue.data.folders import CLUTTER, SUFFIXES
from disue.errors import DataError
from disue.files import user_path
from disue.naming import LONGEST_NAME, by_name, normal_name, quoted

KEY = "own-data"


def clients_below(directory: str) -> dict[str, Path]:
    """Return where the data of each client are, by the clients' names and in their order (`by_name`).

    Each folder and each ``.npz`` file is a client, called as it is, without the ending. Hidden files are none.

    Raises
    ------
    DataError
        If it is no directory, cannot be read, or has no clients, or what is in it cannot be one.
    """
    place = user_path(directory, KEY)
    try:
        entries = [entry for entry in os.scandir(place) if not _is_clutter(entry.name)]
        found = {Path(entry.path): entry.is_dir() for entry in entries}
    except OSError as error:
        raise DataError(f"{KEY}: '{directory}' cannot be read ({error.strerror})") from None
    other = by_name(path.name for path, folder in found.items() if not folder and path.suffix.lower() != ".npz")
    if other:
        raise DataError(
            f"{KEY}: '{directory}' has {quoted(other, 3)}; expected a folder or an .npz file for each client, no others"
        )
    clients: dict[str, Path] = {}
    for path in sorted(found):
        name = normal_name(path.name if found[path] else path.stem)
        if name in clients:
            twice = quoted([clients[name].name, path.name])
            raise DataError(f"{KEY}: {twice} in '{directory}' are of one client; keep one of them")
        if not name.isprintable() or len(name) > LONGEST_NAME:
            raise DataError(
                f"{KEY}: {name!r} in '{directory}' can be no client's name; use printable text of up to {LONGEST_NAME} "
                "letters"
            )
        clients[name] = path
    if not clients:
        raise DataError(f"{KEY}: '{directory}' is empty; expected a folder or an .npz file for each client")
    return {name: clients[name] for name in by_name(clients)}


def is_pool(place: Path) -> bool:
    """Return whether files are one pool, for a scenario to divide: an ``.npz`` file, or a folder of images per class.

    Where the folders have no images themselves, but folders of them, they are clients.
    """
    if not place.is_dir():
        return place.suffix.lower() == ".npz"
    folders = [entry for entry in place.iterdir() if entry.is_dir() and not _is_clutter(entry.name)]
    return any(path.suffix.lower() in SUFFIXES for folder in folders for path in folder.iterdir())


def _is_clutter(name: str) -> bool:
    return name.startswith(".") or name.lower() in CLUTTER
