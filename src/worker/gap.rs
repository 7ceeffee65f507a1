//! Which records of the ring may be published: the commit gap (protocol 1 of docs/internals.md), and conflation.

use super::process;
use crate::error::Result;
use crate::event::record::{Kind, Record};
use crate::extension::Extension;
use crate::shared::processes;
use pgrx::pg_sys;
use std::collections::HashMap;
use std::sync::atomic::Ordering::*;

/// Records that may be published, oldest version first, with their places in the ring.
pub struct Ready {
    pub records: Vec<Record>,
    pub positions: Vec<u64>,
}

/// What the current snapshot says is over, from the ring. None: the commit gap is occupied.
pub fn ready_records(extension: &Extension) -> Result<Option<Ready>> {
    // SAFETY: `transaction` has pushed a snapshot.
    let snapshot = unsafe { pg_sys::GetActiveSnapshot() };
    // 0 is the mark of a record that no transaction stands behind: from before the start, or a wish to rotate.
    let is_over = |xid: u32| {
        // SAFETY: a valid snapshot.
        xid == 0 || !unsafe { pg_sys::XidInMVCCSnapshot(pg_sys::TransactionId::from(xid), snapshot) }
    };
    let in_gap = |process: &crate::shared::Process| {
        let xid = process.committing.load(SeqCst);
        xid != 0 && process.database.load(Relaxed) == extension.database_index && is_over(xid)
    };
    for process in processes() {
        // The gap is some microseconds of copying memory, unless that backend has no processor.
        let mut turns = 0;
        while in_gap(process) {
            if turns == 200 {
                return Ok(None);
            }
            turns += 1;
            std::thread::sleep(std::time::Duration::from_micros(if turns < 20 { 10 } else { 100 }));
            process::interrupts();
        }
    }
    let ring = extension.database.ring();
    let all = ring.read(ring.tail.load(Acquire), ring.head.load(Acquire));
    let mut ready: Vec<(u64, Record)> = Vec::new();
    for (position, bytes) in all {
        // The table is locked: what is of another one is of an extension that was dropped.
        match Record::decode(&bytes).filter(|record| record.relation == u32::from(extension.member)) {
            Some(record) if is_over(record.xid) => ready.push((position, record)),
            Some(_) => {}
            None => ring.mark_done(position),
        }
    }
    ring.advance();
    ready.sort_by_key(|(_, record)| record.version);
    let (positions, records) = ready.into_iter().unzip();
    Ok(Some(Ready { records, positions }))
}

/// Of several updates of a member in a row only the newest goes out, with the oldest audience that has not heard.
pub fn conflate(records: Vec<Record>) -> Vec<Record> {
    let mut kept: Vec<Option<Record>> = Vec::with_capacity(records.len());
    let mut last: HashMap<u128, usize> = HashMap::new();
    for mut record in records {
        let previous = last.insert(record.hash, kept.len()).filter(|_| record.kind != Kind::Room);
        if record.kind == Kind::Update
            && let Some(place) = previous
            && kept[place].as_ref().is_some_and(|earlier| earlier.kind == Kind::Update)
            && let Some(earlier) = kept[place].take()
        {
            record.back |= earlier.back;
            if earlier.old.is_some() {
                record.old = earlier.old;
                record.hidden_version = earlier.hidden_version;
            }
        }
        kept.push(Some(record));
    }
    kept.into_iter().flatten().collect()
}
