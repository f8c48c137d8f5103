"""pytest-trio."""

import pytest

trio = pytest.importorskip("trio")
pytest.importorskip("pytest_trio")


@pytest.fixture
async def channel(nursery):
    sending, receiving = trio.open_memory_channel(1)
    yield sending, receiving


@pytest.mark.trio
async def test_channel(channel):
    await channel[0].send("x")
    assert await channel[1].receive() == "x"


@pytest.mark.trio
async def test_clock(autojump_clock):
    before = trio.current_time()
    await trio.sleep(100)
    assert trio.current_time() - before >= 100


@pytest.mark.trio
async def test_fails():
    await trio.sleep(0)
    assert "trio" == "asyncio"
