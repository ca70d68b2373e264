"""The table of run config keys, made from `disue.config` and the registries: ``python -m disue_cli.config_table``."""

from typing import Any, get_args

from disue.config import RunConfig
from server_app.methods import REGISTRIES

HEADER = """# Run config

Every key of a run, with its default. Override with `disue simulate --set key=value`, or with
`flwr run . --run-config 'key=value'` (strings quoted there: `--run-config 'dataset="fashion-mnist"'`).

| key | default | allowed | meaning |
| --- | --- | --- | --- |
"""
FOOTER = "\nThis page is made by `python -m disue_cli.config_table > docs/CONFIG.md`.\n"


def config_table() -> str:
    """Return the page as Markdown."""
    names = {registry.key: list(registry) for registry in REGISTRIES}
    rows = []
    for name, field in RunConfig.model_fields.items():
        key = name.replace("_", "-")
        allowed = names.get(key) or [choice for choice in get_args(field.annotation) if choice]
        limits = ", ".join(map(str, allowed)) if allowed else _limits(field.metadata, field.annotation)
        text = str(field.default).lower() if isinstance(field.default, bool) else str(field.default)
        default = f"`{text}`" if text else "empty"
        rows.append(f"| `{key}` | {default} | {limits} | {field.description} |")
    return HEADER + "\n".join(rows) + "\n" + FOOTER


def _limits(metadata: list[Any], annotation: Any) -> str:
    words = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
    ends = [(words[kind], getattr(rule, kind)) for rule in metadata for kind in words if hasattr(rule, kind)]
    limits = [f"{word} {end if isinstance(end, int) else format(end, 'g')}" for word, end in ends]
    return ", ".join([annotation.__name__, *limits])


if __name__ == "__main__":
    print(config_table(), end="")
