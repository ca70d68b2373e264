"""What a header announces is not allocated, before it is known to be there."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

CRAFTED = """
import io, json, resource, struct, sys, zipfile, zlib
from pathlib import Path
import numpy as np, torch, tomli_w
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from server_app.config import RunConfig
from disue.data.idx import read_idx
from disue.data.image_files import read_image
from disue.data.own import read_own
from disue.errors import DisueError
from disue.files import read_tensors
from disue.models import build_model, get_state
from disue.runs.reading import load_run
from disue.files import write_tensors
from disue.wire import DescribeReply

place = Path(sys.argv[1])
def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
def npy(shape):
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}\\n".encode()
    return b"\\x93NUMPY\\x01\\x00" + struct.pack("<H", len(text)) + text + bytes(64)

def png():
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    (place / "a.png").write_bytes(b"\\x89PNG\\r\\n\\x1a\\n" + head + chunk(b"IDAT", zlib.compress(bytes(99))))
    read_image(place / "a.png", 3, "a.png")
def header_of_an_array():
    with zipfile.ZipFile(place / "a.npz", "w") as archive:
        archive.writestr("x.npy", npy((3_000_000_000, 1, 1)))
        archive.writestr("y.npy", npy((4,)))
    read_own(place / "a.npz", (1, 8, 8))
def bomb():
    with zipfile.ZipFile(place / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("x.npy", "y.npy"):
            archive.writestr(name, npy((3_000_000_000, 1, 1)))
        for about in archive.filelist:
            about.file_size = 3_000_000_078  # as the directory at the end will say
    read_own(place / "bomb.npz", (1, 8, 8))
def many_tiny_images():
    np.savez_compressed(place / "tiny.npz", x=np.zeros((60_000_000, 1, 2), dtype=np.uint8), y=np.zeros(4))
    from disue.data.inputs import read_inputs
    read_inputs([place / "tiny.npz"], (3, 2048, 2048))
def idx():
    (place / "a").write_bytes(b"\\0\\0\\x08\\x03" + struct.pack(">3I", 2**31, 2**31, 2**31) + bytes(9))
    read_idx(place / "a")
def packed_idx():
    import gzip
    with gzip.open(place / "b.gz", "wb", 1) as file:
        file.write(b"\\0\\0\\x08\\x01" + struct.pack(">I", 64))
        for _ in range(300):
            file.write(bytes(1_000_000))
    read_idx(place / "b.gz")
def safetensors():
    head = json.dumps({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    (place / "a.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + bytes(64))
    read_tensors(place / "a.safetensors")
def wire():
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
    asked = Message(RecordDict(), 1, "query")
    asked.metadata.__dict__["_message_id"] = "1"
    record = ArrayRecord({"description": Array("uint8", (2**32, 2), "numpy.ndarray", npy((2**32, 2)))})
    DescribeReply.from_message(Message(RecordDict({"signature": record}), reply_to=asked))
def run_of_huge_inputs():
    run = place / "run"
    run.mkdir()
    task = {"classes": ["a", "b"], "input-shape": "3x2048x2048", "mean": [0.5] * 3, "std": [0.5] * 3}
    (run / "config.toml").write_text(tomli_w.dumps({"run": RunConfig().to_flower(), "task": task}))
    (run / "summary.json").write_text('{"status": "completed"}')
    (run / "clients.csv").write_text("client,cluster\\n")
    write_tensors(run / "universal.safetensors", get_state(build_model("mlp", (1, 8, 8), 2)), {"model": "mlp"})
    load_run(run).universal
def a_class_of_a_huge_number():
    from server_app.report.reading import teaching_shares
    from disue.files import read_text
    (place / "teaching.csv").write_text("expert,class,weight,samples\\n0,999999999,0.5,3\\n")
    read_text(place / "teaching.csv", teaching_shares)

torch.set_num_threads(1)
for name in sys.argv[2:]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        globals()[name]()
        said = "taken"
    except DisueError as error:
        said = str(error)
    taken = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    print(json.dumps([name, taken, said]))
"""
CASES = {
    "png": "'a.png' cannot be read (Image size (3600000000 pixels) exceeds limit",
    "header_of_an_array": "its header announces 3000000000 bytes of data, and 64 follow",
    "bomb": "x.npy is announced with 3000000078 bytes",
    "many_tiny_images": "60,000,000 images of 3x2048x2048 pixels take",
    "idx": "at most 1073741824 bytes are read",
    "packed_idx": "the header says 64 bytes, more follow",
    "safetensors": "a.safetensors' is damaged",
    "wire": "its header announces 8589934592 bytes of data, and 64 follow",
    "run_of_huge_inputs": "its parameters are not those of model",
    "a_class_of_a_huge_number": "999999999 is no class",
}
MOST_MEGABYTES = 150


@pytest.mark.e2e
def test_what_a_crafted_header_announces_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CRAFTED, str(tmp_path), *CASES]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [name for name, _, _ in results] == list(CASES)
    for name, megabytes, said in results:
        assert CASES[name] in said, name
        assert megabytes < MOST_MEGABYTES, name
