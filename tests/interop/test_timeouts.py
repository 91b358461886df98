"""What short times and small numbers in a configuration bring about, with a relay started for each test."""

import asyncio
import json
import socket
import time
from dataclasses import replace

import pytest

from client import connect, joined, pair
from expect import ends_with, refused
from wire import DEVICE, PEER, Grant, new_key, public

BASE = """
[ops]
listen_addr = "127.0.0.1"
listen_port = 0
[relay]
listen_addr = "127.0.0.1"
listen_port = 0
"""
OPEN = BASE + "self_certified = true\n"


async def test_nobody_to_pair_with(configured):
    relay = configured(OPEN + 'pair_timeout = "1s"\n').relay
    grant = Grant(relay.relay_id)
    for role in (DEVICE, PEER):
        async with joined(relay, grant, role) as leg:
            await ends_with(leg, "PAIR_TIMEOUT", within_s=5)


async def test_the_other_side_does_not_come_back(configured):
    relay = configured(OPEN + 'keepalive_interval = "1s"\nidle_timeout = "2s"\n').relay
    grant = Grant(relay.relay_id)
    async with joined(relay, grant, DEVICE) as device:
        async with joined(relay, grant, PEER):
            await device.expect_peer(present=True)
        await device.expect_peer(present=False)
        await ends_with(device, "PEER_GONE", within_s=8)


async def test_a_crash_is_noticed(configured):
    """The peer's last packet was long ago: the device hears that it left, and it may come back in time."""
    relay = configured(OPEN + 'keepalive_interval = "1s"\nidle_timeout = "3s"\n').relay
    grant = Grant(relay.relay_id)
    async with pair(relay, grant) as (device, peer):
        assert device.allocated.keepalive_ms == 1000 and device.allocated.idle_timeout_ms == 3000
        peer.vanish()
        began = time.monotonic()
        await device.expect_peer(present=False)
        assert 2 < time.monotonic() - began < 6
        async with joined(relay, grant, PEER) as again:
            await device.expect_peer(present=True)
            device.send_datagram(b"back")
            assert await again.datagram() == b"back"


async def test_keep_alives_hold_a_quiet_session(configured):
    relay = configured(OPEN + 'keepalive_interval = "1s"\nidle_timeout = "2s"\n').relay
    async with pair(relay, Grant(relay.relay_id)) as (device, peer):
        # Quiet for longer than the idle timeout: nothing but the relay's keep-alives and their acknowledgements.
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await device.ended()
        device.send_datagram(b"awake")
        assert await peer.datagram() == b"awake"


async def test_the_longest_life(configured):
    relay = configured(OPEN + 'allocation_timeout = "2s"\n').relay
    async with pair(relay, Grant(relay.relay_id)) as legs:
        for leg in legs:
            await ends_with(leg, "EXPIRED", within_s=6)


async def test_capacity(configured):
    relay = configured(OPEN + "max_allocations = 2\n").relay
    one, two, three = (Grant(relay.relay_id) for _ in range(3))
    async with joined(relay, one, DEVICE) as first, joined(relay, two, DEVICE):
        async with connect(relay) as leg:
            async with refused("CAPACITY"):
                await leg.join(three, DEVICE)
            await ends_with(leg, "CAPACITY")
        # What exists may still be joined.
        async with joined(relay, one, PEER):
            pass
        first.say("release")
        await ends_with(first, "RELEASED")
        async with joined(relay, three, DEVICE):
            pass


async def test_device_limit(configured):
    relay = configured(OPEN + "max_allocations_per_device = 1\n").relay
    one = Grant(relay.relay_id)
    two = Grant(relay.relay_id, device_key=one.device_key)
    async with joined(relay, one, DEVICE):
        async with connect(relay) as leg:
            async with refused("DEVICE_LIMIT"):
                await leg.join(two, DEVICE)
            await ends_with(leg, "DEVICE_LIMIT")
        async with joined(relay, Grant(relay.relay_id), DEVICE):
            pass


async def test_connections_per_role(configured):
    relay = configured(OPEN + "connections_per_role = 1\n").relay
    grant = Grant(relay.relay_id)
    async with joined(relay, grant, DEVICE) as first, joined(relay, grant, DEVICE):
        await ends_with(first, "REPLACED")


async def test_the_operators_limits_cap_the_tokens(configured):
    relay = configured(OPEN + "default_bandwidth_limit = 100_000\ndefault_quota = 1_000_000\n").relay
    for asked, granted in ((0, (100_000, 1_000_000)), (50_000, (50_000, 50_000)), (2**31, (100_000, 1_000_000))):
        grant = Grant(relay.relay_id, bandwidth_limit=asked, quota_bytes=asked)
        async with joined(relay, grant, DEVICE) as leg:
            assert (leg.allocated.bandwidth_limit, leg.allocated.quota_bytes) == granted


async def test_only_pinned_devices(configured):
    """The id is a name here, and the pinned key is what signs."""
    key, name = new_key(), bytes(range(32))
    text = BASE + f'[[relay.device]]\nid = "{name.hex()}"\nkey = "{public(key).hex()}"\n'
    relay = configured(text).relay
    async with pair(relay, Grant(relay.relay_id, device_key=key, device_id=name)) as (device, peer):
        device.send_datagram(b"pinned")
        assert await peer.datagram() == b"pinned"
    strangers = [
        Grant(relay.relay_id),
        Grant(relay.relay_id, device_id=name),
        Grant(relay.relay_id, device_key=key),
    ]
    for stranger in strangers:
        async with connect(relay) as leg:
            async with refused("TOKEN_INVALID"):
                await leg.join(stranger, DEVICE)


async def test_the_longest_token(configured):
    relay = configured(OPEN + 'max_token_lifetime = "1m"\n').relay
    async with joined(relay, Grant(relay.relay_id, expires_at=int(time.time()) + 50), DEVICE):
        pass
    async with connect(relay) as leg:
        async with refused("TOKEN_INVALID"):
            await leg.join(Grant(relay.relay_id, expires_at=int(time.time()) + 70), DEVICE)


def has_ipv6():
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
async def test_ipv6_and_ipv4_on_one_socket(configured):
    """A device over IPv6 and a peer over IPv4 meet; each is told its own address in its own family."""
    text = OPEN.replace('[relay]\nlisten_addr = "127.0.0.1"', '[relay]\nlisten_addr = "::"')
    relay = configured(text).relay
    v6, v4 = replace(relay, addr="::1"), replace(relay, addr="127.0.0.1")
    grant = Grant(relay.relay_id)
    async with joined(v6, grant, DEVICE) as device, joined(v4, grant, PEER) as peer:
        await device.expect_peer()
        assert device.allocated.relay_addr == "::1" and peer.allocated.relay_addr == "127.0.0.1"
        port_of = {leg: leg._transport.get_extra_info("sockname")[1] for leg in (device, peer)}
        assert device.allocated.observed_addr == f"[::1]:{port_of[device]}"
        assert peer.allocated.observed_addr == f"127.0.0.1:{port_of[peer]}"
        device.send_datagram(b"six to four")
        assert await peer.datagram() == b"six to four"
        peer.send_datagram(b"four to six")
        assert await device.datagram() == b"four to six"


async def test_sigterm_tells_everybody(configured):
    process = configured(OPEN)
    relay = process.relay
    async with pair(relay, Grant(relay.relay_id)) as legs:
        stopping = asyncio.create_task(asyncio.to_thread(process.stop))
        for leg in legs:
            kind, _ = await ends_with(leg, "DRAINING", within_s=10)
            assert kind == "closing"
        assert await stopping == 0


async def test_a_restart_keeps_key_and_id(configured):
    first = configured(OPEN)
    said = json.loads((first.state_dir / "relay.json").read_text())
    assert first.stop() == 0
    again = configured(OPEN)
    assert (again.relay.spki, again.relay.relay_id) == (said["spki"], bytes.fromhex(said["relay_id"]))
    async with joined(again.relay, Grant(again.relay.relay_id), DEVICE):
        pass
