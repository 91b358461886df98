"""A client of zrc-relay/1 over aioquic. It shares no code with the relay: only PROTOCOL.md and relay.proto."""

import asyncio
import base64
import functools
import hashlib
import json
import operator
import socket
import ssl
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from aioquic.asyncio import QuicConnectionProtocol
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from wire import ALPN, DEVICE, FrameReader, client_frame, code_name, nonce_proof, relay_message

AGENT = "zrc-interop (aioquic)"


@dataclass(frozen=True)
class Relay:
    """What relay.json says."""

    addr: str
    port: int
    server_name: str
    spki: str
    relay_id: bytes

    @classmethod
    def read(cls, path):
        said = json.loads(Path(path).read_text())
        return cls(said["addr"], said["port"], said["server_name"], said["spki"], bytes.fromhex(said["relay_id"]))

    def sockaddr(self):
        """As the system writes it, so that answers are known to come from there."""
        return (self.addr, self.port, 0, 0) if ":" in self.addr else (self.addr, self.port)

    def spki_sha256(self):
        kind, _, encoded = self.spki.partition("/")
        assert kind == "sha256", self.spki
        return base64.b64decode(encoded, validate=True)


@dataclass(frozen=True)
class End:
    """How a connection ended: by whom is said by `app`, the application's code or QUIC's own."""

    code: int
    app: bool
    reason: str

    def __str__(self):
        return code_name(self.code) if self.app else f"transport 0x{self.code:x} ({self.reason})"


class Refusal(Exception):
    """The relay said Refused or Closing, or just closed, where something else was awaited."""

    def __init__(self, kind, code, message=""):
        super().__init__(f"{kind} {code_name(code)}: {message}")
        self.code = code


class WrongPin(Exception):
    """The relay's certificate is not the one that relay.json names."""


class Stream:
    """One stream, as seen from this end."""

    def __init__(self, leg, stream_id):
        self.leg, self.id = leg, stream_id
        self.received = bytearray()
        self.finished = False
        self.reset_code = None
        self.stop_code = None

    def send(self, data, fin=False):
        self.leg.quic.send_stream_data(self.id, data, fin)
        self.leg.transmit()

    def reset(self, code):
        self.leg.quic.reset_stream(self.id, code)
        self.leg.transmit()

    def stop(self, code):
        self.leg.quic.stop_stream(self.id, code)
        self.leg.transmit()

    async def until(self, condition):
        """Waits until the condition on this stream holds."""
        await self.leg.until(lambda: condition(self))
        return self

    async def read_all(self):
        await self.until(lambda s: s.finished or s.reset_code is not None)
        assert self.reset_code is None, f"reset with 0x{self.reset_code:x}"
        return bytes(self.received)


class Leg(QuicConnectionProtocol):
    """One connection to the relay, for one role of one allocation."""

    CONTROL = 0

    def __init__(self, quic, relay):
        super().__init__(quic)
        self.quic, self.relay = quic, relay
        self.connected = False
        self.end = None
        self.messages = asyncio.Queue()
        self.seen = []  # every control message, in order, as (kind, fields)
        self.control_finished = False
        self.streams = {}
        self.accepted = asyncio.Queue()  # streams that the relay opened
        self.datagrams = asyncio.Queue()
        self.on_datagram = self.datagrams.put_nowait
        self.raw = asyncio.Queue()  # packets beside QUIC: the two high bits of their first byte are clear
        self._frames = FrameReader()
        self._changed = asyncio.Event()

    # What comes from the network.

    def datagram_received(self, data, addr):
        if data and data[0] & 0xC0 == 0:
            self.raw.put_nowait(data)
        else:
            super().datagram_received(data, addr)

    def quic_event_received(self, event):
        if isinstance(event, events.HandshakeCompleted):
            assert event.alpn_protocol == ALPN, event.alpn_protocol
            assert not event.early_data_accepted
            self.connected = True
        elif isinstance(event, events.ConnectionTerminated):
            # QUIC's own close frame names the frame that was at fault; an application's has no such field.
            self.end = End(event.error_code, event.frame_type is None, event.reason_phrase)
            self.messages.put_nowait(None)
        elif isinstance(event, events.DatagramFrameReceived):
            self.on_datagram(event.data)
        elif isinstance(event, events.StreamDataReceived) and event.stream_id == self.CONTROL:
            for body in self._frames.feed(event.data):
                kind, fields = relay_message(body)
                self.seen.append((kind, fields))
                self.messages.put_nowait((kind, fields))
            self.control_finished |= event.end_stream
        elif isinstance(event, events.StreamDataReceived):
            stream = self._stream(event.stream_id)
            stream.received += event.data
            stream.finished |= event.end_stream
        elif isinstance(event, events.StreamReset):
            self._stream(event.stream_id).reset_code = event.error_code
        elif isinstance(event, events.StopSendingReceived):
            self._stream(event.stream_id).stop_code = event.error_code
        self._changed.set()

    def _stream(self, stream_id):
        if stream_id not in self.streams:
            self.streams[stream_id] = Stream(self, stream_id)
            if stream_id & 1:
                self.accepted.put_nowait(self.streams[stream_id])
        return self.streams[stream_id]

    async def until(self, condition):
        """Waits until the condition holds; looks again after whatever arrives."""
        while not condition():
            if self.end is not None:
                raise Refusal("end", self.end.code, str(self.end))
            self._changed.clear()
            await self._changed.wait()

    async def ended(self):
        """Waits for the end of the connection and says how it was."""
        while self.end is None:
            self._changed.clear()
            await self._changed.wait()
        return self.end

    # The control stream.

    def say(self, kind, **fields):
        self.send_control(client_frame(kind, **fields))

    def send_control(self, data, fin=False):
        """Bytes as they are, for those who break the rules."""
        if not self.streams.get(self.CONTROL):
            self.streams[self.CONTROL] = Stream(self, self.quic.get_next_available_stream_id())
        self.streams[self.CONTROL].send(data, fin)

    async def hear(self):
        """The next control message, whatever it is."""
        message = await self.messages.get()
        if message is None:
            self.messages.put_nowait(None)
            raise Refusal("end", self.end.code, str(self.end))
        return message

    async def expect(self, wanted):
        """The next message of this kind; others before it are kept in `seen`, a refusal is raised."""
        while True:
            kind, fields = await self.hear()
            if kind == wanted:
                return fields
            if kind in ("refused", "closing"):
                raise Refusal(kind, fields.code, fields.message)

    async def expect_peer(self, present=True):
        while (await self.expect("peer_state")).present is not present:
            pass

    async def hello(self, grant, role, token=None, **fields):
        """Says Hello and returns the nonce of the Challenge."""
        hello = {"token": token or grant.token(), "role": role, "allocation_id": grant.allocation_id, "agent": AGENT}
        self.say("hello", **(hello | fields))
        nonce = (await self.expect("challenge")).nonce
        assert len(nonce) == 32
        return nonce

    def prove(self, grant, role, nonce, token=None, key=None):
        self.say("prove", proof=nonce_proof(key or grant.key_of(role), role, token or grant.token(), nonce, self.pin()))

    async def join(self, grant, role, token=None, **fields):
        """The whole way from a fresh connection to Allocated."""
        nonce = await self.hello(grant, role, token, **fields)
        self.prove(grant, role, nonce, token)
        self.allocated = await self.expect("allocated")
        return self.allocated

    # Datagrams and streams.

    def send_datagram(self, data):
        self.quic.send_datagram_frame(data)
        self.transmit()

    async def datagram(self):
        return await self.datagrams.get()

    def send_beside(self, packet):
        """A UDP packet from this connection's socket that QUIC knows nothing of."""
        self._transport.sendto(packet, self.relay.sockaddr())

    def open(self, unidirectional=False):
        stream_id = self.quic.get_next_available_stream_id(is_unidirectional=unidirectional)
        # Sends nothing yet, but takes the id.
        self.quic.send_stream_data(stream_id, b"")
        return self._stream(stream_id)

    async def accept(self):
        return await self.accepted.get()

    # The transport.

    def leaf_spki_sha256(self):
        """SHA-256 of the key in the certificate that the relay showed, and whose possession TLS has checked."""
        leaf = self.quic.tls._peer_certificate
        der = leaf.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return hashlib.sha256(der).digest()

    def pin(self):
        return self.leaf_spki_sha256()

    def stop_reading(self):
        """From now on grants the relay no more room to send: what a program that does not read does."""
        self.quic._write_connection_limits = lambda *args, **kwargs: None
        self.quic._write_stream_limits = lambda *args, **kwargs: None

    def read_on(self):
        """Undoes `stop_reading`."""
        del self.quic._write_connection_limits, self.quic._write_stream_limits
        self.transmit()

    async def move(self):
        """Goes on from another local port, as after a new NAT binding. Returns the new port."""
        old = self._transport
        await udp_endpoint(self.relay, lambda: self)
        old.abort()
        self.transmit()
        return self._transport.get_extra_info("sockname")[1]

    def connection_lost(self, exc):
        """A socket was closed: the old one after `move`, or the last one."""

    def vanish(self):
        """Is gone without a word, as after a crash."""
        if self._timer:
            self._timer.cancel()
        self._transport.abort()


async def udp_endpoint(relay, protocol):
    """A socket of its own, on a free port of this machine's loopback address."""
    v6 = ":" in relay.addr
    sock = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("::1" if v6 else "127.0.0.1", 0))
    return await asyncio.get_running_loop().create_datagram_endpoint(protocol, sock=sock)


@asynccontextmanager
async def connect(relay, allocation_id=None, alpn=ALPN, **options):
    """A connection with the relay's key checked against its pin; it is closed with CLOSED at the end."""
    settings = {
        "alpn_protocols": [alpn],
        "server_name": relay.server_name,
        # The pin is the trust: TLS still proves that the relay holds the key of the certificate it shows.
        "verify_mode": ssl.CERT_NONE,
        "max_datagram_frame_size": 65535,
        "max_datagram_size": 1400,
    }
    configuration = QuicConfiguration(**settings | options)
    quic = QuicConnection(configuration=configuration)
    if allocation_id is not None:
        steer(quic, allocation_id)
    _, leg = await udp_endpoint(relay, lambda: Leg(quic, relay))
    try:
        leg.connect(relay.sockaddr())
        await leg.until(lambda: leg.connected)
        if leg.leaf_spki_sha256() != relay.spki_sha256():
            raise WrongPin(relay.spki)
        yield leg
    finally:
        if leg.end is None and not leg._transport.is_closing():
            leg.close(0)
        leg.vanish()


def steer(quic, allocation_id):
    """Section 7: the first byte of the first Destination Connection ID is the XOR of the allocation's bytes."""
    first = functools.reduce(operator.xor, allocation_id)
    cid = bytes([first]) + quic._peer_cid.cid[1:]
    quic._peer_cid.cid = cid
    quic._original_destination_connection_id = cid


@asynccontextmanager
async def joined(relay, grant, role, **options):
    """A leg that is in its allocation."""
    async with connect(relay, allocation_id=grant.allocation_id, **options) as leg:
        await leg.join(grant, role)
        yield leg


@asynccontextmanager
async def pair(relay, grant, **options):
    """Device and peer, each knowing that the other is there."""
    async with joined(relay, grant, DEVICE, **options) as device, joined(relay, grant, 2, **options) as peer:
        assert peer.allocated.peer_present
        await device.expect_peer()
        yield device, peer
