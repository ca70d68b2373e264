"""The tutorial, from its first cell to its last, as a reader runs it."""

import os
import sys
import time
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

TUTORIAL = Path(__file__).resolve().parents[2] / "docs" / "tutorial.ipynb"


@pytest.mark.e2e
@pytest.mark.timeout(600)
def test_the_tutorial_runs_in_three_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    notebook = nbformat.read(TUTORIAL, as_version=4)
    start = time.monotonic()
    NotebookClient(notebook, timeout=180, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert time.monotonic() - start < 180
    printed = [
        output["text"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.output_type == "stream"
    ]
    assert not [text for text in printed if "disue: " in text]  # what a command prints where it refuses or fails
    (directory,) = tmp_path.glob("*/disue")
    assert (directory / "report.html").is_file()
    assert (directory.parent / "comparison.html").is_file()
