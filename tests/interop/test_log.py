"""R5.3: nobody writes lines of their own into the relay's log."""

import json
import ssl

import pytest
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection

from client import Leg, connect, udp_endpoint
from conftest import LOCAL, check_log
from wire import ALPN, DEVICE, Grant

# What fail2ban would take for an attack by somebody else, and what a terminal would obey.
FORGED = '2026-11-20T00:00:00Z  WARN security: token refused event="bad_token" reason="text" source=192.0.2.1'
HOSTILE = f"x\r\n{FORGED}\x1b[31m\x00\x07\x7f\x85\u2028\u202e\x9b2J"


async def hang_up(relay, when, words):
    """Closes a connection in the middle of its handshake: before the relay has answered, or after."""
    quic = QuicConnection(
        configuration=QuicConfiguration(
            alpn_protocols=[ALPN], server_name=relay.server_name, verify_mode=ssl.CERT_NONE
        )
    )

    class Leaver(Leg):
        def datagram_received(self, data, addr):
            quic.close(error_code=0x17, frame_type=0, reason_phrase=words)
            self.transmit()

    _, leg = await udp_endpoint(relay, lambda: Leaver(quic, relay))
    leg.connect(relay.sockaddr())
    if when == "before":
        quic.close(error_code=0x17, frame_type=0, reason_phrase=words)
        leg.transmit()
    return leg


@pytest.mark.parametrize("form", ["text", "json"])
async def test_words_of_a_client_are_never_a_line(configured, form):
    process = configured(LOCAL, "--log", "info,zrc_relay=debug", "--log-format", form)
    relay = process.relay
    legs = [await hang_up(relay, when, HOSTILE) for when in ["before", "after"]]
    async with connect(relay) as leg:
        grant = Grant(relay.relay_id)
        nonce = await leg.hello(grant, DEVICE, agent=HOSTILE)
        leg.prove(grant, DEVICE, nonce)
        await leg.expect("allocated")
        leg._quic.close(error_code=3, reason_phrase=HOSTILE)
        leg.transmit()
        await process.says("connection joined")
    await process.says("handshake failed", times=2)
    process.stop()
    for leg in legs:
        leg.vanish()
    said = "".join(process.said)
    # It does repeat them: the test would show nothing otherwise.
    assert said.count("192.0.2.1") >= 3, said
    if form == "text":
        check_log(process.said)
        return
    for line in process.said:
        assert line.removesuffix("\n").isprintable(), repr(line)
        if line.startswith("{"):
            assert json.loads(line)["target"] != "security"
