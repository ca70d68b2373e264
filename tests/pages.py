"""The commands of the pages: shell blocks, commands in the text, cells of notebooks, examples of `--help`."""

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"((?:^<!-- [^\n]* -->\n)*)^```(?:bash|sh|shell|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)
UNIT = re.compile(r"((?:^<!-- [^\n]* -->\n)*)^```ini\n(.*?)^```", re.MULTILINE | re.DOTALL)
PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`((?:disue|flwr|flower-\w+|docker|python|pip|pytest|tensorboard|[A-Z_]+=\S+ disue) [^`]+)`")
HERE_DOCUMENT = re.compile(r"<<'?(\w+)'?\n.*?^\1$", re.MULTILINE | re.DOTALL)
SEPARATORS = ("&&", "||", "|", ";", "&")


@dataclass(frozen=True)
class Command:
    """One command of a page.

    Attributes
    ----------
    page : str
        Its path in the project.
    labels : tuple of str
        Of the block: `<!-- label -->` before it.
    needs : str
        What the block says that it needs: `<!-- needs: ... -->` before it.
    words : tuple of str
        Without what is set before it, and without redirections.
    settings : tuple of str
        The variables that are set before it.
    whole : bool
        False: from the running text, and perhaps a part of a command.
    """

    page: str
    labels: tuple[str, ...]
    needs: str
    words: tuple[str, ...]
    settings: tuple[str, ...]
    whole: bool = True

    def __str__(self) -> str:
        return f"{self.page}: {' '.join((*self.settings, *self.words))}"[:120]


def commands() -> list[Command]:
    """Return all commands of all pages, each once."""
    return list(dict.fromkeys(_all()))


def _all() -> Iterator[Command]:
    for page in sorted((ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "docker").rglob("*.md"))):
        yield from of_page(page.relative_to(ROOT).as_posix(), page.read_text())
    for page in sorted((ROOT / "docs").rglob("*.ipynb")):
        name = page.relative_to(ROOT).as_posix()
        for cell in json.loads(page.read_text())["cells"]:
            text = "".join(cell["source"])
            if cell["cell_type"] == "markdown":
                yield from of_page(name, text)
            elif text.startswith(("%%bash", "%%sh")):
                yield from _of_shell(name, ("notebook",), "", text.partition("\n")[2])
            else:
                shell = "\n".join(line[1:] for line in text.splitlines() if line.startswith("!"))
                yield from _of_shell(name, ("notebook",), "", shell)
    examples = re.findall(r"^    - (disue .*)$", (ROOT / "disue_cli" / "main.py").read_text(), re.MULTILINE)
    yield from _of_shell("disue_cli/main.py", (), "", "\n".join(examples))
    for source in sorted((ROOT / "benchmarks").glob("*.py")):
        usages = re.findall(r"^    (python benchmarks/[^\[\n]*)", source.read_text(), re.MULTILINE)
        yield from _of_shell(source.relative_to(ROOT).as_posix(), (), "", "\n".join(usages))


def of_page(name: str, text: str) -> Iterator[Command]:
    """Yield the commands of a page in Markdown."""
    units = [(comments, _started_by(unit)) for comments, unit in UNIT.findall(text)]
    for comments, shell in BLOCK.findall(text) + units:
        said = re.findall(r"<!-- (.*?) -->", comments)
        labels = tuple(label for label in said if not label.startswith("needs:"))
        needs = ", ".join(label.removeprefix("needs:").strip() for label in said if label.startswith("needs:"))
        yield from _of_shell(name, labels, needs, shell)
    for span in SPAN.findall(re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)):
        yield from _of_shell(name, (), "", " ".join(span.split()), whole=False)


def _started_by(unit: str) -> str:
    """Return what a unit of systemd starts, without the directories of the programs, and with its variables."""
    unit = unit.replace("\\\n", " ")
    variables = " ".join(re.findall(r"^Environment=(.*)$", unit, re.MULTILINE))
    return "\n".join(f"{variables} {line}" for line in re.findall(r"^ExecStart=\S*/(.*)$", unit, re.MULTILINE))


def _of_shell(page: str, labels: tuple[str, ...], needs: str, shell: str, whole: bool = True) -> Iterator[Command]:
    shell = HERE_DOCUMENT.sub("", shell).replace("\\\n", " ")
    for line in shell.splitlines():
        words: list[str] = []
        for word in [*shlex.split(line, comments=True), "&&"]:
            if word not in SEPARATORS:
                words.append(word)
            elif words:
                yield _command(page, labels, needs, words, whole)
                words = []


def _command(page: str, labels: tuple[str, ...], needs: str, words: list[str], whole: bool) -> Command:
    count = next((i for i, word in enumerate(words) if not re.match(r"[A-Za-z_]+=", word)), len(words))
    kept = words[count:]
    for i, word in enumerate(kept):
        if re.fullmatch(r"\d?>{1,2}|<", word):
            kept = kept[:i]
            break
    return Command(page, labels, needs, tuple(kept), tuple(words[:count]), whole)
