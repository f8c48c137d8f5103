"""The exception tree: what each error says, what it carries, and that all of it survives pickling."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
import subprocess
from collections.abc import Callable
from functools import partial

import pytest

import pytest_sandbox
from pytest_sandbox import errors

EXAMPLES = {
    "SandboxError": errors.SandboxError("it failed", why="of a reason", remedy="Do this."),
    "SandboxGuestError": errors.SandboxGuestError("no guest", image="app:1", why="it was killed", output="last words"),
    "SandboxUsageError": errors.SandboxUsageError("bad option", option="disk", value=-1, allowed="a size"),
    "SandboxUnavailable": errors.SandboxUnavailable("no namespaces", feature="user namespaces", why="EPERM", errno=1),
    "SandboxStartError": errors.SandboxStartError("mount failed", step="mount proc", path="/proc", errno=22),
    "SandboxCommandNotFound": errors.SandboxCommandNotFound("'x' cannot be started", filename="x"),
    "SandboxCommandRefused": errors.SandboxCommandRefused("'x' cannot be started", filename="x", errno=8),
    "SandboxCommandDenied": errors.SandboxCommandDenied("'x' cannot be started", filename="x", errno=13),
    "SandboxCommandMisplaced": errors.SandboxCommandMisplaced("'x' cannot be started", filename="x", errno=20),
    "SandboxClosedError": errors.SandboxClosedError("the sandbox is closed"),
    "SandboxConnectionError": errors.SandboxConnectionError("no way there", address="198.51.100.7:80", errno=101),
    "SandboxConnectionRefused": errors.SandboxConnectionRefused("nobody is there", address="[::1]:80", errno=111),
    "NetworkError": errors.NetworkError("nobody can join", network="10.0.0.0/30", errno=28),
    "SandboxTimeout": errors.SandboxTimeout("port 80 did not open", seconds=2.5),
    "SandboxProtocolError": errors.SandboxProtocolError("not a message", why="it is not JSON"),
    "SandboxCallError": errors.SandboxCallError("it raised", type_name="ValueError", traceback="Traceback ..."),
    "SandboxCrashed": errors.SandboxCrashed("the test died", phase="call", signal=11, output="last words"),
    "LimitExceeded": errors.LimitExceeded("a limit was reached"),
    "MemoryLimitExceeded": errors.MemoryLimitExceeded("no memory", limit=1 << 26, peak=1 << 26, kills=1, victim="hog",
                                                      victim_pid=7),
    "PidsLimitExceeded": errors.PidsLimitExceeded("no more tasks", limit=32, peak=32, refused=9),
    "DiskLimitExceeded": errors.DiskLimitExceeded("disk full", limit=1 << 20, used=1 << 20, full="inodes"),
    "TimeLimitExceeded": errors.TimeLimitExceeded("too long", limit=2.0, elapsed=2.1, verdict="spinning", stacks="x"),
    "SandboxCommandError": errors.SandboxCommandError(3, ["false"], output="out", stderr="it\nbroke"),
    "ImageError": errors.ImageError("unreadable", reference="oci:/nowhere"),
    "ImageBuildError": errors.ImageBuildError("it cannot be built", reference="x", file="Containerfile", line=3,
                                              step="RUN false", output="no", why="it ended with status 1"),
    "ImageNotFound": errors.ImageNotFound("no such image", reference="nobody/nothing:0"),
    "ImageCorrupt": errors.ImageCorrupt("not the promised bytes", reference="debian:12", why="another digest"),
    "LayerRejected": errors.LayerRejected("bad layer", reference="debian:12", entry="../x", rule="name"),
    "RegistryError": errors.RegistryError("no answer", reference="debian:12", url="https://r.example/v2/", status=502),
    "RegistryAuthError": errors.RegistryAuthError("refused", reference="r.example/x:1", status=401),
    "KeptTestError": errors.KeptTestError("there is no kept test 'ab'", id="ab", remedy="List them."),
    "StoreError": errors.StoreError("disk full", path="/cache", errno=28, remedy="Prune."),
}


def own_errors() -> dict[str, type[errors.SandboxError]]:
    return {
        name: one for name, one in vars(errors).items()
        if inspect.isclass(one) and issubclass(one, errors.SandboxError)
    }


def facts(error: errors.SandboxError) -> dict[str, object]:
    return {**vars(error), "errno": getattr(error, "errno", "not an OSError")}


def test_every_error_has_an_example_here() -> None:
    assert set(EXAMPLES) == set(own_errors())


def test_every_error_is_a_public_name() -> None:
    assert set(own_errors()) <= set(pytest_sandbox.__all__)
    for name, kind in own_errors().items():
        assert getattr(pytest_sandbox, name) is kind


def test_the_tree_drawn_in_the_module_is_the_tree() -> None:
    assert errors.__doc__ is not None
    drawn = dict(re.findall(r"[├└]── (\w+)\s+\((\w+)\)", errors.__doc__))
    assert set(drawn) == set(own_errors()) - {"SandboxError"}
    for name, builtin in drawn.items():
        bases = {base.__name__ for base in own_errors()[name].__mro__}
        assert builtin in bases, name


def through_pickle(error: errors.SandboxError, protocol: int) -> errors.SandboxError:
    copied: errors.SandboxError = pickle.loads(pickle.dumps(error, protocol))
    return copied


DUPLICATES: dict[str, Callable[[errors.SandboxError], errors.SandboxError]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{f"pickle{level}": partial(through_pickle, protocol=level) for level in range(pickle.HIGHEST_PROTOCOL + 1)},
}


@pytest.mark.parametrize("duplicate", DUPLICATES.values(), ids=list(DUPLICATES))
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_error_survives_a_copy(name: str, duplicate: Callable[[errors.SandboxError], errors.SandboxError]) -> None:
    before = EXAMPLES[name]
    after = duplicate(before)
    assert type(after) is type(before)
    assert str(after) == str(before)
    assert facts(after) == facts(before)
    assert after.args == before.args


def test_a_pickled_usage_error_shows_a_value_that_cannot_be_pickled() -> None:
    value = [lambda: None]
    error = errors.SandboxUsageError("bad", option="image", value=value)
    assert error.value is value
    assert pickle.loads(pickle.dumps(error)).value == repr(value)


@pytest.mark.parametrize(("why", "remedy", "text"), [
    (None, None, "it failed"),
    ("EPERM", None, "it failed: EPERM"),
    (None, "Do this.", "it failed. Do this."),
    ("EPERM", "Do this.", "it failed: EPERM. Do this."),
    ("it ended in a stop.", "Do this.", "it failed: it ended in a stop. Do this."),
])
def test_an_error_reads_as_what_why_remedy(why: str | None, remedy: str | None, text: str) -> None:
    error = errors.SandboxError("it failed", why=why, remedy=remedy)
    assert str(error) == text
    assert error.args == (text,)
    assert (error.what, error.why, error.remedy) == ("it failed", why, remedy)


def test_an_os_error_of_ours_reads_like_the_others() -> None:
    error = errors.SandboxStartError("cannot mount", step="mount", path="/x", errno=2, why="No such file")
    assert str(error) == "cannot mount: No such file"
    assert error.errno == 2
    with pytest.raises(OSError, match="cannot mount"):
        raise error


def test_a_usage_error_lists_what_is_allowed_unless_it_has_a_better_remedy() -> None:
    assert str(errors.SandboxUsageError("bad", option="x", allowed="a or b")) == "bad. Allowed: a or b."
    assert str(errors.SandboxUsageError("bad", option="x", allowed="a or b", remedy="Remove it.")) == "bad. Remove it."


@pytest.mark.parametrize(("returncode", "stderr", "text"), [
    (3, "", "command ['prog', '-x'] returned 3"),
    (-9, None, "command ['prog', '-x'] ended by signal 9"),
    (1, "oops\n", "command ['prog', '-x'] returned 1: oops"),
    (1, b"oops \xff\n", "command ['prog', '-x'] returned 1: oops �"),
    (1, "".join(f"line {n}\n" for n in range(9)),
     "command ['prog', '-x'] returned 1: line 4\nline 5\nline 6\nline 7\nline 8"),
])
def test_a_command_error_shows_the_end_of_stderr(returncode: int, stderr: str | bytes | None, text: str) -> None:
    error = errors.SandboxCommandError(returncode, ("prog", "-x"), output="out", stderr=stderr)
    assert str(error) == text
    assert isinstance(error, subprocess.CalledProcessError)
    assert (error.returncode, error.cmd, error.output, error.stdout, error.stderr) == (
        returncode, ["prog", "-x"], "out", "out", stderr)


def test_a_missing_image_is_caught_as_a_lookup_error() -> None:
    with pytest.raises(LookupError, match="no such image"):
        raise EXAMPLES["ImageNotFound"]
