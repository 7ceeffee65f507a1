//! A member as an event shows it.
//!
//! Text and jsonb are as PostgreSQL stores them; the worker turns them into JSON, not the caller.

/// The columns of a member that an event shows, in the order in which an image has them.
#[derive(Clone, Copy)]
pub enum Field {
    Room,
    MemberId,
    ConnectionId,
    UserId,
    Status,
    State,
    Metadata,
    Audience,
}

pub const FIELDS: usize = 8;
const NULL: u32 = u32::MAX;

/// A member as shown by one event: eight lengths, then the bytes, each aligned to 4 for jsonb.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Image(pub(super) Vec<u8>);

impl Image {
    pub fn new(fields: [Option<&[u8]>; FIELDS]) -> Image {
        let mut bytes = Vec::with_capacity(Image::length(fields.map(|field| field.map(<[u8]>::len))));
        for field in &fields {
            bytes.extend(field.map_or(NULL, |field| field.len() as u32).to_le_bytes());
        }
        for field in fields.iter().flatten() {
            bytes.extend(*field);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        Image(bytes)
    }

    pub fn get(&self, wanted: Field) -> Option<&[u8]> {
        let mut at = FIELDS * 4;
        for index in 0..FIELDS {
            let length = read_u32(&self.0, index * 4)?;
            if index == wanted as usize {
                return if length == NULL { None } else { self.0.get(at..at + length as usize) };
            }
            if length != NULL {
                at += (length as usize).next_multiple_of(4);
            }
        }
        None
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Without state and metadata.
    pub fn make_lean(&mut self) {
        let length = make_lean(&mut self.0);
        self.0.truncate(length);
    }

    /// For a member's image: every member has a state.
    pub fn is_lean(&self) -> bool {
        self.get(Field::State).is_none()
    }

    /// Its length without state and metadata.
    pub fn lean_len(&self) -> usize {
        let length = |field| self.get(field).map_or(0, |bytes| bytes.len().next_multiple_of(4));
        self.len() - length(Field::State) - length(Field::Metadata)
    }

    /// The length of an image with fields of these lengths.
    pub(super) fn length(fields: [Option<usize>; FIELDS]) -> usize {
        FIELDS * 4 + fields.iter().flatten().map(|length| length.next_multiple_of(4)).sum::<usize>()
    }
}

/// Remove state and metadata from the bytes of an image. Returns how many bytes are left.
pub(super) fn make_lean(image: &mut [u8]) -> usize {
    let length = |image: &[u8], field: usize| match read_u32(image, field * 4) {
        Some(NULL) | None => 0,
        Some(length) => (length as usize).next_multiple_of(4),
    };
    let before: usize = (0..Field::State as usize).map(|field| length(image, field)).sum();
    let left_out = length(image, Field::State as usize) + length(image, Field::Metadata as usize);
    let (to, end) = (FIELDS * 4 + before, image.len());
    if to + left_out > end {
        return end;
    }
    image.copy_within(to + left_out..end, to);
    for field in [Field::State, Field::Metadata] {
        image[field as usize * 4..][..4].copy_from_slice(&NULL.to_le_bytes());
    }
    end - left_out
}

pub(super) fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}
