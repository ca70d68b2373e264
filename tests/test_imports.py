"""What is not imported, because it takes too long."""

import subprocess
import sys

import pytest

TRAIN_AND_DISTIL = """
import sys, torch
from client_app.train import train
from disue.config import ClientConfig
from disue.data import Examples
from disue.models import build_model
from disue.objective import PLAIN
from disue.tasks import ImageClassification
from strategies.distillation.distiller import Distiller
from strategies.distillation.generator import Generator, GeneratorOptions, GeneratorTrainer

cpu = torch.device("cpu")
model, data = build_model("mlp", (1, 4, 4), 3), Examples(torch.randn(6, 1, 4, 4), torch.zeros(6, dtype=torch.int64))
task = ImageClassification(("a", "b", "c"), (1, 4, 4), (0.0,), (1.0,))
train(model, data, ClientConfig(), PLAIN, torch.Generator(), cpu, task)
assert "torch._dynamo" not in sys.modules, "by a client"
Distiller().distil(task, model, data.x, torch.randn(6, 3), torch.Generator(), cpu)
GeneratorTrainer(Generator((1, 4, 4), 3), lambda x: x, GeneratorOptions(), cpu)
assert "torch._dynamo" not in sys.modules, "by the server"
"""


@pytest.mark.e2e
def test_neither_client_nor_server_imports_pytorchs_compiler() -> None:
    """With an optimizer object they would, which takes as long again as importing PyTorch."""
    subprocess.run([sys.executable, "-c", TRAIN_AND_DISTIL], check=True)
