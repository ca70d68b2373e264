"""The page of run config keys, made from the sections and the registries: ``python -m disue_cli.config_table``."""

from collections.abc import Mapping
from typing import Any, get_args

from pydantic.fields import FieldInfo

from disue.config import Settings
from server_app.checks import REGISTRIES
from server_app.config import RunConfig

HEADER = """# Run config

Every key of a run, with its default. Override with `disue simulate --set key=value`, or with
`flwr run . --run-config 'key=value'` (strings quoted there: `--run-config 'dataset="fashion-mnist"'`).
Each part declares its own keys; the file is named below its heading. In `disue compare`, a method may set keys for
itself alone (`disue:KEY=VALUE`) in all sections but those that are marked *shared*, and a scenario those of *Data*.
"""
TABLE = """
| key | default | allowed | meaning |
| --- | --- | --- | --- |
"""
FOOTER = "\nThis page is made by `python -m disue_cli.config_table > docs/CONFIG.md`.\n"


def config_table() -> str:
    """Return the page as Markdown."""
    names = {registry.key: list(registry) for registry in REGISTRIES}
    return HEADER + "".join(_section(section, names) for section in RunConfig.complete().sections()) + FOOTER


def _section(section: type[Settings], names: Mapping[str, list[str]]) -> str:
    """Return a heading and a table; ``names``: the parts that a key may name."""
    heading = (section.__doc__ or "").partition("\n")[0].removesuffix(".")
    file = f"`{section.__module__.replace('.', '/')}.py`"
    rows = "".join(_row(key, field, names) for key, field in section.own_keys().items())
    return f"\n## {heading}\n\n{file}{', *shared*' if section.shared else ''}\n{TABLE}{rows}"


def _row(key: str, field: FieldInfo, names: Mapping[str, list[str]]) -> str:
    allowed = names.get(key) or [choice for choice in get_args(field.annotation) if choice]
    limits = ", ".join(map(str, allowed)) if allowed else _limits(field.metadata, field.annotation)
    text = str(field.default).lower() if isinstance(field.default, bool) else str(field.default)
    default = f"`{text}`" if text else "empty"
    return f"| `{key}` | {default} | {limits} | {field.description} |\n"


def _limits(metadata: list[Any], annotation: Any) -> str:
    words = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
    ends = [(words[kind], getattr(rule, kind)) for rule in metadata for kind in words if hasattr(rule, kind)]
    limits = [f"{word} {end if isinstance(end, int) else format(end, 'g')}" for word, end in ends]
    return ", ".join([annotation.__name__, *limits])


if __name__ == "__main__":
    print(config_table(), end="")
