//! Several updates of a member in one batch go out as one. What is only for its copy needs nothing of its own beside another
//! event, for a member is copied as it is.

use super::commit_gap::Ready;
use crate::event::record::Kind;
use std::collections::HashMap;

/// Of a member's consecutive updates only the newest is kept, with the oldest audience that was not told yet.
pub fn conflate(records: Vec<Ready>) -> Vec<Ready> {
    let mut kept: Vec<Option<Ready>> = Vec::with_capacity(records.len());
    let mut last: HashMap<u128, usize> = HashMap::new();
    for mut ready in records {
        let record = &mut ready.record;
        if record.kind == Kind::Quiet
            && let Some(earlier) = last.get(&record.hash).and_then(|place| kept[*place].as_mut())
        {
            earlier.positions.extend(ready.positions);
            continue;
        }
        let previous = last.insert(record.hash, kept.len()).filter(|_| record.kind != Kind::Room);
        if record.kind == Kind::Update
            && let Some(place) = previous
            && kept[place].as_ref().is_some_and(|earlier| earlier.record.kind == Kind::Update)
            && let Some(earlier) = kept[place].take()
        {
            record.revived |= earlier.record.revived;
            if earlier.record.old.is_some() {
                record.old = earlier.record.old;
                record.hidden_leave_version = earlier.record.hidden_leave_version;
            }
            ready.positions.extend(earlier.positions);
        }
        kept.push(Some(ready));
    }
    kept.into_iter().flatten().collect()
}
