"""Two processes that run tools together, one run after the other.

A process imports for seconds before it trains for one. So the tests share two. This
file is what they run, too: it takes requests from standard input, one JSON a line.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import socket
import subprocess
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def free_port() -> str:
    """Returns a port of this machine that nobody uses.

    It is below those that systems give to connections, of which one could take it
    before it is used.
    """
    while True:
        port = random.SystemRandom().randrange(10000, 30000)
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(('127.0.0.1', port))
            return str(port)


class TwoProcesses:
    """Runs tools in two processes that are started once.

    A run that fails or takes too long ends both; the next run starts new ones.

    Args:
        folder (Path): Where the processes write what they print.
        environment (dict): Environment variables of the processes.
    """

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.log = folder / 'two_processes.log'
        self.environment = environment
        self.processes: list[subprocess.Popen] = []

    def run(
        self,
        tool: str,
        *args: object,
        cwd: Path,
        modules: Path | None = None,
        timeout: float = 600,
    ) -> str:
        """Runs ``main(argv)`` of a tool, as a launcher of two processes would.

        Args:
            tool (str): Path of the tool under ``tools``.
            *args (object): Arguments, as text of the command line.
            cwd (Path): Working directory meanwhile.
            modules (Path, optional): Folder of modules that the config imports.
            timeout (float): Seconds that the run may take. Defaults to 600.

        Returns:
            str: What the first process printed.
        """
        if not self.processes:
            self._start()
        shared = dict(WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=free_port())
        for rank, process in enumerate(self.processes):
            request = dict(
                tool=tool,
                args=[*map(str, args), '--launcher', 'pytorch'],
                cwd=str(cwd),
                modules=None if modules is None else str(modules),
                environment=dict(shared, RANK=str(rank), LOCAL_RANK=str(rank)),
            )
            process.stdin.write(json.dumps(request) + '\n')
            process.stdin.flush()
        replies = self._replies(timeout)
        if any(reply is None or reply['error'] for reply in replies):
            self.stop()
            errors = [reply['error'] if reply else 'no reply' for reply in replies]
            raise AssertionError(
                '\n'.join(
                    [*errors, 'The end of the log:', self.log.read_text()[-6000:]]
                )
            )
        return replies[0]['output']

    def _start(self) -> None:
        with self.log.open('a') as log:
            self.processes = [
                subprocess.Popen(
                    [sys.executable, __file__],
                    # That of the first test is removed with the test.
                    cwd=self.log.parent,
                    env=self.environment,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                )
                for _ in range(2)
            ]

    def _replies(self, timeout: float) -> list[dict | None]:
        """Waits for both, and no longer for one if the other has failed."""
        replies: list[dict | None] = [None, None]

        def wait(rank: int) -> None:
            line = self.processes[rank].stdout.readline()
            replies[rank] = json.loads(line) if line else None
            if replies[rank] is None or replies[rank]['error']:
                self.processes[1 - rank].kill()

        with ThreadPoolExecutor(2) as pool:
            waiting = [pool.submit(wait, rank) for rank in range(2)]
            with contextlib.suppress(TimeoutError):
                for future in waiting:
                    future.result(timeout)
            if any(not future.done() for future in waiting):
                self._kill()
        return replies

    def _kill(self) -> None:
        for process in self.processes:
            process.kill()

    def stop(self) -> None:
        """Ends both processes."""
        self._kill()
        for process in self.processes:
            process.communicate()
        self.processes = []


def serve() -> None:
    """Runs one tool per line of standard input, and answers with one line each."""
    import shortcuts  # noqa: F401
    import torch.distributed
    from isolation import isolated, run_main

    torch.set_num_threads(1)
    # What tools print must not get in between the answers.
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        reply = dict(output='', error=None)
        try:
            with isolated(Path.cwd()):
                os.environ.update(request['environment'])
                reply['output'] = run_main(
                    request['tool'],
                    *request['args'],
                    cwd=request['cwd'],
                    modules=request['modules'],
                )
        except BaseException:  # noqa: BLE001  the reader of the answer fails
            reply['error'] = traceback.format_exc()
        finally:
            gc.collect()
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
        answers.write(json.dumps(reply) + '\n')
        answers.flush()


if __name__ == '__main__':
    serve()
