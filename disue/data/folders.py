"""Which images are below a folder, and what is left out there."""

import logging
import os
import stat
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from disue.errors import LOGGER, one_line
from disue.naming import quoted

SUFFIXES = frozenset(
    {".apng", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pfm", ".pgm", ".png", ".pnm", ".ppm"}
    | {".tif", ".tiff", ".webp"}
)
"""Endings of files in the formats that `disue.data.image_files` reads."""
CLUTTER = frozenset({".ds_store", "thumbs.db", "desktop.ini"})
"""What file managers put into folders; it is not counted."""
SHOWN = 3
"""Names shown of each kind that is left out."""
REASONS = 8
"""Reasons that are told, those for most files."""
logger = logging.getLogger(LOGGER)


@dataclass(frozen=True)
class Found:
    """The image files below a folder, sorted by path, and by reason the names of what else is there.

    Names are relative to the folder. ``twice`` has pairs of names under which the same folder is reached.
    """

    directory: Path
    paths: list[Path] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    twice: list[tuple[Path, Path]] = field(default_factory=list)

    @property
    def remark(self) -> str:
        """What is left out, for a line of text; empty if that is nothing."""
        reasons = sorted(self.left_out.items(), key=lambda item: (-len(item[1]), item[0]))
        parts = [f"{reason} ({len(names)}: {quoted(sorted(names), SHOWN)})" for reason, names in reasons[:REASONS]]
        if rest := reasons[REASONS:]:
            parts.append(f"others for {len(rest)} further reasons ({sum(len(names) for _, names in rest)})")
        return one_line(f"left out: {'; '.join(parts)}") if parts else ""

    @property
    def excuse(self) -> str:
        """The remark as the end of an error."""
        return f"; {self.remark}" if self.remark else ""

    @property
    def told(self) -> list[str]:
        """The remark as a line of its own, if there is one."""
        return [": ".join((one_line(f"'{self.directory}'"), self.remark))] if self.remark else []

    def tell(self) -> None:
        """Log what is left out, if anything is."""
        for line in self.told:
            logger.warning(line)


def search(directory: Path) -> Found:
    """Return the image files below a directory, by their endings, and what else is there.

    Hidden files and folders are left out. Symbolic links are followed, to files and to folders. Each folder is read
    once, under its own name rather than that of a link; a link to a folder around it is left out. Folders without an
    image are named.

    Raises
    ------
    OSError
        If a folder may not be read: its images would be missing.
    """
    found = Found(directory)
    read: dict[tuple[int, int], Path] = {}
    starts = deque([directory])
    while starts:  # links wait until all folders that are no links have been read
        for place, folders, files in os.walk(starts.popleft(), onerror=_give_up):
            folder = Path(place)
            status = folder.stat()
            if (identity := (status.st_dev, status.st_ino)) in read:
                _leave_out(found, folder, "folders that are read already")
                found.twice.append((read[identity].relative_to(directory), folder.relative_to(directory)))
                folders.clear()
                continue
            read[identity] = folder
            for name in sorted(files):
                _sort_in(found, folder / name)
            shown = sorted(name for name in folders if not _hidden(found, folder / name))
            starts += [link for name in shown if (link := folder / name).is_symlink() and not _loops(found, link)]
            folders[:] = [name for name in shown if not (folder / name).is_symlink()]
    found.paths.sort()
    holders = {path.parent for path in found.paths}
    full = {directory, *holders}.union(*(folder.parents for folder in holders))
    for folder in read.values():
        if folder not in full and folder.parent in full:  # what is below it needs no mention of its own
            _leave_out(found, folder, "folders without images")
    return found


def images_below(directory: Path) -> list[Path]:
    """Return the image files below a directory, sorted by path; see `search`."""
    return search(directory).paths


def _give_up(error: OSError) -> None:
    raise error


def _leave_out(found: Found, path: Path, reason: str) -> None:
    found.left_out.setdefault(reason, []).append(path.relative_to(found.directory).as_posix())


def _hidden(found: Found, path: Path) -> bool:
    if hidden := path.name.startswith("."):
        _leave_out(found, path, "hidden")
    return hidden


def _loops(found: Found, link: Path) -> bool:
    """Leave out a link that leads to a folder which it is in itself, or to one that the whole directory is in."""
    target = os.path.realpath(link)
    around = any(Path(os.path.realpath(place)).is_relative_to(target) for place in (link.parent, found.directory))
    if around:
        _leave_out(found, link, "links to a folder around them")
    return around


def _sort_in(found: Found, path: Path) -> None:
    """Enter a file, or why it is left out."""
    if path.name.lower() in CLUTTER or _hidden(found, path):
        return
    try:
        is_file = stat.S_ISREG(path.stat().st_mode)
    except OSError as error:
        _leave_out(found, path, f"what cannot be opened, {(error.strerror or type(error).__name__).lower()}")
        return
    if not is_file:
        _leave_out(found, path, "what is no file")
    elif path.suffix.lower() in SUFFIXES:
        found.paths.append(path)
    else:
        ending = path.suffix.lower()
        _leave_out(found, path, f"files with the ending {ending}" if ending else "files without an ending")
