def one():
    """
    >>> numbers.append("one"); numbers
    ['one']
    """


def two():
    """
    >>> numbers.append("two"); numbers
    ['two']
    """
