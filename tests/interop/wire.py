"""The bytes of zrc-relay/1, written from PROTOCOL.md and relay.proto alone: tokens, proofs, frames, close codes.

The message layouts are read from relay.proto itself, by a parser and a codec for the part of protobuf it uses.
"""

import base64
import hashlib
import re
import secrets
import struct
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

ALPN = "zrc-relay/1"
DEVICE, PEER = 1, 2

# Section 5.
CODES = {
    0x00: "CLOSED",
    0x01: "PROTOCOL_ERROR",
    0x02: "AUTH_TIMEOUT",
    0x10: "TOKEN_INVALID",
    0x11: "TOKEN_EXPIRED",
    0x12: "ALLOCATION_MISMATCH",
    0x13: "PROOF_INVALID",
    0x20: "RATE_LIMITED",
    0x21: "BLOCKED",
    0x22: "CAPACITY",
    0x23: "DEVICE_LIMIT",
    0x30: "EXPIRED",
    0x31: "QUOTA_EXCEEDED",
    0x32: "IDLE",
    0x33: "PAIR_TIMEOUT",
    0x34: "PEER_GONE",
    0x35: "RELEASED",
    0x36: "KILLED",
    0x37: "REPLACED",
    0x40: "MOVED",
    0x41: "DRAINING",
    0x42: "UNAVAILABLE",
    0x50: "INTERNAL",
}
# Section 4: a reset that the relay itself makes.
RESET_BASE = 0x7A720000

MAX_FRAME_BYTES_BEFORE_TOKEN = 4 * 1024
MAX_FRAME_BYTES = 64 * 1024


def code_name(code):
    """The name of a close code, or its number where it has none."""
    return CODES.get(code, hex(code))


# --- protobuf ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Field:
    """One field of a message in relay.proto."""

    name: str
    type: str
    number: int
    repeated: bool
    optional: bool


def parse_proto(text):
    """The messages of a proto3 file, as {message: {number: Field}}, and its enums, as {enum: {name: number}}."""
    text = re.sub(r"//[^\n]*", "", text)
    enums = {
        name: {entry: int(number) for entry, number in re.findall(r"(\w+)\s*=\s*(\d+)\s*;", body)}
        for name, body in re.findall(r"\benum\s+(\w+)\s*\{([^{}]*)\}", text)
    }
    messages = {}
    for found in re.finditer(r"\bmessage\s+(\w+)\s*\{((?:[^{}]|\{[^{}]*\})*)\}", text):
        name, body = found.groups()
        declared = re.findall(r"\b(?:(optional|repeated)\s+)?(\w+)\s+(\w+)\s*=\s*(\d+)\s*;", body)
        messages[name] = {
            int(number): Field(field_name, kind, int(number), label == "repeated", label == "optional")
            for label, kind, field_name, number in declared
        }
    return messages, enums


PROTO = Path(__file__).resolve().parents[2] / "src" / "wire" / "relay.proto"
MESSAGES, ENUMS = parse_proto(PROTO.read_text())
VARINT, FIXED64, BYTES, GROUP, GROUP_END, FIXED32 = 0, 1, 2, 3, 4, 5
MAX_DEPTH = 100


class Malformed(ValueError):
    """Bytes that are no message."""


def put_varint(value):
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def take_varint(data, at):
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise Malformed("varint")
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at


def is_number(kind):
    return kind in ("uint32", "uint64", "bool") or kind in ENUMS


def encode(message, values):
    """Encodes {field: value}; a nested message is a dict, a repeated field a list, None an absent field."""
    out = bytearray()
    by_name = {f.name: f for f in MESSAGES[message].values()}
    for name, value in values.items():
        declared = by_name[name]
        if value is None:
            continue
        if declared.repeated and is_number(declared.type):
            if value:
                out += put_bytes(declared.number, b"".join(put_varint(int(v)) for v in value))
            continue
        for one in value if declared.repeated else [value]:
            if is_number(declared.type):
                # proto3 leaves a default out, unless its presence means something.
                if one or declared.optional:
                    out += put_varint(declared.number << 3 | VARINT) + put_varint(int(one))
            elif declared.type in ("bytes", "string"):
                raw = one.encode() if isinstance(one, str) else bytes(one)
                if raw or declared.optional or declared.repeated:
                    out += put_bytes(declared.number, raw)
            else:
                out += put_bytes(declared.number, encode(declared.type, one))
    return bytes(out)


def put_bytes(number, raw):
    return put_varint(number << 3 | BYTES) + put_varint(len(raw)) + raw


def skip_group(data, at, number):
    """Where the group that began before `at` has ended. proto3 has none; a later sender might."""
    open_groups = [number]
    while open_groups:
        key, at = take_varint(data, at)
        wire_type = key & 7
        if wire_type == VARINT:
            _, at = take_varint(data, at)
        elif wire_type == BYTES:
            length, at = take_varint(data, at)
            at += length
        elif wire_type in (FIXED64, FIXED32):
            at += 8 if wire_type == FIXED64 else 4
        elif wire_type == GROUP and len(open_groups) < MAX_DEPTH:
            open_groups.append(key >> 3)
        elif wire_type != GROUP_END or open_groups.pop() != key >> 3:
            raise Malformed("group")
    return at


def fields_in(data):
    """Each field of an encoded message as (number, wire type, value)."""
    at = 0
    while at < len(data):
        key, at = take_varint(data, at)
        number, wire_type = key >> 3, key & 7
        if wire_type == VARINT:
            value, at = take_varint(data, at)
        elif wire_type == BYTES:
            length, at = take_varint(data, at)
            value, at = data[at : at + length], at + length
        elif wire_type in (FIXED64, FIXED32):
            length = 8 if wire_type == FIXED64 else 4
            value, at = data[at : at + length], at + length
        elif wire_type == GROUP:
            value, at = None, skip_group(data, at, number)
        else:
            raise Malformed(f"wire type {wire_type}")
        if at > len(data) or not number:
            raise Malformed("truncated")
        yield number, wire_type, value


def decode(message, data, into=None):
    """Decodes a message into a namespace with every declared field; an absent optional or nested one is None."""
    declared = MESSAGES[message]
    out = into or SimpleNamespace(**{f.name: absent(f) for f in declared.values()})
    for number, wire_type, value in fields_in(data):
        this = declared.get(number)
        if this is None:
            continue
        if is_number(this.type):
            if this.repeated and wire_type == BYTES:
                at, many = 0, getattr(out, this.name)
                while at < len(value):
                    one, at = take_varint(value, at)
                    many.append(one)
                continue
            if wire_type != VARINT:
                raise Malformed(f"{message}.{this.name}")
            value = bool(value) if this.type == "bool" else value
        elif wire_type != BYTES:
            raise Malformed(f"{message}.{this.name}")
        elif this.type == "string":
            value = value.decode()
        elif this.type != "bytes":
            # Parts of one message are merged, elements of a list are not.
            value = decode(this.type, value, None if this.repeated else getattr(out, this.name))
        if this.repeated:
            getattr(out, this.name).append(value)
        else:
            setattr(out, this.name, value)
    return out


def absent(declared):
    if declared.repeated:
        return []
    if declared.optional or declared.type in MESSAGES:
        return None
    return {"bytes": b"", "string": "", "bool": False}.get(declared.type, 0)


# --- frames -----------------------------------------------------------------------------------------------------


def frame(body):
    """Section 3: a u32 big-endian length, then the message."""
    return struct.pack(">I", len(body)) + body


def client_frame(kind, **values):
    """The frame of one client message: client_frame("ping", value=7)."""
    return frame(encode("ClientMessage", {kind: values}))


def relay_message(body):
    """What the relay said, as (kind, fields); kind is None for a message that this relay.proto does not have."""
    message = decode("RelayMessage", body)
    for kind, value in vars(message).items():
        if value is not None:
            return kind, value
    return None, None


class FrameReader:
    """Cuts a stream of bytes into frames."""

    def __init__(self):
        self.buffer = b""

    def feed(self, data):
        """The bodies of the frames that `data` completes."""
        self.buffer += data
        bodies = []
        while len(self.buffer) >= 4:
            (length,) = struct.unpack(">I", self.buffer[:4])
            if length > MAX_FRAME_BYTES:
                raise Malformed(f"a frame of {length} bytes")
            if len(self.buffer) < 4 + length:
                break
            bodies.append(self.buffer[4 : 4 + length])
            self.buffer = self.buffer[4 + length :]
        return bodies


# --- tokens and proofs ------------------------------------------------------------------------------------------


def new_key():
    return Ed25519PrivateKey.generate()


def public(key):
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


@dataclass(frozen=True)
class Grant:
    """What a device grants a peer on one relay, with the keys of both: all that a test needs to join."""

    relay_id: bytes
    device_key: Ed25519PrivateKey = field(default_factory=new_key)
    peer_key: Ed25519PrivateKey = field(default_factory=new_key)
    allocation_id: bytes = field(default_factory=lambda: secrets.token_bytes(16))
    device_id: bytes | None = None
    expires_at: int = field(default_factory=lambda: int(time.time()) + 3600)
    bandwidth_limit: int = 0
    quota_bytes: int = 0

    def but(self, **changes):
        """The same grant with some fields changed."""
        return replace(self, **changes)

    def fields(self):
        """Section 2: the 116 signed bytes."""
        device_id = self.device_id or public(self.device_key)
        return (
            self.relay_id
            + self.allocation_id
            + device_id
            + public(self.peer_key)
            + struct.pack("<QIQ", self.expires_at, self.bandwidth_limit, self.quota_bytes)
        )

    def token(self):
        """The 180 bytes of the RelayTokenV1."""
        fields = self.fields()
        return fields + self.device_key.sign(hashlib.sha256(fields).digest())

    def key_of(self, role):
        return self.device_key if role == DEVICE else self.peer_key


def token_text(token):
    """The text form of a token."""
    return base64.urlsafe_b64encode(token).rstrip(b"=").decode()


def proof_message(role, mode, token, binding):
    """Section 3: the bytes that a proof signs. `binding` of mode 2 is nonce and SHA-256 of the leaf's SPKI."""
    return b"zrc-relay/1 proof\0" + bytes([role, mode]) + hashlib.sha256(token).digest() + binding


def nonce_proof(key, role, token, nonce, spki_sha256):
    """A proof of mode 2."""
    return key.sign(proof_message(role, 2, token, nonce + spki_sha256))
