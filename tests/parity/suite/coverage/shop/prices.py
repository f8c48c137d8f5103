"""Something to cover, with branches."""


def price(kind, number):
    if kind == "apple":
        each = 3
    elif kind == "pear":
        each = 4
    else:
        raise ValueError(kind)
    if number > 10:
        each -= 1
    return each * number


def never_called():
    return [one for one in range(3) if one]


class Basket:
    def __init__(self):
        self.items = []

    def add(self, kind, number):
        self.items.append((kind, number))
        return self

    def total(self):
        total = 0
        for kind, number in self.items:
            total += price(kind, number)
        return total
