"""What a device and a peer do through the relay: meet, send datagrams, open streams, move."""

import asyncio
import hashlib
import os
import ssl
from contextlib import suppress

import pytest
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection

from client import Leg, Refusal, WrongPin, connect, joined, pair, udp_endpoint
from expect import ends_with
from wire import ALPN, CODES, DEVICE, PEER, RESET_BASE, Grant, encode, frame, put_bytes, put_varint

MIB = 1024 * 1024


async def test_allocated_says_what_was_granted(relay, grant):
    async with joined(relay, grant, DEVICE) as device:
        said = device.allocated
        assert said.allocation_id == grant.allocation_id
        assert (said.relay_addr, said.relay_port) == (relay.addr, relay.port)
        assert said.expires_at == grant.expires_at
        ip, port = device._transport.get_extra_info("sockname")[:2]
        assert said.observed_addr == f"{ip}:{port}"
        assert said.peer_present is False
        assert said.bytes_used == 0
        assert 1000 <= said.max_datagram_bytes <= 65535
        assert said.keepalive_ms > 0 and said.idle_timeout_ms > 0


async def test_allocated_says_the_limits_of_the_token(relay, grant):
    grant = grant.but(bandwidth_limit=1_000_000, quota_bytes=5_000_000)
    async with joined(relay, grant, PEER) as peer:
        assert peer.allocated.bandwidth_limit == 1_000_000
        assert peer.allocated.quota_bytes == 5_000_000
        assert 0 < peer.allocated.burst_bytes <= 1_000_000


async def test_each_side_hears_of_the_other(relay, grant):
    async with joined(relay, grant, DEVICE) as device:
        async with joined(relay, grant, PEER) as peer:
            assert peer.allocated.peer_present
            await device.expect_peer(present=True)
        await device.expect_peer(present=False)
        async with joined(relay, grant, PEER):
            await device.expect_peer(present=True)


async def test_legs_find_each_other_without_the_affinity_byte(relay):
    # A legitimate client may choose any connection ID: correctness never depends on it.
    for _ in range(4):
        grant = Grant(relay.relay_id)
        async with connect(relay) as device, connect(relay) as peer:
            await device.join(grant, DEVICE)
            await peer.join(grant, PEER)
            device.send_datagram(b"found")
            assert await peer.datagram() == b"found"


async def test_datagrams_cross_unmodified(relay, grant):
    async with pair(relay, grant) as (device, peer):
        # What fits a packet of 1200 bytes: one side's path may be known to carry more before the other's is.
        largest = min(device.allocated.max_datagram_bytes, peer.allocated.max_datagram_bytes, 1150)
        for here, there in ((device, peer), (peer, device)):
            for length in (0, 1, 2, 100, 1000, largest):
                payload = os.urandom(length)
                here.send_datagram(payload)
                assert await there.datagram() == payload


async def test_many_datagrams_each_once(relay, grant):
    async with pair(relay, grant) as (device, peer):
        sent = [i.to_bytes(4, "big") + os.urandom(96) for i in range(500)]
        received = []
        for start in range(0, len(sent), 20):
            for payload in sent[start : start + 20]:
                device.send_datagram(payload)
            received += [await peer.datagram() for _ in range(20)]
        assert sorted(received) == sent
        assert peer.datagrams.empty()


async def test_datagrams_without_a_peer_are_dropped(relay, grant):
    async with joined(relay, grant, DEVICE) as device:
        device.send_datagram(b"into the void")
        # The answer to a later Ping shows that the relay has read what came before it.
        device.say("ping", value=1)
        assert (await device.expect("pong")).value == 1
        async with joined(relay, grant, PEER) as peer:
            await device.expect_peer()
            device.send_datagram(b"heard")
            assert await peer.datagram() == b"heard"


@pytest.mark.parametrize("opener", [DEVICE, PEER])
async def test_bidirectional_stream(relay, grant, opener):
    async with pair(relay, grant) as legs:
        here, there = legs if opener == DEVICE else reversed(legs)
        question, answer = os.urandom(MIB), os.urandom(2 * MIB)
        asked = here.open()
        asked.send(question, fin=True)
        heard = await there.accept()
        assert heard.id & 2 == 0, "a bidirectional stream arrives as one"
        assert hashlib.sha256(await heard.read_all()).digest() == hashlib.sha256(question).digest()
        # Finished in one direction only: the answer still crosses.
        heard.send(answer, fin=True)
        assert hashlib.sha256(await asked.read_all()).digest() == hashlib.sha256(answer).digest()


@pytest.mark.parametrize("opener", [DEVICE, PEER])
async def test_unidirectional_stream(relay, grant, opener):
    async with pair(relay, grant) as legs:
        here, there = legs if opener == DEVICE else reversed(legs)
        payload = os.urandom(MIB)
        here.open(unidirectional=True).send(payload, fin=True)
        heard = await there.accept()
        assert heard.id & 2, "a unidirectional stream arrives as one"
        assert await heard.read_all() == payload


async def test_an_empty_stream(relay, grant):
    async with pair(relay, grant) as (device, peer):
        for unidirectional in (False, True):
            device.open(unidirectional).send(b"", fin=True)
            assert await (await peer.accept()).read_all() == b""


async def test_streams_keep_their_order_within_a_kind(relay, grant):
    async with pair(relay, grant) as (device, peer):
        for i in range(30):
            device.open(unidirectional=bool(i % 2)).send(i.to_bytes(1, "big"), fin=True)
        arrived = [await peer.accept() for _ in range(30)]
        for kind in (0, 2):
            of_kind = sorted((s for s in arrived if s.id & 2 == kind), key=lambda s: s.id)
            numbers = [(await s.read_all())[0] for s in of_kind]
            assert numbers == sorted(numbers) and len(numbers) == 15


@pytest.mark.parametrize("unidirectional", [False, True], ids=["bidi", "uni"])
async def test_more_streams_than_may_be_open_at_once(relay, grant, unidirectional):
    """The relay gives room for a new stream when an old one is done."""
    async with pair(relay, grant) as (device, peer):
        for i in range(150):
            device.open(unidirectional).send(i.to_bytes(2, "big"), fin=True)
        numbers = set()
        for _ in range(150):
            stream = await peer.accept()
            numbers.add(int.from_bytes(await stream.read_all(), "big"))
            if not unidirectional:
                stream.send(b"", fin=True)
        assert numbers == set(range(150))


async def test_a_slow_reader_gets_everything_in_the_end(relay, grant):
    # Room for the control stream beside what is left unread, as every client should have.
    async with pair(relay, grant, max_data=2 * MIB) as (device, peer):
        peer.stop_reading()
        payload = os.urandom(6 * MIB)
        device.open(unidirectional=True).send(payload, fin=True)
        heard = await peer.accept()
        await heard.until(lambda s: len(s.received) >= MIB)
        assert not heard.finished
        peer.read_on()
        assert hashlib.sha256(await heard.read_all()).digest() == hashlib.sha256(payload).digest()


async def test_equal_allocation_ids_of_other_pairs_are_other_allocations(relay, grant):
    other = Grant(relay.relay_id, allocation_id=grant.allocation_id)
    async with pair(relay, grant) as (device, peer), pair(relay, other) as (other_device, other_peer):
        device.send_datagram(b"one")
        other_device.send_datagram(b"two")
        assert (await peer.datagram(), await other_peer.datagram()) == (b"one", b"two")
        device.say("release")
        await ends_with(device, "RELEASED")
        await ends_with(peer, "RELEASED")
        other_peer.send_datagram(b"three")
        assert await other_device.datagram() == b"three"
        assert peer.datagrams.empty() and other_peer.datagrams.empty()


@pytest.mark.parametrize("opener", [DEVICE, PEER])
@pytest.mark.parametrize("unidirectional", [False, True], ids=["bidi", "uni"])
@pytest.mark.parametrize("code", [0, 7, 2**62 - 1])
async def test_reset_and_stop_sending_keep_their_codes(relay, grant, opener, unidirectional, code):
    async with pair(relay, grant) as legs:
        here, there = legs if opener == DEVICE else reversed(legs)
        # RESET, from the side that writes.
        one = here.open(unidirectional)
        one.send(b"first words")
        heard = await there.accept()
        await heard.until(lambda s: s.received == b"first words")
        one.reset(code)
        await heard.until(lambda s: s.reset_code is not None)
        assert heard.reset_code == code
        # STOP_SENDING, from the side that reads.
        two = here.open(unidirectional)
        two.send(b"first words")
        heard = await there.accept()
        await heard.until(lambda s: s.received == b"first words")
        heard.stop(code)
        await two.until(lambda s: s.stop_code is not None)
        assert two.stop_code == code


async def test_stop_sending_from_the_opener(relay, grant):
    async with pair(relay, grant) as (device, peer):
        opened = device.open()
        opened.send(b"go on")
        heard = await peer.accept()
        opened.stop(99)
        await heard.until(lambda s: s.stop_code is not None)
        assert heard.stop_code == 99
        # The other direction is not touched.
        opened.send(b", done", fin=True)
        assert await heard.read_all() == b"go on, done"


async def test_streams_wait_for_the_peer(relay, grant):
    async with joined(relay, grant, DEVICE) as device:
        early = device.open()
        early.send(b"early", fin=True)
        device.say("ping", value=2)
        await device.expect("pong")
        async with joined(relay, grant, PEER) as peer:
            heard = await peer.accept()
            assert await heard.read_all() == b"early"
            heard.send(b"late", fin=True)
            assert await early.read_all() == b"late"


async def test_streams_die_with_their_connection_and_say_so(relay, grant):
    async with joined(relay, grant, PEER) as peer:
        async with joined(relay, grant, DEVICE) as device:
            await peer.expect_peer()
            device.open().send(b"unfinished")
            heard = await peer.accept()
            await heard.until(lambda s: s.received == b"unfinished")
        await heard.until(lambda s: s.reset_code is not None)
        assert heard.reset_code - RESET_BASE in CODES, hex(heard.reset_code)


@pytest.mark.parametrize("value", [0, 1, 300, 2**64 - 1])
async def test_ping(relay, grant, value):
    async with joined(relay, grant, DEVICE) as device:
        device.say("ping", value=value)
        assert (await device.expect("pong")).value == value


async def test_unknown_fields_are_ignored(relay, grant):
    extra = put_bytes(99, b"from a later page") + put_varint(98 << 3) + put_varint(1)
    async with connect(relay) as device:
        hello = {"token": grant.token(), "role": DEVICE, "allocation_id": grant.allocation_id, "features": [1, 77]}
        device.send_control(frame(put_bytes(1, encode("Hello", hello) + extra) + extra))
        nonce = (await device.expect("challenge")).nonce
        device.prove(grant, DEVICE, nonce)
        said = await device.expect("allocated")
        assert 77 not in said.features
        device.send_control(frame(put_bytes(5, put_varint(1 << 3) + put_varint(5) + extra)))
        assert (await device.expect("pong")).value == 5


async def test_frames_in_single_bytes(relay, grant):
    async with connect(relay) as device:
        hello = {"token": grant.token(), "role": DEVICE, "allocation_id": grant.allocation_id}
        for byte in frame(encode("ClientMessage", {"hello": hello})):
            device.send_control(bytes([byte]))
        device.prove(grant, DEVICE, (await device.expect("challenge")).nonce)
        await device.expect("allocated")


async def test_messages_in_one_piece(relay, grant):
    async with joined(relay, grant, DEVICE) as device:
        device.send_control(b"".join(frame(encode("ClientMessage", {"ping": {"value": v}})) for v in range(50)))
        assert [(await device.expect("pong")).value for _ in range(50)] == list(range(50))


async def test_a_new_address_keeps_the_session(relay, grant):
    async with pair(relay, grant) as (device, peer):
        stream = device.open()
        stream.send(b"before, ")
        heard = await peer.accept()
        await heard.until(lambda s: s.received == b"before, ")
        before = device._transport.get_extra_info("sockname")[1]
        after = await device.move()
        assert before != after
        stream.send(b"after", fin=True)
        assert await heard.read_all() == b"before, after"
        device.send_datagram(b"there")
        assert await peer.datagram() == b"there"
        peer.send_datagram(b"and back")
        assert await device.datagram() == b"and back"
        assert device.end is None and peer.end is None


async def test_the_pin_is_checked(relay):
    other = type(relay)(relay.addr, relay.port, relay.server_name, "sha256/" + "A" * 43 + "=", relay.relay_id)
    with pytest.raises(WrongPin):
        async with connect(other):
            pass


async def test_another_protocol_is_refused(relay):
    with pytest.raises(Refusal) as caught:
        async with connect(relay, alpn="h3"):
            pass
    assert caught.value.code == 0x100 + 120, "TLS alert no_application_protocol"


async def test_no_early_data_and_no_greasing(relay):
    tickets = []
    configuration = QuicConfiguration(
        alpn_protocols=[ALPN], server_name=relay.server_name, verify_mode=ssl.CERT_NONE, max_datagram_frame_size=65535
    )
    quic = QuicConnection(configuration=configuration, session_ticket_handler=tickets.append)
    parameters = []
    parse = quic._parse_transport_parameters
    quic._parse_transport_parameters = lambda data, **kw: (parameters.append(bytes(data)), parse(data, **kw))[1]
    _, leg = await udp_endpoint(relay, lambda: Leg(quic, relay))
    leg.connect(relay.sockaddr())
    await leg.until(lambda: leg.connected)
    await leg.ping()
    leg.close(0)
    leg.vanish()
    assert all(not ticket.max_early_data_size for ticket in tickets)
    ids = transport_parameter_ids(parameters[0])
    assert 0x20 in ids, "max_datagram_frame_size"
    assert 0x2AB2 not in ids, "grease_quic_bit would make packets look like the raw channel's"


def transport_parameter_ids(data):
    """RFC 9000 section 18: identifier, length, value."""

    def varint(at):
        length = 1 << (data[at] >> 6)
        return int.from_bytes(data[at : at + length], "big") & (1 << (8 * length - 2)) - 1, at + length

    ids, at = set(), 0
    while at < len(data):
        identifier, at = varint(at)
        length, at = varint(at)
        ids.add(identifier)
        at += length
    return ids


async def test_a_client_may_finish_its_control_stream(relay, grant):
    """It then goes on hearing, and asks for nothing more."""
    async with joined(relay, grant, DEVICE) as device:
        device.send_control(b"", fin=True)
        async with joined(relay, grant, PEER) as peer:
            await device.expect_peer(present=True)
            device.send_datagram(b"not over")
            assert await peer.datagram() == b"not over"
        await device.expect_peer(present=False)


async def test_the_largest_datagram_is_announced_again_when_the_path_allows_more(relay, grant):
    async with pair(relay, grant, max_datagram_size=1472) as (device, peer):
        largest = device.allocated.max_datagram_bytes
        # Or the relay has found what the path carries before the token was accepted.
        while largest < 1390:
            limit = await device.expect("path_limit")
            assert limit.max_datagram_bytes != largest, "told twice"
            assert limit.max_raw_bytes == 0
            largest = limit.max_datagram_bytes
        payload = os.urandom(largest)
        # The other side's path may be found a little later than this side's: until then it is dropped, and counted.
        arrived = None
        while arrived is None:
            device.send_datagram(payload)
            with suppress(TimeoutError):
                async with asyncio.timeout(0.2):
                    arrived = await peer.datagram()
        assert arrived == payload


async def test_a_client_without_datagrams(relay, grant):
    """Is sent none; its streams cross."""
    async with (
        joined(relay, grant, DEVICE, max_datagram_frame_size=None) as device,
        joined(relay, grant, PEER) as peer,
    ):
        await device.expect_peer()
        peer.send_datagram(b"cannot arrive")
        device.open(unidirectional=True).send(b"can", fin=True)
        assert await (await peer.accept()).read_all() == b"can"
        peer.say("ping", value=1)
        await peer.expect("pong")
        assert device.end is None and device.datagrams.empty()


async def test_an_orderly_goodbye(relay, grant):
    async with joined(relay, grant, DEVICE) as device:
        async with joined(relay, grant, PEER) as peer:
            await device.expect_peer()
            peer.close(0)
            await peer.ended()
        await device.expect_peer(present=False)
        assert device.end is None
        device.say("release")
        await ends_with(device, "RELEASED")


async def test_two_hundred_allocations_side_by_side(relay):
    async def one(number):
        grant = Grant(relay.relay_id)
        async with pair(relay, grant) as (device, peer):
            device.send_datagram(number.to_bytes(4, "big"))
            assert await peer.datagram() == number.to_bytes(4, "big")
            assert peer.datagrams.empty()

    for start in range(0, 200, 20):
        await asyncio.gather(*(one(n) for n in range(start, start + 20)))
