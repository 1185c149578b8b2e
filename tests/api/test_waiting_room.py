"""Who goes together, who goes first, who is refused: the room alone, without a device."""

from __future__ import annotations

import threading
import time
from collections import Counter

import pytest

from dgate_core.api.waiting_room import RoomClosedError, RoomFullError, Ticket, TicketOptions, WaitingRoom, WorkKey
from dgate_core.manifest.item import BatchKey
from dgate_core.runs.spec import ImageFormat


def make_key(steps: int) -> WorkKey:
    return WorkKey(BatchKey("model", 64, 64, steps, "default", 1.0))


def make_tickets(client: str, steps: int, count: int, seconds: float = 60.0) -> list[Ticket]:
    options = TicketOptions(client, "req", time.monotonic() + seconds, ImageFormat())
    return [Ticket({}, make_key(steps), number, options) for number in range(count)]


def make_room(limit: int = 100, batch: int = 4, gather_seconds: float = 0.0) -> WaitingRoom:
    return WaitingRoom(limit, gather_seconds, lambda _: batch, lambda _: None)


def take_all(room: WaitingRoom) -> list[list[Ticket]]:
    room.close()
    return list(iter(room.take, None))


def test_a_batch_has_one_key_and_no_more_than_the_device_takes() -> None:
    room = make_room()
    room.add(make_tickets("a", 10, 6))
    room.add(make_tickets("b", 20, 3))
    batches = take_all(room)
    assert all(len({ticket.key for ticket in batch}) == 1 for batch in batches)
    assert sorted(len(batch) for batch in batches) == [2, 3, 4]
    assert len(room) == 0


def test_a_flood_does_not_keep_others_waiting() -> None:
    room = make_room()
    room.add(make_tickets("flood", 10, 40))
    room.add(make_tickets("quiet", 10, 1))
    room.add(make_tickets("other", 20, 1))
    served = [[ticket.options.client for ticket in batch] for batch in take_all(room)]
    assert served[0] == ["flood", "quiet", "flood", "flood"]
    assert served[1] == ["other"]


def test_many_keys_do_not_buy_one_client_more_turns() -> None:
    room = make_room()
    for steps in range(1, 11):
        room.add(make_tickets("greedy", steps, 1))
    room.add(make_tickets("modest", 99, 8))
    first = [batch[0].options.client for batch in take_all(room)][:4]
    assert Counter(first) == {"greedy": 2, "modest": 2}


def test_keys_of_one_client_take_turns() -> None:
    room = make_room()
    room.add(make_tickets("a", 10, 12))
    room.add(make_tickets("a", 20, 1))
    assert [batch[0].key.batch.num_inference_steps for batch in take_all(room)] == [10, 20, 10, 10]


def test_a_full_room_takes_all_of_a_request_or_none() -> None:
    room = make_room(limit=5)
    room.add(make_tickets("a", 10, 4))
    with pytest.raises(RoomFullError):
        room.add(make_tickets("b", 10, 2))
    room.add(make_tickets("b", 10, 1))
    assert len(room) == 5


def test_who_leaves_frees_the_place_at_once() -> None:
    room = make_room(limit=4)
    tickets = make_tickets("a", 10, 4)
    room.add(tickets)
    room.remove(tickets[1:])
    room.remove(tickets[1:])
    room.add(make_tickets("b", 10, 3))
    taken = [ticket for batch in take_all(room) for ticket in batch]
    assert [ticket.options.client for ticket in taken].count("a") == 1


def test_what_is_late_is_never_made() -> None:
    room = make_room()
    late, good = make_tickets("a", 10, 2, seconds=-1.0), make_tickets("b", 10, 1)
    room.add(late)
    room.add(good)
    assert take_all(room) == [good]
    assert all(ticket.future.cancelled() for ticket in late)


def test_those_who_come_within_moments_go_together() -> None:
    room = make_room(gather_seconds=0.2)
    room.add(make_tickets("a", 10, 1))
    threading.Timer(0.02, lambda: room.add(make_tickets("b", 10, 1))).start()
    taken = room.take()
    assert taken is not None
    assert [ticket.options.client for ticket in taken] == ["a", "b"]


def test_a_full_batch_waits_for_nobody() -> None:
    room = make_room(gather_seconds=10.0)
    room.add(make_tickets("a", 10, 4))
    started = time.monotonic()
    assert len(room.take() or []) == 4
    assert time.monotonic() - started < 1.0


def test_after_a_large_batch_the_next_one_waits_a_little_longer() -> None:
    room = make_room(batch=8)
    room.note_pace(make_key(10), rows=3, seconds=10.0)
    room.add(make_tickets("a", 10, 1))
    threading.Timer(0.01, lambda: room.add(make_tickets("b", 10, 2))).start()
    assert len(room.take() or []) == 3


def test_a_closed_room_serves_those_inside_and_nobody_else() -> None:
    room = make_room()
    room.add(make_tickets("a", 10, 1))
    room.close()
    with pytest.raises(RoomClosedError):
        room.add(make_tickets("b", 10, 1))
    assert len(room.take() or []) == 1
    assert room.take() is None
