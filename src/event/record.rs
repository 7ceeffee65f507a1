//! An event on its way from the committing backend to the worker: bytes in the ring.
//!
//! Text and jsonb travel as PostgreSQL stores them (`image`).

use super::image::{FIELDS, Image, make_lean, read_u32};
use super::ring::{RECORD_HEADER, mark_of, share_of};
use std::rc::Rc;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    Enter = 1,
    Update = 2,
    Leave = 3,
    /// A room's metadata changed: the room is `room`, the metadata `metadata`.
    Room = 4,
    /// New channel names are requested, for one room or (no room) for all.
    Rotate = 5,
    /// Request to the worker to forget a user after the preceding events.
    Forget = 6,
    /// A change of a member without an event (ttl, session, reverts), for the copy.
    Quiet = 7,
}

/// Why a member left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Reason {
    None = 0,
    Left = 1,
    Expired = 2,
    Disconnected = 3,
    Removed = 4,
    Hidden = 5,
    /// Its server is not heard.
    Unreachable = 6,
}

impl Reason {
    pub fn name(self) -> Option<&'static str> {
        Some(match self {
            Reason::None => return None,
            Reason::Left => "left",
            Reason::Expired => "expired",
            Reason::Disconnected => "disconnected",
            Reason::Removed => "removed",
            Reason::Hidden => "hidden",
            Reason::Unreachable => "unreachable",
        })
    }

    pub fn from_name(name: &[u8]) -> Option<Reason> {
        [Reason::Left, Reason::Expired, Reason::Disconnected, Reason::Removed]
            .into_iter()
            .find(|reason| reason.name().is_some_and(|own| own.as_bytes() == name))
    }

    fn from_byte(byte: u8) -> Reason {
        match byte {
            1 => Reason::Left,
            2 => Reason::Expired,
            3 => Reason::Disconnected,
            4 => Reason::Removed,
            5 => Reason::Hidden,
            6 => Reason::Unreachable,
            _ => Reason::None,
        }
    }
}

/// The size in the ring of a record without an old image, from the lengths of its fields.
pub fn size_of_record(fields: [Option<usize>; FIELDS]) -> usize {
    (FIXED + Image::length(fields)).next_multiple_of(8)
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub kind: Kind,
    pub reason: Reason,
    /// The transaction, 0 if it has certainly ended (records loaded after a restart).
    pub xid: u32,
    /// The table `member`, as in the key: records of an extension that was dropped since are ignored.
    pub relation: u32,
    pub hash: u128,
    pub version: u64,
    /// With `old`: the version of the leave for those who no longer see the member. For a leave: the version of its
    /// tombstone, which is newer if the transaction entered and left again.
    pub hidden_leave_version: u64,
    pub generation: u64,
    /// timestamptz
    pub at: i64,
    pub joined_at: i64,
    /// When the member was last seen: before `at` if it expired.
    pub seen_at: i64,
    /// For an update: nobody saw the member before, because its lease ran out before the change was committed.
    pub revived: bool,
    pub image: Image,
    /// For a changed audience: the member as the old audience saw it last.
    pub old: Option<Image>,
    /// The member's node, if that is another server.
    pub node: Option<Rc<[u8]>>,
}

const FIXED: usize = RECORD_HEADER + 88;
const IMAGE_LENGTH: usize = RECORD_HEADER + 72;
const OLD_LENGTH: usize = RECORD_HEADER + 76;
const KIND: usize = RECORD_HEADER + 80;
const REVIVED: usize = RECORD_HEADER + 82;
/// The length of the node's name, which precedes the image.
const NODE_LENGTH: usize = RECORD_HEADER + 83;

/// Where the image begins.
fn image_start(record: &[u8]) -> Option<usize> {
    Some(FIXED + (*record.get(NODE_LENGTH)? as usize).next_multiple_of(8))
}

/// Encoded records, one after the other: the share and length of each.
pub fn lengths(records: &[u8]) -> impl Iterator<Item = (u16, usize)> + '_ {
    let mut at = 0;
    std::iter::from_fn(move || {
        let (length, mark) = (read_u32(records, at)? as usize, read_u32(records, at + 4)?);
        at += length.max(RECORD_HEADER);
        Some((share_of(mark), length))
    })
}

/// Remove state and metadata of members, in place: nothing is allocated, so nothing can fail.
pub fn make_all_lean(records: &mut Vec<u8>) {
    let (mut from, mut to) = (0, 0);
    while let Some(length) = read_u32(records, from).map(|length| length as usize)
        && (FIXED..=records.len() - from).contains(&length)
    {
        let next = from + length;
        let record = &mut records[from..next];
        let start = image_start(record).unwrap_or(FIXED);
        let is_member =
            [Kind::Enter, Kind::Update, Kind::Leave].map(|kind| kind as u8).contains(&record[KIND]);
        let [image, old] = [IMAGE_LENGTH, OLD_LENGTH].map(|at| read_u32(record, at).unwrap_or(0) as usize);
        let mut lean = length;
        if is_member && start + image + old <= length {
            let image_left = make_lean(&mut record[start..start + image]);
            record.copy_within(start + image..start + image + old, start + image_left);
            let old_left = match old {
                0 => 0,
                old => make_lean(&mut record[start + image_left..][..old]),
            };
            lean = (start + image_left + old_left).next_multiple_of(8).min(length);
            for (at, length) in [(0, lean), (IMAGE_LENGTH, image_left), (OLD_LENGTH, old_left)] {
                record[at..at + 4].copy_from_slice(&(length as u32).to_le_bytes());
            }
        }
        records.copy_within(from..from + lean, to);
        (from, to) = (next, to + lean);
    }
    records.truncate(to);
}

/// The part of a record that a reader of the ring needs before it reads the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    pub xid: u32,
    pub relation: u32,
    pub hash: u128,
    pub version: u64,
    pub is_leave: bool,
    pub is_update: bool,
    /// An update that a newer one makes redundant: it has no old audience.
    pub is_plain: bool,
}

impl Head {
    /// The number of bytes of a record that this needs.
    pub const BYTES: usize = REVIVED + 1;

    pub fn decode(bytes: &[u8]) -> Option<Head> {
        let at = RECORD_HEADER;
        let kind = *bytes.get(KIND)?;
        let is_update = kind == Kind::Update as u8;
        Some(Head {
            xid: read_u32(bytes, at)?,
            relation: read_u32(bytes, at + 4)?,
            hash: u128::from_le_bytes(bytes.get(at + 8..at + 24)?.try_into().ok()?),
            version: read_u64(bytes, at + 24)?,
            is_leave: kind == Kind::Leave as u8,
            is_update,
            is_plain: is_update && read_u32(bytes, OLD_LENGTH)? == 0 && *bytes.get(REVIVED)? == 0,
        })
    }
}

impl Record {
    /// The bytes for the ring, header included.
    pub fn encode(&self, into: &mut Vec<u8>) {
        self.encode_for(0, into);
    }

    /// The same, for an owner's share.
    pub fn encode_for(&self, share: u16, into: &mut Vec<u8>) {
        let start = into.len();
        into.extend([0; RECORD_HEADER]);
        into.extend(self.xid.to_le_bytes());
        into.extend(self.relation.to_le_bytes());
        into.extend(self.hash.to_le_bytes());
        for number in [self.version, self.hidden_leave_version, self.generation] {
            into.extend(number.to_le_bytes());
        }
        for time in [self.at, self.joined_at, self.seen_at] {
            into.extend(time.to_le_bytes());
        }
        let old = self.old.as_ref().map_or(&[][..], |old| &old.0);
        let node = self.node.as_deref().unwrap_or_default();
        into.extend((self.image.0.len() as u32).to_le_bytes());
        into.extend((old.len() as u32).to_le_bytes());
        into.extend([self.kind as u8, self.reason as u8, self.revived as u8, node.len() as u8, 0, 0, 0, 0]);
        into.extend(node);
        into.resize(start + FIXED + node.len().next_multiple_of(8), 0);
        into.extend(&self.image.0);
        into.extend(old);
        into.resize(start + (into.len() - start).next_multiple_of(8), 0);
        let length = (into.len() - start) as u32;
        into[start..start + 4].copy_from_slice(&length.to_le_bytes());
        into[start + 4..start + 8].copy_from_slice(&mark_of(share).to_le_bytes());
    }

    /// The first of several records, and its size with padding.
    pub fn decode_first(bytes: &[u8]) -> Option<(Record, usize)> {
        let length = read_u32(bytes, 0)? as usize;
        let record = Record::decode(bytes.get(..length)?)?;
        Some((record, length))
    }

    /// Read back what `encode` wrote; None if these bytes are not a record.
    pub fn decode(bytes: &[u8]) -> Option<Record> {
        let at = RECORD_HEADER;
        let image_length = read_u32(bytes, at + 72)? as usize;
        let old_length = read_u32(bytes, at + 76)? as usize;
        let start = image_start(bytes)?;
        let node = bytes.get(FIXED..FIXED + *bytes.get(NODE_LENGTH)? as usize)?;
        let image = bytes.get(start..start.checked_add(image_length)?)?;
        let old_start = start + image_length;
        let old = bytes.get(old_start..old_start.checked_add(old_length)?)?;
        let Head { xid, relation, hash, version, .. } = Head::decode(bytes)?;
        Some(Record {
            xid,
            relation,
            hash,
            version,
            kind: match bytes.get(at + 80)? {
                1 => Kind::Enter,
                2 => Kind::Update,
                3 => Kind::Leave,
                4 => Kind::Room,
                5 => Kind::Rotate,
                6 => Kind::Forget,
                7 => Kind::Quiet,
                _ => return None,
            },
            reason: Reason::from_byte(*bytes.get(at + 81)?),
            revived: *bytes.get(at + 82)? != 0,
            hidden_leave_version: read_u64(bytes, at + 32)?,
            generation: read_u64(bytes, at + 40)?,
            at: read_u64(bytes, at + 48)? as i64,
            joined_at: read_u64(bytes, at + 56)? as i64,
            seen_at: read_u64(bytes, at + 64)? as i64,
            image: Image(image.to_vec()),
            old: (old_length > 0).then(|| Image(old.to_vec())),
            node: (!node.is_empty()).then(|| node.into()),
        })
    }
}

fn read_u64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
pub mod strategies {
    use super::*;
    use proptest::collection::vec;
    use proptest::option;
    use proptest::prelude::*;

    pub fn image() -> impl Strategy<Value = Image> {
        prop::array::uniform8(option::of(vec(any::<u8>(), 0..50)))
            .prop_map(|fields| Image::new(std::array::from_fn(|index| fields[index].as_deref())))
    }

    prop_compose! {
        pub fn record()(
            kind in prop::sample::select(vec![Kind::Enter, Kind::Update, Kind::Leave, Kind::Room, Kind::Rotate, Kind::Forget, Kind::Quiet]),
            reason in 0..=5u8, xid in any::<u32>(), relation in any::<u32>(), hash in any::<u128>(),
            versions in any::<[u64; 3]>(), times in any::<[i64; 3]>(), revived in any::<bool>(),
            image in image(), old in option::of(image()), node in option::of(vec(any::<u8>(), 1..64)),
        ) -> Record {
            let ([version, hidden_leave_version, generation], [at, joined_at, seen_at]) = (versions, times);
            let reason = Reason::from_byte(reason);
            Record { kind, reason, xid, relation, hash, version, hidden_leave_version, generation, at, joined_at, seen_at, revived, image, old, node: node.map(Rc::from) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::image::Field;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn decode_reads_what_encode_wrote(record in strategies::record()) {
            let mut bytes = vec![7; 16];
            record.encode(&mut bytes);
            prop_assert_eq!(bytes.len() % 8, 0);
            prop_assert_eq!(Record::decode(&bytes[16..]), Some(record.clone()));
            let head = Head {
                xid: record.xid, relation: record.relation, hash: record.hash, version: record.version,
                is_leave: record.kind == Kind::Leave,
                is_update: record.kind == Kind::Update,
                is_plain: record.kind == Kind::Update && record.old.is_none() && !record.revived,
            };
            prop_assert_eq!(Head::decode(&bytes[16..16 + Head::BYTES]), Some(head));
            bytes.extend([9; 24]);
            prop_assert_eq!(Record::decode_first(&bytes[16..]), Some((record, bytes.len() - 40)));
        }

        /// In place gives the same as one by one; what remains is valid.
        #[test]
        fn lean_records_have_everything_else(records in prop::collection::vec(strategies::record(), 0..5), share in 0..4096u16) {
            let mut bytes = Vec::new();
            records.iter().for_each(|record| record.encode_for(share, &mut bytes));
            make_all_lean(&mut bytes);
            let mut rest = &bytes[..];
            for mut record in records {
                let (lean, length) = Record::decode_first(rest).expect("a record");
                prop_assert_eq!(lengths(rest).next(), Some((share, length)));
                if matches!(record.kind, Kind::Enter | Kind::Update | Kind::Leave) {
                    for image in std::iter::once(&mut record.image).chain(&mut record.old) {
                        let expected = image.lean_len();
                        image.make_lean();
                        prop_assert_eq!(image.len(), expected);
                        prop_assert!(image.is_lean());
                    }
                }
                for field in [Field::Room, Field::Status, Field::State, Field::Metadata, Field::Audience] {
                    prop_assert_eq!(lean.image.get(field), record.image.get(field));
                }
                prop_assert_eq!(lean, record);
                rest = &rest[length..];
            }
            prop_assert!(rest.is_empty());
        }

        #[test]
        fn decode_never_panics(bytes in prop::collection::vec(prop_oneof![0..3u8, any::<u8>()], 0..300)) {
            read_all(&bytes);
        }

        /// With one number changed, above all a length.
        #[test]
        fn a_damaged_record_never_panics(
            record in strategies::record(), at in any::<prop::sample::Index>(), number in prop_oneof![0..400u32, any::<u32>()],
        ) {
            let mut bytes = Vec::new();
            record.encode(&mut bytes);
            let at = at.index(bytes.len() / 4) * 4;
            bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
            read_all(&bytes);
        }

        /// The sweeper uses this for the size of its batches.
        #[test]
        fn the_size_of_a_record_is_known_from_its_fields(
            record in strategies::record(), fields in prop::array::uniform8(prop::option::of(prop::collection::vec(any::<u8>(), 0..50))),
        ) {
            let image = Image::new(std::array::from_fn(|index| fields[index].as_deref()));
            let mut bytes = Vec::new();
            Record { image, old: None, node: None, ..record }.encode(&mut bytes);
            prop_assert_eq!(bytes.len(), size_of_record(std::array::from_fn(|index| fields[index].as_ref().map(Vec::len))));
        }

        #[test]
        fn an_image_gives_back_its_fields(fields in prop::array::uniform8(prop::option::of(prop::collection::vec(any::<u8>(), 0..20)))) {
            let image = Image::new(std::array::from_fn(|index| fields[index].as_deref()));
            prop_assert_eq!(image.get(Field::Room), fields[0].as_deref());
            prop_assert_eq!(image.get(Field::State), fields[5].as_deref());
            prop_assert_eq!(image.get(Field::Audience), fields[7].as_deref());
        }
    }

    fn read_all(bytes: &[u8]) {
        let first = Record::decode_first(bytes).map(|(record, length)| {
            assert!(length <= bytes.len());
            record
        });
        for record in first.into_iter().chain(Record::decode(bytes)) {
            for image in [Some(&record.image), record.old.as_ref()].into_iter().flatten() {
                for field in [Field::Room, Field::Status, Field::State, Field::Audience] {
                    let _ = image.get(field);
                }
            }
        }
    }
}
