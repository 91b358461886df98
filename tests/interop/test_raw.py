"""PROTOCOL.md, section 6: packets beside the QUIC connection."""

import asyncio
import os
from contextlib import asynccontextmanager
from dataclasses import dataclass

from client import Leg, connect, joined, pair, udp_endpoint
from wire import DEVICE, PEER

RAW_CHANNEL = 1
DATA, PROBE, ANSWER = b"\x20", b"\x21", b"\x22"
NO_COOKIE = bytes(8)


@dataclass
class Channel:
    """One side's channel."""

    leg: Leg
    tag: bytes

    def send(self, payload):
        self.leg.send_beside(DATA + self.tag + payload)

    async def payload(self):
        packet = await self.leg.raw.get()
        assert packet[:8] == DATA + self.tag, packet[:8].hex()
        return packet[8:]

    async def probe(self, cookie):
        """The answer's cookie."""
        nonce = os.urandom(8)
        self.leg.send_beside(PROBE + self.tag + nonce + cookie)
        answer = await self.leg.raw.get()
        assert len(answer) == 24 and answer[:16] == ANSWER + self.tag + nonce, answer.hex()
        return answer[16:]

    async def open(self):
        assert await self.probe(await self.probe(NO_COOKIE)) != NO_COOKIE


@asynccontextmanager
async def channels(relay, grant):
    """Both sides with a channel, whose peer has not been proven yet."""
    async with connect(relay) as device, connect(relay) as peer:
        for leg, role in ((device, DEVICE), (peer, PEER)):
            said = await leg.join(grant, role, features=[RAW_CHANNEL])
            assert RAW_CHANNEL in said.features
        tags = [(await leg.expect("channel")).tag for leg in (device, peer)]
        assert all(len(tag) == 7 for tag in tags) and tags[0] != tags[1]
        yield Channel(device, tags[0]), Channel(peer, tags[1])


async def test_packets_cross_with_the_receivers_tag(relay, grant):
    async with channels(relay, grant) as (device, peer):
        await device.open()
        await peer.open()
        for sender, receiver in ((device, peer), (peer, device)):
            for length in (0, 1, 8, 1000):
                payload = os.urandom(length)
                sender.send(payload)
                assert await receiver.payload() == payload


async def test_a_side_that_has_not_probed_gets_datagrams(relay, grant):
    async with channels(relay, grant) as (device, peer):
        device.send(b"before any cookie")
        assert await peer.leg.datagram() == b"before any cookie"
        cookie = await peer.probe(NO_COOKIE)
        device.send(b"before the cookie came back")
        assert await peer.leg.datagram() == b"before the cookie came back"
        await peer.probe(cookie)
        device.send(b"after")
        assert await peer.payload() == b"after"


async def test_the_limit_is_announced_with_the_channel(relay, grant):
    async with channels(relay, grant) as (device, peer):
        limit = await device.leg.expect("path_limit")
        assert limit.max_raw_bytes >= 1192, "QUIC's least packet, less eight"
        await peer.open()
        device.send(bytes(limit.max_raw_bytes))
        assert await peer.payload() == bytes(limit.max_raw_bytes)


async def test_a_client_that_asks_for_nothing_hears_nothing_of_it(relay, grant):
    async with pair(relay, grant) as (device, peer):
        device.say("ping", value=1)
        await device.expect("pong")
        assert "channel" not in [kind for kind, _ in device.seen]
        assert all(fields.max_raw_bytes == 0 for kind, fields in device.seen if kind == "path_limit")


async def test_another_socket_cannot_use_a_tag(relay, grant):
    async with channels(relay, grant) as (device, peer):
        await peer.open()
        heard = asyncio.Queue()

        class Stranger(asyncio.DatagramProtocol):
            def datagram_received(self, data, addr):
                heard.put_nowait(data)

        transport, _ = await udp_endpoint(relay, Stranger)
        for packet in (DATA + device.tag + b"forged", PROBE + device.tag + bytes(16)):
            transport.sendto(packet, relay.sockaddr())
        device.send(b"genuine")
        assert await peer.payload() == b"genuine"
        assert peer.leg.raw.empty() and heard.empty()
        transport.close()


async def test_after_a_move_the_channel_follows_the_connection(relay, grant):
    async with channels(relay, grant) as (device, peer):
        await device.open()
        await peer.open()
        await device.leg.move()
        device.leg.send_datagram(b"moved")
        assert await peer.leg.datagram() == b"moved"
        await device.open()
        device.send(b"again")
        assert await peer.payload() == b"again"
        peer.send(b"and back")
        assert await device.payload() == b"and back"


async def test_the_end_of_the_allocation_is_the_end_of_the_tags(relay, grant):
    async with channels(relay, grant) as (device, peer):
        await device.open()
        await peer.open()
        device.leg.say("release")
        await device.leg.ended()
        await peer.leg.ended()
        device.send(b"too late")
        device.leg.send_beside(PROBE + device.tag + bytes(16))
    # Nobody heard it: what is heard first on another allocation is its own.
    async with joined(relay, type(grant)(relay.relay_id), DEVICE):
        assert device.leg.raw.empty() and peer.leg.raw.empty()
