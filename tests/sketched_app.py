"""The app as other processes get it, with the methods of `sketches`: a method is a file of the app."""

import shutil
from pathlib import Path

from disue_cli.engines.flower import copy_app
from tests import sketches


def copy_sketched_app(target: Path) -> Path:
    """Copy the app as `copy_app` does, and add the methods."""
    methods = copy_app(target) / "strategies" / "methods"
    shutil.copy(sketches.__file__, methods / "sketches.py")
    with (methods / "__init__.py").open("a") as file:
        file.write('\nimport_module("strategies.methods.sketches").register()\n')
    return target
