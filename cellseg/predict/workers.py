"""Predict tiles in several processes on this machine or on a cluster, with Dask's `distributed`.

The process of the command, the client, plans and stores the tiles; workers load the networks and
predict blocks of tiles, which they read themselves. So they need only see the images and the run.
The tiles of a worker that ends are predicted by another. docs/slides.md describes clusters.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import itertools
import logging
import os
import pickle
import queue
import socket
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from fvcore.common.config import CfgNode

from cellseg.device import ANY_DEVICE, choose_device
from cellseg.distributed import environment
from cellseg.errors import InputError
from cellseg.files import read_json
from cellseg.messages import collect_warnings, plural, warn
from cellseg.predict.inputs import TileJob
from cellseg.predict.job import PendingTile, PredictTiles, predict_here
from cellseg.predict.networks import Networks
from cellseg.predict.predictor import Predictor
from cellseg.predict.tile_store import file_state
from cellseg.predict.unusual import BrightnessCheck
from cellseg.predictions import Predictions

if TYPE_CHECKING:
    from distributed import Client, Future
    from distributed.deploy.spec import SpecCluster

_BLOCK = 16  # tiles of a task: neighbours share reads, and what a task costs besides
_ATTEMPTS = 3  # workers that may end with a block before its tiles count as failed
_CONNECT_SECONDS = 10
# Open in this process: with 2 workers up to 44, of a table of slides 56; with 4 workers 66.
_FILES, _FILES_OF_WORKER, _MOST_FILES = 40, 12, 65536
_POLL_SECONDS = 30


class Workers:
    """Workers of a Dask cluster that predict tiles.

    `load` makes the `Predictor` of a worker. It is sent to them, with the tiles: a function of a
    module, or a `functools.partial` of one.
    """

    def __init__(self, client: Client, load: Callable[[], Predictor], remote: bool = False) -> None:
        self._client = client
        self._load = pickle.dumps(load)
        self._remote = remote
        self._warned: set[str] = set()
        self._n_workers, self._counted = 0, 0.0

    def predict(
        self, groups: Iterable[Sequence[PendingTile]]
    ) -> Generator[tuple[Any, Predictions | Exception], None, None]:
        """Predict tiles, as `cellseg.predict.job.PredictTiles` does.

        Only a few blocks for each worker are under way, so that memory doesn't grow. Close the
        generator unless you exhaust it.

        Raises InputError if a worker can't load the networks, or the connection is lost.
        """
        brightness = BrightnessCheck()
        running: dict[Future, list[PendingTile]] = {}
        ended: queue.SimpleQueue[Future] = queue.SimpleQueue()
        self._count_workers()
        blocks = self._blocks(groups)
        try:
            while True:
                n_free = max(0, 2 * self._n_workers + 1 - len(running))
                for block in itertools.islice(blocks, n_free):
                    future = self._submit(block)
                    running[future] = block
                    future.add_done_callback(ended.put)
                if not running:
                    brightness.warn()
                    return
                with contextlib.suppress(queue.Empty):
                    future = ended.get(timeout=_POLL_SECONDS)
                    yield from self._results(future, running.pop(future), brightness)
                self._count_workers()
        finally:
            self._client.cancel(list(running))

    def _count_workers(self) -> None:
        """Count the workers, which may come and go; wait for the first, and say so."""
        if self._n_workers and time.monotonic() < self._counted + _POLL_SECONDS:
            return
        self._counted = time.monotonic()
        self._n_workers = self._client.scheduler_info(n_workers=0)["n_workers"]
        if not self._n_workers:
            print(f"waiting for workers at {self._client.scheduler.address}", flush=True)
            self._client.wait_for_workers(1)
            self._n_workers = 1

    def _blocks(self, groups: Iterable[Sequence[PendingTile]]) -> Iterator[list[PendingTile]]:
        """Split groups into blocks, small enough that all workers end at about the same time."""
        for group in groups:
            size = max(1, min(_BLOCK, len(group) // (4 * self._n_workers)))
            for start in range(0, len(group), size):
                yield [*group[start : start + size]]

    def _submit(self, block: Sequence[PendingTile]) -> Future:
        jobs = [
            replace(job, image=job.image.absolute()) if isinstance(job.image, Path) else job
            for _, job in block
        ]
        call = pickle.dumps(_Call((self._load, _versions(), jobs)))
        return self._client.submit(pickle.loads, call, pure=False)

    def _results(
        self, future: Future, block: Sequence[PendingTile], brightness: BrightnessCheck
    ) -> Iterator[tuple[Any, Predictions | Exception]]:
        """Yield the results of a block with the keys of its tiles."""
        if future.status in ("cancelled", "lost"):
            raise InputError(
                f"--scheduler {self._client.scheduler.address}: lost the connection; run the same "
                "command again to continue"
            )
        error = future.exception() if future.status == "error" else None
        if error is None:
            result = future.result()
            brightness.add_counts(result.brightness)
            if result.problem:
                raise InputError(f"{result.problem}{self._where(result.host)}")
            for message in result.warnings:
                if message not in self._warned:
                    self._warned.add(message)
                    warn(message + self._where(result.host))
            for (key, _), tile in zip(block, result.tiles, strict=True):
                if isinstance(tile, InputError) and self._remote:
                    tile = InputError(f"{tile}{self._where(result.host)}")
                yield key, tile
            return
        if isinstance(error, ModuleNotFoundError):
            raise InputError(
                f"--scheduler {self._client.scheduler.address}: a worker lacks a package "
                f"({error}); start the workers in the same environment as this command, with "
                f"PYTHONPATH={Path(__file__).parents[2]} unless cellseg is installed there"
            )
        for key, job in block:
            yield key, _ended_error(job) if type(error).__name__ == "KilledWorker" else error

    def _where(self, host: str) -> str:
        return f" (on {host})" if self._remote else ""


@contextlib.contextmanager
def connect(
    networks: Networks, n: int, scheduler: str | None
) -> Iterator[tuple[Predictor, PredictTiles]]:
    """Return what plans and merges tiles, and what predicts them: this process, or workers.

    `n` is the number of workers on this machine. Raises InputError as `Predictor.load`,
    `local_workers` and `cluster_workers` do.
    """
    weights, cfgs = networks.weights, networks.cfgs
    if n == 1 and not scheduler:
        predictor = Predictor.load(weights, cfgs)
        yield predictor, predict_here(predictor)
        return
    load = loader(weights, cfgs)
    with (
        cluster_workers(scheduler, load)
        if scheduler
        else local_workers(n, cfgs[0].MODEL.DEVICE, load)
    ) as workers:
        yield Predictor([], cfgs), workers.predict


@contextlib.contextmanager
def local_workers(n: int, device: str, load: Callable[[], Predictor]) -> Iterator[Workers]:
    """Start workers on this machine, one for each GPU, or on "cpu" with their part of the cores.

    Raises InputError if there are too few GPUs or open files, or they can't be started.
    """
    environments = _environments(n, device)
    _allow_open_files(n)
    # If this process is stopped, the one that tracks semaphores would warn of theirs.
    with environment({"PYTHONWARNINGS": "ignore"}):
        resource_tracker.ensure_running()
    dask, distributed = _import_dask()
    config: dict[str, Any] = {
        "distributed.scheduler.allowed-failures": _ATTEMPTS - 1,
        "distributed.scheduler.worker-ttl": None,  # a busy machine is slow, not dead
        "distributed.comm.timeouts.connect": "300s",
        "distributed.comm.timeouts.tcp": "300s",
        "distributed.nanny.pre-spawn-environ": {},  # it would change this process
        "distributed.worker.multiprocessing-method": "spawn",
        "distributed.worker.daemon": True,  # so that it ends with this process
    }
    options = {
        "nthreads": 1, "memory_limit": 0, "host": "127.0.0.1", "dashboard": False,
        "silence_logs": logging.CRITICAL,
    }  # fmt: skip
    workers = {
        number: {"cls": distributed.Nanny, "options": options | {"env": variables}}
        for number, variables in enumerate(environments)
    }
    scheduler = {
        "cls": distributed.Scheduler,
        "options": {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0", "dashboard": False},
    }
    with (
        dask.config.set(config),
        _start(workers, scheduler) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        # All at once, before times are taken. Errors are those of the first tiles.
        loading = [
            client.submit(_load_ahead, pickle.dumps(load), workers=[address], pure=False)
            for address in client.scheduler_info()["workers"]
        ]
        client.gather(loading, errors="skip")
        yield Workers(client, load)


def _allow_open_files(n: int) -> None:
    """Let this process open enough files for `n` workers. Raise InputError if the system does not.

    Some of them would start then, and Dask wait for the others for ever.
    """
    with contextlib.suppress(ImportError):  # of Windows
        import resource

        allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        needed = _FILES + _FILES_OF_WORKER * n
        if 0 <= most < needed:  # below 0: any number
            raise InputError(
                f"--workers {n}: only {most} open files are allowed, expected {needed} or more; "
                f"allow them with ulimit -n {needed}, or use fewer workers"
            )
        wanted = min(most, _MOST_FILES) if most >= 0 else _MOST_FILES
        if 0 <= allowed < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def _start(workers: Mapping[int, Any], scheduler: Mapping[str, Any]) -> SpecCluster:
    """Start a scheduler and workers on this machine.

    Raises InputError if the system refuses: no shared memory (/dev/shm), too many processes or open
    files.
    """
    from distributed.deploy.spec import SpecCluster

    try:
        return SpecCluster(workers, scheduler, silence_logs=logging.CRITICAL)
    except RuntimeError as error:
        cause: BaseException | None = error
        while cause and not isinstance(cause, OSError):
            cause = cause.__cause__ or cause.__context__
        if not cause:
            raise
        raise InputError(
            f"--workers {len(workers)}: they can't be started ({cause}); leave it out, or make "
            "/dev/shm writable and allow more open files (ulimit -n)"
        ) from None


@contextlib.contextmanager
def cluster_workers(scheduler: str, load: Callable[[], Predictor]) -> Iterator[Workers]:
    """Connect to the workers of a cluster, by its scheduler's address or file.

    Raises InputError if it does not answer.
    """
    _, distributed = _import_dask()
    address = scheduler
    if Path(scheduler).is_file():
        file = read_json(scheduler, "scheduler's file", "pass its address")
        address = str(file.get("address")) if isinstance(file, dict) else ""
    try:
        asyncio.run(_connect_once(address))
    except Exception as error:  # noqa: BLE001 what isn't a scheduler may answer anything
        reason = (str(error) or f"no answer in {_CONNECT_SECONDS} s").splitlines()[0]
        raise InputError(
            f"--scheduler {scheduler}: no scheduler of Dask ({reason}); expected the address that "
            "`dask scheduler` prints, such as tcp://HOST:8786, or its --scheduler-file"
        ) from None
    with distributed.Client(address, set_as_default=False) as client:
        yield Workers(client, load, remote=True)


async def _connect_once(address: str) -> None:
    """Connect to a scheduler and leave it; a client that fails to would not end in order."""
    from distributed.comm import connect
    from distributed.security import Security

    arguments = Security().get_connection_args("client")
    comm = await asyncio.wait_for(connect(address, **arguments), _CONNECT_SECONDS)
    comm.abort()


def load_predictor(weights: Sequence[Path], cfgs: Sequence[CfgNode], _states: object) -> Predictor:
    """Load networks as `Predictor.load` does, on the worker's device if that is `ANY_DEVICE`.

    The states of the files tell apart networks that have the same paths.
    """
    chosen = [cfg.clone() for cfg in cfgs]
    for cfg in chosen:
        wanted = cfg.MODEL.DEVICE
        cfg.MODEL.DEVICE = choose_device(None if wanted == ANY_DEVICE else wanted)
    return Predictor.load(weights, chosen)


def loader(weights: Sequence[Path], cfgs: Sequence[CfgNode]) -> Callable[[], Predictor]:
    """Return the function that loads networks in a worker."""
    paths = [path.absolute() for path in weights]
    return functools.partial(load_predictor, paths, cfgs, [*map(file_state, paths)])


@dataclass(frozen=True)
class _BlockResult:
    host: str
    tiles: Sequence[Predictions | InputError] = ()
    warnings: Sequence[str] = ()
    problem: str = ""  # of the worker, with all tiles
    brightness: Mapping[Path, tuple[int, int]] = field(default_factory=dict)


_one_at_a_time = threading.Lock()  # also where a worker has several threads


@dataclass(frozen=True)
class _Call:
    """Call of `_predict_block`, which happens when it is unpickled.

    A worker that lacks this package fails in that task, with an error for the client. If Dask
    unpickled the function before, the worker would end, and others after it.
    """

    arguments: tuple[Any, ...]

    def __reduce__(self) -> tuple[Callable[..., _BlockResult], tuple[Any, ...]]:
        return _predict_block, self.arguments


def _predict_block(load: bytes, versions: dict[str, str], jobs: Sequence[TileJob]) -> _BlockResult:
    """Predict tiles, in a worker."""
    host = socket.gethostname()
    own = _versions()
    if versions != own:
        texts = (" ".join(f"{name} {n}" for name, n in each.items()) for each in (own, versions))
        there, here = texts
        return _BlockResult(
            host,
            problem=f"--scheduler: a worker has {there}, but this command {here} (cellseg: of its "
            "files); install the same, and restart the workers",
        )
    with _one_at_a_time, collect_warnings() as messages:
        try:
            predictor = _load(load)
        except InputError as error:
            return _BlockResult(host, problem=str(error))
        brightness = BrightnessCheck()
        tiles = [*predictor.predict_tiles(jobs, brightness)]
    return _BlockResult(host, tiles, messages, brightness=brightness.counts)


def _load_ahead(load: bytes) -> None:
    with contextlib.suppress(InputError), _one_at_a_time, collect_warnings():
        _load(load)


@functools.lru_cache(maxsize=1)
def _load(load: bytes) -> Predictor:
    predictor: Predictor = pickle.loads(load)()
    return predictor


@functools.cache
def _versions() -> dict[str, str]:
    """Return what must be the same in the client and the workers."""
    folder = Path(__file__).parents[1]
    code = hashlib.sha256()
    for path in sorted(folder.glob("**/*.py")):
        code.update(path.read_bytes())
    return {"cellseg": code.hexdigest()[:8], "torch": str(torch.__version__)}


def _ended_error(job: TileJob) -> InputError:
    return InputError(
        f"{job.image}: {plural(_ATTEMPTS, 'worker')} ended while they predicted a tile of it, "
        "perhaps out of memory; run the same command again, with smaller tiles (--tile) or fewer "
        "workers"
    )


def _environments(n: int, device: str) -> list[dict[str, str]]:
    """Return the environment variables of each worker on this machine."""
    quiet = {"PYTHONWARNINGS": "ignore"}
    kind = torch.device(device)
    if kind.type == "cpu":  # by default each would use all cores
        n_threads = max(1, torch.get_num_threads() // n)
        return [quiet | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": str(n_threads)}] * n
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else [*map(str, range(torch.cuda.device_count()))]
    if n > len(gpus) or kind.index is not None:
        raise InputError(
            f"--workers {n}: one GPU per worker is needed, but there are fewer on {device} (this "
            f"machine has {len(gpus)}); use fewer, and choose them with CUDA_VISIBLE_DEVICES "
            "instead of --device"
        )
    return [quiet | {"CUDA_VISIBLE_DEVICES": gpu} for gpu in gpus[:n]]


def _import_dask() -> tuple[Any, Any]:
    """Import Dask without its log messages and its warnings of other versions."""
    import dask

    dask.config.set({"logging": {"distributed": "critical", "distributed.client": "critical"}})
    import distributed

    warnings.filterwarnings("ignore", module=r"distributed\.")
    return dask, distributed
