"""Two real gloo ranks, shared by the tests of a worker: to start them takes longer than what most
tests do on them.
"""

import io
import os
import socket
import traceback

import torch
import torch.distributed as dist

WORLD = 2
#: For this long a test waits for a rank, in seconds.
PATIENCE = 100


def _serve(rank, port, calls):
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=WORLD)
    while call := calls.recv():
        target, args = call
        try:
            found = io.BytesIO()
            torch.save(target(rank, *args), found)
            dist.barrier()  # the other still needs this rank's answers
            calls.send((found.getvalue(), None))
        except BaseException:
            calls.send((None, traceback.format_exc()))
    dist.destroy_process_group()


class Ranks:
    """Processes that call functions: `ranks(target, *args)` is the list of what
    `target(rank, *args)` returned on each.

    After a failure, in which one rank may wait for the other forever, both are started again.
    """

    def __init__(self):
        self._processes, self._calls = [], []

    def __call__(self, target, *args):
        if not self._processes:
            self._start()
        for calls in self._calls:
            calls.send((target, args))
        found, trouble = [], []
        for rank, calls in enumerate(self._calls):
            # Where one has failed, the other is not waited for.
            if not calls.poll(1 if trouble else PATIENCE):
                trouble.append(f"rank {rank} hangs")
                continue
            result, error = calls.recv()
            found.append(result)
            if error:
                trouble.append(f"rank {rank}: {error}")
        if trouble:
            self._kill()
            raise AssertionError("\n".join(trouble))
        return [torch.load(io.BytesIO(result), weights_only=True) for result in found]

    def _start(self):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        context = torch.multiprocessing.get_context("spawn")
        for rank in range(WORLD):
            mine, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, port, theirs), daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._calls.append(mine)

    def _kill(self):
        for process in self._processes:
            process.kill()
            process.join()
        self._forget()

    def _forget(self):
        for calls in self._calls:
            calls.close()
        self._processes, self._calls = [], []

    def close(self):
        """Let them end as a program would, which must not fail or hang either."""
        for calls in self._calls:
            calls.send(None)
        for process in self._processes:
            process.join(PATIENCE)
        codes = [process.exitcode for process in self._processes]
        self._kill()
        assert all(code == 0 for code in codes), codes
