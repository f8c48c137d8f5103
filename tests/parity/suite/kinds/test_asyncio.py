"""pytest-asyncio: loops and fixtures of several scopes."""

import asyncio

import pytest

pytest_asyncio = pytest.importorskip("pytest_asyncio")


@pytest_asyncio.fixture
async def connection(log):
    await asyncio.sleep(0)
    log("connected")
    yield "connection"
    await asyncio.sleep(0)
    log("disconnected")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(in_all):
    await asyncio.sleep(0)
    yield ["server", in_all]
    await asyncio.sleep(0)


@pytest.fixture(scope="module")
def in_all():
    return "shared"


@pytest.mark.asyncio
async def test_awaits(connection):
    await asyncio.sleep(0)
    assert connection == "connection"


@pytest.mark.asyncio
async def test_fails(connection):
    assert await asyncio.sleep(0, "a") == "b"


@pytest.mark.asyncio(loop_scope="module")
async def test_module_loop(server):
    assert server == ["server", "shared"]
    await asyncio.gather(*(asyncio.sleep(0) for _ in range(3)))


@pytest.mark.asyncio(loop_scope="module")
async def test_module_loop_again(server):
    assert server == ["server", "shared"]
    await asyncio.wait_for(asyncio.sleep(0), 1)


@pytest.mark.asyncio
@pytest.mark.parametrize("number", [1, 2])
async def test_parametrised(number):
    assert number == 1


@pytest.mark.asyncio
async def test_task_fails():
    async def fail():
        raise ValueError("in a task")

    await asyncio.create_task(fail())


@pytest.mark.asyncio
@pytest.mark.xfail(reason="known")
async def test_xfail():
    raise AssertionError


@pytest.mark.asyncio(loop_scope="class")
class TestInClass:
    async def test_one(self):
        TestInClass.loop = asyncio.get_running_loop()

    async def test_runs_a_command(self):
        process = await asyncio.create_subprocess_exec("true")
        assert await process.wait() == 0


async def test_without_mark():
    pass
