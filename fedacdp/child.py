"""The child's side of `nodes`: it does what its parent's threads send, and ends with its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import NoReturn

from fedacdp.wire import pack


def serve(folder: Path, work: Callable[[bytes], bytes]) -> None:
    """Do the tasks that come in at `folder`/socket, one thread for each connection, until killed."""
    listener = Listener(str(folder / "socket"), "AF_UNIX", backlog=128)
    while True:
        threading.Thread(target=_answer, args=(listener.accept(), work), daemon=True).start()


def _answer(connection: Connection, work: Callable[[bytes], bytes]) -> None:
    """Serve one thread of the parent."""
    while True:
        try:
            task = connection.recv_bytes()
        except EOFError:
            return
        try:
            answer = work(task)
        except Exception as error:
            answer = pack({}, {"outcome": "lost", "text": str(error) or traceback.format_exc()})
        connection.send_bytes(answer)


def refuse(folder: Path, reason: str) -> NoReturn:
    """End this process at once; the parent finds the reason, which is wrong input told in one line."""
    (folder / "refused").write_text(reason)
    os._exit(1)


def end_with_parent(folder: Path) -> None:
    """Standard input ends when the parent dies, whatever killed it: end this process group and remove the folder."""
    sys.stdin.buffer.read()
    subprocess.Popen(["/bin/sh", "-c", 'sleep 1; rm -rf "$0"', folder], start_new_session=True)
    os.killpg(0, signal.SIGKILL)
