//! Tests of `rooms`.

use super::*;

/// No session asks.
#[derive(Clone, Copy)]
struct Nowhere;

impl Publish for Nowhere {
    fn put(&self, _: u64, _: Numbers, _: u64) -> bool {
        false
    }
    fn change(&self, _: impl Iterator<Item = (u64, Numbers)>) {}
    fn remove(&self, _: u64) {}
    fn clear(&self) {}
    fn is_wanted(&self, _: u64, _: u64) -> bool {
        false
    }
    fn was_asked_since(&self, _: u64, _: u64) -> bool {
        false
    }
}

fn empty() -> Rooms<Nowhere> {
    Rooms::new(Nowhere)
}

const SECOND: u64 = 1_000_000;

fn change(members: i32, users: i32) -> Vec<Change> {
    vec![Change { room: 7, name: b"hall".to_vec(), members, users }]
}

fn due(rooms: &Rooms<Nowhere>, now: u64) -> Option<(Option<Numbers>, bool)> {
    rooms.due(now, 10).first().map(|due| (due.numbers, due.is_news))
}

fn numbers(members: u32, users: u32) -> Numbers {
    Numbers { members, users }
}

#[test]
fn a_room_is_told_at_once_then_once_a_second_and_the_last_change_always() {
    let mut rooms = empty();
    rooms.apply(change(1, 1), 5 * SECOND);
    assert_eq!(due(&rooms, 5 * SECOND), Some((None, true)));
    rooms.settle(7, Outcome::Told(numbers(3, 3)), 5 * SECOND);
    assert_eq!((due(&rooms, 9 * SECOND), rooms.next()), (None, u64::MAX));
    for _ in 0..2 {
        rooms.apply(change(1, 0), 5 * SECOND + 1);
    }
    assert_eq!((due(&rooms, 6 * SECOND - 1), rooms.next()), (None, 6 * SECOND));
    assert_eq!(due(&rooms, 6 * SECOND), Some((Some(numbers(5, 3)), true)));
}

#[test]
fn what_comes_to_nothing_is_no_news() {
    let mut rooms = empty();
    rooms.apply(change(1, 1), SECOND);
    rooms.apply(change(-1, -1), SECOND);
    assert_eq!(due(&rooms, SECOND), Some((None, false)));
    rooms.settle(7, Outcome::NoNews, SECOND);
    // The same number of members, of fewer users.
    rooms.apply(change(1, 0), 3 * SECOND);
    rooms.apply(change(-1, -1), 3 * SECOND);
    assert_eq!(due(&rooms, 3 * SECOND), Some((None, true)));
}

#[test]
fn who_cannot_hear_yet_hears_later() {
    let mut rooms = empty();
    rooms.apply(change(1, 1), SECOND);
    rooms.settle(7, Outcome::ToldSome(numbers(1, 1)), SECOND);
    assert_eq!(due(&rooms, 2 * SECOND), Some((Some(numbers(1, 1)), true)), "for the others");
    rooms.settle(7, Outcome::Told(numbers(1, 1)), 2 * SECOND);
    rooms.apply(change(1, 1), 4 * SECOND);
    for turn in 0..6 {
        let now = (4 + turn) * SECOND;
        assert_eq!(due(&rooms, now), Some((Some(numbers(2, 2)), true)));
        rooms.settle(7, Outcome::NobodyYet, now);
    }
    rooms.settle(7, Outcome::NobodyYet, 10 * SECOND);
    assert_eq!(rooms.next(), u64::MAX, "nobody comes");
}

#[test]
fn after_lost_events_all_is_counted_and_told_anew() {
    let mut rooms = empty();
    rooms.apply(change(1, 1), SECOND);
    rooms.settle(7, Outcome::Told(numbers(1, 1)), SECOND);
    rooms.forget_numbers(2 * SECOND);
    assert_eq!(due(&rooms, 2 * SECOND), Some((None, true)));
}

#[test]
fn where_nobody_listens_nothing_stays() {
    let mut rooms = empty();
    rooms.apply(change(1, 1), SECOND);
    rooms.settle(7, Outcome::Told(numbers(1, 1)), SECOND);
    rooms.clean(3 * SECOND, |_| true);
    rooms.apply(change(1, 1), 3 * SECOND);
    assert_eq!(due(&rooms, 3 * SECOND), Some((Some(numbers(2, 2)), true)), "somebody listened");
    rooms.settle(7, Outcome::Told(numbers(2, 2)), 3 * SECOND);
    rooms.clean(5 * SECOND, |_| false);
    assert_eq!((rooms.rooms.len(), rooms.bytes), (0, 0));
}
