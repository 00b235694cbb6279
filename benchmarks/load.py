"""Load processes: each takes tasks, prepares one, says that it is ready, and does it when told to.

Processes live for the whole run (importing grpcio takes longer than many rounds), connections for one task.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

from benchmarks import KIB, MIB
from benchmarks.clients import OWN_CLIENTS, Client, Outcome, Payload, Task
from benchmarks.clients.frames import FramesClient
from benchmarks.targets import spawn


class LoadError(Exception):
    """A load process could not do its task: what a row reports as the reason."""


def connect(name: str, address: str, timeout: float) -> Client:
    if name.startswith("ccore"):
        from benchmarks.clients import ccore  # takes 0.2 s, and not all processes need it

        return (ccore.CCoreClient if name == "ccore" else ccore.CheckingCCoreClient)(address, timeout)
    if name == "http":
        from benchmarks.clients.http import HttpClient

        return HttpClient(address, timeout)
    if name in OWN_CLIENTS:
        from benchmarks.clients.own import OwnClient

        return OwnClient(address, timeout, threads=name == "blocking", hashed=name == "asyncio-hashed")
    return FramesClient(address, MIB if name == "frames-1m" else 16 * KIB, timeout)


def prepare(client: Client, task: Task) -> Callable[[], list[float]]:
    """What is to be timed, returning seconds of each version, call or watcher."""
    if task.kind == "create":
        client.create_model(task.model)
        return list
    if task.kind == "delete":
        client.delete_model(task.model)
        return list
    if task.kind == "watch":
        assert isinstance(client, FramesClient)
        return client.prepare_watch(task)
    payload = Payload(task.size, task.chunk, task.seed)
    if task.kind == "upload":
        versions = (payload.fresh() if number and not task.seed else payload for number in range(task.count))
        return _timed([client.prepare_upload(task, version) for version in versions])
    version = task.version or client.prepare_upload(task, payload)()
    if task.kind == "verify":  # a fast wrong answer is no answer
        client.prepare_download(task, version, payload.digest())()
        return list
    if task.kind == "beside":
        assert isinstance(client, FramesClient)
        return partial(client.beside, task, version)
    if task.kind == "lookup":
        return partial(client.lookups, task, version)
    download = client.prepare_download(task, version, "")
    if task.warm:
        download()
    return _timed([download] * task.count)


def _timed(steps: Sequence[Callable[[], object]]) -> Callable[[], list[float]]:
    def run() -> list[float]:
        samples = []
        for step in steps:
            start = time.monotonic()
            step()
            samples.append(time.monotonic() - start)
        return samples

    return run


def work(pipe: Connection[Any, Any]) -> None:
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        client = None
        try:
            client = connect(task.client, task.address, task.timeout)
            job = prepare(client, task)
            gc.collect()
            gc.disable()
            pipe.send(None)
            client.idle(pipe)
            pipe.recv()
            cpu, start = time.process_time(), time.monotonic()
            samples = job()
            end = time.monotonic()
            size = task.size * len(samples) if task.kind in ("upload", "download") else 0
            pipe.send(Outcome(start=start, end=end, cpu=time.process_time() - cpu, bytes=size, samples=tuple(samples)))
        except EOFError:
            return
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a row of the report
            pipe.send(f"{type(error).__name__}: {error}"[:500])
        finally:
            job = list  # lets go of the payload
            gc.enable()
            if client is not None:
                client.close()


class Load:
    """The load processes of a run, made when first needed."""

    def __init__(self) -> None:
        self._idle: list[Worker] = []

    def __enter__(self) -> Load:  # noqa: PYI034 - typing.Self came with Python 3.11
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._idle:
            worker.end()

    def run(self, *stages: Sequence[Task], before: Callable[[], None] = lambda: None) -> list[list[Outcome]]:
        """Prepares all tasks, calls *before*, then does stage after stage, the tasks of each at once.

        Raises LoadError where one fails; the processes of the others are ended, as nobody can tell what they do.
        """
        tasks = [task for stage in stages for task in stage]
        while len(self._idle) < len(tasks):
            self._idle.append(Worker())
        workers = [self._idle.pop() for _ in tasks]
        try:
            for worker, task in zip(workers, tasks, strict=True):
                worker.pipe.send(task)
            for worker, task in zip(workers, tasks, strict=True):
                worker.receive(4 * task.timeout)
            before()
            results, first = [], 0
            for stage in stages:
                running = workers[first : first + len(stage)]
                first += len(stage)
                for worker in running:
                    worker.pipe.send(None)
                results.append([outcome for worker in running if (outcome := worker.receive(2 * stage[0].timeout))])
        except BaseException:
            for worker in workers:
                worker.end()
            raise
        self._idle += workers
        return results


class Worker:
    def __init__(self) -> None:
        self.pipe, theirs = Pipe()
        number = theirs.fileno()
        self._process = spawn([sys.executable, "-m", "benchmarks.load", str(number)], pass_fds=[number])
        theirs.close()

    def receive(self, timeout: float) -> Outcome | None:
        if not self.pipe.poll(timeout):
            raise LoadError(f"no result within {timeout:g} s")
        try:
            answer = self.pipe.recv()
        except (EOFError, OSError):
            raise LoadError("the load process died") from None
        if isinstance(answer, str):
            raise LoadError(answer)
        assert answer is None or isinstance(answer, Outcome)
        return answer

    def end(self) -> None:
        self.pipe.close()
        self._process.kill()
        self._process.wait()


if __name__ == "__main__":
    work(Connection(int(sys.argv[1])))
