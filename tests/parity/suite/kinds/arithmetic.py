"""Functions with examples.

>>> add(1, 2)
3
>>> print(MODULE_NAME)
arithmetic
"""

MODULE_NAME = "arithmetic"


def add(left, right):
    """Adds.

    >>> add(2, 2)
    4
    >>> add("a", "b")
    'ab'
    """
    return left + right


def wrong():
    """Fails.

    >>> wrong()
    'right'
    """
    return "wrong"


def raises():
    """
    >>> raises()
    Traceback (most recent call last):
    ...
    ValueError: as documented
    >>> 1 / 0
    1
    """
    raise ValueError("as documented")


def skipped():
    """
    >>> skipped()  # doctest: +SKIP
    """


def uses_namespace():
    """
    >>> provided
    'by a fixture'
    """
