"""A policy server in a process of its own, for demonstrations and benchmarks."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

SERVE = Path(__file__).with_name("serve.py")
_READY = re.compile(r"^serving .* at (\S+:\d+)$")
_STOP_S = 10.0


class LocalServer:
    """Starts ``scripts/serve.py``, or a script like it, and stops it again; a context manager.

    Attributes:
        address: ``host:port``, once it is ready.
    """

    def __init__(self, policy: str, log: Path, *options: str, script: Path = SERVE) -> None:
        """Args:
        policy: Bundled name or path.
        log: Where the server's log goes; it is begun anew.
        options: Further command-line options of the server.
        script: What serves; it says where in the same words.
        """
        self._log = log
        self._command = [sys.executable, str(script), "--policy", policy, "--port", "0", *options]
        self.address = ""

    def __enter__(self) -> Self:
        """Waits until the server says that it is ready.

        Raises:
            RuntimeError: It ended before; what it printed is in the message.
        """
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                self._command, stdout=subprocess.PIPE, stderr=log, text=True
            )
        for line in self._process.stdout or ():
            if match := _READY.match(line.strip()):
                self.address = match[1]
                return self
        code = self._process.wait()
        raise RuntimeError(f"the policy server ended with {code}: {self._log.read_text()}")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
