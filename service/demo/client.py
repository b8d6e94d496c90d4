"""Speaks to the service as any outside client would: HTTP and keys, nothing imported from it.

Signing happens here, with the stewards' own keys: the server sees signatures only.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

ROLES = ("admin", "submitter", "steward_1", "steward_2", "auditor")
CHECKPOINT_SECONDS = 60.0
TIMEOUT = httpx.Timeout(30, read=180)  # the first calibration of a plan takes a while


class DemoError(Exception):
    """The demonstration cannot go on; the text says what happened and what to do next."""


class ApiProblem(DemoError):
    """An answer other than success, as the service documents it."""

    def __init__(self, status: int, body: Mapping[str, Any]) -> None:
        self.status = status
        self.body = dict(body)
        self.code = str(body.get("error", {}).get("code", "unknown"))
        self.detail = str(body.get("detail", ""))
        super().__init__(f"{status} {self.code}: {self.detail}")


@dataclass(frozen=True, kw_only=True)
class Access:
    """Where the service is, its keys by role, and where the stewards keep their signing keys."""

    url: str
    keys: Mapping[str, str]
    signing_dir: Path


def read_keys(path: Path) -> dict[str, str]:
    """Keys by role, from the file that `rldp up --keys-file` wrote.

    Raises:
        DemoError: absent, or not that file.
    """
    try:
        keys = json.loads(path.read_text(encoding="utf-8"))
        return {role: str(keys[role]) for role in ROLES}
    except OSError:
        raise DemoError(f"The keys file {path} cannot be read. Give its path as --keys.") from None
    except (ValueError, KeyError, TypeError):
        wanted = ", ".join(ROLES)
        raise DemoError(f"{path.name} is not a keys file: JSON with {wanted}.") from None


def signing_text(*, origin: str, leaf_hex: str, decision: str) -> bytes:
    """What a steward signs (ledger.md 16.3): four lines, the leaf in base64."""
    leaf = base64.b64encode(bytes.fromhex(leaf_hex)).decode()
    return f"dp-ledger-approval/v1\n{origin}\n{leaf}\n{decision}\n".encode()


class DemoClient:
    """The calls of the demonstration, each under the key of the role that may make it."""

    def __init__(self, access: Access, http: httpx.Client | None = None) -> None:
        self.access = access
        self._http = http or httpx.Client(base_url=access.url, timeout=TIMEOUT)

    def close(self) -> None:
        self._http.close()

    def call(self, role: str, method: str, path: str, **request: Any) -> Any:
        """The JSON of an answer.

        Raises:
            ApiProblem: any answer that is not a success.
            DemoError: the service cannot be reached.
        """
        return self.raw(role, method, path, **request).json()

    def raw(self, role: str, method: str, path: str, **request: Any) -> httpx.Response:
        """The whole answer; raises as `call`."""
        headers = {"Authorization": f"Bearer {self.access.keys[role]}"}
        try:
            answer = self._http.request(method, f"/v1{path}", headers=headers, **request)
        except httpx.TransportError as error:
            raise DemoError(
                f"The service at {self.access.url} does not answer ({type(error).__name__}). "
                "See its log, named above, then start the demonstration again."
            ) from None
        if answer.is_success:
            return answer
        is_json = "json" in answer.headers.get("content-type", "")
        raise ApiProblem(answer.status_code, answer.json() if is_json else {})

    def download(self, role: str, path: str, target: Path) -> None:
        """Streams an answer into a file."""
        target.write_bytes(self.raw(role, "GET", path).content)

    def download_when_ready(self, role: str, path: str, target: Path) -> None:
        """As `download`; waits for the checkpoint that a release needs first."""
        give_up = time.monotonic() + CHECKPOINT_SECONDS
        while True:
            try:
                return self.download(role, path, target)
            except ApiProblem as problem:
                if problem.status != 503 or time.monotonic() > give_up:
                    raise
                time.sleep(1)

    def is_ready(self) -> bool:
        try:
            return self._http.get("/readyz", timeout=2).status_code == 200
        except httpx.TransportError:
            return False

    def upload(self, path: Path, *, dataset: str | None) -> dict[str, Any]:
        """Sends a training file from disk."""
        fields = {"purpose": "fine-tune"} | ({} if dataset is None else {"dataset": dataset})
        with path.open("rb") as rows:
            files = {"file": (path.name, rows, "application/jsonl")}
            answer: dict[str, Any] = self.call(
                "submitter", "POST", "/files", data=fields, files=files
            )
        return answer

    def approve_twice(self, kind: str, proposal: Mapping[str, Any]) -> dict[str, Any]:
        """Both stewards sign a grant or a release; returns it after the second signature."""
        path, entry = f"/{kind}/{proposal['id']}/approvals", proposal["entry"]
        text = signing_text(origin=entry["origin"], leaf_hex=entry["leaf"], decision="approve")
        decided: dict[str, Any] = dict(proposal)
        for number in (1, 2):
            signature = base64.b64encode(self._steward(number).sign(text)).decode()
            decided = self.call(
                f"steward_{number}",
                "POST",
                path,
                json={"decision": "approve", "signature": signature},
            )
        return decided

    def _steward(self, number: int) -> Ed25519PrivateKey:
        path = self.access.signing_dir / f"steward-{number}.pem"
        try:
            key = load_pem_private_key(path.read_bytes(), password=None)
        except (OSError, ValueError):
            raise DemoError(
                f"The signing key {path} cannot be read. Say where both stewards' keys lie "
                "with --signing-keys."
            ) from None
        assert isinstance(key, Ed25519PrivateKey)
        return key
