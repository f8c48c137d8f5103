"""Layers that try to get out, to get in the way, or to get too big. Whatever they do, they do inside, or not at all.

Each case says what happens: a rule by which the layer is refused, or the tree that comes of it. Where a refusal and a
reading inside the root are both thinkable, we do what containerd and umoci do: names are read as if the root were
``/``. Beside the store lies a canary that must not be touched, whatever the outcome.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from imagemaker import (
    Item,
    directory,
    file,
    hardlink,
    header,
    image,
    layer,
    padded,
    pax_record,
    symlink,
    write_layout,
)
from treelook import look_at, merge

from pytest_sandbox import ImageCorrupt, LayerRejected
from pytest_sandbox.image.compression import Limits
from pytest_sandbox.image.store import ImageStore

UP = "../" * 40


@dataclass(frozen=True)
class Case:
    """One hostile image: its layers' items, lowest first, and what it comes to: a rule, or the names of its tree."""

    layers: Sequence[Sequence[Item | bytes]]
    refused: str | None = None
    tree: str = ""
    corrupt: bool = False


def one(*items: Item | bytes, refused: str | None = None, tree: str = "", corrupt: bool = False) -> Case:
    return Case([items], refused, tree, corrupt)


def stack(*layers: Sequence[Item | bytes], refused: str | None = None, tree: str = "") -> Case:
    return Case(layers, refused, tree)


def extended(data: bytes, size: int | None = None) -> bytes:
    return header(Item("p", "x", data, size=size), b"p", b"") + padded(data)


def long_header(kind: str, data: bytes, size: int | None = None) -> Item:
    return Item("././@LongLink", kind, data, size=size)


def sparse(pieces: str, data: bytes, real: int, **more: str) -> Item:
    return file("sparse", data, pax={"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.map": pieces,
                                     "GNU.sparse.size": str(real), **more})


def sparse1(head: bytes, data: bytes = b"") -> Item:
    return file("sparse", padded(head) + data, pax={
        "GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "10", "GNU.sparse.name": "sparse"})


def xattr(name: str, value: str = "y") -> dict[str, str | bytes]:
    return {f"SCHILY.xattr.{name}": value}


NAMES = {
    "absolute": one(file("/etc/evil", "x"), tree="etc etc/evil"),
    "upward": one(file(UP + "evil", "x"), tree="evil"),
    "upward to the canary": one(file(UP + "CANARY/new", "x"), tree="CANARY/new"),
    "upward, but inside": one(directory("a"), file("a/../b", "x"), tree="a b"),
    "dots": one(file("./././x", "x"), tree="x"),
    "double slashes": one(directory("a"), file("a//b", "x"), tree="a a/b"),
    "a dot, for a file": one(file(".", "x"), refused="name"),
    "a slash, for a link": one(symlink("/", "CANARY"), refused="name"),
    "a dot, for a link (CVE-2021-29136)": one(symlink(".", "CANARY"), file("x", "x"), refused="name"),
    "dots that come to the root": one(symlink("a/..", "CANARY"), refused="name"),
    "the root, for a hard link": one(hardlink("..", "x"), refused="name"),
    "none": one(file("", "x"), refused="name"),
    "with a NUL": one(file("x", "x", pax={"path": b"a\0b"}), refused="header"),
    "with a newline": one(file("a\nb", "x"), tree="a\nb"),
    "with terminal sequences": one(file("\x1b[2Jx", "x"), tree="\x1b[2Jx"),
    "not UTF-8": one(file(b"\xff\xfe", "x"), tree=os.fsdecode(b"\xff\xfe")),
    "a part of 256 bytes": one(file("n" * 256, "x"), refused="name"),
    "a part of 255 bytes": one(file("n" * 255, "x"), tree="n" * 255),
    "5000 bytes": one(file("n/" * 2500 + "x", "x"), refused="limit"),
    "a link target of 5000 bytes": one(symlink("l", "n/" * 2500), refused="limit"),
    "a file as a directory": one(file("a", "x"), file("a/b", "x"), refused="name"),
    "a fifo as a directory": one(Item("a", "6"), file("a/b", "x"), refused="name"),
    "a lower file as a directory": stack([file("a", "x")], [file("a/b", "x")], refused="name"),
    "backslashes": one(file("..\\..\\x", "x"), tree="..\\..\\x"),
}

LINKS = {
    "through an absolute one": one(directory("in"), symlink("l", "/in"), file("l/x", "x"), tree="in in/x l"),
    "through one to the canary": one(symlink("l", "CANARY"), file("l/new", "x"), tree="l CANARY/new"),
    "through one upwards": one(symlink("l", UP + "CANARY"), file("l/new", "x"), tree="l CANARY/new"),
    "through several": one(symlink("a", UP), symlink("b", "a/.."), symlink("c", "b/../CANARY"), file("c/new", "x"),
                           tree="a b c CANARY/new"),
    "through one to itself": one(symlink("l", "l"), file("l/x", "x"), refused="name"),
    "through a circle": one(symlink("a", "b"), symlink("b", "a"), file("a/x", "x"), refused="name"),
    "through 50": one(*(symlink(f"l{at}", f"l{at + 1}") for at in range(50)), directory("l50"), file("l0/x"),
                      refused="name"),
    "through 50 to nothing": one(*(symlink(f"l{at}", f"l{at + 1}") for at in range(50)), file("l0/x"), refused="name"),
    "a file over one": one(symlink("l", "CANARY/file"), file("l", "mine"), tree="l"),
    "a file over one, thrice": one(*[symlink("l", "CANARY/file"), file("l", "mine")] * 3, tree="l"),
    "a directory over one": one(symlink("l", "CANARY"), directory("l", 0o700), file("l/x", "x"), tree="l l/x"),
    "one over a directory": one(directory("d"), file("d/x"), symlink("d", "CANARY"), file("d/y"), tree="d CANARY/y"),
    "one to the process' own files": one(symlink("l", "/proc/self/cwd"), file("l/x"),
                                         tree="l proc proc/self proc/self/cwd proc/self/cwd/x"),
    "one to an open file": one(directory("proc"), symlink("l", "/proc/self/fd/0"), file("l", "x"), tree="proc l"),
    "one to nothing": one(symlink("l", ""), refused="link"),
    "owner and time of one": one(symlink("l", "CANARY/file", uid=1, gid=1, mtime=1), tree="l"),
    "a parent swapped for one": one(directory("d"), file("d/a"), symlink("d", "CANARY"), file("d/directory/b"),
                                    tree="d CANARY/directory CANARY/directory/b"),
}

HARD_LINKS = {
    "to the canary": one(hardlink("h", "CANARY/file"), refused="link"),
    "upwards": one(hardlink("h", UP + "CANARY/file"), refused="link"),
    "through a link": one(symlink("l", "CANARY"), hardlink("h", "l/file"), refused="link"),
    "to a link, then written": one(symlink("l", "CANARY/file"), hardlink("h", "l"), file("h", "mine"), tree="l h"),
    "to a link, a name below": one(symlink("l", "CANARY"), hardlink("h", "l"), file("h/new"), tree="l h CANARY/new"),
    "to a directory": one(directory("d"), hardlink("h", "d"), refused="link"),
    "to the root": one(hardlink("h", "/"), refused="link"),
    "to itself": one(file("h", "x"), hardlink("h", "h"), refused="link"),
    "to itself in other words": one(directory("d"), file("d/h"), hardlink("d/h", "/d/../d/./h"), refused="link"),
    "to nothing": one(hardlink("h", "nothing"), refused="link"),
    "made twice": one(file("a", "x"), hardlink("h", "a"), hardlink("h", "a"), tree="a h"),
    "back again": one(file("a", "x"), hardlink("h", "a"), hardlink("a", "h"), tree="a h"),
    "over the directory of its target": one(directory("d"), file("d/x"), hardlink("d", "d/x"), refused="link"),
    "with a size": one(file("a", "x"), hardlink("h", "a", size=5), file("b", "y"), tree="a h b"),
    "to a lower file, then written": stack(
        [directory("d"), file("d/low", "low")], [directory("d"), hardlink("d/h", "d/low"), file("d/h", "new")],
        tree="d d/low d/h"),
    "to a lower link to the canary": stack([symlink("low", "CANARY/file")], [hardlink("h", "low"), file("h", "new")],
                                           tree="low h"),
    "through a lower link to the canary": stack([symlink("low", "CANARY")], [hardlink("h", "low/file")],
                                                refused="link"),
    "to a lower directory": stack([directory("d")], [hardlink("h", "d")], refused="link"),
    "to what the layer removes": stack([file("a", "x")], [file(".wh.a"), hardlink("h", "a")], refused="link"),
    "to what a lower layer removed": stack([file("a", "x")], [file(".wh.a")], [hardlink("h", "a")], refused="link"),
    "a name through a lower link": stack([symlink("low", "CANARY")], [file("low/new", "x")], tree="low CANARY/new"),
    "a name through a circle below": stack([symlink("a", "b"), symlink("b", "a")], [file("a/x")], refused="link"),
}

WHITEOUTS = {
    "of the root": one(file(".wh."), refused="whiteout"),
    "of the directory itself": one(directory("d"), file("d/.wh.."), refused="whiteout"),
    "of the parent": one(directory("d"), file("d/.wh..."), refused="whiteout"),
    "upwards": one(file(UP + ".wh.CANARYNAME")),
    "through a link": one(symlink("l", "CANARY"), file("l/.wh.file"), tree="l"),
    "as a directory": one(directory(".wh.d"), file(".wh.d/x", "x"), refused="whiteout"),
    "with content": stack([file("a", "x")], [file(".wh.a", "y" * 3000), file("b", "z")], tree="b"),
    "of what the layer brings": stack([file("a", "x")], [file("a", "y"), file(".wh.a")], tree="a"),
    "of a directory that the layer brings": stack([directory("d"), file("d/low")],
                                                  [directory("d"), file("d/new"), file(".wh.d")], tree="d d/new"),
    "and then the same name": stack([directory("d"), file("d/low")], [file(".wh.d"), directory("d"), file("d/new")],
                                    tree="d d/new"),
    "and then a name below": stack([directory("d"), file("d/low")], [file(".wh.d"), file("d/new")], tree="d d/new"),
    "that is a link": stack([file("a", "x")], [symlink(".wh.a", "CANARY/file")]),
    "below what is not there": stack([file("a", "x")], [file("b/c/.wh.d"), file("a/.wh.d"), file("b/.wh..wh..opq")],
                                     tree="a"),
    "twice": stack([file("a", "x")], [file(".wh.a"), file(".wh.a")]),
    "of everything": stack([file("a", "x")], [file(".wh..wh..opq"), file("b")], tree="b"),
    "of everything, through a link": stack([file("a", "x")], [symlink("l", "/"), file("l/.wh..wh..opq")], tree="l"),
    "aufs' marks": one(file(".wh..wh.aufs"), directory(".wh..wh.plnk"), file("x"), tree="x"),
    "overlayfs' device": stack([file("a", "x")], [Item("a", "3")], refused="type"),
    "overlayfs' attributes": stack(
        [directory("d"), file("d/low")],
        [directory("d", pax={**xattr("trusted.overlay.opaque"), **xattr("user.overlay.opaque")}),
         file("w", pax=xattr("user.overlay.whiteout")), file("r", pax=xattr("user.overlay.redirect", "/etc")),
         file("m", pax=xattr("trusted.overlay.metacopy", ""))], tree="d d/low w r m"),
}

KINDS = {
    "a directory over a file over a directory": stack(
        [directory("d"), file("d/low")], [directory("d"), file("d", "x"), directory("d"), file("d/new")],
        tree="d d/new"),
    "a fifo over a file": one(file("x", "x"), Item("x", "6"), tree="x"),
    "a file over a fifo": one(Item("x", "6"), file("x", "x"), tree="x"),
    "a file over a full directory": one(directory("d"), directory("d/e"), file("d/e/f"), file("d", "x"), tree="d"),
    "the host's disk": one(Item("sda", "4", device=(8, 0), mode=0o666), tree="sda" if os.geteuid() == 0 else ""),
    "a device beyond the kernel's numbers": one(Item("x", "3", device=(0o17777, 1)), refused="header"),
    "one that nobody knows": one(Item("x", "?"), refused="type"),
    "a part of several archives": one(Item("x", "M"), refused="type"),
    "a set-id program": one(file("su", "x", mode=0o6755), tree="su"),
    "a directory with a size": one(directory("d", size=700), file("x"), tree="d x"),
}

HEADERS = {
    "pax names another file": one(file("harmless", "x", pax={"path": UP + "CANARY/new"}), tree="CANARY/new"),
    "pax names another target": one(Item("l", "1", link="harmless", pax={"linkpath": "CANARY/file"}), refused="link"),
    "pax size less than the data": one(file("x", b"z" * 600, pax={"size": "4"}), refused="header"),
    "pax size no number": one(file("x", pax={"size": "-1"}), refused="header"),
    "pax size beyond 64 bits": one(file("x", pax={"size": str(1 << 70)}), refused="header"),
    "pax size of 9 exabytes": one(file("x", pax={"size": str((1 << 63) - 1)}), refused="limit"),
    "pax record too long": one(extended(b"999 path=x\n"), refused="header"),
    "pax record without an end": one(extended(b"11 path=xyz"), refused="header"),
    "pax record without a key": one(extended(b"7 =abc\n"), refused="header"),
    "pax of 2 MiB": one(extended(b"", 2 << 20), bytes(2 << 20), refused="limit"),
    "pax of 2 GiB": one(extended(b"", 2 << 30), refused="limit"),
    "pax cut off": one(extended(b"", 4096), corrupt=True),
    "a global header names a file": one(
        header(Item("p", "g", pax_record("path", "CANARY/new")), b"p", b"") + padded(pax_record("path", "CANARY/new")),
        file("x"), tree="x"),
    "GNU name upwards": one(long_header("L", (UP + "CANARY/new").encode() + b"\0"), file("x"), tree="CANARY/new"),
    "GNU link to the canary": one(long_header("K", b"CANARY/file\0"), hardlink("h", "x"), refused="link"),
    "GNU name of 1 GiB": one(long_header("L", b"x", size=1 << 30), refused="limit"),
    "pax of 170,000 records": one(extended(b"6 a=b\n" * 170_000), file("x"), tree="x"),
    "a GNU name for a directory": one(long_header("L", b"d/" + b"e" * 200 + b"/\0"), directory("short"),
                                      tree="d d/" + "e" * 200),
    "a GNU name before a pax one": one(long_header("L", b"gnu\0"), file("short", pax={"path": "pax"}), tree="gnu"),
    "an old Go program's prefix": one(file("x", raw={257: b"ustar  \0", 345: b"prefix/dir"}),
                                      tree="prefix prefix/dir prefix/dir/x"),
    "GNU's times are no prefix": one(file("x", raw={257: b"ustar  \0", 345: b"14712345670\0" * 2}), tree="x"),
    "times in base 256 are no prefix": one(file("x", raw={257: b"ustar  \0", 345: b"\x80" + bytes(10) + b"a"}),
                                           tree="x"),
    "wrong checksum": one(b"x" * 512, refused="header"),
    "checksum no number": one(bytes(148) + b"zzzzzzzz" + b"x" * 356, refused="header"),
    "size negative": one(file("x", raw={124: b"\xff" * 12}), refused="header"),
    "size beyond 64 bits": one(file("x", raw={124: b"\x80\x7f" + b"\xff" * 10}), refused="header"),
    "owner beyond 32 bits": one(file("x", pax={"uid": str(1 << 40)}), refused="header"),
    "owner negative": one(file("x", raw={108: b"\xff" * 8}), refused="header"),
    "time beyond the calendar": one(file("x", pax={"mtime": "9" * 20}), refused="header"),
    "time not one": one(file("x", pax={"mtime": "nan"}), refused="header"),
    "time before 1970": one(file("x", mtime=-5.5), tree="x"),
    "time of the year 30 million": one(file("x", pax={"mtime": "9" * 15}), tree="x"),
    "one block of zeros in between": one(file("a"), bytes(512), file("b"), refused="header"),
    "an archive behind the end": one(file("a"), bytes(1024), file("b"), tree="a"),
    "attribute without a name": one(file("x", pax=xattr("")), refused="header"),
    "attribute of 100 kB": one(file("x", pax=xattr("user.x", "y" * 100_000)), refused="header"),
    "attribute name of 300 bytes": one(file("x", pax=xattr("user." + "n" * 300)), refused="header"),
}

SPARSE = {
    "overlapping": one(sparse("0,4,2,4", b"12345678", 20), refused="sparse"),
    "backwards": one(sparse("8,4,0,4", b"12345678", 20), refused="sparse"),
    "beyond its end": one(sparse("18,4", b"1234", 20), refused="sparse"),
    "more data than pieces": one(sparse("0,2", b"1234", 20), refused="sparse"),
    "less data than pieces": one(sparse("0,9", b"1234", 20), refused="sparse"),
    "an odd map": one(sparse("0,4,9", b"1234", 20), refused="sparse"),
    "not numbers": one(sparse("0,x", b"1234", 20), refused="sparse"),
    "negative": one(sparse("-4,4", b"1234", 20), refused="sparse"),
    "adding up beyond 64 bits": one(sparse(f"{(1 << 63) - 1},4", b"1234", (1 << 63) - 1), refused="sparse"),
    "8 exabytes": one(sparse("0,4", b"1234", (1 << 63) - 1), refused="limit"),
    "name upwards": one(sparse("0,4", b"1234", 20, **{"GNU.sparse.name": UP + "CANARY/new"}), tree="CANARY/new"),
    "1.0, a map without an end": one(sparse1(b"99999999\n"), refused="sparse"),
    "1.0, a map of other files": one(sparse1(b"2\n0\n1\n5\n1\n"), refused="sparse"),
    "1.0, in order": one(sparse1(b"1\n4\n2\n", b"hi"), tree="sparse"),
}

CASES = {f"{group}: {name}": case for group, cases in (
    ("name", NAMES), ("link", LINKS), ("hard link", HARD_LINKS), ("whiteout", WHITEOUTS), ("kind", KINDS),
    ("header", HEADERS), ("sparse", SPARSE)) for name, case in cases.items()}


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """A directory outside of the store, with what hostile layers go for; it must be the same afterwards."""
    place = tmp_path / "canary"
    place.mkdir()
    (place / "file").write_text("the host's")
    (place / "directory").mkdir(mode=0o700)
    before = look_at(place), os.stat(place).st_ino
    yield place
    assert (look_at(place), os.stat(place).st_ino) == before


def aimed(item: Item | bytes, canary: Path) -> Item | bytes:
    """A case's item with the canary's true name in place of the word."""
    def name(text: str | bytes) -> str | bytes:
        if isinstance(text, bytes):
            return text.replace(b"CANARYNAME", canary.name.encode()).replace(b"CANARY", os.fsencode(canary))
        return text.replace("CANARYNAME", canary.name).replace("CANARY", str(canary))
    if isinstance(item, bytes):
        return item
    data = item.data.replace(b"CANARY", os.fsencode(canary)) if item.kind in "LK" else item.data
    return Item(name(item.name), item.kind, data, name(item.link), item.mode, item.uid, item.gid, item.mtime,
                item.device, {key: name(value) for key, value in item.pax.items()}, item.size, item.raw)


def expected(tree: str, canary: Path) -> set[str]:
    """The names of a case's tree; the canary's is read inside the root, where its parents then are too."""
    found = set()
    for word in tree.split(" ") if tree else ():
        text = word.replace("CANARY", str(canary).lstrip("/"))
        found.add(text)
        if text != word:
            parts = text.split("/")
            found |= {"/".join(parts[:count]) for count in range(1, len(parts))}
    return found


@pytest.mark.parametrize("name", CASES)
def test_hostile(name: str, tmp_path: Path, canary: Path) -> None:
    case = CASES[name]
    layers = [layer([aimed(item, canary) for item in items]) for items in case.layers]
    reference = f"oci:{write_layout(tmp_path / 'layout', image(layers))}"
    outside = look_at(tmp_path / "layout")
    with ImageStore(tmp_path / "cache") as store:
        if case.refused or case.corrupt:
            with pytest.raises(LayerRejected if case.refused else ImageCorrupt) as caught:
                store.resolve(reference)
            if isinstance(caught.value, LayerRejected):
                assert caught.value.rule == case.refused, caught.value
            assert str(caught.value).isprintable()
            assert not store.layout.keys("images")
        else:
            found = store.resolve(reference)
            assert set(merge(found.layers)) - {"."} == expected(case.tree, canary)
        assert store.layout.keys("staging") == []
        assert store.layout.keys("trash") == []
    assert look_at(tmp_path / "layout") == outside
    assert {entry.name for entry in tmp_path.iterdir()} == {"layout", "cache", "canary"}


BOMBS = {
    "many bytes": (layer([file("x", bytes(3 << 20))]), Limits(bytes=2 << 20), "bytes"),
    "much from little": (layer([file("x", bytes(8 << 20))]), Limits(ratio=50, ratio_from=1 << 20), "expands"),
    "zeros behind the end": (layer([file("x")]) + bytes(8 << 20), Limits(ratio=50, ratio_from=1 << 20), "expands"),
    "many entries": (layer([file(f"f{at}") for at in range(200)]), Limits(entries=100), "entries"),
    "many names of one file": (layer([file("a"), *(hardlink(f"h{at}", "a") for at in range(200))]),
                               Limits(entries=100), "entries"),
    "a long name": (layer([file("a/" * 60 + "x")]), Limits(name=100), "bytes"),
    "a large file": (layer([file("x", bytes(100_000))]), Limits(file=50_000), "size"),
    "a large hole": (layer([sparse("0,4", b"1234", 1 << 40)]), Limits(file=1 << 30), "size"),
    "a large header": (layer([file("x", pax={"comment": "x" * 20_000})]), Limits(header=10_000), "header"),
    "headers of nothing": (extended(b"12 a=bcdefg\n") * 3000, Limits(bytes=1 << 20), "bytes"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs(name: str, tmp_path: Path, canary: Path) -> None:
    archive, limits, says = BOMBS[name]
    with ImageStore(tmp_path / "cache", limits=limits) as store:
        with pytest.raises(LayerRejected, match=says) as caught:
            store.resolve(f"oci:{write_layout(tmp_path / 'layout', image([archive]))}")
        assert caught.value.rule == "limit"
        assert "PYTEST_SANDBOX_LAYER_LIMITS" in str(caught.value)
        assert store.layout.keys("staging") == []
        assert canary.exists()


def test_gzip_in_gzip_is_no_archive(tmp_path: Path) -> None:
    packed = gzip.compress(gzip.compress(layer([file("x")])))
    reference = f"oci:{write_layout(tmp_path / 'layout', image([packed], how='plain'))}"
    with ImageStore(tmp_path / "cache") as store, pytest.raises(ImageCorrupt):
        store.resolve(reference)


def test_deeper_than_a_path_can_be_long(tmp_path: Path) -> None:
    """Made through links, such a tree can be recorded, and removed again."""
    steps = ["d" * 200] * 16
    items = [directory("/".join(steps[:count])) for count in range(1, 17)]
    items.append(symlink("short", "/".join(steps)))
    items += [directory("short/" + "/".join(["e" * 200] * count)) for count in range(1, 15)]
    items.append(file("short/" + "/".join(["e" * 200] * 14) + "/end", "x"))
    with ImageStore(tmp_path / "cache") as store:
        found = store.resolve(f"oci:{write_layout(tmp_path / 'layout', image([layer(items)]))}")
        store.layout.discard(os.path.dirname(found.layers[0]))
        assert store.layout.keys("trash") == []


def test_deeper_than_we_may_have_files_open(tmp_path: Path) -> None:
    items = [directory("/".join(["d"] * count)) for count in range(1, 1500)]
    with ImageStore(tmp_path / "cache") as store:
        found = store.resolve(f"oci:{write_layout(tmp_path / 'layout', image([layer(items)]))}")
        store.layout.discard(os.path.dirname(found.layers[0]))
        assert store.layout.keys("trash") == []
