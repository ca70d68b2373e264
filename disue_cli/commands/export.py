"""`disue export`: a run's models as files that need no DisUE."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from disue.errors import ConfigError, DataError, DisueError
from disue.files import inside, user_path, whole
from disue.runs.reading import Model, Run, load_run

ALL = "all"
TOLERANCE = 1e-4
"""Most that a logit of an exported model may differ from PyTorch's."""
BATCHES = (1, 3)
"""Batch sizes that an exported model is tried with."""
INPUT, OUTPUT = "pixels", "logits"


def export(directory: Path, form: str, expert: str, output: Path | None) -> None:
    """Write models of a run as ONNX or PyTorch programs and say where; see ``disue export --help``.

    Raises
    ------
    ConfigError
        If there is no such expert, or the extra is not installed.
    DataError
        If there is no finished run, it is damaged, or the file cannot be written.
    """
    run = load_run(directory)
    names = [*run.universals, *run.experts] if expert == ALL else [expert]
    models = [run.model(name) for name in names]
    if form == "onnx":
        _require_onnx()
    for model, path in zip(models, _places(run, models, FORMATS[form][1], output, expert == ALL), strict=True):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_model(model, path, form, _about(run, model))
        except OSError as error:
            raise DataError(f"'{path}' cannot be written ({error.strerror or error})") from None
        Console(highlight=False).print(f"{model.name}: {path}", soft_wrap=True, markup=False)


def write_model(model: Model, path: Path, form: str, about: dict[str, Any]) -> None:
    """Write a model as a file of this format; it replaces what was there once it was compared with PyTorch.

    Raises
    ------
    DisueError
        If it differs.
    """
    # PyTorch's own exporter uses what PyTorch deprecates.
    with whole(path) as part, warnings.catch_warnings(action="ignore", category=FutureWarning):
        FORMATS[form][0](model, part, about)


def _places(run: Run, models: list[Model], ending: str, output: Path | None, many: bool) -> list[Path]:
    """Return where each model goes: ``output``, or ``export/`` in the run; of many, ``output`` is a folder."""
    if output is not None and not many:
        file = user_path(output, "--output")
        if file.is_dir():
            raise ConfigError(f"--output: '{output}' is a folder; name a file, or use --expert all")
        return [file]
    folder = inside(run.directory, "export") if output is None else user_path(output, "--output")
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--output: '{folder}' is a file; with --expert all name a folder")
    names = [model.name if model.name in run.universals else f"expert-{model.name}" for model in models]
    return [folder / f"{name}{ending}" for name in names]


def _about(run: Run, model: Model) -> dict[str, Any]:
    """Return what is written into the file beside the model."""
    return {
        "model": model.name,
        "architecture": model.architecture,
        "classes": list(run.task.class_names),
        "input": f"{INPUT}: float32 (batch, {', '.join(map(str, run.task.shape))}), pixels from 0 to 1, not normalised",
        "output": f"{OUTPUT}: float32 (batch, {run.task.num_classes}), in the order of the classes; softmax gives "
        "probabilities",
        "method": run.config.method,
        "dataset": run.config.dataset,
    }


def _write_torch(model: Model, path: Path, about: dict[str, Any]) -> None:
    batch = torch.export.Dim("batch", min=1)
    example = torch.zeros(2, *model.task.shape)
    program = torch.export.export(model.module.eval(), (example,), dynamic_shapes=({0: batch},))
    with path.open("wb") as file:
        torch.export.save(program, file, extra_files={"disue.json": json.dumps(about, indent=1)})
    with path.open("rb") as file:
        again = torch.export.load(file).module()
    _check(model, again)


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"--format: onnx needs the package {error.name}; install the extra: pip install 'disue[onnx]'"
        ) from None


def _write_onnx(model: Model, path: Path, about: dict[str, Any]) -> None:
    import onnxruntime

    example = torch.zeros(2, *model.task.shape)
    program = torch.onnx.export(
        model.module.eval(),
        (example,),
        dynamo=True,
        verbose=False,
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
    )
    assert program is not None
    proto = program.model_proto
    for key, value in about.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value if isinstance(value, str) else json.dumps(value)
    path.write_bytes(proto.SerializeToString())
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    _check(model, lambda pixels: torch.from_numpy(session.run([OUTPUT], {INPUT: pixels.numpy()})[0]))


def _check(model: Model, exported: Callable[[Tensor], Tensor]) -> None:
    """Compare an exported model with what it was made from; raise `DisueError` if they differ."""
    rng = np.random.default_rng(0)
    for batch in BATCHES:
        pixels = torch.from_numpy(rng.random((batch, *model.task.shape), dtype=np.float32))
        with torch.inference_mode():
            difference = float((exported(pixels) - model.module(pixels)).abs().max())
        if not difference <= TOLERANCE:
            raise DisueError(
                f"the exported '{model.name}' differs from PyTorch by {difference:g} in a logit, "
                f"more than {TOLERANCE:g}; it is not written"
            )


FORMATS: dict[str, tuple[Callable[[Model, Path, dict[str, Any]], None], str]] = {
    "onnx": (_write_onnx, ".onnx"),
    "torch": (_write_torch, ".pt2"),
}
