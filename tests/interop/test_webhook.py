"""R6.5: an outside system takes the relay's security events, and checks them with the Standard Webhooks library."""

import asyncio
import base64
import datetime
import json
import queue
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from standardwebhooks import Webhook, WebhookVerificationError

from client import Refusal, connect, pair
from conftest import LOCAL
from wire import DEVICE, Grant

NEW = "whsec_" + base64.b64encode(b"n" * 32).decode()
OLD = "whsec_" + base64.b64encode(b"o" * 24).decode()

CONFIG = LOCAL + """\
[security]
webhook_url = "{url}"
webhook_secret = {secret}
"""


class Endpoint:
    """Takes what is POSTed; until it is let go, it answers nothing."""

    def __init__(self, tls=None):
        endpoint = self
        self.requests = queue.Queue()
        self.open = threading.Event()
        self.open.set()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                endpoint.requests.put((dict(self.headers), body))
                endpoint.open.wait()
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_):
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_):
                """A client that hung up, or did not trust us, is what some tests want."""

        self.server = Server(("127.0.0.1", 0), Handler)
        if tls:
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def url(self, scheme="http", host="127.0.0.1"):
        return f"{scheme}://{host}:{self.server.server_port}/zrc"

    async def next(self):
        return await asyncio.to_thread(self.requests.get, timeout=20)

    def stop(self):
        self.open.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def endpoint():
    endpoint = Endpoint()
    yield endpoint
    endpoint.stop()


async def refused(relay):
    grant = Grant(relay.relay_id, expires_at=1)
    async with connect(relay) as leg:
        with pytest.raises(Refusal):
            await leg.hello(grant, DEVICE)


async def test_what_arrives_is_signed(configured, endpoint):
    process = configured(CONFIG.format(url=endpoint.url(), secret=json.dumps(NEW)))
    await refused(process.relay)
    headers, body = await endpoint.next()
    said = Webhook(NEW).verify(body, headers)
    assert said["type"] == "security.events"
    assert said["data"]["relay_id"] == process.relay.relay_id.hex()
    assert datetime.datetime.fromisoformat(said["timestamp"]).tzinfo
    [event] = said["data"]["events"]
    assert event.items() >= {"event": "bad_token", "reason": "expired", "source": "127.0.0.1"}.items()
    # What is changed on the way, or signed by somebody else, is not believed.
    with pytest.raises(WebhookVerificationError):
        Webhook(NEW).verify(body.replace(b"expired", b"signature"), headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(OLD).verify(body, headers)
    for name in ["webhook-id", "webhook-timestamp"]:
        with pytest.raises(WebhookVerificationError):
            Webhook(NEW).verify(body, headers | {name: headers[name] + "1"})


async def test_while_the_secret_changes_receivers_with_either_believe_it(configured, endpoint):
    process = configured(CONFIG.format(url=endpoint.url(), secret=json.dumps([NEW, OLD])))
    await refused(process.relay)
    headers, body = await endpoint.next()
    for secret in [NEW, OLD]:
        Webhook(secret).verify(body, headers)


def authority(folder, host):
    """A certificate authority of our own and a server it vouches for."""
    name = lambda text: x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
    now = datetime.datetime.now(datetime.timezone.utc)

    def certificate(subject, key, issuer, signer, extension):
        return (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name(issuer))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(extension, critical=False)
            .sign(signer, hashes.SHA256())
            .public_bytes(serialization.Encoding.PEM)
        )

    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca = folder / "ca.pem"
    ca.write_bytes(certificate("ca", ca_key, "ca", ca_key, x509.BasicConstraints(True, None)))
    chain = folder / "server.pem"
    pem = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    names = x509.SubjectAlternativeName([x509.DNSName(host)])
    chain.write_bytes(certificate(host, key, "ca", ca_key, names) + key.private_bytes(*pem))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(chain)
    return ca, tls


@pytest.mark.parametrize("trusted", [True, False])
async def test_over_https_the_endpoint_must_be_trusted(configured, tmp_path, monkeypatch, trusted):
    ca, tls = authority(tmp_path, "localhost")
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(ca))
    endpoint = Endpoint(tls)
    try:
        process = configured(CONFIG.format(url=endpoint.url("https", "localhost"), secret=json.dumps(NEW)))
        await refused(process.relay)
        if trusted:
            headers, body = await endpoint.next()
            Webhook(NEW).verify(body, headers)
        else:
            await process.says("the webhook did not take security events")
            assert "UnknownIssuer" in "".join(process.said)
            assert endpoint.requests.empty()
    finally:
        endpoint.stop()


async def test_an_endpoint_that_hangs_disturbs_nobody(configured, endpoint):
    endpoint.open.clear()
    process = configured(CONFIG.format(url=endpoint.url(), secret=json.dumps(NEW)))
    grant = Grant(process.relay.relay_id)
    async with pair(process.relay, grant) as (device, peer):
        await refused(process.relay)
        await endpoint.next()
        # It has the first and says nothing; more follow, and the relay does what it is for.
        for n in range(300):
            if n % 10 == 0:
                await refused(process.relay)
            payload = b"%d" % n
            device.send_datagram(payload)
            assert await peer.datagram() == payload
    assert endpoint.requests.empty(), "one request at a time"
    endpoint.open.set()
    _, body = await endpoint.next()
    assert len(json.loads(body)["data"]["events"]) > 1
