"""anyio's plugin, on both of its backends."""

import pytest

anyio = pytest.importorskip("anyio")
pytest.importorskip("trio")
pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module", params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param


@pytest.fixture(scope="module")
async def wide(anyio_backend):
    await anyio.sleep(0)
    yield f"wide on {anyio_backend}"
    await anyio.sleep(0)


@pytest.fixture
async def narrow(wide):
    await anyio.sleep(0)
    yield f"narrow, {wide}"


async def test_sleeps(anyio_backend):
    await anyio.sleep(0)


async def test_fixtures(narrow, anyio_backend_name):
    assert narrow == f"narrow, wide on {anyio_backend_name}"


async def test_task_group():
    done = []

    async def work(number):
        await anyio.sleep(0)
        done.append(number)

    async with anyio.create_task_group() as group:
        for number in range(3):
            group.start_soon(work, number)
    assert sorted(done) == [0, 1, 2]


async def test_fails(wide):
    assert wide == "wide on asyncio"
