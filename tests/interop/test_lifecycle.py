"""How an allocation lives and ends: refresh, release, expiry, quota, replacement, timeouts."""

import asyncio
import time

import pytest

from client import connect, joined, pair
from expect import ends_with, refused
from wire import DEVICE, PEER, new_key

# --- release and tombstone ---


@pytest.mark.parametrize("who", [DEVICE, PEER])
async def test_release_ends_it_for_both_and_for_good(relay, grant, who):
    async with pair(relay, grant) as legs:
        legs[who - 1].say("release")
        for leg in legs:
            kind, _ = await ends_with(leg, "RELEASED")
            assert kind == "closing"
    for role in (DEVICE, PEER):
        async with connect(relay) as leg:
            async with refused("RELEASED"):
                await leg.join(grant, role)
            await ends_with(leg, "RELEASED")
    # A newer token does not bring it back; another pair's allocation of the same id is another one.
    async with connect(relay) as leg:
        async with refused("RELEASED"):
            await leg.join(grant.but(expires_at=grant.expires_at + 60), DEVICE)
    async with joined(relay, grant.but(peer_key=new_key()), DEVICE):
        pass


async def test_a_thief_learns_nothing_of_a_tombstone(relay, grant):
    async with joined(relay, grant, DEVICE) as device:
        device.say("release")
        await ends_with(device, "RELEASED")
    async with connect(relay) as thief:
        nonce = await thief.hello(grant, DEVICE)
        thief.prove(grant, DEVICE, nonce, key=new_key())
        await ends_with(thief, "PROOF_INVALID")


# --- several connections of one role ---


async def test_the_fifth_connection_replaces_the_first(relay, grant):
    async with joined(relay, grant, PEER) as peer:
        async with (
            joined(relay, grant, DEVICE) as first,
            joined(relay, grant, DEVICE) as second,
            joined(relay, grant, DEVICE) as third,
            joined(relay, grant, DEVICE) as fourth,
            joined(relay, grant, DEVICE) as fifth,
        ):
            kind, _ = await ends_with(first, "REPLACED")
            assert kind == "closing"
            peer.send_datagram(b"to the newest")
            assert await fifth.datagram() == b"to the newest"
            for older in (second, third, fourth):
                assert older.end is None and older.datagrams.empty()


async def test_the_newest_carries_traffic_and_the_older_takes_over(relay, grant):
    async with pair(relay, grant) as (device, peer):
        async with joined(relay, grant, DEVICE) as newer:
            peer.send_datagram(b"one")
            assert await newer.datagram() == b"one"
            # What an older connection still sends is forwarded.
            device.send_datagram(b"two")
            assert await peer.datagram() == b"two"
        await asyncio.wait_for(falls_back(peer, device), 10)
        assert device.end is None


async def falls_back(peer, device):
    """Datagrams are lost while the newest connection closes; then they come to the older one."""
    while device.datagrams.empty():
        peer.send_datagram(b"three")
        peer.say("ping", value=3)
        await peer.expect("pong")


# --- refresh ---


async def test_refresh_lengthens_and_changes_limits(relay, grant):
    async with pair(relay, grant) as (device, peer):
        for asker, more in ((device, 60), (peer, 120)):
            newer = grant.but(expires_at=grant.expires_at + more, bandwidth_limit=500_000, quota_bytes=9_000_000 + more)
            asker.say("refresh", token=newer.token())
            # Whoever asks, both sides hear what is in force now.
            for leg in (device, peer):
                said = await leg.expect("refreshed")
                assert said.expires_at == newer.expires_at
                assert (said.bandwidth_limit, said.quota_bytes) == (500_000, 9_000_000 + more)
                assert said.burst_bytes > 0
        device.send_datagram(b"no interruption")
        assert await peer.datagram() == b"no interruption"
        # An older token that is still valid may join, under the limits in force.
        async with joined(relay, grant, DEVICE) as again:
            assert again.allocated.quota_bytes == 9_000_120
            assert again.allocated.expires_at == grant.expires_at + 120


async def test_the_token_in_force_is_answered_again_to_the_asker(relay, grant):
    newer = grant.but(expires_at=grant.expires_at + 60)
    async with pair(relay, grant) as (device, peer):
        for _ in range(3):
            device.say("refresh", token=newer.token())
            assert (await device.expect("refreshed")).expires_at == newer.expires_at
        peer.say("ping", value=1)
        await peer.expect("pong")
        assert [kind for kind, _ in peer.seen].count("refreshed") == 1


def other_tokens(grant):
    """Tokens that a Refresh must not bring, and what each is answered with."""
    forged = bytearray(grant.but(expires_at=grant.expires_at + 60).token())
    forged[-1] ^= 1
    return {
        "forged": (bytes(forged), "TOKEN_INVALID"),
        "empty": (b"", "TOKEN_INVALID"),
        "expired": (grant.but(expires_at=int(time.time()) - 1).token(), "TOKEN_EXPIRED"),
        "too_long": (grant.but(expires_at=int(time.time()) + 25 * 3600).token(), "TOKEN_INVALID"),
        "older": (grant.but(expires_at=grant.expires_at - 60).token(), "TOKEN_INVALID"),
        "as_late": (grant.but(quota_bytes=1).token(), "TOKEN_INVALID"),
        "other_allocation": (grant.but(allocation_id=bytes(16), expires_at=2**31).token(), "ALLOCATION_MISMATCH"),
        "other_peer": (grant.but(peer_key=new_key(), expires_at=grant.expires_at + 9).token(), "ALLOCATION_MISMATCH"),
        "other_device": (
            grant.but(device_key=new_key(), expires_at=grant.expires_at + 9).token(),
            "ALLOCATION_MISMATCH",
        ),
    }


@pytest.mark.parametrize(
    "which",
    ["forged", "empty", "expired", "too_long", "older", "as_late", "other_allocation", "other_peer", "other_device"],
)
async def test_a_refused_refresh_closes_the_asker_alone(relay, grant, which):
    token, name = other_tokens(grant)[which]
    async with pair(relay, grant) as (device, peer):
        device.say("refresh", token=token)
        await ends_with(device, name)
        await peer.expect_peer(present=False)
        # The allocation goes on under what was in force.
        async with joined(relay, grant, DEVICE) as again:
            assert again.allocated.expires_at == grant.expires_at
            again.send_datagram(b"on and on")
            assert await peer.datagram() == b"on and on"
        assert "refreshed" not in [kind for kind, _ in peer.seen]


# --- usage, quota, rate ---


async def test_use_is_counted_and_survives_both_legs_leaving(relay, grant):
    async with pair(relay, grant) as (device, peer):
        for _ in range(10):
            device.send_datagram(bytes(1000))
            await peer.datagram()
    async with joined(relay, grant, PEER) as peer:
        assert peer.allocated.bytes_used == 10_000


async def test_the_quota_is_kept_and_final(relay, grant):
    grant = grant.but(quota_bytes=20_000)
    async with pair(relay, grant) as (device, peer):
        for _ in range(19):
            device.send_datagram(bytes(1000))
            await peer.datagram()
        # 1000 bytes are left: 1001 do not fit, not even in part.
        device.send_datagram(bytes(1001))
        for leg in (device, peer):
            await ends_with(leg, "QUOTA_EXCEEDED")
        assert peer.datagrams.empty()
    async with connect(relay) as leg:
        async with refused("QUOTA_EXCEEDED"):
            await leg.join(grant, DEVICE)


async def test_streams_are_charged_and_stop_at_the_quota(relay, grant):
    grant = grant.but(quota_bytes=50_000)
    async with pair(relay, grant) as (device, peer):
        device.open(unidirectional=True).send(bytes(200_000), fin=True)
        await ends_with(device, "QUOTA_EXCEEDED")
        await ends_with(peer, "QUOTA_EXCEEDED")
        assert sum(len(s.received) for s in peer.streams.values()) <= 50_000


async def test_datagrams_over_the_rate_are_dropped(relay, grant, stopwatch):
    """In any time T at most rate x T and one burst arrive; a slow allocation is slow, not over."""
    rate = 20_000
    grant = grant.but(bandwidth_limit=rate)
    async with pair(relay, grant) as (device, peer):
        burst = device.allocated.burst_bytes
        began = stopwatch()
        for _ in range(10 * burst // 500):
            device.send_datagram(bytes(500))
            await device.ping()
        peer.say("ping", value=1)
        await peer.expect("pong")
        arrived = peer.datagrams.qsize() * 500
        assert burst // 2 <= arrived <= burst + rate * (stopwatch() - began)
        assert device.end is None and peer.end is None


async def test_streams_over_the_rate_are_slowed_not_cut(relay, grant, stopwatch):
    rate = 200_000
    grant = grant.but(bandwidth_limit=rate)
    async with pair(relay, grant) as (device, peer):
        length = device.allocated.burst_bytes + 2 * rate
        began = stopwatch()
        device.open(unidirectional=True).send(bytes(length), fin=True)
        assert len(await (await peer.accept()).read_all()) == length
        # Two seconds' worth beyond the burst, less what a busy machine may make of the clock.
        assert stopwatch() - began > 1.5


# --- expiry ---


async def test_the_token_ends_the_allocation(relay, grant):
    grant = grant.but(expires_at=int(time.time()) + 3)
    async with pair(relay, grant) as (device, peer):
        for leg in (device, peer):
            kind, _ = await ends_with(leg, "EXPIRED", within_s=8)
            assert kind == "closing"
    assert time.time() >= grant.expires_at
    async with connect(relay) as leg:
        async with refused("TOKEN_EXPIRED"):
            await leg.join(grant, DEVICE)


async def test_a_refresh_outlives_the_first_token(relay, grant, stopwatch):
    short = grant.but(expires_at=int(time.time()) + 3)
    async with pair(relay, short) as (device, peer):
        peer.say("refresh", token=grant.token())
        await peer.expect("refreshed")
        # Past the first token's end, shown by the wall clock in an echo over the relay.
        while time.time() < short.expires_at + 1:
            device.say("ping", value=1)
            await device.expect("pong")
            await asyncio.sleep(0.2)
        device.send_datagram(b"still")
        assert await peer.datagram() == b"still"
