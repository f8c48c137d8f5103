"""Run by a subprocess and by a session's fixture only."""

import sys


def load(name):
    if name == "full":
        return {"apple": 10}
    if name == "empty":
        return {}
    return None


def threaded(results):
    results.append(len(results))


async def fetch():
    return 5


if __name__ == "__main__":
    print(load(sys.argv[1]))
