"""Two witnesses behind fake sockets, for tests of what they see and sign."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from service.ledger import notes
from service.ledger.checkpoints import system_origin
from service.ledger.keys import LedgerKeys
from service.ledger.witnesses import Witness, WitnessUnreachable
from service.witness.server import Witness as Server


@dataclass
class Street:
    """Two witnesses behind fake sockets; `down` ones do not answer."""

    servers: dict[str, Server]
    down: set[str] = field(default_factory=set)
    calls: int = 0

    def post(self, url: str, body: bytes) -> tuple[int, str]:
        self.calls += 1
        name = url.removeprefix("http://").split("/")[0]
        if name in self.down:
            raise WitnessUnreachable("down")
        answer = self.servers[name].add_checkpoint(body)
        return answer.status, answer.text

    def clients(self) -> tuple[Witness, ...]:
        return tuple(
            Witness(key=server.verifier_key, url=f"http://{name}")
            for name, server in self.servers.items()
        )


def open_street(folder: Path, keys: LedgerKeys, clock: Callable[[], float] = time.time) -> Street:
    servers = {}
    for name in ("w1", "w2"):
        (folder / name).mkdir(parents=True)
        servers[name] = Server(
            name=f"witness.example/{name}",
            key=Ed25519PrivateKey.generate(),
            logs=[notes.public_key(system_origin(keys), notes.LOG_KEY, keys.log)],
            folder=folder / name,
            clock=clock,
        )
    return Street(servers)
