"""What tests say about the end of a connection."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from client import Refusal
from wire import code_name


async def ends_with(leg, name, within_s=10, said=True):
    """The relay says the code on the control stream, finishes the stream and closes with the same code.

    Where the client never opened the control stream there is nothing to say it on: `said` is then False.
    """
    async with asyncio.timeout(within_s):
        end = await leg.ended()
    assert end.app and code_name(end.code) == name, f"ended with {end}, not {name}; heard {leg.seen}"
    last_words = [(kind, fields) for kind, fields in leg.seen if kind in ("refused", "closing")]
    if said:
        assert [code_name(fields.code) for _, fields in last_words] == [name]
        assert leg.control_finished, "the control stream was not finished before the close"
        return last_words[0]
    assert not last_words
    return None


@asynccontextmanager
async def refused(name):
    """What is awaited inside is refused with this code."""
    with pytest.raises(Refusal) as caught:
        yield
    assert code_name(caught.value.code) == name, str(caught.value)
