"""Tests that leave functions of the standard library replaced, which what runs around them must not mind."""

import os


def test_leaves_another_getpid():
    os.getpid = lambda before=os.getpid: before()  # a plain run goes on with it


def test_has_another_getpid(monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: 5)
    assert os.getpid() == 6
