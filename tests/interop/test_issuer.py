"""Issuer tokens minted by ordinary JWT libraries: PyJWT, and jose under Node. The relay takes what it should, and no more."""

import json
import os
import secrets
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from client import connect, joined
from expect import ends_with, refused
from wire import DEVICE, PEER, new_key, public

HERE = Path(__file__).resolve().parent
KID = "backend-2026"
HEADER = {"typ": "relay+jwt", "kid": KID}
# What tests/run.sh installs.
MODULES = Path(os.environ.get("ZRC_NODE_MODULES", HERE.parents[1] / "target" / "node"))


def pem(key):
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def by_pyjwt(requests):
    return [jwt.encode(r["claims"], r["key"], algorithm=r["alg"], headers=r["header"]) for r in requests]


def by_jose(requests):
    node = os.environ.get("ZRC_NODE") or shutil.which("node")
    assert node and (MODULES / "node_modules" / "jose").is_dir(), "tests/run.sh interop installs Node and jose"
    ran = subprocess.run(
        [node, HERE / "mint.mjs", MODULES],
        input=json.dumps(requests),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


MINTERS = [
    pytest.param(by_pyjwt, "EdDSA", id="PyJWT-EdDSA"),
    pytest.param(by_jose, "EdDSA", id="jose-EdDSA"),
    pytest.param(by_jose, "Ed25519", id="jose-Ed25519"),
]


@dataclass
class Issued:
    """What an issuer grants, with the keys of both sides: what `client.py` wants of a grant."""

    relay_id: bytes
    device_key: object = field(default_factory=new_key)
    peer_key: object = field(default_factory=new_key)
    allocation_id: bytes = field(default_factory=lambda: secrets.token_bytes(16))
    minted: str = ""

    def claims(self, **more):
        claims = {
            "aud": self.relay_id.hex(),
            "exp": int(time.time()) + 3600,
            "jti": self.allocation_id.hex(),
            "dev": public(self.device_key).hex(),
            "peer": public(self.peer_key).hex(),
        } | more
        return {name: value for name, value in claims.items() if value is not None}

    def token(self):
        return self.minted.encode()

    def key_of(self, role):
        return self.device_key if role == DEVICE else self.peer_key


@pytest.fixture
def issuer():
    return new_key()


@pytest.fixture
def served(configured, issuer, tmp_path):
    """A relay that knows one issuer, by the file that OpenSSL would write, and no device."""
    spki = issuer.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "issuer.pem").write_bytes(spki)
    return configured(
        '[relay]\nlisten_addr = "127.0.0.1"\nlisten_port = 0\n'
        f'[[relay.issuer]]\nkid = "{KID}"\nkey_path = "issuer.pem"\ntier = "paid"\ntiers = ["free"]\n'
        "[ops]\nlisten_port = 0\n"
    ).relay


@pytest.mark.parametrize("mint, alg", MINTERS)
async def test_what_a_library_mints_is_accepted(served, issuer, mint, alg):
    cases = [
        ({}, 12_500_000, 100_000_000_000),
        ({"tier": "free"}, 125_000, 100_000_000),
        ({"tier": "free", "bps": 7_000_000, "quota": 2**53 - 1}, 125_000, 100_000_000),
        ({"bps": 5000, "quota": 6000, "nbf": int(time.time()) - 5}, 5000, 6000),
        ({"iss": "backend", "iat": int(time.time()), "sub": "somebody", "more": {"a": [1]}}, 12_500_000, 100_000_000_000),
    ]
    grants = [Issued(served.relay_id) for _ in cases]
    requests = [
        {"alg": alg, "key": pem(issuer), "header": HEADER, "claims": grant.claims(**more)}
        for grant, (more, _, _) in zip(grants, cases, strict=True)
    ]
    for grant, token, (more, rate, quota) in zip(grants, mint(requests), cases, strict=True):
        grant.minted = token
        async with joined(served, grant, DEVICE) as device, joined(served, grant, PEER) as peer:
            said = device.allocated
            assert (said.bandwidth_limit, said.quota_bytes) == (rate, quota), more
            await device.expect_peer()
            device.send_datagram(b"granted")
            assert await peer.datagram() == b"granted"


@pytest.mark.parametrize("mint, alg", MINTERS)
async def test_what_a_library_mints_amiss_is_refused(served, issuer, mint, alg):
    grant = Issued(served.relay_id)
    own_key = {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}
    now = int(time.time())
    cases = [
        # header, claims, who signs, the code
        (HEADER | {"typ": "JWT"}, {}, issuer, "TOKEN_INVALID"),
        (HEADER | {"kid": "backend-2027"}, {}, issuer, "TOKEN_INVALID"),
        ({"typ": "relay+jwt"}, {}, issuer, "TOKEN_INVALID"),
        (HEADER | {"jwk": own_key}, {}, issuer, "TOKEN_INVALID"),
        (HEADER | {"jku": "https://example.com/keys"}, {}, issuer, "TOKEN_INVALID"),
        (HEADER | {"x5u": "https://example.com/certificate"}, {}, issuer, "TOKEN_INVALID"),
        (HEADER, {}, new_key(), "TOKEN_INVALID"),
        (HEADER, {}, grant.device_key, "TOKEN_INVALID"),
        (HEADER, {"aud": bytes(16).hex()}, issuer, "TOKEN_INVALID"),
        (HEADER, {"aud": [served.relay_id.hex()]}, issuer, "TOKEN_INVALID"),
        (HEADER, {"exp": now + 25 * 3600}, issuer, "TOKEN_INVALID"),
        (HEADER, {"exp": now - 1}, issuer, "TOKEN_EXPIRED"),
        (HEADER, {"exp": None}, issuer, "TOKEN_INVALID"),
        (HEADER, {"nbf": now + 600}, issuer, "TOKEN_INVALID"),
        (HEADER, {"jti": bytes(16).hex()}, issuer, "ALLOCATION_MISMATCH"),
        (HEADER, {"jti": None}, issuer, "TOKEN_INVALID"),
        (HEADER, {"dev": None}, issuer, "TOKEN_INVALID"),
        (HEADER, {"peer": bytes(32).hex()}, issuer, "TOKEN_INVALID"),
        (HEADER, {"tier": "unlimited"}, issuer, "TOKEN_INVALID"),
        (HEADER, {"bps": 1.5}, issuer, "TOKEN_INVALID"),
        (HEADER, {"quota": -1}, issuer, "TOKEN_INVALID"),
        (HEADER, {"pad": "x" * 1500}, issuer, "TOKEN_INVALID"),
    ]
    requests = [
        {"alg": alg, "key": pem(key), "header": header, "claims": grant.claims(**more)}
        for header, more, key, _ in cases
    ]
    tokens = mint(requests)
    assert len(tokens) == len(cases)
    for token, (header, more, _, code) in zip(tokens, cases, strict=True):
        grant.minted = token
        await refuses(served, grant, code, f"{header} {more}")


@pytest.mark.parametrize("mint, alg", MINTERS)
async def test_a_signature_is_for_one_token(served, issuer, mint, alg):
    """After a valid token, what is made of its parts is refused all the same."""
    grant = Issued(served.relay_id)
    more = [{}, {"quota": 10**15}, {"peer": public(new_key()).hex()}]
    good, larger, other = mint(
        [{"alg": alg, "key": pem(issuer), "header": HEADER, "claims": grant.claims(**m)} for m in more]
    )
    grant.minted = good
    async with joined(served, grant, DEVICE):
        signature = good.rpartition(".")[2]
        for forged in [
            good.rpartition(".")[0] + "." + "A" * 86,
            good.rpartition(".")[0] + ".",
            larger.rpartition(".")[0] + "." + signature,
            other.rpartition(".")[0] + "." + signature,
            good + "=",
        ]:
            forgery = Issued(grant.relay_id, grant.device_key, grant.peer_key, grant.allocation_id, forged)
            await refuses(served, forgery, "TOKEN_INVALID", forged)


async def test_an_unsigned_token_is_refused(served, issuer):
    grant = Issued(served.relay_id)
    grant.minted = jwt.encode(grant.claims(), None, algorithm="none", headers=HEADER)
    await refuses(served, grant, "TOKEN_INVALID", "none")
    # The public key as the secret of an HMAC: the oldest trick there is.
    secret = issuer.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    grant.minted = jwt.encode(grant.claims(), secret, algorithm="HS256", headers=HEADER)
    await refuses(served, grant, "TOKEN_INVALID", "HS256")


async def test_an_issuers_token_is_refreshed(served, issuer):
    grant = Issued(served.relay_id)
    now = int(time.time())
    first, later = by_pyjwt(
        [
            {"alg": "EdDSA", "key": pem(issuer), "header": HEADER, "claims": grant.claims(exp=now + 60)},
            {"alg": "EdDSA", "key": pem(issuer), "header": HEADER, "claims": grant.claims(exp=now + 120, tier="free")},
        ]
    )
    grant.minted = first
    async with joined(served, grant, DEVICE) as leg:
        leg.say("refresh", token=later.encode())
        said = await leg.expect("refreshed")
        assert (said.expires_at, said.bandwidth_limit) == (now + 120, 125_000)


async def test_a_device_may_not_sign_for_itself_there(served):
    grant = Issued(served.relay_id)
    (grant.minted,) = by_pyjwt(
        [{"alg": "EdDSA", "key": pem(grant.device_key), "header": HEADER, "claims": grant.claims()}]
    )
    await refuses(served, grant, "TOKEN_INVALID", "signed by the device")


async def refuses(relay, grant, code, what):
    async with connect(relay) as leg:
        async with refused(code):
            await leg.hello(grant, DEVICE)
            pytest.fail(f"a Challenge for: {what}")
        await ends_with(leg, code)
