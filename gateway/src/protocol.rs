//! Frames of Phoenix channels: an object in version 1.0.0 of the serializer, an array in 2.0.0. Binary frames
//! of 2.0.0 are read only as far as an answer requires.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Version {
    One,
    Two,
}

impl Version {
    /// The version that the `vsn` query parameter asks for; version 1 if it is missing.
    pub fn of(vsn: Option<&str>) -> Option<Self> {
        match vsn.map(|vsn| vsn.split('.').next().unwrap_or(vsn)) {
            None | Some("1") => Some(Version::One),
            Some("2") => Some(Version::Two),
            Some(_) => None,
        }
    }
}

/// A frame from a client. References are echoed as received, whether strings or not.
#[derive(Debug, Default, Clone)]
pub struct Frame {
    pub join_ref: Value,
    pub reference: Value,
    pub topic: String,
    pub event: String,
    /// The payload's text, so that numbers keep their digits.
    pub payload: Option<Box<RawValue>>,
}

impl Frame {
    /// The payload, if it is an object with these fields.
    pub fn fields<'a, T: Deserialize<'a>>(&'a self) -> Option<T> {
        serde_json::from_str(self.payload.as_ref()?.get()).ok()
    }
}

pub fn read_text(version: Version, text: &str) -> Result<Frame, &'static str> {
    #[derive(Deserialize)]
    struct Object {
        #[serde(default)]
        join_ref: Value,
        #[serde(default, rename = "ref")]
        reference: Value,
        topic: String,
        event: String,
        payload: Option<Box<RawValue>>,
    }
    match version {
        Version::One => {
            let o: Object = serde_json::from_str(text)
                .map_err(|_| "a frame is {\"topic\", \"event\", \"payload\", \"ref\"}")?;
            Ok(Frame {
                join_ref: short(o.join_ref)?,
                reference: short(o.reference)?,
                topic: o.topic,
                event: o.event,
                payload: o.payload,
            })
        }
        Version::Two => {
            let (join_ref, reference, topic, event, payload) = serde_json::from_str(text)
                .map_err(|_| "a frame is [join_ref, ref, topic, event, payload]")?;
            Ok(Frame { join_ref: short(join_ref)?, reference: short(reference)?, topic, event, payload })
        }
    }
}

/// References are repeated in each answer, so they must be short: null, a string or a number.
fn short(reference: Value) -> Result<Value, &'static str> {
    match &reference {
        Value::Null | Value::Number(_) => Ok(reference),
        Value::String(text) if text.len() <= 64 => Ok(reference),
        _ => Err("ref and join_ref are text of at most 64 bytes, or null"),
    }
}

/// Reads the header of a binary frame: a push of phoenix (kind 0) or a broadcast of realtime-js (kind 3).
pub fn read_binary(bytes: &[u8]) -> Result<Frame, &'static str> {
    const BAD: &str = "a binary frame of this kind is not known";
    let (kind, fixed) = match bytes.first() {
        Some(0) => (0, 5),
        Some(3) => (3, 7),
        _ => return Err(BAD),
    };
    let lengths = bytes.get(1..5).ok_or(BAD)?;
    let mut at = fixed;
    let mut parts = [""; 4];
    for (part, length) in parts.iter_mut().zip(lengths) {
        let end = at + usize::from(*length);
        *part = bytes.get(at..end).and_then(|part| std::str::from_utf8(part).ok()).ok_or(BAD)?;
        at = end;
    }
    let reference = |text: &str| if text.is_empty() { Value::Null } else { Value::from(text) };
    Ok(Frame {
        join_ref: reference(parts[0]),
        reference: reference(parts[1]),
        topic: parts[2].into(),
        event: if kind == 3 { "broadcast" } else { parts[3] }.into(),
        payload: None,
    })
}

/// Writes a frame for a client; `payload` is the text of a JSON object.
pub fn write(
    version: Version,
    join_ref: &Value,
    reference: &Value,
    topic: &str,
    event: &str,
    payload: &str,
) -> String {
    let topic = Value::from(topic);
    match version {
        // The Python client requires `ref` in every message.
        Version::One => format!(
            r#"{{"topic":{topic},"event":"{event}","payload":{payload},"ref":{reference},"join_ref":{join_ref}}}"#
        ),
        Version::Two => format!(r#"[{join_ref},{reference},{topic},"{event}",{payload}]"#),
    }
}

pub const OK: &str = r#"{"status":"ok","response":{}}"#;

/// supabase-kt considers a join done only if `postgres_changes` is there.
pub const JOINED: &str = r#"{"status":"ok","response":{"postgres_changes":[]}}"#;

pub fn error(reason: &str) -> String {
    format!(r#"{{"status":"error","response":{{"reason":{}}}}}"#, Value::from(reason))
}

/// A `system` message; `status` error makes the Python client join again.
pub fn system(status: &str, message: &str, topic: &str) -> String {
    let channel = Value::from(room_of(topic));
    format!(
        r#"{{"extension":"system","status":"{status}","message":{},"channel":{channel}}}"#,
        Value::from(message)
    )
}

/// The room of a topic: realtime:ROOM, or ROOM.
pub fn room_of(topic: &str) -> &str {
    topic.strip_prefix("realtime:").unwrap_or(topic)
}

pub fn check_room(room: &str) -> Result<(), &'static str> {
    if room.is_empty() {
        return Err("TopicNameRequired: the topic names no room");
    }
    if room.chars().count() > 255 || room.chars().any(char::is_control) {
        return Err("the name of a room is at most 255 characters, without control characters");
    }
    Ok(())
}

/// What a client shows for a member: its state with a `phx_ref` that changes with each update.
pub fn meta(phx_ref: &str, state: &RawValue) -> Box<str> {
    let phx_ref = Value::from(phx_ref);
    match serde_json::from_str::<BTreeMap<String, &RawValue>>(state.get()) {
        Ok(fields) => {
            let mut text = format!(r#"{{"phx_ref":{phx_ref}"#);
            for (name, value) in fields.iter().filter(|(name, _)| !name.starts_with("phx_ref")) {
                text.push_str(&format!(",{}:{}", Value::from(name.as_str()), value.get()));
            }
            (text + "}").into()
        }
        Err(_) => format!(r#"{{"phx_ref":{phx_ref},"state":{}}}"#, state.get()).into(),
    }
}

/// The nesting depth of a JSON text.
pub fn depth(json: &str) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    let (mut in_text, mut escaped) = (false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => in_text = !in_text,
            _ if in_text => {}
            b'{' | b'[' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// Properties that every JavaScript object has: as presence keys, they make older clients miss all later
/// events.
pub fn is_name_of_object(key: &str) -> bool {
    matches!(
        key,
        "__proto__"
            | "constructor"
            | "hasOwnProperty"
            | "isPrototypeOf"
            | "propertyIsEnumerable"
            | "toLocaleString"
            | "toString"
            | "valueOf"
            | "__defineGetter__"
            | "__defineSetter__"
            | "__lookupGetter__"
            | "__lookupSetter__"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_their_digits() {
        let frame = read_text(Version::Two, r#"[null,"1","t","e",{"x":1e400}]"#).unwrap();
        assert_eq!(frame.payload.unwrap().get(), r#"{"x":1e400}"#);
    }

    #[test]
    fn both_versions_are_read_and_written() {
        let one = r#"{"topic":"realtime:a","event":"phx_join","payload":{},"ref":"4","join_ref":"4"}"#;
        let two = r#"["4","4","realtime:a","phx_join",{}]"#;
        for (version, text) in [(Version::One, one), (Version::Two, two)] {
            let frame = read_text(version, text).unwrap();
            assert_eq!((frame.topic.as_str(), frame.event.as_str()), ("realtime:a", "phx_join"));
            let written = write(version, &frame.join_ref, &frame.reference, &frame.topic, &frame.event, "{}");
            assert_eq!(
                serde_json::from_str::<Value>(&written).unwrap(),
                serde_json::from_str::<Value>(text).unwrap()
            );
        }
        assert_eq!(
            write(Version::One, &Value::Null, &Value::Null, "t", "e", "{}").matches("null").count(),
            2
        );
    }

    #[test]
    fn bad_frames_are_refused() {
        for text in
            ["", "{}", "[]", "null", r#"["1","1",2,"x",{}]"#, r#"[[],"1","t","x",{}]"#, "[1,2,3,4,5,6]"]
        {
            assert!(read_text(Version::Two, text).is_err(), "{text}");
            assert!(read_text(Version::One, text).is_err(), "{text}");
        }
        let long = "9".repeat(65);
        assert!(read_text(Version::Two, &format!(r#"[null,"{long}","t","e",{{}}]"#)).is_err());
    }

    #[test]
    fn binary_headers_are_read() {
        let mut frame = vec![3, 1, 2, 3, 4, 0, 1];
        frame.extend_from_slice(b"612top" as &[u8]);
        frame.extend_from_slice(b"move{}");
        let read = read_binary(&frame).unwrap();
        assert_eq!((read.join_ref, read.reference), (Value::from("6"), Value::from("12")));
        assert_eq!((read.topic.as_str(), read.event.as_str()), ("top", "broadcast"));
        for n in 0..frame.len() - 2 {
            assert!(read_binary(&frame[..n]).is_err(), "{n}");
        }
    }

    #[test]
    fn a_meta_has_its_reference_whatever_the_state_says() {
        let raw = |text: &str| RawValue::from_string(text.into()).unwrap();
        assert_eq!(&*meta("7", &raw(r#"{"phx_ref":1,"x":2,"phx_ref_prev":3}"#)), r#"{"phx_ref":"7","x":2}"#);
        assert_eq!(&*meta("7", &raw("[1]")), r#"{"phx_ref":"7","state":[1]}"#);
    }

    #[test]
    fn versions_of_the_serializer() {
        assert_eq!(Version::of(None), Some(Version::One));
        assert_eq!(Version::of(Some("1.0.0")), Some(Version::One));
        assert_eq!(Version::of(Some("2.0.0")), Some(Version::Two));
        assert_eq!(Version::of(Some("3.0.0")), None);
    }
}
