//! The JSON of a notification: one object, pure ASCII, within NOTIFY's limit.
//!
//! ASCII, because a character that a listener's client encoding lacks ends that listener's connection.

use serde::Serialize;
use serde_json::ser::Formatter;
use serde_json::value::RawValue;
use std::io;

/// A payload of NOTIFY is shorter than 8000 bytes.
pub const LIMIT: usize = 7_999;

/// The payload for listeners; fields are in the order of the documentation.
#[derive(Serialize, Clone)]
pub struct Event<'a> {
    pub event: &'a str,
    pub seq: u64,
    pub version: u64,
    pub room: &'a str,
    pub member_id: &'a str,
    pub connection_id: &'a str,
    pub user_id: &'a str,
    pub status: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<&'a RawValue>,
    pub connections: u32,
    pub reason: Option<&'a str>,
    pub at: &'a str,
    pub joined_at: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audience: Option<&'a [String]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub old_audience: Option<&'a [String]>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
    /// The server where it happened, if servers have names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<&'a str>,
}

/// A room's metadata changed.
#[derive(Serialize, Clone)]
pub struct RoomEvent<'a> {
    pub event: &'a str,
    pub seq: u64,
    pub version: u64,
    pub room: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<&'a RawValue>,
    pub at: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audience: Option<&'a [String]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub old_audience: Option<&'a [String]>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
    /// The server where it happened, if servers have names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<&'a str>,
}

/// `resync`, `relisten`, `changes`, `alive`: signals without a member.
#[derive(Serialize)]
pub struct Signal<'a> {
    pub event: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot: Option<&'a str>,
    pub seq: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub room: Option<&'a str>,
}

impl<'a> Signal<'a> {
    fn new(event: &'a str, seq: u64) -> Signal<'a> {
        Signal { event, boot: None, seq, room: None }
    }
}

/// The counts of a room.
#[derive(Serialize)]
pub struct Occupancy<'a> {
    pub event: &'a str,
    pub room: &'a str,
    pub members: u32,
    pub users: u32,
}

/// The full event; without state and metadata if it is too long; a doorbell if even the names are.
pub fn event(event: &Event) -> String {
    let whole = ascii(event);
    if whole.len() <= LIMIT {
        return whole;
    }
    let short = ascii(&Event { state: None, metadata: None, truncated: true, ..event.clone() });
    if short.len() <= LIMIT { short } else { doorbell(event.seq) }
}

pub fn room(event: &RoomEvent) -> String {
    let whole = ascii(event);
    if whole.len() <= LIMIT {
        return whole;
    }
    let short = ascii(&RoomEvent { metadata: None, truncated: true, ..event.clone() });
    if short.len() <= LIMIT { short } else { doorbell(event.seq) }
}

/// Doorbell: there are new events, read `presence.changes`.
pub fn doorbell(seq: u64) -> String {
    ascii(&Signal::new("changes", seq))
}

pub fn resync(seq: u64) -> String {
    ascii(&Signal::new("resync", seq))
}

pub fn relisten(seq: u64, room: Option<&str>) -> String {
    let whole = ascii(&Signal { room, ..Signal::new("relisten", seq) });
    if whole.len() <= LIMIT { whole } else { ascii(&Signal::new("relisten", seq)) }
}

/// For the channel `presence`, with the generation of names (a number too large for JavaScript, so as text).
pub fn beacon(event: &str, boot: u64, seq: u64) -> String {
    ascii(&Signal { boot: Some(&format!("{boot:016x}")), ..Signal::new(event, seq) })
}

/// A room's name takes at most half of a notification.
pub fn occupancy(room: &str, members: u32, users: u32) -> String {
    ascii(&Occupancy { event: "occupancy", room, members, users })
}

fn ascii(value: &impl Serialize) -> String {
    let mut out = Vec::with_capacity(512);
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, Ascii);
    // Writing our own structs to memory does not fail.
    let _ = value.serialize(&mut serializer);
    String::from_utf8(out).unwrap_or_default()
}

/// Escapes everything outside ASCII as \uXXXX, with surrogate pairs outside the basic plane (RFC 8259, section 7).
struct Ascii;

impl Ascii {
    fn write<W: ?Sized + io::Write>(writer: &mut W, text: &str) -> io::Result<()> {
        let mut rest = text;
        // By bytes, which is quick: the first one of a character outside ASCII is above it, too.
        while let Some(at) = rest.bytes().position(|byte| byte >= 0x7f) {
            writer.write_all(&rest.as_bytes()[..at])?;
            let mut characters = rest[at..].chars();
            if let Some(character) = characters.next() {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    write!(writer, "\\u{unit:04x}")?;
                }
            }
            rest = characters.as_str();
        }
        writer.write_all(rest.as_bytes())
    }
}

impl Formatter for Ascii {
    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        Ascii::write(writer, fragment)
    }

    // In JSON text such characters are only in strings, so it can be escaped as a whole.
    fn write_raw_fragment<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        Ascii::write(writer, fragment)
    }
}

/// A timestamptz (microseconds since 2000-01-01 UTC) in ISO 8601, UTC.
pub fn time(timestamp: i64) -> String {
    const DAY: i64 = 86_400_000_000;
    let (days, rest) = (timestamp.div_euclid(DAY), timestamp.rem_euclid(DAY));
    let (year, month, day) = civil(days + 10_957);
    let (seconds, micros) = (rest / 1_000_000, rest % 1_000_000);
    let (hour, minute, second) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
}

/// The date in the Gregorian calendar of a day counted from 1970 (Howard Hinnant, "chrono-Compatible Low-Level Date
/// Algorithms").
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample<'a>(status: Option<&'a str>, state: Option<&'a RawValue>) -> Event<'a> {
        Event {
            event: "enter",
            seq: 1,
            version: 2,
            room: "lobby",
            member_id: "alice",
            connection_id: "",
            user_id: "alice",
            status,
            state,
            metadata: None,
            connections: 1,
            reason: None,
            at: "",
            joined_at: "",
            audience: None,
            old_audience: None,
            truncated: false,
            node: None,
        }
    }

    #[test]
    fn times_are_iso_8601_in_utc() {
        assert_eq!(time(0), "2000-01-01T00:00:00.000000Z");
        assert_eq!(time(-1), "1999-12-31T23:59:59.999999Z");
        assert_eq!(time(760_669_566_000_001), "2024-02-08T01:06:06.000001Z");
    }

    #[test]
    fn what_is_too_long_is_left_out_and_said() {
        let long = RawValue::from_string(format!("\"{}\"", "x".repeat(9_000))).expect("JSON");
        let payload: serde_json::Value =
            serde_json::from_str(&event(&sample(None, Some(&long)))).expect("JSON");
        assert_eq!(payload["truncated"], true);
        assert!(payload.get("state").is_none());
    }

    #[test]
    fn names_that_are_too_long_ring_the_bell() {
        let long = "\u{1F600}".repeat(255);
        let mut sample = sample(Some(&long), None);
        (sample.room, sample.member_id, sample.user_id) = (&long, &long, &long);
        assert_eq!(event(&sample), r#"{"event":"changes","seq":1}"#);
    }

    proptest! {
        #[test]
        fn payloads_are_ascii_and_say_the_same(status in ".*", state in ".*") {
            let raw = RawValue::from_string(serde_json::to_string(&state).expect("JSON")).expect("JSON");
            let text = event(&sample(Some(&status), Some(&raw)));
            prop_assert!(text.is_ascii());
            prop_assert!(text.len() <= LIMIT);
            let payload: serde_json::Value = serde_json::from_str(&text).expect("JSON");
            prop_assert_eq!(payload["status"].as_str(), Some(status.as_str()));
            prop_assert_eq!(payload["state"].as_str(), Some(state.as_str()));
        }
    }
}
