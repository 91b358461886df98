"""The codec against the vectors in tests/vectors/: every token, proof and frame that the relay's own tests use."""

import hashlib
import json
import struct
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

import wire

VECTORS = Path(__file__).resolve().parents[1] / "vectors"


def vectors(file):
    return json.loads((VECTORS / file).read_text())


def named(cases):
    return [pytest.param(case, id=case["name"].replace(" ", "_")) for case in cases]


def from_json(message, fields):
    """The vectors' JSON as values for the codec."""
    by_name = {field.name: field for field in wire.MESSAGES[message].values()}

    def one(kind, value):
        if kind in wire.ENUMS:
            return wire.ENUMS[kind][value] if isinstance(value, str) else value
        if kind in wire.MESSAGES:
            return from_json(kind, value)
        if kind == "bytes":
            return bytes.fromhex(value)
        return int(value) if kind == "uint64" else value

    return {
        name: [one(by_name[name].type, v) for v in value] if by_name[name].repeated else one(by_name[name].type, value)
        for name, value in fields.items()
    }


def whole(message, values):
    """Values with every field that the message has, as `decode` gives them."""
    out = {}
    for field in wire.MESSAGES[message].values():
        value = values.get(field.name, wire.absent(field))
        if field.type in wire.MESSAGES and isinstance(value, list):
            value = [whole(field.type, v) for v in value]
        out[field.name] = value
    return out


def plain(message, decoded):
    """What `decode` gives, as dicts."""
    out = dict(vars(decoded))
    for field in wire.MESSAGES[message].values():
        if field.type in wire.MESSAGES and field.repeated:
            out[field.name] = [plain(field.type, v) for v in out[field.name]]
    return out


FRAMES = vectors("frames.json")
BY_MESSAGE = {
    outer: {field.type: field.name for field in wire.MESSAGES[outer].values()}
    for outer in ("ClientMessage", "RelayMessage")
}


@pytest.mark.parametrize(
    "outer, case",
    [
        pytest.param(outer, case, id=case["name"].replace(" ", "_"))
        for outer, side in (("ClientMessage", "client"), ("RelayMessage", "relay"))
        for case in FRAMES[side]
    ],
)
def test_frame(outer, case):
    kind = BY_MESSAGE[outer][case["message"]]
    values = from_json(case["message"], case["fields"])
    whole_frame = bytes.fromhex(case["frame"])
    assert wire.frame(wire.encode(outer, {kind: values})) == whole_frame
    (body,) = wire.FrameReader().feed(whole_frame)
    decoded = getattr(wire.decode(outer, body), kind)
    assert plain(case["message"], decoded) == whole(case["message"], values)


@pytest.mark.parametrize("case", named(FRAMES["tolerated"]))
def test_other_forms_are_read(case):
    (body,) = wire.FrameReader().feed(bytes.fromhex(case["frame"]))
    decoded = getattr(wire.decode("ClientMessage", body), BY_MESSAGE["ClientMessage"][case["message"]])
    wanted = whole(case["message"], from_json(case["message"], case["fields"]))
    # Which features it understands is for the reader to say; the codec keeps the numbers.
    for each in (wanted, got := plain(case["message"], decoded)):
        each.pop("features", None)
    assert got == wanted


@pytest.mark.parametrize("case", named(c for c in FRAMES["refused"] if c["sender"] == "relay"))
def test_bad_frames_are_refused(case):
    (body,) = wire.FrameReader().feed(bytes.fromhex(case["frame"]))
    try:
        kind, _ = wire.relay_message(body)
    except ValueError:
        return
    assert kind is None


def test_a_frame_in_pieces():
    frames = b"".join(bytes.fromhex(case["frame"]) for case in FRAMES["relay"])
    at_once = wire.FrameReader().feed(frames)
    reader = wire.FrameReader()
    in_pieces = [body for byte in frames for body in reader.feed(bytes([byte]))]
    assert in_pieces == at_once and len(at_once) == len(FRAMES["relay"])


def test_a_frame_too_long():
    with pytest.raises(wire.Malformed):
        wire.FrameReader().feed(struct.pack(">I", wire.MAX_FRAME_BYTES + 1))


@pytest.mark.parametrize("case", named(vectors("token.json")["valid"]))
def test_token(case):
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(case["device_seed"]))
    fields = case["fields"]

    class Fixed(wire.Grant):
        """A grant whose peer is known by its id alone."""

        def fields(self):
            own = super().fields()
            return own[:64] + bytes.fromhex(fields["peer_id"]) + own[96:]

    grant = Fixed(
        relay_id=bytes.fromhex(fields["relay_id"]),
        device_key=key,
        allocation_id=bytes.fromhex(fields["allocation_id"]),
        device_id=bytes.fromhex(fields["device_id"]),
        expires_at=int(fields["expires_at"]),
        bandwidth_limit=int(fields["bandwidth_limit"]),
        quota_bytes=int(fields["quota_bytes"]),
    )
    token = grant.token()
    assert token.hex() == case["token"]
    assert wire.token_text(token) == case["text"]
    assert hashlib.sha256(token).hexdigest() == case["token_sha256"]


@pytest.mark.parametrize("case", named(vectors("proof.json")))
def test_proof(case):
    role, mode = {"DEVICE": wire.DEVICE, "PEER": wire.PEER}[case["role"]], case["mode"]
    binding = bytes.fromhex(case["exporter"] if mode == 1 else case["nonce"] + case["spki_sha256"])
    prefix = b"zrc-relay/1 proof\0" + bytes([role, mode]) + bytes.fromhex(case["token_sha256"])
    assert (prefix + binding).hex() == case["message"]
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(case["seed"]))
    assert key.sign(prefix + binding).hex() == case["signature"]


@pytest.mark.parametrize("role", [wire.DEVICE, wire.PEER])
def test_a_nonce_proof_is_of_its_role_token_nonce_and_relay(role):
    key, token, nonce, spki = wire.new_key(), b"t" * 180, b"n" * 32, b"s" * 32
    proof = wire.nonce_proof(key, role, token, nonce, spki)
    public = Ed25519PublicKey.from_public_bytes(wire.public(key))
    public.verify(proof, wire.proof_message(role, 2, token, nonce + spki))
    for other in [
        wire.proof_message(3 - role, 2, token, nonce + spki),
        wire.proof_message(role, 1, token, nonce + spki),
        wire.proof_message(role, 2, token[:-1] + b"u", nonce + spki),
        wire.proof_message(role, 2, token, b"m" * 32 + spki),
        wire.proof_message(role, 2, token, nonce + b"r" * 32),
    ]:
        with pytest.raises(InvalidSignature):
            public.verify(proof, other)


def test_close_codes():
    for case in vectors("close-codes.json"):
        assert wire.CODES[case["number"]] == case["name"]
        assert wire.RESET_BASE + case["number"] == case["reset_code"]
    assert len(wire.CODES) == len(vectors("close-codes.json"))
