"""The end of the stack."""


def test_recurses():
    def down(depth):
        return down(depth + 1)

    down(0)
