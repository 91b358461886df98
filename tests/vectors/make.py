#!/usr/bin/env python3
"""Makes the test vectors of zrc-relay/1, from the standard library alone.

It shares nothing with the relay: Ed25519 is computed here from RFC 8032's definition, and the field numbers
of the control messages stand here a second time. So the files say what the protocol is, not what the code does.

    python3 tests/vectors/make.py           writes the files beside this one
    python3 tests/vectors/make.py --check   exits 1 when a file is not what would be written
"""

import base64
import hashlib
import json
import pathlib
import sys

HERE = pathlib.Path(__file__).parent

# --- Ed25519 (RFC 8032 section 5.1), affine coordinates: slow and short -------------------------------------

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P
ROOT_OF_MINUS_ONE = pow(2, (P - 1) // 4, P)


def add(a, b):
    (x1, y1), (x2, y2) = a, b
    t = D * x1 * x2 * y1 * y2
    return (x1 * y2 + x2 * y1) * pow(1 + t, -1, P) % P, (y1 * y2 + x1 * x2) * pow(1 - t, -1, P) % P


def times(n, point):
    total = (0, 1)
    while n:
        if n & 1:
            total = add(total, point)
        point = add(point, point)
        n >>= 1
    return total


def root(y, odd):
    """The x of this parity that goes with y, or None; for x = 0 the parity is not looked at."""
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if x * x % P != square:
        x = x * ROOT_OF_MINUS_ONE % P
    if x * x % P != square:
        return None
    return (P - x) % P if x % 2 != odd else x


BASE = (root(4 * pow(5, -1, P) % P, 0), 4 * pow(5, -1, P) % P)


def encode(point):
    x, y = point
    return (y | (x & 1) << 255).to_bytes(32, "little")


def decode(data):
    """The point, whether its encoding is canonical or not; None off the curve."""
    number = int.from_bytes(data, "little")
    y, odd = number % 2**255 % P, number >> 255
    x = root(y, odd)
    return None if x is None else (x, y)


def sha512_number(*parts):
    return int.from_bytes(hashlib.sha512(b"".join(parts)).digest(), "little")


def secret_scalar(seed):
    h = hashlib.sha512(seed).digest()
    return (int.from_bytes(h[:32], "little") & (2**254 - 8)) | 2**254, h[32:]


def public_key(seed):
    return encode(times(secret_scalar(seed)[0], BASE))


def sign(seed, message):
    a, prefix = secret_scalar(seed)
    r = sha512_number(prefix, message) % L
    big_r = encode(times(r, BASE))
    k = sha512_number(big_r, public_key(seed), message) % L
    return big_r + ((r + k * a) % L).to_bytes(32, "little")


def key_verdict(data):
    point = decode(data)
    if point is None:
        return "not_on_curve"
    if encode(point) != data:
        return "not_canonical"
    if times(8, point) == (0, 1):
        return "small_order"
    return "ok"


def verifies(key, message, signature):
    """The strict rules of the protocol, for a key whose verdict is ok."""
    big_r, s = signature[:32], int.from_bytes(signature[32:], "little")
    point = decode(big_r)
    if s >= L or point is None or encode(point) != big_r or times(8, point) == (0, 1):
        return False
    k = sha512_number(big_r, key, message) % L
    return times(s, BASE) == add(point, times(k, decode(key)))


# --- the protocol -------------------------------------------------------------------------------------------

CODES = [
    (0x00, "CLOSED"),
    (0x01, "PROTOCOL_ERROR"),
    (0x02, "AUTH_TIMEOUT"),
    (0x10, "TOKEN_INVALID"),
    (0x11, "TOKEN_EXPIRED"),
    (0x12, "ALLOCATION_MISMATCH"),
    (0x13, "PROOF_INVALID"),
    (0x20, "RATE_LIMITED"),
    (0x21, "BLOCKED"),
    (0x22, "CAPACITY"),
    (0x23, "DEVICE_LIMIT"),
    (0x30, "EXPIRED"),
    (0x31, "QUOTA_EXCEEDED"),
    (0x32, "IDLE"),
    (0x33, "PAIR_TIMEOUT"),
    (0x34, "PEER_GONE"),
    (0x35, "RELEASED"),
    (0x36, "KILLED"),
    (0x37, "REPLACED"),
    (0x40, "MOVED"),
    (0x41, "DRAINING"),
    (0x42, "UNAVAILABLE"),
    (0x50, "INTERNAL"),
]
RETRYABLE = {"RATE_LIMITED", "CAPACITY", "DRAINING", "MOVED", "UNAVAILABLE", "INTERNAL"}
FINAL = {"RELEASED", "KILLED", "QUOTA_EXCEEDED"}

ENUMS = {"Role": {"DEVICE": 1, "PEER": 2}, "Feature": {"RAW_CHANNEL": 1}}
MESSAGES = {
    "Hello": {
        "token": (1, "bytes"),
        "role": (2, "Role"),
        "allocation_id": (3, "bytes"),
        "proof": (4, "bytes"),
        "features": (5, "[Feature]"),
        "agent": (6, "string"),
    },
    "Prove": {"proof": (1, "bytes")},
    "Refresh": {"token": (1, "bytes")},
    "Release": {},
    "Ping": {"value": (1, "u64")},
    "Challenge": {"nonce": (1, "bytes")},
    "Allocated": {
        "allocation_id": (1, "bytes"),
        "relay_addr": (2, "string"),
        "relay_port": (3, "u32"),
        "expires_at": (4, "u64"),
        "bandwidth_limit": (5, "u64?"),
        "burst_bytes": (6, "u64?"),
        "quota_bytes": (7, "u64?"),
        "bytes_used": (8, "u64"),
        "observed_addr": (9, "string"),
        "peer_present": (10, "bool"),
        "max_datagram_bytes": (11, "u32"),
        "keepalive_ms": (12, "u32"),
        "idle_timeout_ms": (13, "u32"),
        "features": (14, "[Feature]"),
        "relays": (15, "[RelayInfo]"),
    },
    "Refreshed": {
        "expires_at": (1, "u64"),
        "bandwidth_limit": (2, "u64?"),
        "burst_bytes": (3, "u64?"),
        "quota_bytes": (4, "u64?"),
        "bytes_used": (5, "u64"),
    },
    "PeerState": {"present": (1, "bool")},
    "PathLimit": {"max_datagram_bytes": (1, "u32"), "max_raw_bytes": (2, "u32")},
    "Usage": {"bytes_used": (1, "u64"), "quota_bytes": (2, "u64"), "percent": (3, "u32")},
    "Throttled": {"datagrams": (1, "u64"), "bytes": (2, "u64"), "window_ms": (3, "u32")},
    "Expiring": {"expires_at": (1, "u64")},
    "Channel": {"tag": (1, "bytes")},
    "Migrate": {"relays": (1, "[RelayInfo]"), "deadline_ms": (2, "u32")},
    "Pong": {"value": (1, "u64")},
    "Refused": {
        "code": (1, "u32"),
        "message": (2, "string"),
        "retry_after_ms": (3, "u32"),
        "relays": (4, "[RelayInfo]"),
    },
    "Closing": {"code": (1, "u32"), "message": (2, "string")},
    "RelayInfo": {
        "addr": (1, "string"),
        "port": (2, "u32"),
        "server_name": (3, "string"),
        "spki": (4, "string"),
        "region": (5, "string"),
    },
}
CLIENT_KINDS = {"Hello": 1, "Prove": 2, "Refresh": 3, "Release": 4, "Ping": 5}
RELAY_KINDS = {
    "Challenge": 1,
    "Allocated": 2,
    "Refreshed": 3,
    "PeerState": 4,
    "PathLimit": 5,
    "Usage": 6,
    "Throttled": 7,
    "Expiring": 8,
    "Channel": 9,
    "Migrate": 10,
    "Pong": 11,
    "Refused": 12,
    "Closing": 13,
}


def varint(number):
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def tagged(number, wire_type, payload):
    return varint(number << 3 | wire_type) + payload


def delimited(number, payload):
    return tagged(number, 2, varint(len(payload)) + payload)


def body(message, fields):
    """A message in protobuf: fields in the order of their numbers, defaults left out, absent options left out."""
    out = b""
    unknown = set(fields) - set(MESSAGES[message])
    assert not unknown, unknown
    for name, (number, kind) in MESSAGES[message].items():
        value = fields.get(name)
        if kind.endswith("?"):
            out += b"" if value is None else tagged(number, 0, varint(int(value)))
        elif kind in ("u32", "u64", "bool"):
            out += tagged(number, 0, varint(int(value))) if int(value) else b""
        elif kind in ENUMS:
            out += tagged(number, 0, varint(ENUMS[kind][value]))
        elif kind == "bytes":
            out += delimited(number, bytes.fromhex(value)) if value else b""
        elif kind == "string":
            out += delimited(number, value.encode()) if value else b""
        elif kind == "[Feature]":
            packed = b"".join(varint(ENUMS["Feature"][feature]) for feature in value)
            out += delimited(number, packed) if packed else b""
        elif kind == "[RelayInfo]":
            out += b"".join(delimited(number, body("RelayInfo", relay)) for relay in value)
        else:
            raise AssertionError(kind)
    return out


def framed(data):
    return len(data).to_bytes(4, "big") + data


def frame(kinds, message, fields):
    return framed(delimited(kinds[message], body(message, fields)))


def token_bytes(f):
    return (
        bytes.fromhex(f["relay_id"])
        + bytes.fromhex(f["allocation_id"])
        + bytes.fromhex(f["device_id"])
        + bytes.fromhex(f["peer_id"])
        + int(f["expires_at"]).to_bytes(8, "little")
        + int(f["bandwidth_limit"]).to_bytes(4, "little")
        + int(f["quota_bytes"]).to_bytes(8, "little")
    )


def sign_token(seed, fields):
    signed = token_bytes(fields)
    assert len(signed) == 116
    return signed + sign(seed, hashlib.sha256(signed).digest())


def text_of(token):
    return base64.urlsafe_b64encode(token).rstrip(b"=").decode()


def pin_of(digest):
    return "sha256/" + base64.b64encode(digest).decode()


# --- the cast -----------------------------------------------------------------------------------------------

DEVICE_SEED = bytes(range(0x00, 0x20))
PEER_SEED = bytes(range(0x20, 0x40))
RELAY_TLS_SEED = bytes(range(0x40, 0x60))
DEVICE_KEY, PEER_KEY = public_key(DEVICE_SEED), public_key(PEER_SEED)
RELAY_ID = "a1b2c3d4e5f60718293a4b5c6d7e8f90"
ALLOCATION_ID = "5f8e2d71c4b03a9617e0d2486bfa9c3f"
OTHER_ALLOCATION_ID = "5f8e2d71c4b03a9617e0d2486bfa9c40"
PINNED_DEVICE_ID = bytes(range(0x80, 0xA0)).hex()
NOW = 1893452400
EXPIRES_AT = NOW + 3600
MAX_LIFETIME = 86400

FIELDS = {
    "relay_id": RELAY_ID,
    "allocation_id": ALLOCATION_ID,
    "device_id": DEVICE_KEY.hex(),
    "peer_id": PEER_KEY.hex(),
    "expires_at": str(EXPIRES_AT),
    "bandwidth_limit": 1250000,
    "quota_bytes": "1000000000",
}
TOKEN = sign_token(DEVICE_SEED, FIELDS)

EXPORTER = hashlib.sha256(b"thirty-two bytes of exporter").digest()
NONCE = hashlib.sha256(b"thirty-two bytes of nonce").digest()
SPKI_DER = bytes.fromhex("302a300506032b6570032100") + public_key(RELAY_TLS_SEED)
SPKI_SHA256 = hashlib.sha256(SPKI_DER).digest()


def proof_message(role, mode, token_sha256, binding, spki_sha256=b""):
    return b"zrc-relay/1 proof\0" + bytes([role, mode]) + token_sha256 + binding + spki_sha256


def proof_case(name, role, mode):
    token_sha256 = hashlib.sha256(TOKEN).digest()
    seed = {"DEVICE": DEVICE_SEED, "PEER": PEER_SEED}[role]
    binding, spki = (EXPORTER, b"") if mode == 1 else (NONCE, SPKI_SHA256)
    message = proof_message(ENUMS["Role"][role], mode, token_sha256, binding, spki)
    case = {
        "name": name,
        "mode": mode,
        "role": role,
        "seed": seed.hex(),
        "public_key": public_key(seed).hex(),
        "token_sha256": token_sha256.hex(),
    }
    if mode == 1:
        case["exporter"] = EXPORTER.hex()
    else:
        case |= {"nonce": NONCE.hex(), "spki_der": SPKI_DER.hex(), "spki_sha256": SPKI_SHA256.hex()}
    return case | {"message": message.hex(), "signature": sign(seed, message).hex()}


PROOFS = [
    proof_case("device, TLS exporter", "DEVICE", 1),
    proof_case("peer, TLS exporter", "PEER", 1),
    proof_case("device, nonce of a Challenge", "DEVICE", 2),
    proof_case("peer, nonce of a Challenge", "PEER", 2),
]


# --- the files ----------------------------------------------------------------------------------------------


def keys():
    torsion = next(p for p in (times(L, decode(y.to_bytes(32, "little"))) for y in range(2, 200)
                   if decode(y.to_bytes(32, "little"))) if times(4, p) != (0, 1))
    cases = [{"name": f"small order, {n} times the generator of the torsion group", "key": encode(times(n, torsion))}
             for n in range(8)]
    for y in range(19):
        for odd in (0, 1):
            data = (y + P | odd << 255).to_bytes(32, "little")
            if decode(data):
                cases.append({"name": f"y = {y} written as p + {y}, sign {odd}", "key": data})
    cases.append({"name": "x = 0 with sign 1, y = 1", "key": (1 | 1 << 255).to_bytes(32, "little")})
    cases.append({"name": "x = 0 with sign 1, y = -1", "key": (P - 1 | 1 << 255).to_bytes(32, "little")})
    cases.append({"name": "y = 2 is on no point", "key": (2).to_bytes(32, "little")})
    cases.append({"name": "the device of these vectors", "key": DEVICE_KEY})
    cases.append({"name": "the peer of these vectors", "key": PEER_KEY})
    mixed = encode(add(decode(DEVICE_KEY), torsion))
    cases.append({"name": "mixed order: the device's key plus a point of order 8", "key": mixed})
    return [{"name": c["name"], "key": c["key"].hex(), "verdict": key_verdict(c["key"])} for c in cases]


def speccheck():
    why = [
        "the key is of small order",
        "the key is of small order",
        "R is of small order",
        "accepted: key and R have a part of small order, and the cofactorless equation holds",
        "only the cofactored equation holds",
        "only the cofactored equation holds",
        "S is not reduced",
        "S is not reduced",
        "R is not canonical, and of small order",
        "R is not canonical, and of small order",
        "the key is not canonical",
        "the key is not canonical",
    ]
    verdicts = []
    for index, case in enumerate(json.loads((HERE / "ed25519-speccheck.json").read_text())):
        key, message, signature = (bytes.fromhex(case[k]) for k in ("pub_key", "message", "signature"))
        verdict = key_verdict(key)
        accepted = verdict == "ok" and verifies(key, message, signature)
        verdicts.append({"index": index, "key": verdict, "accepted": accepted, "why": why[index]})
    return verdicts


def tokens():
    def valid(name, fields, seed=DEVICE_SEED):
        token = sign_token(seed, fields)
        return {
            "name": name,
            "device_seed": seed.hex(),
            "device_key": public_key(seed).hex(),
            "fields": fields,
            "signed_sha256": hashlib.sha256(token[:116]).hexdigest(),
            "token": token.hex(),
            "text": text_of(token),
            "token_sha256": hashlib.sha256(token).hexdigest(),
        }

    def refused(name, reason, code, token, key=None, **expected):
        case = {"name": name, "reason": reason, "code": code, "token": token.hex()}
        if key:
            case["pinned_key"] = key.hex()
        ask = {"relay_id": RELAY_ID, "allocation_id": ALLOCATION_ID, "now": str(NOW), "max_lifetime_s": str(MAX_LIFETIME)}
        return case | {"expected": ask | expected}

    def flipped(at, bit=0):
        return TOKEN[:at] + bytes([TOKEN[at] ^ 1 << bit]) + TOKEN[at + 1 :]

    weak = (1).to_bytes(32, "little").hex()
    second_spelling = (P + 3).to_bytes(32, "little").hex()
    s = int.from_bytes(TOKEN[148:], "little")
    invalid = "TOKEN_INVALID"
    return {
        "valid": [
            valid("a self-certified device; these limits are asked for", FIELDS),
            valid("the tier's default limits", FIELDS | {"bandwidth_limit": 0, "quota_bytes": "0"}),
            valid("the largest numbers", FIELDS | {"expires_at": str(2**64 - 1), "bandwidth_limit": 2**32 - 1, "quota_bytes": str(2**64 - 1)}),
            valid("a device whose key is pinned for its id", FIELDS | {"device_id": PINNED_DEVICE_ID}),
        ],
        "refused": [
            refused("one byte short", "length", invalid, TOKEN[:-1]),
            refused("one byte long", "length", invalid, TOKEN + b"\0"),
            refused("nothing", "length", invalid, b""),
            refused("another quota under the old signature", "signature", invalid, flipped(108)),
            refused("another peer under the old signature", "signature", invalid, flipped(64)),
            refused("a bit of the signature's R", "signature", invalid, flipped(116)),
            refused("a bit of the signature's S", "signature", invalid, flipped(148)),
            refused("S plus the group's order: the same signature, written otherwise", "signature", invalid, TOKEN[:148] + (s + L).to_bytes(32, "little")),
            refused("signed by the peer", "signature", invalid, sign_token(PEER_SEED, FIELDS)),
            refused("the fields are signed, not their hash", "signature", invalid, TOKEN[:116] + sign(DEVICE_SEED, TOKEN[:116])),
            refused("a pinned device's token under another key", "signature", invalid, sign_token(PEER_SEED, FIELDS | {"device_id": PINNED_DEVICE_ID}), key=DEVICE_KEY),
            refused("the device's key is of small order", "device_key", invalid, sign_token(DEVICE_SEED, FIELDS | {"device_id": weak})),
            refused("the device's key is not canonical", "device_key", invalid, sign_token(DEVICE_SEED, FIELDS | {"device_id": second_spelling})),
            refused("the peer's key is of small order", "peer_key", invalid, sign_token(DEVICE_SEED, FIELDS | {"peer_id": weak})),
            refused("the peer's key is not canonical", "peer_key", invalid, sign_token(DEVICE_SEED, FIELDS | {"peer_id": second_spelling})),
            refused("another relay", "wrong_relay", invalid, TOKEN, relay_id="00" * 16),
            refused("another allocation is asked for", "wrong_allocation", "ALLOCATION_MISMATCH", TOKEN, allocation_id=OTHER_ALLOCATION_ID),
            refused("part of the allocation id is asked for", "wrong_allocation", "ALLOCATION_MISMATCH", TOKEN, allocation_id=ALLOCATION_ID[:-2]),
            refused("no allocation is asked for", "wrong_allocation", "ALLOCATION_MISMATCH", TOKEN, allocation_id=""),
            refused("it ends now", "expired", "TOKEN_EXPIRED", TOKEN, now=str(EXPIRES_AT)),
            refused("it has ended", "expired", "TOKEN_EXPIRED", TOKEN, now=str(EXPIRES_AT + 1)),
            refused("one second longer than the relay allows", "lifetime_too_long", invalid, TOKEN, max_lifetime_s="3599"),
            refused("wrong relay and expired: the relay comes first", "wrong_relay", invalid, TOKEN, relay_id="00" * 16, now=str(EXPIRES_AT)),
            refused("wrong allocation and expired: the allocation comes first", "wrong_allocation", "ALLOCATION_MISMATCH", TOKEN, allocation_id=OTHER_ALLOCATION_ID, now=str(EXPIRES_AT)),
            refused("forged and expired: the signature comes first", "signature", invalid, flipped(116), now=str(EXPIRES_AT)),
        ],
    }


# --- issuer tokens: JWTs (RFC 7515, 7519, 8037) ------------------------------------------------------------

ISSUER_SEED = bytes(range(0x60, 0x80))
ISSUER_KEY = public_key(ISSUER_SEED)
KID = "backend-2026"
JWT_HEADER = {"typ": "relay+jwt", "alg": "EdDSA", "kid": KID}
JWT_CLAIMS = {"aud": RELAY_ID, "exp": EXPIRES_AT, "jti": ALLOCATION_ID, "dev": DEVICE_KEY.hex(), "peer": PEER_KEY.hex()}
JWT_LIMITS = {"bps": 1250000, "quota": 1000000000, "tier": "gold"}


def compact(value):
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def jwt_of(header, claims, seed=ISSUER_SEED):
    """The compact form, signed; header and claims may be texts that are no good JSON."""
    signed = f"{text_of(compact(header).encode())}.{text_of(compact(claims).encode())}"
    return f"{signed}.{text_of(sign(seed, signed.encode()))}"


def jwts():
    def valid(name, header=JWT_HEADER, claims=JWT_CLAIMS, said=None):
        token = jwt_of(header, claims)
        said = said or claims
        fields = {
            "relay_id": said["aud"].lower(),
            "allocation_id": said["jti"].lower(),
            "device_id": said["dev"].lower(),
            "peer_id": said["peer"].lower(),
            "expires_at": str(said["exp"]),
            "not_before": str(said["nbf"]) if "nbf" in said else None,
            "bandwidth_limit": str(said.get("bps", 0)),
            "quota_bytes": str(said.get("quota", 0)),
            "tier": said.get("tier"),
        }
        return {
            "name": name,
            "header": compact(header),
            "claims": compact(claims),
            "fields": {key: value for key, value in fields.items() if value is not None},
            "token": token,
            "token_sha256": hashlib.sha256(token.encode()).hexdigest(),
        }

    good = jwt_of(JWT_HEADER, JWT_CLAIMS)
    signed, _, signature = good.rpartition(".")
    invalid = "TOKEN_INVALID"

    def refused(name, reason, token, code=invalid, **expected):
        ask = {"relay_id": RELAY_ID, "allocation_id": ALLOCATION_ID, "now": str(NOW), "max_lifetime_s": str(MAX_LIFETIME)}
        return {"name": name, "reason": reason, "code": code, "token": token, "expected": ask | expected}

    def header(name, reason, **members):
        """Another header; None takes a member away."""
        changed = {key: value for key, value in (JWT_HEADER | members).items() if value is not None}
        return refused(name, reason, jwt_of(changed, JWT_CLAIMS))

    def claims(name, reason, **members):
        changed = {key: value for key, value in (JWT_CLAIMS | members).items() if value is not None}
        return refused(name, reason, jwt_of(JWT_HEADER, changed))

    def texts(name, reason, header=JWT_HEADER, claims=JWT_CLAIMS):
        return refused(name, reason, jwt_of(header, claims))

    weak = (1).to_bytes(32, "little").hex()
    s_plus = int.from_bytes(sign(ISSUER_SEED, signed.encode())[32:], "little") + L
    malleable = sign(ISSUER_SEED, signed.encode())[:32] + s_plus.to_bytes(32, "little")
    claims_text = compact(JWT_CLAIMS)
    # Four of the last character's six bits say nothing: another spelling of the same bytes sets some of them.
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    other_spelling = signature[:-1] + alphabet[alphabet.index(signature[-1]) + 1]
    sha512_hmac = text_of(hashlib.sha512(signed.encode()).digest())
    return {
        "issuer_seed": ISSUER_SEED.hex(),
        "issuer_key": ISSUER_KEY.hex(),
        "kid": KID,
        "valid": [
            valid("the least that a token says"),
            valid("all that it may say", claims=JWT_CLAIMS | JWT_LIMITS | {"nbf": NOW}),
            valid("the other name of the algorithm", header=JWT_HEADER | {"alg": "Ed25519"}),
            valid("what is not asked for is ignored", header=JWT_HEADER | {"cty": "x", "x5t": "AA"},
                  claims=JWT_CLAIMS | {"iss": "backend", "iat": NOW + 0.5, "sub": None, "more": {"a": [1, {}]}}),
            valid("0 asks for the tier's default", claims=JWT_CLAIMS | {"bps": 0, "quota": 0}),
            valid("hex in capitals", claims=JWT_CLAIMS | {"aud": RELAY_ID.upper(), "dev": DEVICE_KEY.hex().upper()}),
            valid("the largest numbers", claims=JWT_CLAIMS | {"exp": 2**64 - 1, "bps": 2**64 - 1, "quota": 2**64 - 1}),
            valid("blanks and escapes in the JSON", claims="{ " + claims_text[1:-1].replace('"exp"', '"\\u0065xp"') + "\n}", said=JWT_CLAIMS),
        ],
        "refused": [
            refused("nothing between the dots", "jwt_form", ".."),
            refused("no signature", "jwt_form", signed + "."),
            refused("unsecured, as alg none is", "jwt_alg", jwt_of(JWT_HEADER | {"alg": "none"}, JWT_CLAIMS)),
            refused("unsecured, without a signature at all", "jwt_form", f"{text_of(compact(JWT_HEADER | {'alg': 'none'}).encode())}.{signed.partition('.')[2]}."),
            refused("a fourth part", "jwt_form", good + ".e30"),
            refused("padding", "jwt_form", good + "=="),
            refused("a line's end", "jwt_form", good + "\n"),
            refused("the signature in another spelling of the same bytes", "jwt_form", f"{signed}.{other_spelling}"),
            refused("more than 2048 bytes", "jwt_too_long", jwt_of(JWT_HEADER, JWT_CLAIMS | {"pad": "x" * 1400})),
            header("an ordinary JWT", "jwt_typ", typ="JWT"),
            header("typ in capitals", "jwt_typ", typ="RELAY+JWT"),
            header("no typ", "jwt_typ", typ=None),
            header("HMAC", "jwt_alg", alg="HS512"),
            header("ECDSA", "jwt_alg", alg="ES256"),
            header("no alg", "jwt_alg", alg=None),
            header("no kid", "jwt_kid", kid=None),
            header("a kid with a line's end", "jwt_kid", kid="backend-2026\n"),
            header("its own key", "jwt_header", jwk={"kty": "OKP", "crv": "Ed25519", "x": text_of(PEER_KEY)}),
            header("where its key is", "jwt_header", jku="https://example.com/jwks"),
            header("where its certificate is", "jwt_header", x5u="https://example.com/cert"),
            header("an extension", "jwt_header", crit=["b64"], b64=False),
            texts("alg twice", "jwt_duplicate", header=compact(JWT_HEADER)[:-1] + ',"alg":"none"}'),
            texts("a claim twice", "jwt_duplicate", claims=claims_text[:-1] + ',"quota":1,"quota":2}'),
            texts("a claim twice, once with an escape", "jwt_duplicate", claims=claims_text[:-1] + ',"\\u0065xp":1}'),
            texts("a member twice further in", "jwt_duplicate", claims=claims_text[:-1] + ',"x":{"y":1,"y":1}}'),
            texts("claims that are a list", "jwt_json", claims="[]"),
            texts("claims and something more", "jwt_json", claims=claims_text + "{}"),
            header("an unknown issuer", "unknown_issuer", kid="backend-2027"),
            refused("signed by the device", "signature", jwt_of(JWT_HEADER, JWT_CLAIMS, DEVICE_SEED)),
            refused("a zeroed signature", "signature", signed + "." + "A" * 86),
            refused("a hash for a signature", "signature", f"{signed}.{sha512_hmac}"),
            refused("S plus the group's order", "signature", f"{signed}.{text_of(malleable)}"),
            refused("another quota under the old signature", "signature", jwt_of(JWT_HEADER, JWT_CLAIMS | {"quota": 1}).rpartition(".")[0] + "." + signature),
            claims("a list of audiences", "jwt_aud", aud=[RELAY_ID]),
            claims("no audience", "jwt_aud", aud=None),
            claims("no end", "jwt_exp", exp=None),
            claims("an end with a fraction", "jwt_exp", exp=EXPIRES_AT + 0.5),
            claims("an end as a text", "jwt_exp", exp=str(EXPIRES_AT)),
            claims("an end before the epoch", "jwt_exp", exp=-1),
            claims("an end beyond 64 bits", "jwt_exp", exp=2**64),
            claims("a beginning as a text", "jwt_nbf", nbf="now"),
            claims("no allocation", "jwt_jti", jti=None),
            claims("an allocation as a UUID with dashes", "jwt_jti", jti="5f8e2d71-c4b0-3a96-17e0-d2486bfa9c3f"),
            claims("no device", "jwt_dev", dev=None),
            claims("a device in base64", "jwt_dev", dev=text_of(DEVICE_KEY)),
            claims("no peer", "jwt_peer", peer=None),
            claims("a rate as a text", "jwt_bps", bps="10"),
            claims("a quota below nothing", "jwt_quota", quota=-1),
            claims("a tier that is a number", "jwt_tier", tier=1),
            claims("the device's key is of small order", "device_key", dev=weak),
            claims("the peer's key is of small order", "peer_key", peer=weak),
            claims("another relay", "wrong_relay", aud="00" * 16),
            refused("another allocation is asked for", "wrong_allocation", good, "ALLOCATION_MISMATCH", allocation_id=OTHER_ALLOCATION_ID),
            claims("it begins in a second", "not_yet_valid", nbf=NOW + 1),
            refused("it ends now", "expired", good, "TOKEN_EXPIRED", now=str(EXPIRES_AT)),
            refused("one second longer than the relay allows", "lifetime_too_long", good, max_lifetime_s="3599"),
        ],
    }


RELAY_A = {"addr": "192.0.2.10", "port": 4433, "server_name": "relay-a.example.net", "spki": pin_of(SPKI_SHA256), "region": "eu-west"}
RELAY_B = {"addr": "relay-b.example.net", "port": 443, "server_name": "relay-b.example.net", "spki": "", "region": ""}


def frames():
    client, relay = [], []

    def c(name, message, /, **fields):
        client.append({"name": name, "message": message, "fields": fields, "frame": frame(CLIENT_KINDS, message, fields).hex()})

    def r(name, message, /, **fields):
        relay.append({"name": name, "message": message, "fields": fields, "frame": frame(RELAY_KINDS, message, fields).hex()})

    hello = {"token": TOKEN.hex(), "role": "DEVICE", "allocation_id": ALLOCATION_ID, "proof": "", "features": [], "agent": ""}
    jwt = b"eyJhbGciOiJFZERTQSIsInR5cCI6InJlbGF5K2p3dCIsImtpZCI6ImsxIn0.e30.c2lnbmF0dXJl"
    c("a device asks for a Challenge", "Hello", **hello)
    c("a device with its proof", "Hello", **hello | {"proof": PROOFS[0]["signature"], "features": ["RAW_CHANNEL"], "agent": "example/1.0"})
    c("a peer with its proof", "Hello", **hello | {"role": "PEER", "proof": PROOFS[1]["signature"], "agent": "example/1.0 (π)"})
    c("an issuer's token (its form alone: this one is not signed)", "Hello", **hello | {"token": jwt.hex(), "role": "PEER"})
    c("the answer to a Challenge", "Prove", proof=PROOFS[2]["signature"])
    later = sign_token(DEVICE_SEED, FIELDS | {"expires_at": str(EXPIRES_AT + 3600)})
    c("a newer token", "Refresh", token=later.hex())
    c("the end for both", "Release")
    c("a ping", "Ping", value="300")
    c("a ping of nothing", "Ping", value="0")
    c("the largest ping", "Ping", value=str(2**64 - 1))

    r("a challenge", "Challenge", nonce=NONCE.hex())
    allocated = {
        "allocation_id": ALLOCATION_ID,
        "relay_addr": "192.0.2.10",
        "relay_port": 4433,
        "expires_at": str(EXPIRES_AT),
        "bandwidth_limit": "1250000",
        "burst_bytes": "125000",
        "quota_bytes": "1000000000",
        "bytes_used": "0",
        "observed_addr": "198.51.100.7:51820",
        "peer_present": False,
        "max_datagram_bytes": 1200,
        "keepalive_ms": 15000,
        "idle_timeout_ms": 30000,
        "features": [],
        "relays": [],
    }
    r("limits as granted, alone so far", "Allocated", **allocated)
    unlimited = {k: v for k, v in allocated.items() if k not in ("bandwidth_limit", "burst_bytes", "quota_bytes")}
    unlimited |= {"relay_addr": "2001:db8::10", "observed_addr": "[2001:db8::7]:51820", "peer_present": True,
                  "bytes_used": "123456789012", "features": ["RAW_CHANNEL"], "relays": [RELAY_A, RELAY_B]}
    r("no limits, the other side present, two relays known", "Allocated", **unlimited)
    r("a refresh under new limits", "Refreshed", expires_at=str(EXPIRES_AT + 3600), bandwidth_limit="2500000", burst_bytes="250000", quota_bytes="2000000000", bytes_used="4096")
    r("a refresh without limits", "Refreshed", expires_at=str(2**64 - 1), bytes_used="0")
    r("the other side came", "PeerState", present=True)
    r("the other side left", "PeerState", present=False)
    r("what fits now, no raw channel", "PathLimit", max_datagram_bytes=1162, max_raw_bytes=0)
    r("what fits now, raw channel open", "PathLimit", max_datagram_bytes=1414, max_raw_bytes=1444)
    r("ninety per cent are used", "Usage", bytes_used="900000000", quota_bytes="1000000000", percent=90)
    r("datagrams over the rate", "Throttled", datagrams="42", bytes="50400", window_ms=1000)
    r("the end is near", "Expiring", expires_at=str(EXPIRES_AT))
    r("a raw channel's tag", "Channel", tag="03c4d5e6f70819")
    r("go there", "Migrate", relays=[RELAY_A, RELAY_B], deadline_ms=20000)
    r("a pong", "Pong", value="300")
    r("a bad token", "Refused", code=0x10, message="the token is not valid here", retry_after_ms=0, relays=[])
    r("too fast", "Refused", code=0x20, message="too many requests from this address", retry_after_ms=6000, relays=[])
    r("owned elsewhere", "Refused", code=0x40, message="", retry_after_ms=0, relays=[RELAY_A])
    r("released", "Closing", code=0x35, message="the other side released the allocation")
    r("an ordinary end, nothing to say", "Closing", code=0, message="")

    base = body("Hello", hello)
    tolerated = []

    def t(name, data, /, **fields):
        tolerated.append({"name": name, "message": "Hello", "fields": hello | fields, "frame": framed(data).hex()})

    t("an unknown field in Hello", delimited(1, base + delimited(99, b"later")))
    t("an unknown group in Hello", delimited(1, base + tagged(98, 3, b"") + tagged(1, 0, b"\x05") + tagged(98, 4, b"")))
    t("an unknown field beside the message", delimited(1, base) + tagged(1000, 0, varint(7)))
    t("an unknown feature is left out", delimited(1, base + delimited(5, bytes([1, 7]))), features=["RAW_CHANNEL"])
    t("features unpacked", delimited(1, base + tagged(5, 0, b"\x01")), features=["RAW_CHANNEL"])
    t("a feature said three times", delimited(1, base + delimited(5, b"\x01\x01\x01")), features=["RAW_CHANNEL"])
    t("a field said twice: the last counts", delimited(1, base + tagged(2, 0, b"\x02")), role="PEER")
    t("a message in two parts is merged", delimited(1, base) + delimited(1, delimited(6, b"x/2")), agent="x/2")
    t("a varint with a superfluous byte", delimited(1, base + tagged(2, 0, b"\x82\x00")), role="PEER")

    refused = []

    def x(name, sender, error, data, limit=4096):
        refused.append({"name": name, "sender": sender, "limit": limit, "error": error, "frame": data.hex()})

    no_role = {k: v for k, v in MESSAGES["Hello"].items() if k != "role"}
    MESSAGES["HelloWithoutRole"] = no_role
    without_role = body("HelloWithoutRole", {k: v for k, v in hello.items() if k != "role"})
    x("one byte over the limit before a token", "client", "TooLarge", (4097).to_bytes(4, "big"))
    x("one byte over the limit after a token", "client", "TooLarge", (65537).to_bytes(4, "big"), 65536)
    x("4 GiB", "client", "TooLarge", b"\xff\xff\xff\xff")
    x("an empty body", "client", "Unknown", framed(b""))
    x("a message this page does not know", "client", "Unknown", framed(delimited(6, b"")))
    x("only an unknown number", "client", "Unknown", framed(tagged(1000, 0, b"\x01")))
    x("Hello without a role", "client", "NoRole", framed(delimited(1, without_role)))
    x("Hello of role 0", "client", "NoRole", framed(delimited(1, without_role + tagged(2, 0, b"\x00"))))
    x("Hello of role 3", "client", "NoRole", framed(delimited(1, without_role + tagged(2, 0, b"\x03"))))
    x("a message longer than its frame", "client", "Malformed", framed(tagged(1, 2, varint(5) + b"\x12\x01")))
    x("a token longer than its message", "client", "Malformed", framed(delimited(1, tagged(1, 2, b"\xb4\x01" + b"\0" * 9))))
    x("Ping as a number, not a message", "client", "Malformed", framed(tagged(5, 0, b"\x01")))
    x("role as bytes", "client", "Malformed", framed(delimited(1, delimited(2, b"\x01"))))
    x("agent is not UTF-8", "client", "Malformed", framed(delimited(1, base + delimited(6, b"\xff\xfe"))))
    x("field number 0", "client", "Malformed", framed(b"\x02\x00"))
    x("wire type 6", "client", "Malformed", framed(b"\x0e"))
    x("a group never begun ends", "client", "Malformed", framed(tagged(9, 4, b"")))
    x("a group never ends", "client", "Malformed", framed(tagged(9, 3, b"")))
    x("2000 groups in one another", "client", "Malformed", framed(tagged(9, 3, b"") * 2000 + tagged(9, 4, b"") * 2000))
    x("a varint of eleven bytes", "client", "Malformed", framed(delimited(5, b"\x08" + b"\xff" * 10 + b"\x01")))
    x("an empty body", "relay", "Unknown", framed(b""), 65536)
    x("a message this page does not know", "relay", "Unknown", framed(delimited(14, b"")), 65536)
    x("Challenge cut short", "relay", "Malformed", framed(delimited(1, tagged(1, 2, b"\x20" + b"\0" * 31))), 65536)
    x("a relay's name is not UTF-8", "relay", "Malformed", framed(delimited(10, delimited(1, delimited(1, b"\xc3\x28")))), 65536)
    return {"client": client, "relay": relay, "tolerated": tolerated, "refused": refused}


def descriptors():
    def d(**fields):
        return {"fields": fields, "text": json.dumps(fields, separators=(",", ":"))}

    good = {"addr": "127.0.0.1", "port": 4433, "server_name": "localhost", "spki": pin_of(SPKI_SHA256), "relay_id": RELAY_ID}
    text = json.dumps(good)
    pin = good["spki"]
    assert pin.endswith("=")
    other_bits = pin[:-2] + chr(ord(pin[-2]) + 1) + "="
    return {
        "spki_der": SPKI_DER.hex(),
        "spki": pin,
        "valid": [
            d(**good | {"region": None}),
            d(**{k: v for k, v in good.items() if k != "spki"} | {"addr": "relay.example.net", "server_name": "relay.example.net", "region": "eu-west"}),
            d(**good | {"addr": "2001:db8::10", "region": "lab"}),
        ],
        "tolerated": [
            json.dumps(good | {"later": {"a": 1}}),
            json.dumps(good),
            json.dumps(good | {"relay_id": RELAY_ID.upper()}),
        ],
        "refused": [
            {"name": "no port", "text": json.dumps({k: v for k, v in good.items() if k != "port"})},
            {"name": "no relay id", "text": json.dumps({k: v for k, v in good.items() if k != "relay_id"})},
            {"name": "a port beyond 65535", "text": json.dumps(good | {"port": 65536})},
            {"name": "a short relay id", "text": json.dumps(good | {"relay_id": RELAY_ID[:-2]})},
            {"name": "a pin without its prefix", "text": json.dumps(good | {"spki": pin[7:]})},
            {"name": "a pin under another hash", "text": json.dumps(good | {"spki": "sha512/" + pin[7:]})},
            {"name": "a pin without padding", "text": json.dumps(good | {"spki": pin[:-1]})},
            {"name": "a pin of 31 bytes", "text": json.dumps(good | {"spki": pin_of(SPKI_SHA256[:31])})},
            {"name": "a pin of 33 bytes", "text": json.dumps(good | {"spki": pin_of(SPKI_SHA256 + b"0")})},
            {"name": "a pin in the URL alphabet", "text": json.dumps(good | {"spki": "sha256/" + base64.urlsafe_b64encode(b"\xfb" * 32).decode()})},
            {"name": "a pin with other unused bits", "text": json.dumps(good | {"spki": other_bits})},
            {"name": "cut short", "text": text[:-1]},
        ],
    }


def close_codes():
    return [
        {"number": number, "name": name, "retryable": name in RETRYABLE, "final_for_allocation": name in FINAL, "reset_code": 0x7A720000 + number}
        for number, name in CODES
    ]


def files():
    assert public_key(bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")).hex() == \
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a", "RFC 8032 section 7.1, test 1"
    affinity = 0
    for byte in bytes.fromhex(ALLOCATION_ID):
        affinity ^= byte
    yield "keys.json", keys()
    yield "ed25519-speccheck-verdicts.json", speccheck()
    yield "token.json", tokens() | {"affinity": {"allocation_id": ALLOCATION_ID, "byte": affinity}}
    yield "jwt.json", jwts()
    yield "proof.json", PROOFS
    yield "frames.json", frames()
    yield "close-codes.json", close_codes()
    yield "descriptor.json", descriptors()


def main():
    stale = 0
    for name, content in files():
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        path = HERE / name
        if "--check" in sys.argv:
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                print(f"{name} is not what make.py writes", file=sys.stderr)
                stale = 1
        else:
            path.write_text(text, encoding="utf-8")
    return stale


if __name__ == "__main__":
    sys.exit(main())
