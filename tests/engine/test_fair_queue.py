from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from martlet.engine.fair_queue import FairQueue

clients = st.sampled_from("abcd")


@given(st.lists(clients))
def test_a_client_is_served_in_the_order_in_which_it_asked(pushes):
    queue = FairQueue()
    for number, client in enumerate(pushes):
        queue.push(client, (client, number))
    popped = [queue.pop() for _ in pushes]
    assert queue.pop() is None
    for client in "abcd":
        own = [number for who, number in popped if who == client]
        assert own == sorted(own)
    assert sorted(number for _, number in popped) == list(range(len(pushes)))


@given(st.lists(clients, min_size=1))
def test_while_clients_wait_each_is_served_once_in_every_turn(pushes):
    queue = FairQueue()
    for client in pushes:
        queue.push(client, client)
    left = Counter(pushes)
    order = [queue.pop() for _ in pushes]
    first = list(dict.fromkeys(pushes))
    position = 0
    while position < len(order):
        turn = [client for client in first if left[client]]
        assert order[position : position + len(turn)] == turn
        position += len(turn)
        left.subtract(turn)


@given(st.lists(st.one_of(clients, st.none())))
def test_nobody_waits_for_more_than_a_turn_of_the_others_an_item_before(script):
    """None pops. An item waits for those before it of its client, each at most a turn of all."""
    queue = FairQueue()
    waiting = {}  # item: pops that it may still see go by
    number = 0
    for client in script:
        if client is None:
            popped = queue.pop()
            waiting.pop(popped, None)
            for item in waiting:
                waiting[item] -= 1
                assert waiting[item] >= 0, "somebody starves"
        else:
            before = sum(item[0] == client for item in waiting)
            waiting[client, number] = (before + 1) * 4
            queue.push(client, (client, number))
            number += 1
        assert len(queue) == len(waiting)


@given(st.lists(clients), st.integers(2, 4))
def test_removing_some_leaves_the_others_in_their_order(pushes, every):
    queue, expected = FairQueue(), FairQueue()
    for number, client in enumerate(pushes):
        queue.push(client, number)
    for number, client in enumerate(pushes):
        if number % every:
            expected.push(client, number)
    removed = queue.remove(lambda number: number % every == 0)
    assert sorted(removed) == [n for n in range(len(pushes)) if n % every == 0]
    assert len(queue) == len(expected)
    for client in "abcd":  # in which turn a client is may have changed with its first item
        assert [n for n in _all(queue) if pushes[n] == client] == [
            n for n in _all(expected) if pushes[n] == client
        ]


def _all(queue):
    return [number for items in queue._waiting.values() for number in items]
