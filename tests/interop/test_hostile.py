"""Clients that break the rules over a real socket: each ends with its code in time, and a neighbour notices nothing."""

import asyncio
import os
import random
import time
from contextlib import asynccontextmanager

import pytest

from client import Refusal, connect, joined, pair
from expect import ends_with
from wire import DEVICE, PEER, Grant, client_frame, code_name

MIB = 1024 * 1024
# How long the relay waits for a Hello, section 3.
HELLO_S = 3


@asynccontextmanager
async def neighbour(relay):
    """A pair that echoes a datagram every 10 ms while the test runs; at the end nothing may be missing or late."""
    async with pair(relay, Grant(relay.relay_id)) as (device, peer):
        peer.on_datagram = peer.send_datagram
        sent, back = {}, {}
        device.on_datagram = lambda data: back.setdefault(data, time.monotonic())

        async def echo():
            while True:
                payload = len(sent).to_bytes(8, "big") + os.urandom(92)
                sent[payload] = time.monotonic()
                device.send_datagram(payload)
                await asyncio.sleep(0.01)

        echoing = asyncio.create_task(echo())
        try:
            yield
            # At least some of it ran beside what the test did.
            await device.until(lambda: len(back) >= 20)
        finally:
            echoing.cancel()
        await device.until(lambda: len(back) == len(sent))
        worst_s = max(back[payload] - sent[payload] for payload in sent)
        assert worst_s < 1, f"the neighbour's slowest echo of {len(sent)} took {worst_s:.3f} s"
        assert device.end is None and peer.end is None


async def test_says_nothing(relay, stopwatch):
    async with neighbour(relay), connect(relay) as leg:
        began = stopwatch()
        await ends_with(leg, "AUTH_TIMEOUT", within_s=HELLO_S + 3, said=False)
        assert stopwatch() - began > HELLO_S - 0.5


async def test_says_half_a_frame(relay):
    async with neighbour(relay), connect(relay) as leg:
        leg.send_control(b"\x00\x00\x00\xb4half")
        await ends_with(leg, "AUTH_TIMEOUT", within_s=HELLO_S + 3)


async def test_does_not_answer_the_challenge(relay, grant):
    async with neighbour(relay), connect(relay) as leg:
        await leg.hello(grant, DEVICE)
        await ends_with(leg, "AUTH_TIMEOUT", within_s=HELLO_S + 3)


async def test_drips_bytes_forever(relay, grant):
    """A byte now and then does not buy time."""
    async with neighbour(relay), connect(relay) as leg:

        async def drip():
            for byte in client_frame("hello", token=grant.token(), role=DEVICE, agent="x" * 100):
                leg.send_control(bytes([byte]))
                await asyncio.sleep(0.1)

        dripping = asyncio.create_task(drip())
        await ends_with(leg, "AUTH_TIMEOUT", within_s=HELLO_S + 3)
        dripping.cancel()


async def test_a_hundred_silent_clients(relay, process):
    before = process.rss_bytes()
    async with neighbour(relay):

        async def silent():
            async with connect(relay) as leg:
                await ends_with(leg, "AUTH_TIMEOUT", within_s=HELLO_S + 5, said=False)

        await asyncio.gather(*(silent() for _ in range(100)))
    assert process.rss_bytes() - before < 64 * MIB


async def test_a_hello_with_one_wrong_byte_anywhere(relay, grant):
    """Whatever a damaged Hello is taken for, it is answered in time, with a code, and with nobody's allocation."""
    seed = int.from_bytes(os.urandom(4), "big")
    print("seed", seed)
    chance = random.Random(seed)
    hello = client_frame("hello", token=grant.token(), role=DEVICE, allocation_id=grant.allocation_id)
    allowed = {"PROTOCOL_ERROR", "TOKEN_INVALID", "ALLOCATION_MISMATCH", "AUTH_TIMEOUT"}

    async def one():
        damaged = bytearray(hello)
        at = chance.randrange(len(damaged))
        damaged[at] ^= chance.randrange(1, 256)
        async with connect(relay) as leg:
            leg.send_control(bytes(damaged))
            try:
                await leg.expect("challenge")
            except Refusal as refusal:
                assert code_name(refusal.code) in allowed, f"byte {at}: {refusal}"
                end = await leg.ended()
                assert end.app and end.code == refusal.code, f"byte {at}: {end}"
            else:
                # The role may be damaged into the other one; then the proof that follows is for another key.
                leg.prove(grant, DEVICE, bytes(32))
                await ends_with(leg, "PROOF_INVALID")

    async with neighbour(relay):
        for _ in range(10):
            await asyncio.gather(*(one() for _ in range(20)))


@pytest.mark.parametrize("length", [2**32 - 1, 2**31, 4097])
async def test_says_a_huge_length_and_goes_on(relay, process, length):
    before = process.rss_bytes()
    async with neighbour(relay), connect(relay) as leg:
        leg.send_control(length.to_bytes(4, "big") + bytes(8192))
        await ends_with(leg, "PROTOCOL_ERROR", within_s=2)
    assert process.rss_bytes() - before < 16 * MIB


async def test_a_huge_length_after_the_token(relay, process, grant):
    before = process.rss_bytes()
    async with neighbour(relay), joined(relay, grant, DEVICE) as leg:
        leg.send_control(b"\xff\xff\xff\xff" + bytes(64 * 1024))
        await ends_with(leg, "PROTOCOL_ERROR", within_s=2)
    assert process.rss_bytes() - before < 16 * MIB


async def test_before_the_token_there_is_room_for_one_stream(relay, grant):
    """An honest stack is held back by the transport, and its streams go through once the token is accepted."""
    async with connect(relay) as leg:
        assert leg.quic._remote_max_streams_bidi == 1
        assert leg.quic._remote_max_streams_uni == 0
        assert leg.quic._remote_max_data <= 64 * 1024
        nonce = await leg.hello(grant, DEVICE)
        early, early_uni = leg.open(), leg.open(unidirectional=True)
        early.send(b"patience", fin=True)
        early_uni.send(b"patience too", fin=True)
        leg.prove(grant, DEVICE, nonce)
        await leg.expect("allocated")
        async with joined(relay, grant, PEER) as peer:
            arrived = [await peer.accept(), await peer.accept()]
            assert {await s.read_all() for s in arrived} == {b"patience", b"patience too"}


@pytest.mark.parametrize("unidirectional", [False, True], ids=["bidi", "uni"])
async def test_opens_streams_before_hello(relay, unidirectional):
    """Against the limit the transport itself ends the connection: STREAM_LIMIT_ERROR."""
    async with neighbour(relay), connect(relay) as leg:
        leg.quic._remote_max_streams_bidi = leg.quic._remote_max_streams_uni = 1000
        leg.quic._remote_max_data = 1 << 30
        for _ in range(50):
            leg.open(unidirectional).send(bytes(1000))
        end = await asyncio.wait_for(leg.ended(), 3)
        assert (end.app, end.code) == (False, 0x04), str(end)


async def test_sends_datagrams_before_hello(relay, grant):
    """They go nowhere, then or later."""
    async with neighbour(relay), pair(relay, grant) as (_, peer), connect(relay) as leg:
        for _ in range(25):
            for _ in range(8):
                leg.send_datagram(os.urandom(1000))
            # Answered by QUIC: what was sent before has arrived.
            await leg.ping()
        await leg.join(grant, DEVICE)
        leg.send_datagram(b"now")
        assert await peer.datagram() == b"now"


async def test_floods_datagrams_before_hello(relay):
    async with neighbour(relay), connect(relay) as leg:
        for _ in range(2000):
            leg.send_datagram(b"")
        await ends_with(leg, "PROTOCOL_ERROR", within_s=2, said=False)


async def test_never_reads_its_streams(relay, process, grant):
    """The sender is held back, the relay keeps a bounded part, and datagrams go on."""
    before = process.rss_bytes()
    async with neighbour(relay), pair(relay, grant) as (device, peer):
        peer.stop_reading()
        streams = [device.open(unidirectional=True) for _ in range(20)]
        for stream in streams:
            stream.send(bytes(2 * MIB), fin=True)
        # What is in flight settles: no further credit comes for a while that many round trips fit in.
        while True:
            credit = device.quic._remote_max_data
            for _ in range(20):
                device.say("ping", value=1)
                await device.expect("pong")
                await asyncio.sleep(0.02)
            if device.quic._remote_max_data == credit:
                break
        taken = device.quic._remote_max_data_used
        assert taken < 40 * MIB, f"the relay took {taken} bytes that nobody reads"
        assert process.rss_bytes() - before < 32 * MIB
        device.send_datagram(b"beside it")
        assert await peer.datagram() == b"beside it"


async def test_floods_pings_and_reads_no_answer(relay, process, grant):
    """The relay stops answering before its memory grows, and ends what goes on."""
    before = process.rss_bytes()
    async with neighbour(relay), joined(relay, grant, DEVICE) as leg:
        leg.stop_reading()
        pings = b"".join(client_frame("ping", value=2**64 - 1) for _ in range(1000))
        sent = 0
        while leg.end is None and sent < 400:
            leg.send_control(pings)
            sent += 1
            await asyncio.sleep(0.005)
        peak = process.rss_bytes()
    assert peak - before < 32 * MIB


async def test_leaves_its_control_stream_unread(relay, grant):
    """Pongs fill the little room that it gave; then the relay has waited long enough."""
    async with neighbour(relay), connect(relay, max_stream_data=1024) as leg:
        await leg.join(grant, DEVICE)
        leg.stop_reading()
        for _ in range(60):
            leg.say("ping", value=2**64 - 1)
        await ends_with(leg, "PROTOCOL_ERROR", within_s=20, said=False)


async def test_vanishes_without_a_word(relay, grant):
    """Crashed: nothing arrives any more. The other side and everybody else goes on."""
    async with neighbour(relay), joined(relay, grant, PEER) as peer:
        async with connect(relay) as device:
            await device.join(grant, DEVICE)
            await peer.expect_peer()
            device.vanish()
        async with joined(relay, grant, DEVICE) as again:
            peer.send_datagram(b"to the living")
            assert await again.datagram() == b"to the living"


async def test_junk_on_the_port(relay):
    """What cannot be QUIC is never answered, and nothing is answered with more than it said."""
    loop = asyncio.get_running_loop()

    class Junk(asyncio.DatagramProtocol):
        answered_bytes = 0

        def datagram_received(self, data, addr):
            self.answered_bytes += len(data)

    async with neighbour(relay):
        transport, junk = await loop.create_datagram_endpoint(
            Junk, remote_addr=(relay.addr, relay.port), local_addr=("127.0.0.1", 0)
        )

        async def throw(packets):
            for packet in packets:
                transport.sendto(packet)
            # A handshake and a ping after them: by then they have been read.
            async with connect(relay) as leg:
                await leg.ping()

        # The two high bits clear: the raw channel's space, and here nobody has a channel.
        await throw(bytes([first]) + os.urandom(length) for first in range(64) for length in (0, 7, 30, 1199))
        assert junk.answered_bytes == 0
        rest = [bytes([first]) + os.urandom(length) for first in range(64, 256) for length in (0, 30, 1199)]
        await throw(rest)
        assert junk.answered_bytes <= sum(len(packet) for packet in rest)
        transport.close()
