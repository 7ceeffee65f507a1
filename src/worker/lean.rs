//! Events that were put in the ring without state and metadata, because there was no room for these.

use crate::error::Result;
use crate::event::image::Field;
use crate::event::record::{Kind, Record};
use crate::extension::Extension;
use crate::member::column::Column;
use crate::member::scan;
use pgrx::pg_sys;

/// A lean record of a live member gets its state and metadata from the row. If the row is now visible to others, or the
/// member has left, another event follows that says so, and this one is published as truncated.
pub fn complete(extension: &Extension, record: &mut Record) -> Result<()> {
    if !matches!(record.kind, Kind::Enter | Kind::Update) || !record.image.is_lean() {
        return Ok(());
    }
    // SAFETY: a snapshot is active in the transaction of a batch.
    let snapshot = unsafe { pg_sys::GetActiveSnapshot() };
    let Some(row) = scan::by_key(extension, &extension.key_of(record.hash), snapshot)? else { return Ok(()) };
    let is_seen_alike = row.text(Column::UserId) == record.image.get(Field::UserId)
        && row.varlena(Column::Audience) == record.image.get(Field::Audience);
    if is_seen_alike && row.number(Column::Generation) == record.generation {
        record.image = row.image(None);
    }
    Ok(())
}
