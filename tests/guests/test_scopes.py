"""Lists of images and fixtures of higher scope in guests: ``tox run -e guests``. See ``plugin/test_guests.py``."""

from __future__ import annotations

import re

import pytest


def run(suite: pytest.Pytester, *args: str) -> pytest.RunResult:
    return suite.runpytest_subprocess("-p", "no:cacheprovider", "-p", "no:randomly", *args)


def test_a_list_of_images_makes_a_test_of_each(suite: pytest.Pytester) -> None:
    suite.makepyfile(test_lists="""
        import pytest
        from pathlib import Path
        from images import FIRST, SECOND
        pytestmark = pytest.mark.sandbox(image=[FIRST, SECOND, "host"])

        def system():
            return Path("/etc/os-release").read_text().strip()

        @pytest.mark.parametrize("number", [1, 2])
        def test_each(number, request):
            name = request.node.name.rstrip("]").rpartition("-")[2]
            assert name == "host" or system() == f"ID={name}"

        @pytest.mark.sandbox(image=SECOND)
        def test_nearest_wins():
            assert system() == "ID=second"

        class TestDriven:
            def test_fixture(self, sandbox, request):
                name = request.node.name.rstrip("]").rpartition("[")[2]
                assert name == "host" or sandbox.path("/etc/os-release").read_text().strip() == f"ID={name}"
    """)
    result = run(suite, "-v")
    result.assert_outcomes(passed=10)
    result.stdout.fnmatch_lines([
        "*test_lists.py::test_each?1-first? PASSED*", "*::test_each?1-second? PASSED*", "*::test_each?1-host? PASSED*",
        "*::test_nearest_wins PASSED*", "*::test_fixture?second? PASSED*"])
    run(suite, "-k", "first").assert_outcomes(passed=3, deselected=7)


def test_higher_scopes_end_when_the_image_needs_them_no_more(suite: pytest.Pytester) -> None:
    suite.makeconftest("""
        import pytest
        @pytest.fixture(scope="session")
        def session(): yield print("session begins"); print("session ends")
        @pytest.fixture(scope="module")
        def module(session): yield print("module begins"); print("module ends"); raise ValueError("module's end")
        @pytest.fixture(scope="session", params=["x", "y"])
        def both(request): yield print(f"both {request.param} begins"); print(f"both {request.param} ends")
    """)
    for name, image in (("a", "FIRST"), ("b", "SECOND"), ("c", "FIRST")):
        suite.makepyfile(**{f"test_{name}": f"""
            import pytest
            from images import FIRST, SECOND
            pytestmark = pytest.mark.sandbox(image={image})
            def test_one(module): pass
            def test_two(module): pass
        """})
    suite.makepyfile(test_d="""
        import pytest
        from images import FIRST
        @pytest.mark.sandbox(image=FIRST)
        def test_params(both): pass
    """)
    result = run(suite, "-rA")
    result.assert_outcomes(passed=8, errors=3)
    text = result.stdout.str()
    for name in "abc":
        section = re.search(rf"_ ERROR at teardown of test_two _.*?test_{name}\.py", text, re.DOTALL)
        assert section is not None
    assert [text.count(f"session {what}") for what in ("begins", "ends")] == [2, 2]
    assert [text.count(f"both {what}") for what in ("x begins", "x ends", "y begins", "y ends")] == [1, 1, 1, 1]


def test_a_fixture_by_name_and_one_that_works_sandboxes(suite: pytest.Pytester) -> None:
    suite.makepyfile("""
        import pytest
        from images import FIRST
        pytestmark = pytest.mark.sandbox(image=FIRST)
        MADE = []

        @pytest.fixture(scope="session")
        def by_name():
            MADE.append(1)
            print("made now")
            return len(MADE)
        @pytest.fixture(scope="session")
        def outside(sandbox_factory): pass

        def test_first(request): assert request.getfixturevalue("by_name") == 1
        def test_second(request): assert request.getfixturevalue("by_name") == 1 and MADE == [1]
        def test_outside(outside): pass
    """)
    result = run(suite, "-rA")
    result.assert_outcomes(passed=2, errors=1)
    assert result.stdout.str().count("made now") == 1
    result.stdout.fnmatch_lines(["the fixture 'sandbox_factory', which 'outside' requests, works sandboxes from the *"])


def test_tests_of_a_class_or_module_share_a_sandbox(suite: pytest.Pytester) -> None:
    suite.makepyfile(test_shared="""
        import os, pytest
        from pathlib import Path
        from images import FIRST, SECOND
        pytestmark = pytest.mark.sandbox(image=[FIRST, SECOND])

        @pytest.fixture(scope="session")
        def session(): return os.getpid()
        @pytest.fixture(scope="class")
        def per_class(): yield print("class begins"); print("class ends")

        @pytest.mark.sandbox(scope="class")
        class TestShared:
            def test_a(self, session, per_class):
                Path("/shared").write_text("1"); os.shared = 1
            def test_b(self, session, per_class):
                assert Path("/shared").read_text() == "1" and os.shared == 1
            @pytest.mark.parametrize("number", [1, 2])
            def test_c(self, number, per_class): assert os.shared == 1

        def test_after(session):
            assert not Path("/shared").exists() and not hasattr(os, "shared")

        @pytest.mark.sandbox(scope="class")
        class TestDies:
            def test_a(self): os.mine = 1
            def test_dies(self): os.abort()
            def test_goes_on(self): assert not hasattr(os, "mine")
    """, test_whole="""
        import os, pytest
        from images import FIRST
        pytestmark = pytest.mark.sandbox(image=FIRST, scope="module")
        def test_a(): os.mine = 1
        class TestMore:
            def test_b(self): assert os.mine == 1
    """)
    result = run(suite, "-rA")
    result.assert_outcomes(passed=16, failed=2)
    text = result.stdout.str()
    assert text.count("class begins") == text.count("class ends") == 2  # once an image
    assert text.count("share died in test_dies") == 2


def test_networks(suite: pytest.Pytester) -> None:
    """A test in an image's own Python finds a server that runs in a sandbox of the host's image."""
    suite.makeconftest("""
        import pytest
        from net import SERVER, net
        @pytest.fixture(scope="session")
        def server():
            from pytest_sandbox import Sandbox
            import sys
            with Sandbox(network=net, hostname="server") as sandbox:
                sandbox.popen([sys.executable, "-c", SERVER])
                sandbox.wait_for_port(7000)
                yield
    """)
    suite.makepyfile(net="""
        from pytest_sandbox import Network
        net = Network("10.3.0.0/24")
        SERVER = "import socket; one = socket.create_server(('', 7000))\\nwhile True: one.accept()[0].sendall(b'HELLO')"
    """, test_network="""
        import pytest, socket
        from images import FIRST
        from net import net

        def test_server_starts(server): pass

        @pytest.mark.sandbox(image=FIRST, network=net, hostname="client")
        @pytest.mark.parametrize("number", [1, 2])
        def test_client(number):
            with socket.create_connection(("server", 7000), timeout=20) as sock:
                assert sock.recv(9) == b"HELLO"

        @pytest.mark.sandbox(image=FIRST)
        def test_alone():
            with pytest.raises(OSError):
                socket.create_connection(("10.3.0.2", 7000))

        @pytest.mark.sandbox(image=FIRST, network="outbound")
        def test_outbound():
            assert len(open("/proc/net/route").readlines()) > 1
    """)
    run(suite).assert_outcomes(passed=5)


def test_an_image_of_a_fixture(suite: pytest.Pytester) -> None:
    """``sandbox_image`` is for tests whose body runs inside, too: an image, a state that the session has made."""
    for name in ("first", "state", "none", "broken", "short"):
        suite.mkpydir(name)
    conftest = "import pytest\nfrom images import FIRST\n@pytest.fixture(scope='session')\ndef sandbox_image({}): {}\n"
    (suite.path / "first/conftest.py").write_text(conftest.format("", "yield FIRST; print('image ends')"))
    (suite.path / "none/conftest.py").write_text(conftest.format("", "return None"))
    (suite.path / "broken/conftest.py").write_text(conftest.format("", "raise LookupError('no image today')"))
    (suite.path / "state/conftest.py").write_text(conftest.format("sandbox_factory", """
    with sandbox_factory(user="root") as sandbox:
        sandbox.path("/etc/state").write_text("committed")
        return sandbox.commit()
"""))
    test = "from pathlib import Path\nimport pytest\nfrom images import SECOND\n"
    test += "system = Path('/etc/os-release').read_text\n"
    first = "@pytest.mark.sandbox\ndef test_{}(): assert {}\n"
    (suite.path / "first/test_a.py").write_text(test + first.format("override", "system() == 'ID=first\\n'") + (
        "@pytest.mark.sandbox(image=SECOND)\ndef test_marker_wins(): assert system() == 'ID=second\\n'\n"
        "def test_outside(): assert 'ID=first' not in system()\n"))
    (suite.path / "none/test_b.py").write_text(test + first.format("none", "'ID=first' not in system()"))
    (suite.path / "broken/test_c.py").write_text(test + first.format("broken", "True"))
    (suite.path / "state/test_d.py").write_text(test + first.format("state", "Path('/etc/state').exists()"))
    result = run(suite, "first", "none", "broken", "state")
    result.assert_outcomes(passed=5, errors=1)
    result.stdout.fnmatch_lines(["*LookupError: no image today"])
    (suite.path / "short/conftest.py").write_text(conftest.replace("session", "module").format("", "return FIRST"))
    (suite.path / "short/test_e.py").write_text(test + first.format("short", "True"))
    result = run(suite, "short")
    result.stdout.fnmatch_lines(["*sandbox_image has scope 'module'*Give it scope='session'*"])
