"""Time stamps of a local authority: taken daily and per release, and every forgery (10.6)."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.exc import DatabaseError

from service.ledger import anchors, evidence
from service.ledger.anchors import TsaUnreachable
from service.ledger.models import Anchor, LogHead
from service.ledger.publisher import Publisher, make_publisher
from service.settings import Settings
from tests.deploy.test_verify_evidence import Files, files_of, pack
from tests.deploy.test_verify_ledger import verifier
from tests.service.ledger import world as w

OPENSSL = shutil.which("openssl")
pytestmark = pytest.mark.skipif(OPENSSL is None, reason="no openssl for a local authority")
CONFIGURATION = """
[req]
distinguished_name = name
prompt = no
[name]
CN = test authority
[ca]
basicConstraints = critical,CA:TRUE
keyUsage = critical,keyCertSign
subjectKeyIdentifier = hash
[stamps]
extendedKeyUsage = critical,timeStamping
keyUsage = critical,digitalSignature
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
[server]
extendedKeyUsage = serverAuth
[tsa]
default_tsa = here
[here]
serial = serial
crypto_device = builtin
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = sha256
accuracy = secs:1
ess_cert_id_alg = sha256
"""


class Authority:
    """A certificate authority and its time-stamping signer, in a folder, run by openssl."""

    def __init__(self, folder: Path, *, usage: str = "stamps") -> None:
        self.folder, self.is_down, self.calls = folder, False, 0
        folder.mkdir()
        (folder / "tsa.cnf").write_text(CONFIGURATION)
        (folder / "serial").write_text("01\n")
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        self.openssl(
            "req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-extensions", "ca",
            "-subj", "/CN=test root", "-config", "tsa.cnf", "-days", "30",
        )  # fmt: skip
        self.openssl(
            "req", "-new", *key, "-keyout", "tsa.key", "-out", "tsa.csr", "-config", "tsa.cnf"
        )
        self.openssl(
            "x509", "-req", "-in", "tsa.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-out",
            "tsa.pem", "-extfile", "tsa.cnf", "-extensions", usage, "-days", "30",
            "-set_serial", "7",
        )  # fmt: skip

    def openssl(self, *arguments: str) -> None:
        assert OPENSSL is not None
        subprocess.run([OPENSSL, *arguments], cwd=self.folder, check=True, capture_output=True)

    def ask(self, _url: str, body: bytes) -> bytes:
        self.calls += 1
        if self.is_down:
            raise TsaUnreachable("down")
        (self.folder / "query").write_bytes(body)
        self.openssl(
            "ts", "-reply", "-queryfile", "query", "-signer", "tsa.pem", "-inkey", "tsa.key",
            "-config", "tsa.cnf", "-out", "reply",
        )  # fmt: skip
        return (self.folder / "reply").read_bytes()


@dataclass
class Scene:
    """A stamped log, two authorities, and what an auditor pins."""

    files: Files
    policy: Path
    authority: Authority
    stranger: Authority
    world: w.World
    publisher: Publisher
    sizes: list[int] = field(default_factory=list)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("anchors")
    authority, stranger = Authority(folder / "tsa"), Authority(folder / "other")
    settings = Settings(
        data_dir=folder, tsa_url="http://tsa.example", tsa_certificates=folder / "tsa" / "ca.pem"
    )
    with w.sqlite_database(folder) as db:
        world = w.open_world(db)
        publisher = make_publisher(settings, db)
        publisher.ask_tsa = authority.ask
        publisher.turn()
        w.publish(world, w.run_job(world, run_plan=w.plan(mode="adaptive_sigma")))
        publisher.turn()
        files = files_of(world, publisher.keys)
        policy = write_policy(folder, publisher, authority)
        sizes = [int(name[8:-4]) for name in files if name.startswith("anchors/")]
        yield Scene(files, policy, authority, stranger, world, publisher, sizes)


def write_policy(folder: Path, publisher: Publisher, authority: Authority | None) -> Path:
    pem = [] if authority is None else [authority.folder / "ca.pem"]
    told = {
        "format": "dp-ledger-policy/1",
        "log_key": publisher.keys.log_public,
        "max_age_seconds": 3600,
        "previous_required": False,
        "quorum": 0,
        "receipt_key": publisher.keys.receipt_public,
        "system_origin": verifier.parse_proof(files_of_system(publisher)).checkpoint.origin,
        "tsa_certificates": [
            p for one in pem for p in anchors.pinned(anchors.read_certificates(one))
        ],
        "witnesses": [],
    }
    path = folder / f"policy-{'none' if authority is None else authority.folder.name}.json"
    path.write_text(json.dumps(told))
    return path


def files_of_system(publisher: Publisher) -> bytes:
    with publisher.db.reading() as session:
        log = session.scalars(select(LogHead.log_id).where(LogHead.log_id.like("tn%"))).one()
        found = evidence.evidence_of(session, log, size=None, since=None)
        return found.files["system.tlog-proof"].encode()


def check(
    files: Files, policy: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str]:
    path = pack(files, folder / "bundle.zip")
    code = verifier.main([str(path), f"--policy={policy}"])
    printed = capsys.readouterr()
    return code, printed.out + printed.err


def count(publisher: Publisher) -> int:
    with publisher.db.reading() as session:
        return session.scalar(select(func.count()).select_from(Anchor)) or 0


class TestStamping:
    def test_the_first_checkpoint_and_each_release_are_stamped_and_verify(
        self, scene: Scene, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        lines = scene.files["entries.jsonl"].splitlines()
        assert scene.sizes[-1] == len(lines)
        assert json.loads(lines[-1])["type"] == "release.published"
        assert len(scene.sizes) == 2
        path = pack(scene.files, tmp_path / "b.zip")
        assert verifier.main([str(path), f"--policy={scene.policy}", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["time_stamps"] == 2

    def test_openssl_agrees_with_what_is_in_the_bundle(self, scene: Scene) -> None:
        size = scene.sizes[0]
        leaves = [verifier.leaf_of(one) for one in scene.files["entries.jsonl"].splitlines()]
        origin = json.loads(scene.files["manifest.json"])["origin"]
        root = anchors.notes.encode_hash(verifier.merkle_root(leaves[:size]))
        (scene.authority.folder / "text").write_text(f"{origin}\n{size}\n{root}\n")
        (scene.authority.folder / "token").write_bytes(scene.files[f"anchors/{size}.tst"])
        scene.authority.openssl(
            "ts", "-verify", "-data", "text", "-in", "token", "-token_in", "-CAfile", "ca.pem"
        )  # fmt: skip

    def test_growth_without_a_release_waits_for_the_day(
        self, scene: Scene, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = count(scene.publisher)
        w.add_population(scene.world, code="later")
        scene.publisher.turn()
        assert count(scene.publisher) == before
        tomorrow = anchors.now_us() + anchors.DAY_US
        monkeypatch.setattr(anchors, "now_us", lambda: tomorrow)
        scene.publisher.turn()
        scene.publisher.turn()
        assert count(scene.publisher) == before + 1

    def test_an_authority_that_is_down_or_strange_stops_nothing(
        self, scene: Scene, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        later = anchors.now_us() + 3 * anchors.DAY_US
        monkeypatch.setattr(anchors, "now_us", lambda: later)
        w.add_population(scene.world, code="still-later")
        before = count(scene.publisher)
        for wrong in (down, scene.stranger.ask, lambda _u, _b: b"nonsense"):
            scene.publisher.ask_tsa = wrong
            scene.publisher.turn()
            assert count(scene.publisher) == before
        scene.publisher.ask_tsa = scene.authority.ask
        scene.publisher.turn()
        assert count(scene.publisher) == before + 1

    def test_the_query_travels_over_http(self, scene: Scene) -> None:
        (root,) = anchors.read_certificates(scene.authority.folder / "ca.pem")
        with serving(scene.authority) as url:
            tsa = anchors.Tsa(url=url, certificates=(root,))
            token = tsa.stamp(b"what is stamped", anchors.ask_over_http)
            with pytest.raises(TsaUnreachable, match="404"):
                anchors.ask_over_http(f"{url}/elsewhere", b"")
        stamp = verifier.parse_time_stamp(token)
        assert stamp.digest == hashlib.sha256(b"what is stamped").digest()
        with pytest.raises(TsaUnreachable):
            anchors.ask_over_http(url, b"")

    def test_a_stamp_cannot_be_changed_or_deleted(self, scene: Scene) -> None:
        for change in ("UPDATE anchor SET token = 'x'", "DELETE FROM anchor"):
            with pytest.raises(DatabaseError), scene.publisher.db.transaction() as session:
                session.execute(text(change))

    def test_an_address_without_certificates_is_refused(self) -> None:
        with pytest.raises(ValueError, match="RLDP_TSA_CERTIFICATES"):
            Settings(tsa_url="http://tsa.example")


@contextmanager
def serving(authority: Authority) -> Iterator[str]:
    """The authority behind a real socket."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            asked = self.headers["Content-Type"] == "application/timestamp-query"
            self.send_response(200 if asked and self.path == "/" else 404)
            self.end_headers()
            if asked and self.path == "/":
                self.wfile.write(authority.ask("", body))

        def log_message(self, *_: object) -> None:
            """Quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def down(_url: str, _body: bytes) -> bytes:
    raise TsaUnreachable("down")


class TestForgery:
    def test_a_stamp_of_another_size_is_found(
        self, scene: Scene, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        first, second = (f"anchors/{size}.tst" for size in scene.sizes)
        forged = scene.files | {first: scene.files[second], second: scene.files[first]}
        code, told = check(forged, scene.policy, tmp_path, capsys)
        assert (code, "is over another log" in told) == (1, True), told

    def test_every_flipped_byte_is_found(
        self, scene: Scene, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Or it lies where neither content, attributes nor signature are: the certificates."""
        name = f"anchors/{scene.sizes[0]}.tst"
        raw = scene.files[name]
        stamp = verifier.parse_time_stamp(raw)
        start = raw.index(stamp.signature)
        places = [*range(start, start + len(stamp.signature), 7)]
        content = raw.index(stamp.digest)
        places += [*range(content, content + 60, 5)]
        for place in places:
            changed = bytearray(raw)
            changed[place] ^= 1
            forged = scene.files | {name: bytes(changed)}
            code, told = check(forged, scene.policy, tmp_path, capsys)
            assert (code, "FAILED" in told) == (1, True), place

    @pytest.mark.parametrize("raw", [b"", b"0", b"\x30\x80", b"\x30\x03\x02\x01\x00", b"x" * 500])
    def test_what_is_no_token_is_found(
        self, scene: Scene, raw: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        forged = scene.files | {f"anchors/{scene.sizes[0]}.tst": raw}
        code, told = check(forged, scene.policy, tmp_path, capsys)
        assert (code, "time stamp" in told or "DER" in told) == (1, True), told

    def test_another_authority_is_found(
        self, scene: Scene, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        other = write_policy(tmp_path, scene.publisher, scene.stranger)
        code, told = check(scene.files, other, tmp_path, capsys)
        assert (code, "by no authority of the policy" in told) == (1, True), told

    def test_without_a_pinned_authority_the_time_stays_open(
        self, scene: Scene, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        none = write_policy(tmp_path, scene.publisher, None)
        code, told = check(scene.files, none, tmp_path, capsys)
        assert (code, "pins no authority" in told) == (3, True), told

    def test_an_entry_younger_than_its_stamp_is_found(
        self,
        scene: Scene,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        earlier = verifier.parse_time_stamp

        def an_hour_before(raw: bytes) -> object:
            stamp = earlier(raw)
            return verifier.replace(stamp, seconds=stamp.seconds - 3600)

        monkeypatch.setattr(verifier, "parse_time_stamp", an_hour_before)
        code, told = check(scene.files, scene.policy, tmp_path, capsys)
        assert (code, "younger than the time stamp" in told) == (1, True), told

    def test_a_certificate_for_something_else_stamps_nothing(self, scene: Scene) -> None:
        name = f"anchors/{scene.sizes[0]}.tst"
        stamp = verifier.parse_time_stamp(scene.files[name])
        (root,) = anchors.read_certificates(scene.authority.folder / "ca.pem")
        assert verifier._may_stamp(stamp.certificates[0], time.time())
        assert not verifier._may_stamp(root, time.time())
        assert not verifier._may_stamp(stamp.certificates[0], time.time() + 90 * 86400)


def test_roots_in_one_pass_are_the_roots_one_by_one() -> None:
    leaves = [verifier.leaf_of(str(number).encode()) for number in range(70)]
    assert verifier.roots_at(leaves, range(1, 71)) == {
        size: verifier.merkle_root(leaves[:size]) for size in range(1, 71)
    }
