"""pytest-asyncio, anyio, pytest-trio and pytest-aiohttp: loops of every scope, and async fixtures in them."""

from __future__ import annotations

import pytest

from tests.inner import BothWays


@pytest.mark.parametrize("mode", ["auto", "strict"])
def test_asyncio(pytester: pytest.Pytester, both_ways: BothWays, mode: str) -> None:
    """Loops of the function, the module and the session; async fixtures of each scope, and sockets in a wider loop."""
    pytester.makeini(f"[pytest]\nasyncio_mode = {mode}\nasyncio_default_fixture_loop_scope = function")
    pytester.makepyfile(
        """
        import asyncio, pytest, pytest_asyncio

        @pytest_asyncio.fixture
        async def own():
            await asyncio.sleep(0)
            yield asyncio.get_running_loop()
            await asyncio.sleep(0)
        @pytest_asyncio.fixture(scope="module", loop_scope="module")
        async def of_module(): yield asyncio.get_running_loop()
        @pytest_asyncio.fixture(scope="session", loop_scope="session")
        async def echo():
            async def answer(reader, writer):
                writer.write((await reader.readline()).upper())
                await writer.drain()
                writer.close()
            yield answer
            await asyncio.sleep(0)
        @pytest_asyncio.fixture
        async def breaks_late():
            yield
            raise ValueError("late")

        pytestmark = pytest.mark.asyncio
        async def test_own(own): assert asyncio.get_running_loop() is own
        async def test_fails(): await asyncio.sleep(0.01); assert 1 == 2
        async def test_breaks(breaks_late): pass
        @pytest.mark.asyncio(loop_scope="module")
        async def test_module_one(of_module): assert asyncio.get_running_loop() is of_module
        @pytest.mark.asyncio(loop_scope="module")
        async def test_module_two(of_module): assert asyncio.get_running_loop() is of_module
        @pytest.mark.asyncio(loop_scope="session")
        @pytest.mark.parametrize("number", range(2))
        async def test_session(echo, number):
            server = await asyncio.start_server(echo, "127.0.0.1", 0)
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(b"hello\\n")
            assert await reader.readline() == b"HELLO\\n"
            writer.close()
            server.close()
        async def test_subprocess():
            process = await asyncio.create_subprocess_exec("echo", "said", stdout=asyncio.subprocess.PIPE)
            assert (await process.communicate())[0] == b"said\\n"
        async def test_threads(): assert await asyncio.to_thread(lambda: 5) == 5
        async def test_cancelled():
            task = asyncio.create_task(asyncio.sleep(30))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError): await task
        class TestClass:
            async def test_method(self): await asyncio.sleep(0)
        """
    )
    run = both_ways("-rA", plugins=["asyncio"])
    assert run.outcomes() == {"passed": 10, "failed": 1, "errors": 1}


def test_anyio(pytester: pytest.Pytester, both_ways: BothWays) -> None:
    """anyio's plugin with asyncio and trio as back ends; async fixtures of function and module."""
    pytester.makepyfile(
        """
        import anyio, pytest
        pytestmark = pytest.mark.anyio
        @pytest.fixture(scope="module", params=["asyncio", "trio"])
        def anyio_backend(request): return request.param
        @pytest.fixture
        async def own(): yield await anyio.sleep(0) or 1
        @pytest.fixture(scope="module")
        async def wide():
            async with anyio.create_task_group() as group:
                yield group
        async def test_own(own): assert own == 1
        async def test_wide(wide): assert wide.cancel_scope
        async def test_fails(): await anyio.sleep(0.01); assert 1 == 2
        async def test_group():
            with pytest.raises(ExceptionGroup):
                async with anyio.create_task_group() as group:
                    group.start_soon(lambda: anyio.sleep(30))
                    raise ValueError
        """
    )
    run = both_ways("-rA", plugins=["anyio"])
    assert run.outcomes() == {"passed": 6, "failed": 2}


def test_trio(pytester: pytest.Pytester, both_ways: BothWays) -> None:
    """pytest-trio: async tests, fixtures that are tasks, a nursery, clocks that jump."""
    pytester.makeini("[pytest]\ntrio_mode = true")
    pytester.makepyfile(
        """
        import trio
        async def test_sleeps(autojump_clock):
            before = trio.current_time()
            await trio.sleep(60)
            assert trio.current_time() - before == 60
        async def serve(value, task_status=trio.TASK_STATUS_IGNORED):
            task_status.started(value)
            await trio.sleep_forever()
        import pytest
        @pytest.fixture
        async def served(nursery): return await nursery.start(serve, 5)
        async def test_served(served): assert served == 5
        async def test_fails(served): assert served == 6
        """
    )
    run = both_ways("-rA", plugins=["trio"])
    assert run.outcomes() == {"passed": 2, "failed": 1}


def test_aiohttp(pytester: pytest.Pytester, both_ways: BothWays) -> None:
    """pytest-aiohttp: a server and its client meet on the crate's own loopback."""
    pytester.makeini("[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function")
    pytester.makepyfile(
        """
        from aiohttp import web
        async def hello(request): return web.Response(text="hello " + request.match_info["name"])
        def app():
            made = web.Application()
            made.router.add_get("/{name}", hello)
            return made
        async def test_get(aiohttp_client):
            client = await aiohttp_client(app())
            answer = await client.get("/crate")
            assert (answer.status, await answer.text()) == (200, "hello crate")
        async def test_server(aiohttp_server, aiohttp_client):
            server = await aiohttp_server(app())
            client = await aiohttp_client(server)
            assert (await client.get("/a/b")).status == 404
        async def test_fails(aiohttp_client):
            client = await aiohttp_client(app())
            assert await (await client.get("/x")).text() == "bye"
        """
    )
    run = both_ways("-rA", plugins=["asyncio", "aiohttp"])
    assert run.outcomes() == {"passed": 2, "failed": 1}
