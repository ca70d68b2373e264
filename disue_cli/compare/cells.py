"""The cells of a comparison: one run each, in worker processes that stay, each with one thread."""

import json
import logging
import multiprocessing
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from disue.errors import ConfigError, DisueError, FederationError
from disue.files import inside, json_numbers, read_text, run_summary, whole
from disue.source import source_hash
from server_app.config import RunConfig, stored_settings

Summary = dict[str, Any]
RECORD = "cell.json"
"""Written last: wall and CPU seconds of the run, and the hash of the source code that it ran."""
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Cell:
    """One method on one scenario of one dataset with one seed.

    ``label`` is the method as it was asked for, with its own settings: ``disue:clusterer=kmeans``. So is ``scenario``:
    ``dirichlet:alpha=0.3``.
    """

    dataset: str
    scenario: str
    label: str
    config: RunConfig
    clients: int
    root: Path

    @property
    def seed(self) -> int:
        """The run seed."""
        return self.config.seed

    @property
    def name(self) -> str:
        """The name of the run directory."""
        return f"{for_files(self.dataset)}-{for_files(self.scenario)}-{for_files(self.label)}-seed{self.seed}"

    @property
    def directory(self) -> Path:
        """The run directory."""
        return self.root / self.name

    def summary(self) -> Summary | None:
        """Return ``summary.json`` and what the run took (`RECORD`) if the cell is finished, else None.

        Raises
        ------
        ConfigError
            If the directory holds a run of another configuration.
        """
        if not (self.directory / "config.toml").exists():
            return None
        settings = read_text(self.directory / "config.toml", stored_settings)
        wanted = {"clients": self.clients} | self.config.to_flower()
        found = {"clients": len(settings.get("federation", {}).get("clients", []))} | settings["run"]
        for key in wanted.keys() - {"output-dir", "report"}:
            if found.get(key) != wanted[key]:
                raise ConfigError(
                    f"--output: '{self.directory}' is a run with {key} {found.get(key)!r}, not {wanted[key]!r}; "
                    "name another directory"
                )
        if not (self.directory / RECORD).exists():
            return None
        summary = read_text(self.directory / "summary.json", run_summary)
        return {**summary, **read_text(self.directory / RECORD, lambda text: json_numbers(text, ("source",)))}

    def rows(self) -> list[dict[str, Any]]:
        """Return the rounds of a finished cell."""
        from server_app.report.reading import metrics_rows

        return read_text(self.directory / "metrics.jsonl", metrics_rows)


def for_files(label: str) -> str:
    """Return a dataset, or a method or a scenario with its own settings, as names of files have it.

    Examples
    --------
    >>> for_files("disue:proxy=path:a/b")
    'disue_proxy=path_a_b'
    """
    return re.sub(r"[^\w.=+-]", "_", label)


def run_cells(cells: Sequence[Cell], workers: int, on_done: Callable[[Cell, Summary | DisueError], None]) -> list[Cell]:
    """Run cells that are not finished, in parallel, and return those that failed.

    Parameters
    ----------
    cells : list of Cell
        What an earlier attempt left in their directories is removed.
    workers : int
        Processes; each computes with one thread.
    on_done : callable
        Called with each cell as it ends, and its summary or what went wrong.

    Raises
    ------
    FederationError
        If a worker process dies.
    """
    failed = []
    context = multiprocessing.get_context("forkserver")  # it imports what follows once, for all workers
    context.set_forkserver_preload(["disue_cli.engines.inline"])
    pool = ProcessPoolExecutor(min(workers, len(cells)), context, initializer=prepare_worker)
    try:
        with _one_thread_for_children():
            futures: dict[Future[Summary | DisueError], Cell] = {pool.submit(run_cell, cell): cell for cell in cells}
        for future in as_completed(futures):
            result = future.result()
            if isinstance(result, DisueError):
                failed.append(futures[future])
            on_done(futures[future], result)
    except BrokenProcessPool:
        raise FederationError(
            "a worker process died, perhaps for want of memory; the finished cells are kept: repeat the command, "
            "with fewer --workers"
        ) from None
    finally:
        for process in multiprocessing.active_children():
            process.terminate()  # after an error or a signal they would finish their cells first
        pool.shutdown(cancel_futures=True)
    return failed


@contextmanager
def _one_thread_for_children() -> Iterator[None]:
    """Tell the numerical libraries of processes started inside; they read it once, when they are loaded."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ |= dict.fromkeys(THREAD_VARIABLES, "1")
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def cores() -> int:
    """Return how many cores this process may use: all, where the system does not say."""
    usable: Callable[[int], set[int]] | None = getattr(os, "sched_getaffinity", None)
    return len(usable(0)) if usable else os.cpu_count() or 1


def prepare_worker() -> None:
    """Make this process one of many that compute runs: one thread, quiet, and gone with its parent."""
    import flwr.common.logger  # noqa: F401  (it makes the handler)
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    for handler in logging.getLogger("flwr").handlers:  # warnings are kept in each run's directory
        handler.setLevel(logging.CRITICAL)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def run_cell(cell: Cell) -> Summary | DisueError:
    """Carry out one cell in this process, and return its summary, or what went wrong.

    What an earlier attempt left in its directory is removed.
    """
    from disue_cli.engines.inline import run_inline
    from server_app.run_lock import in_use, is_held
    from strategies.aggregation.store import give_back_freed_memory

    if is_held(cell.directory):  # by a command that goes on with this run alone
        return ConfigError(in_use(cell.directory, "--output"))
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        inside(cell.directory.parent, cell.directory.name)
        shutil.rmtree(cell.directory, ignore_errors=True)
        summary = run_inline(cell.config.model_copy(update={"output_dir": str(cell.directory)}), cell.clients)
        record = {
            "wall_seconds": round(time.perf_counter() - wall, 3),
            "cpu_seconds": round(time.process_time() - cpu, 3),
            "source": source_hash(),
        }
        if summary["status"] != "completed":
            return FederationError(f"the run was {summary['status']}: {summary.get('error')}")
        write_whole(cell.directory / RECORD, lambda path: path.write_text(json.dumps(record) + "\n", encoding="utf-8"))
        return {**summary, **record}
    except DisueError as error:
        return error
    except Exception as error:  # one run that breaks, whatever the reason, must not cost the others
        return FederationError(f"{type(error).__name__}: {error}")
    finally:
        give_back_freed_memory()  # the next run needs other sizes


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside its place and move it there, so that it is never half written."""
    with whole(path) as part:
        write(part)


def seconds_left(pending: Sequence[Cell], finished: Sequence[tuple[Cell, Summary]], workers: int) -> float | None:
    """Estimate the seconds that pending cells will take; None before any is finished.

    A cell is expected to take as long as the finished ones of its dataset and method did on the mean, or else of its
    dataset, or else of all.
    """
    if not finished:
        return None

    def expected(cell: Cell) -> float:
        for alike in (
            lambda other: (other.dataset, other.label) == (cell.dataset, cell.label),
            lambda other: other.dataset == cell.dataset,
            lambda other: True,
        ):
            known = [summary["wall_seconds"] for other, summary in finished if alike(other)]
            if known:
                return float(mean(known))
        raise AssertionError("unreachable: some cell is finished")

    return sum(map(expected, pending)) / workers
