use super::*;
use proptest::prelude::*;

fn fields(pairs: &[(&str, &str)]) -> Fields {
    pairs.iter().map(|(key, value)| (key.as_bytes().to_vec(), value.as_bytes().to_vec())).collect()
}

fn object(pairs: &[(&str, &str)]) -> Data {
    Data { status: None, state: State::Object(fields(pairs)) }
}

fn other(value: &str) -> Data {
    Data { status: None, state: State::Other(value.into()) }
}

fn keys(names: &[&str]) -> Set {
    let names = names.iter().map(|name| name.as_bytes().to_vec()).collect();
    Set { status: false, state: Given::Keys(names) }
}

const ALL: Set = Set { status: false, state: Given::All };

/// A member over time: its data as of the last write, and its notes.
struct Member {
    data: Data,
    reverts: Reverts,
}

impl Member {
    fn new(data: Data) -> Member {
        Member { data, reverts: Reverts::default() }
    }

    fn call(&mut self, now: u64, data: Data, set: Set, for_a_time: Option<u64>) {
        self.reverts.apply(&mut self.data, now);
        self.reverts.record(&self.data, &data, &set, for_a_time.map(|time| now + time));
        self.data = data;
    }

    fn at(&self, now: u64) -> Data {
        let mut data = self.data.clone();
        self.reverts.clone().apply(&mut data, now);
        data
    }
}

#[test]
fn what_a_call_changed_is_undone_at_its_moment() {
    let mut member = Member::new(object(&[("x", "1")]));
    member.call(0, object(&[("x", "2"), ("typing", "true")]), keys(&["x", "typing"]), Some(5));
    assert_eq!(member.at(4), object(&[("x", "2"), ("typing", "true")]));
    assert_eq!(member.at(5), object(&[("x", "1")]));
    assert_eq!((member.reverts.next(), member.at(u64::MAX)), (Some(5), object(&[("x", "1")])));
}

#[test]
fn what_was_the_same_was_not_changed() {
    let mut member = Member::new(object(&[("typing", "true")]));
    member.call(0, object(&[("typing", "true")]), keys(&["typing"]), Some(5));
    assert!(member.reverts.is_empty());
}

#[test]
fn the_same_again_moves_the_moment_and_keeps_the_first_old_value() {
    let mut member = Member::new(object(&[("mood", "1")]));
    for (now, value) in [(0, "2"), (3, "2"), (6, "3")] {
        member.call(now, object(&[("mood", value)]), keys(&["mood"]), Some(5));
    }
    assert_eq!((member.at(10), member.at(11)), (object(&[("mood", "3")]), object(&[("mood", "1")])));
}

#[test]
fn a_later_call_for_good_stands_and_touches_nothing_else() {
    let mut member = Member::new(object(&[]));
    member.call(0, object(&[("a", "1"), ("b", "1")]), keys(&["a", "b"]), Some(5));
    member.call(1, object(&[("a", "1"), ("b", "1")]), keys(&["a"]), None);
    assert_eq!(member.at(5), object(&[("a", "1")]));
    // Setting the whole state sets all keys, including those that it lacks.
    member.call(2, object(&[("a", "1")]), keys(&["b"]), Some(5));
    member.call(3, object(&[("a", "1")]), ALL, None);
    assert!(member.reverts.is_empty());
}

#[test]
fn back_to_the_old_value_is_nothing_to_undo() {
    let mut member = Member::new(object(&[]));
    member.call(0, object(&[("a", "1")]), keys(&["a"]), Some(5));
    member.call(1, object(&[]), keys(&["a"]), Some(5));
    assert!(member.reverts.is_empty());
}

#[test]
fn a_state_that_is_no_object_is_one_unit() {
    let mut member = Member::new(object(&[("a", "1")]));
    member.call(0, other("42"), ALL, Some(5));
    assert_eq!((member.at(4), member.at(5)), (other("42"), object(&[("a", "1")])));
    // To an object that is then changed in part: the note is still about the whole.
    let mut member = Member::new(other("42"));
    member.call(0, object(&[("a", "1")]), ALL, Some(5));
    member.call(1, object(&[("a", "1"), ("b", "1")]), keys(&["b"]), Some(5));
    assert_eq!((member.at(5), member.at(6)), (object(&[("a", "1"), ("b", "1")]), other("42")));
    member.call(2, object(&[("a", "1")]), keys(&["b"]), None);
    assert!(member.reverts.is_empty(), "a part was set for good");
}

#[test]
fn notes_of_keys_end_with_their_object() {
    let mut member = Member::new(object(&[("a", "1")]));
    member.call(0, object(&[("a", "2")]), keys(&["a"]), Some(100));
    member.call(1, other("42"), ALL, Some(5));
    assert_eq!((member.at(6), member.reverts.next()), (object(&[("a", "1")]), Some(6)));
    let mut member = Member::new(object(&[("a", "1")]));
    member.call(0, object(&[("a", "2")]), keys(&["a"]), Some(100));
    member.call(1, other("42"), ALL, None);
    assert!(member.reverts.is_empty());
}

#[test]
fn no_state_on_the_way_is_larger_than_the_largest() {
    let size = |state: &State| match state {
        State::Other(value) => value.len(),
        State::Object(fields) => fields.iter().map(|(key, value)| key.len() + value.len()).sum(),
    };
    let mut member = Member::new(object(&[("a", "111"), ("b", "1")]));
    member.call(0, object(&[("b", "222")]), keys(&["a", "b"]), Some(5));
    let largest = member.reverts.largest(&member.data.state, size);
    assert_eq!(largest, object(&[("a", "111"), ("b", "222")]).state);
    member.call(1, other("4"), ALL, Some(5));
    assert_eq!(member.reverts.largest(&member.data.state, size), object(&[("a", "111"), ("b", "1")]).state);
}

/// A call in the naive model: sets a key or the status, to a value or none, for good or for a time.
#[derive(Clone, Debug)]
struct Call {
    wait: u64,
    part: usize,
    value: Option<u8>,
    for_a_time: Option<u64>,
}

fn calls() -> impl Strategy<Value = Vec<Call>> {
    let call = (0..4u64, 0..4usize, prop::option::of(0..3u8), prop::option::of(1..8u64));
    let call = call.prop_map(|(wait, part, value, for_a_time)| Call { wait, part, value, for_a_time });
    prop::collection::vec(call, 1..20)
}

/// For each part its value, and the value to which it reverts, and when.
type Ticking = [(Option<u8>, Option<(Option<u8>, u64)>); 4];

const PARTS: [&str; 3] = ["a", "b", "c"];

/// Part 0 is the status, the others are keys.
fn data(parts: &[Option<u8>; 4]) -> Data {
    let keys = PARTS.iter().zip(&parts[1..]).filter_map(|(key, value)| Some((*key, (*value)?)));
    let state = keys.map(|(key, value)| (key.as_bytes().to_vec(), vec![value])).collect();
    Data { status: parts[0].map(|value| vec![value]), state: State::Object(state) }
}

proptest! {
    /// Compared with a step-by-step model: each part has a value, and perhaps a moment and a value to revert to.
    #[test]
    fn each_moment_is_as_a_ticking_model_has_it(calls in calls()) {
        let mut member = Member::new(data(&[None; 4]));
        let mut model: Ticking = [(None, None); 4];
        let tick = |model: &mut Ticking, now: u64| {
            for (value, back) in model {
                if let Some((old, at)) = *back && at <= now {
                    (*value, *back) = (old, None);
                }
            }
        };
        let values = |model: &Ticking| model.map(|(value, _)| value);
        let mut now = 0;
        for call in calls {
            for _ in 0..call.wait {
                now += 1;
                tick(&mut model, now);
                prop_assert_eq!(member.at(now), data(&values(&model)));
            }
            let (value, back) = &mut model[call.part];
            *back = match (call.for_a_time, *back) {
                (None, _) => None,
                (Some(time), Some((old, _))) => Some((old, now + time)),
                (Some(time), None) => (*value != call.value).then_some((*value, now + time)),
            };
            *value = call.value;
            let set = match call.part {
                0 => Set { status: true, state: Given::Nothing },
                part => keys(&[PARTS[part - 1]]),
            };
            member.call(now, data(&values(&model)), set, call.for_a_time);
            prop_assert_eq!(member.at(now), data(&values(&model)));
        }
        for _ in 0..10 {
            now += 1;
            tick(&mut model, now);
            prop_assert_eq!(member.at(now), data(&values(&model)));
        }
        prop_assert!(member.reverts.next().is_none_or(|at| at <= now));
    }
}
