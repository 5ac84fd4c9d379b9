"""Start ranks by forking: torch is imported already, so a launch takes half a second."""

import multiprocessing
import os
import signal
import socket
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch
from accelerate.state import AcceleratorState

torch.set_num_threads(1)  # a thread pool would not survive the fork
CONTEXT = multiprocessing.get_context("fork")


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Ranks:
    """`world` forked processes, each running `function(rank)` as torchrun would start it."""

    def __init__(self, world: int, function: Callable[[int], Any], quiet: bool = False):
        port = free_port()
        self.pipes, self.processes = [], []
        for rank in range(world):
            receive, send = CONTEXT.Pipe(duplex=False)
            process = CONTEXT.Process(
                target=_run, args=(rank, world, port, function, send, quiet), daemon=False
            )
            process.start()
            send.close()
            self.pipes.append(receive)
            self.processes.append(process)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to all ranks that still live."""
        for process in self.processes:
            if process.is_alive():
                os.kill(process.pid, number)

    def join(self, timeout: float = 120) -> list[int | None]:
        """Wait for all; their exit codes."""
        end = time.monotonic() + timeout
        for process in self.processes:
            process.join(max(0.0, end - time.monotonic()))
        alive = [p for p in self.processes if p.is_alive()]
        self.kill()
        for process in alive:
            process.join()
        assert not alive, f"{len(alive)} ranks hung"
        return [p.exitcode for p in self.processes]

    def results(self, timeout: float = 120) -> list[Any]:
        """What each rank returned; raises if one failed."""
        found = []
        for rank, pipe in enumerate(self.pipes):
            assert pipe.poll(timeout), f"rank {rank} gave no answer in {timeout} s"
            try:
                ok, value = pipe.recv()
            except EOFError:
                ok, value = False, "died"
            assert ok, f"rank {rank}: {value}"
            found.append(value)
        self.join()
        return found


def run_ranks(world: int, function: Callable[[int], Any], timeout: float = 120) -> list[Any]:
    """What `function(rank)` returns on each of `world` ranks."""
    return Ranks(world, function).results(timeout)


def _run(
    rank: int, world: int, port: int, function: Callable[[int], Any], pipe: Any, quiet: bool
) -> None:
    facts = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    facts |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    if world > 1:
        os.environ.update({name: str(value) for name, value in facts.items()})
    AcceleratorState._reset_state(reset_partial_state=True)  # whatever the parent was
    if quiet:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
    torch.set_num_threads(1)  # whatever the parent has; its threads are not here
    code = 1
    try:
        value = function(rank)
        code = value if isinstance(value, int) else 0
        pipe.send((True, value))
    except BaseException:
        pipe.send((False, traceback.format_exc()))
    finally:
        pipe.close()
        os._exit(code)
