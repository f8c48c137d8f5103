"""The command lines that the suite is run with, plainly and sandboxed. Read by the harness."""

from __future__ import annotations

from dataclasses import dataclass

#: What most variants run: all but the tests that end the run, and those of plugins that change every run.
CORE = ("basics", "fixtures", "package", "kinds", "output", "files")


@dataclass(frozen=True)
class Variant:
    """``steps`` are runs in one tree, one after the other, each an argument list (``--lf`` needs an earlier run)."""

    name: str
    steps: tuple[tuple[str, ...], ...]
    needs: tuple[str, ...] = ()  # modules
    environment: tuple[tuple[str, str], ...] = ()
    input: str = ""
    ordered: bool = True  # not with several workers
    figures: bool = True  # whether numbers that are printed can be compared
    live: bool = False  # whether what tests print mixes with their results
    short: bool = False  # part of the default suite


def _one(name: str, args: str, files: tuple[str, ...] = CORE, **rest: object) -> Variant:
    return Variant(name, ((*args.split(), *files),), **rest)  # type: ignore[arg-type]


def _several(name: str, *steps: str, files: tuple[str, ...] = CORE, **rest: object) -> Variant:
    return Variant(name, tuple((*one.split(), *files) for one in steps), **rest)  # type: ignore[arg-type]


_FAILING = ("basics/test_outcomes.py", "basics/test_introspection.py", "basics/test_classes.py",
            "kinds/test_unittest.py", "kinds/test_subtests.py", "kinds/cases.yaml", "kinds/test_asyncio.py",
            "fixtures/test_broken.py")
_OUTPUT = ("output/test_capture.py", "output/test_logging.py", "fixtures/test_scopes.py")
_FIXTURES = ("fixtures", "package", "basics/test_classes.py", "basics/test_parametrised.py")
#: What does not depend on which worker runs which test. pytest-xdist's controller cannot read warnings whose class is
#: in a test file: with output/test_warnings.py it ends with an internal error.
_DISTRIBUTED = (
    *(f"basics/test_{name}.py" for name in ("outcomes", "introspection", "parametrised", "requests")), "package",
    *(f"kinds/{name}" for name in ("test_hypothesis.py", "test_asyncio.py", "test_anyio.py", "test_trio.py",
                                   "test_subtests.py", "cases.yaml", "arithmetic.py")),
    "output/test_capture.py", "output/test_reports.py", "files")
_EXITS = ("ends/test_exit.py", "ends/test_exit_in_setup.py", "ends/test_exit_in_teardown.py")

VARIANTS: tuple[Variant, ...] = (
    # How much is shown.
    _one("default", ""),
    _one("all", "-rA -v", short=True),
    _one("very-verbose", "-vv -ra"),
    _one("quiet", "-q"),
    _one("very-quiet", "-qq"),
    _one("no-summary", "--no-summary --no-header -rN"),
    _one("colour", "--color=yes -rA", environment=(("TERM", "xterm-256color"),)),
    _one("classic", "-o console_output_style=classic", _FIXTURES),
    _one("count", "-o console_output_style=count -v", _FIXTURES),
    _one("collect-only", "--collect-only -q"),
    _one("setup-show", "--setup-show", _FIXTURES, live=True),
    _one("setup-only", "--setup-only", _FIXTURES, live=True),
    _one("setup-plan", "--setup-plan", _FIXTURES, live=True),
    _one("fixtures-per-test", "--fixtures-per-test", _FIXTURES),
    _one("durations", "--durations=3 -vv -k time", ("output/test_reports.py",)),
    # Failures.
    _one("tb-short", "--tb=short", _FAILING),
    _one("tb-line", "--tb=line", _FAILING),
    _one("tb-native", "--tb=native", _FAILING),
    _one("tb-long", "--tb=long", _FAILING),
    _one("tb-no", "--tb=no", _FAILING),
    _one("showlocals", "--showlocals", _FAILING),
    _one("assert-plain", "--assert=plain", _FAILING),
    _one("no-capture-shown", "--show-capture=no", (*_FAILING, *_OUTPUT)),
    _one("only-stderr-shown", "--show-capture=stderr", (*_FAILING, *_OUTPUT)),
    _one("xfail-shown", "--xfail-tb -rxX", _FAILING),
    _one("doctest-modules", "--doctest-modules --doctest-continue-on-failure --doctest-report=ndiff", ("kinds",)),
    _one("doctest-namespaces", "--doctest-modules --doctest-glob=*.txt -v --tb=short", ("doctests",)),
    _several("doctest-namespaces-failing", "-q -rA --tb=short", "--lf --tb=short", files=("doctests",)),
    _one("doctest-default", "--doctest-modules --doctest-glob=*.txt -v", ("kinds",)),
    # Output.
    _one("capture-no", "-s -v", (*_OUTPUT, "basics/test_classes.py", "kinds"), live=True, short=True),
    _one("capture-sys", "--capture=sys -rA", _OUTPUT),
    _one("capture-tee-sys", "--capture=tee-sys -rA", _OUTPUT, live=True),
    _one("log-cli", "--log-cli-level=INFO", (*_OUTPUT, "fixtures"), live=True, short=True),
    _one("log-cli-quiet", "--log-cli-level=WARNING -q -s", _OUTPUT, live=True),
    _one("log-level", "--log-level=DEBUG --log-format=%(levelname)s:%(message)s", _OUTPUT),
    _one("log-file", "--log-file=run.log --log-file-level=DEBUG --log-file-format=%(levelname)s:%(message)s", _OUTPUT),
    _one("no-logging", "-p no:logging", ("output/test_capture.py", "basics")),
    # Warnings.
    _one("warnings-are-errors", "-W error", ("output", "basics/test_outcomes.py"), short=True),
    _one("warnings-always", "-W always -v", ("output/test_warnings.py",)),
    _one("warnings-of-one-kind", "-W ignore::UserWarning", ("output/test_warnings.py",)),
    _one("no-warnings", "-p no:warnings", ("output/test_warnings.py",)),
    _one("no-warnings-shown", "--disable-warnings", ("output/test_warnings.py",)),
    _one("no-unraisable", "-p no:unraisableexception -p no:threadexception", ("output/test_warnings.py",)),
    # Reports.
    _one("junit-all", "-o junit_logging=all -o junit_family=xunit2 --junit-prefix=pre", ("output", "package", "kinds")),
    _one("junit-out-err", "-o junit_logging=out-err -o junit_log_passing_tests=false", ("output", "package")),
    _one("junit-call", "-o junit_duration_report=call -o junit_suite_name=own", ("output", "package")),
    _one("html", "--html=report.html --self-contained-html", needs=("pytest_html",)),
    _one("html-css", "--html=report.html", ("output",), needs=("pytest_html",)),
    # Which tests, and when to stop.
    _one("exitfirst", "-x"),
    _one("exitfirst-broken", "-x", ("fixtures/test_broken.py", "fixtures/test_scopes.py")),
    _one("maxfail", "--maxfail=3 -v"),
    _one("maxfail-in-teardown", "--maxfail=6", ("fixtures/test_broken.py", "basics/test_classes.py")),
    _several("last-failed", "-q", "--lf -v", "--lf -x", files=_FAILING),
    _several("failed-first", "-q", "--ff -v", "--nf -q", files=_FAILING),
    _several("last-failed-none", "-q -k passes", "--lf --lfnf=none", files=_FAILING),
    _several("stepwise", "--sw", "--sw", "--sw --sw-skip", files=_FAILING),
    _several("cache", "-q", "--cache-show", "--cache-clear -q", files=("basics",)),
    _one("no-cache", "-p no:cacheprovider", ("basics",)),
    _one("select", "-k fails", CORE),
    _one("deselect", "--deselect=basics/test_outcomes.py::test_fails -m slow", CORE),
    _one("by-id", "-v", ("basics/test_classes.py::TestXunit::test_second", "fixtures/test_scopes.py::TestInClass",
                         "basics/test_parametrised.py::test_numbers[4]")),
    _one("strict", "--strict-markers --strict-config -o xfail_strict=true", _FAILING),
    _one("importlib", "--import-mode=importlib", ("basics", "package", "kinds")),
    _one("runxfail", "--runxfail", _FAILING),
    _one("basetemp", "--basetemp=../temp/own", ("files",)),
    _one("keeps-failed-folders", "-o tmp_path_retention_policy=failed", ("files",)),
    _one("no-tmpdir", "-p no:tmpdir", ("basics",)),
    _one("no-faulthandler", "-p no:faulthandler", ("basics",)),
    _one("debug-config", "--trace-config -q -k nothing", ("basics",)),
    # Ends.
    _one("surrogates", "-v", ("ends/test_surrogates.py",)),
    _one("dynamic-broken", "-v", ("ends/test_dynamic_broken.py",)),
    _one("recursion", "-v", ("ends/test_recursion.py",)),
    _several("unittest-subtests", "-q -rA", "-v", files=("ends/test_unittest_subtests.py",)),
    _one("two-teardowns", "-v", ("ends/test_two_teardowns.py",)),
    *(_one(path[5:-3].replace("test_", "").replace("_", "-"), "-v", (path,), short=path == _EXITS[0])
      for path in _EXITS),
    _one("interrupt", "-v", ("ends/test_interrupt.py",)),
    _one("interrupt-full", "--full-trace", ("ends/test_interrupt.py",)),
    _one("interrupt-signal", "-v", ("ends/test_interrupt_signal.py",)),
    _one("shouldstop", "-v", ("ends/test_shouldstop.py",)),
    _one("collection-error", "-v", ("ends/test_collection_error.py", "basics/test_outcomes.py")),
    _one("collection-error-continued", "--continue-on-collection-errors",
         ("ends/test_collection_error.py", "basics/test_outcomes.py")),
    _one("nothing-collected", "", ("plugins/__init__.py",)),
    # Debuggers. What is typed ends each of them.
    _one("pdb", "--pdb", ("basics/test_outcomes.py",), input="p 40 + 2\nc\n" * 60),
    _one("pdb-quits", "--pdb", ("basics/test_introspection.py",), input="p 40 + 2\nq\n"),
    _one("trace", "--trace -k test_numbers", ("basics/test_parametrised.py",), input="c\n" * 20),
    # Coverage.
    _one("coverage", "--cov=shop --cov-report=term-missing", ("coverage",), needs=("pytest_cov",)),
    _one("coverage-contexts", "--cov=shop --cov-branch --cov-context=test --cov-report=xml --cov-report=term",
         ("coverage",), needs=("pytest_cov",)),
    _one("coverage-subprocesses", "--cov=shop --cov-config=coverage/subprocesses.cfg --cov-report=term-missing",
         ("coverage",), needs=("pytest_cov",)),
    _one("coverage-subprocesses-xdist",
         "--cov=shop --cov-config=coverage/subprocesses.cfg --cov-report=term-missing -n2",
         ("coverage",), ordered=False, needs=("pytest_cov", "xdist")),
    _one("coverage-xdist", "--cov=shop --cov-branch --cov-report=term-missing -n2", ("coverage",), ordered=False,
         needs=("pytest_cov", "xdist")),
    # Other plugins.
    _one("xdist", "-n2 -v --show-capture=no", _DISTRIBUTED, ordered=False, needs=("xdist",)),
    _one("xdist-loadscope", "-n2 --dist=loadscope -v --show-capture=no",
         (*_DISTRIBUTED, "basics/test_classes.py", "kinds/test_unittest.py"), ordered=False, needs=("xdist",)),
    _one("xdist-worksteal", "-n2 --dist=worksteal -v --show-capture=no", _DISTRIBUTED, ordered=False, needs=("xdist",)),
    _one("xdist-each", "--tx=2*popen --dist=each -v --show-capture=no", ("basics", "package"), ordered=False,
         needs=("xdist",)),
    _one("xdist-exitfirst", "-n1 -x -v", ("basics/test_outcomes.py",), needs=("xdist",)),
    _one("reruns", "-v", ("plugins/test_reruns.py",), needs=("pytest_rerunfailures",)),
    _one("reruns-all", "--reruns=1 -v", ("basics", "fixtures", "package"), needs=("pytest_rerunfailures",)),
    _one("timeout", "-p no:rerunfailures", ("plugins/test_timeout.py",), needs=("pytest_timeout",)),
    _one("timeout-for-all", "--timeout=60", _FIXTURES, needs=("pytest_timeout",)),
    _one("mock", "-v", ("plugins/test_mock.py",), needs=("pytest_mock",)),
    _one("benchmark", "--benchmark-disable -v", ("plugins/test_benchmark.py",), needs=("pytest_benchmark",)),
    _one("benchmark-run", "--benchmark-sort=name --benchmark-max-time=0.01 --benchmark-min-rounds=1",
         ("plugins/test_benchmark.py",), figures=False, needs=("pytest_benchmark",)),
    _one("randomly", "--randomly-seed=7 -v", (*_FIXTURES, "plugins/test_random.py"),
         needs=("pytest_randomly",)),
    _several("split", "--splits=2 --group=1 -v", "--splits=2 --group=2 -v", files=_FIXTURES, needs=("pytest_split",)),
    _one("split-stores", "--store-durations --durations-path=.durations -q", ("basics",), figures=False,
         needs=("pytest_split",)),
    _one("django", "-v --ds=parity_settings", ("djangosite",), needs=("django", "pytest_django"),
         environment=(("PYTHONPATH", "djangosite"),)),
    _several("django-file", "--reuse-db -q --ds=parity_settings", "--reuse-db -q --ds=parity_settings",
             files=("djangosite",), needs=("django", "pytest_django"),
             environment=(("PYTHONPATH", "djangosite"), ("PARITY_DATABASE", "test.sqlite3"))),
)
