#!/usr/bin/env python3
"""Writes countries.mmdb, for tests of client countries: pip install mmdb_writer==0.2.7, then run it here.

Networks of documentation (RFC 5737, RFC 3849) and of this machine, in the shapes that databases have, and in some that
none should have. The countries have no inhabitants.
"""

from pathlib import Path

from mmdb_writer import MMDBWriter
from netaddr import IPSet

NETWORKS = {
    # As MaxMind and DB-IP have it.
    "127.0.0.0/8": {"country": {"iso_code": "AQ", "names": {"en": "Antarctica"}}},
    # As IPinfo has it, now and before.
    "::1/128": {"country_code": "BV", "country": "Bouvet Island"},
    "192.0.2.0/25": {"country": "HM"},
    # Where MaxMind knows only to whom the network was given.
    "192.0.2.128/25": {"registered_country": {"iso_code": "TF"}},
    "2001:db8::/33": {"country": {"iso_code": "GS"}},
    # No country.
    "198.51.100.0/26": {"country": {"iso_code": "aq"}},
    "198.51.100.64/26": {"country": {"iso_code": "AQ\"} 1\n"}},
    "198.51.100.128/26": {"country": {"iso_code": 7}},
    "198.51.100.192/26": {"asn": 64496},
    "203.0.113.0/25": {"country_code": ""},
    "2001:db8:8000::/33": ["AQ"],
}

writer = MMDBWriter(6, "zrc-relay-test", languages=["en"], description="For tests of zrc-relay", ipv4_compatible=True)
for network, record in NETWORKS.items():
    writer.insert_network(IPSet([network]), record)
writer.to_db_file(str(Path(__file__).with_name("countries.mmdb")))
