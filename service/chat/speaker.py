"""The API's side of the playground: one child process, one thread that talks to it, a short queue.

The child is started by the thread and dies with it (`worker.processes`), is started again after
a fault, and is ended after ten idle minutes, since a model in memory is dear. Prompts and
answers pass through and are kept nowhere.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from queue import Empty, Full, Queue
from tempfile import TemporaryDirectory
from typing import Any

from service.chat.released import ReleasedModel
from service.chat.schemas import ChatRequest
from service.errors import ServiceError
from service.worker.processes import kill_group, plain_environment, start_tied

COMMAND = (sys.executable, "-m", "service.chat.process")
WAITING_MAX = 4
ANSWER_SECONDS = 60  # of one answer, in the child
PATIENCE_SECONDS = 180  # the first answer loads libraries and model
IDLE_SECONDS = 600
ADAPTERS_KEPT = 2
SEED_BITS = 31
BUSY = "The playground is busy with others; try again soon."


class ChatFailed(Exception):
    """The child gave no answer; why, it must not say."""


@dataclass(kw_only=True)
class Talk:
    """One request on its way. `steps` are the child's, ended by None."""

    number: int
    model: ReleasedModel
    asked: ChatRequest
    steps: Queue[dict[str, Any] | None] = field(default_factory=Queue)
    called_off: threading.Event = field(default_factory=threading.Event)

    def answers(self) -> Iterator[dict[str, Any]]:
        """The child's steps as they come.

        Raises:
            ChatFailed: it failed, ended, or took too long.
        """
        try:
            while True:
                try:
                    step = self.steps.get(timeout=PATIENCE_SECONDS + ANSWER_SECONDS)
                except Empty:
                    raise ChatFailed from None
                if step is None or "failed" in step:
                    raise ChatFailed
                yield step
                if "done" in step:
                    return
        finally:
            self.called_off.set()  # whoever reads no further needs no further tokens


class Speaker:
    """Used from any thread; `close` ends the child."""

    def __init__(self) -> None:
        self._talks: Queue[Talk | None] = Queue(maxsize=WAITING_MAX)
        self._guard = threading.Lock()
        self._thread: threading.Thread | None = None
        self._count = 0

    def ask(self, model: ReleasedModel, asked: ChatRequest) -> Talk:
        """Queues a request.

        Raises:
            ServiceError: 503 not_ready, since others wait already.
        """
        with self._guard:
            self._count += 1
            talk = Talk(number=self._count, model=model, asked=asked)
            try:
                self._talks.put_nowait(talk)
            except Full:
                raise ServiceError(503, "not_ready", BUSY) from None
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._serve, name="chat", daemon=True)
                self._thread.start()
        return talk

    def close(self) -> None:
        """Ends thread and child, if there are any."""
        thread = self._thread
        if thread is not None and thread.is_alive():
            with suppress(Full):
                self._talks.put_nowait(None)
            thread.join(10)

    def _serve(self) -> None:
        with TemporaryDirectory(prefix="rldp-chat-") as folder:
            child = _Child(Path(folder))
            try:
                while (talk := self._next()) is not None:
                    child.serve(talk)
            finally:
                child.end()

    def _next(self) -> Talk | None:
        """Waits for a request; None when none came for long, or at the end."""
        while True:
            try:
                return self._talks.get(timeout=IDLE_SECONDS)
            except Empty:
                with self._guard:  # one that was queued just now would find no thread
                    if self._talks.empty():
                        self._thread = None
                        return None


class _Child:
    """The process and the folder it reads adapters from. Of one thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._adapters: OrderedDict[str, Path] = OrderedDict()

    def serve(self, talk: Talk) -> None:
        """One request, to its end. A child that fails silently is ended, for the next to start."""
        if talk.called_off.is_set():
            return
        try:
            self._exchange(talk)
        except (OSError, ValueError):
            self.end()
        finally:
            talk.steps.put(None)

    def _exchange(self, talk: Talk) -> None:
        process = self._running()
        assert process.stdin is not None and process.stdout is not None
        _write(process, self._request(talk))
        watch = threading.Thread(target=_watch, args=(process, talk), daemon=True)
        watch.start()
        while True:
            line = process.stdout.readline()
            if not line:
                raise ValueError  # it ended
            step = json.loads(line)
            if step.pop("id") == talk.number:
                talk.steps.put(step)
                if "done" in step or "failed" in step:
                    break
        talk.called_off.set()
        watch.join()

    def _request(self, talk: Talk) -> dict[str, Any]:
        asked, model = talk.asked, talk.model
        return {
            "id": talk.number,
            "model": model.id,
            "base_dir": str(model.base_dir.resolve()),
            "base_digest": model.base_digest,
            "adapter_dir": str(self._adapter(model)),
            "prompt": asked.prompt(),
            "tokens_max": asked.tokens_max,
            "temperature": asked.temperature,
            "top_p": asked.top_p,
            "seed": secrets.randbits(SEED_BITS) if asked.seed is None else asked.seed,
            "seconds": ANSWER_SECONDS,
        }

    def _adapter(self, model: ReleasedModel) -> Path:
        """The folder of the adapter's checked bytes, of the two used last."""
        if model.id not in self._adapters:
            while len(self._adapters) >= ADAPTERS_KEPT:
                _, old = self._adapters.popitem(last=False)
                for file in old.iterdir():
                    file.unlink()
            folder = self._folder / secrets.token_hex(8)
            folder.mkdir(mode=0o700)
            for name, content in model.files.items():
                (folder / name).write_bytes(content)
            self._adapters[model.id] = folder
        self._adapters.move_to_end(model.id)
        return self._adapters[model.id]

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            # No setting goes with it: it needs no database and no key.
            environment = plain_environment(os.environ)
            self._process = start_tied(COMMAND, environment=environment, quiet=True, talks=True)
        return self._process

    def end(self) -> None:
        if self._process is not None:
            kill_group(self._process)
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    with suppress(OSError):
                        stream.close()
            self._process = None


def _watch(process: subprocess.Popen[bytes], talk: Talk) -> None:
    """Tells the child when nobody listens any more, and ends it when it does not answer."""
    end = time.monotonic() + PATIENCE_SECONDS + ANSWER_SECONDS
    if talk.called_off.wait(end - time.monotonic()):
        with suppress(OSError, ValueError):
            _write(process, {"cancel": talk.number})
    else:
        process.kill()


def _write(process: subprocess.Popen[bytes], message: dict[str, Any]) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps(message).encode() + b"\n")
    process.stdin.flush()


def has_runtime() -> bool:
    """Whether the libraries that run a model are installed beside this process."""
    return find_spec("torch") is not None and find_spec("peft") is not None
