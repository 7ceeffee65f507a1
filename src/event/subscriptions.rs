//! What this session listens to: for which rooms it has called `presence.listen`, and which of our channels it holds, whether
//! by `presence.listen` or by LISTEN.
//!
//! Holders of a channel are counted in shared memory: one that nobody holds is not notified. LISTEN and UNLISTEN take effect
//! with the commit, and count from then on: a listener lists after it. What a savepoint or a transaction takes back has
//! never counted.

use super::payload;
use super::savepoints::Savepoints;
use crate::extension;
use crate::shared::Database;
use crate::shared::channel_epochs::AsOf;
use crate::shared::subscriber_counts::{CountedAt, LENGTH, counted_at};
use pgrx::{pg_guard, pg_sys};
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::ffi::{CStr, CString, c_char};
use std::sync::atomic::Ordering::Acquire;

/// A channel name of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Name {
    /// Padded with zeros.
    text: [u8; LENGTH],
    counted_at: CountedAt,
}

impl Name {
    fn of(channel: &[u8]) -> Option<Name> {
        let counted_at = counted_at(channel)?;
        let mut text = [0; LENGTH];
        text[..channel.len()].copy_from_slice(channel);
        Some(Name { text, counted_at })
    }

    pub fn text(&self) -> &[u8] {
        let length = self.text.iter().position(|byte| *byte == 0).unwrap_or(LENGTH);
        &self.text[..length]
    }
}

/// What `presence.listen` opens channels for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    Room(Vec<u8>),
    AllRooms,
    /// Signals for a user, whatever they listen to.
    User(Vec<u8>),
}

/// This transaction's steps, for undoing them.
enum Done {
    Listen(Name),
    Unlisten(Name),
    /// With the names that were open for the target before.
    Open(Target, Vec<Name>),
}

#[derive(Default)]
struct Subscriptions {
    database: Option<&'static Database>,
    names: HashSet<Name>,
    opened: HashMap<Target, Vec<Name>>,
    /// For how many targets a name is open: rooms in one cell share some.
    uses: HashMap<Name, usize>,
    done: Vec<Done>,
    savepoints: Savepoints,
    /// The state of names under which this transaction opened channels, and the channel on which the user is told to
    /// listen again if it changed.
    opened_by: Vec<(AsOf, CString)>,
    /// Nesting level of savepoints; 1 means none.
    level: i32,
}

thread_local! {
    static SUBSCRIPTIONS: RefCell<Subscriptions> = RefCell::default();
    static AT_EXIT: Cell<bool> = const { Cell::new(false) };
}

/// Once for each process.
pub fn register_callbacks() {
    // SAFETY: the callbacks have the right signatures and live as long as the library.
    unsafe {
        pg_sys::RegisterXactCallback(Some(at_transaction_end), std::ptr::null_mut());
        pg_sys::RegisterSubXactCallback(Some(at_subtransaction_end), std::ptr::null_mut());
    }
}

/// This transaction listens to a channel. Other extensions' channels are ignored.
pub fn listen(channel: &[u8]) {
    if let Some(name) = Name::of(channel) {
        in_transaction(|holding| holding.listen(name));
    }
}

pub fn unlisten(channel: &[u8]) {
    if let Some(name) = Name::of(channel) {
        in_transaction(|holding| holding.unlisten(name));
    }
}

pub fn unlisten_all() {
    in_transaction(Subscriptions::unlisten_all);
}

/// From now on exactly these channels are open for the target. Returns those that were open and are not needed any
/// more.
pub fn open(target: Target, names: &[String]) -> Vec<Name> {
    let names = names.iter().filter_map(|name| Name::of(name.as_bytes())).collect();
    in_transaction(|holding| holding.open(target, names))
}

/// Opened under this state of names. If it has changed when the transaction is committed, the client is told on that
/// channel to listen again, because it has missed what the worker sent before.
pub fn opened(as_of: AsOf, channel: CString) {
    in_transaction(|holding| holding.opened_by.push((as_of, channel)));
}

fn in_transaction<T>(body: impl FnOnce(&mut Subscriptions) -> T) -> T {
    SUBSCRIPTIONS.with_borrow_mut(|holding| {
        // SAFETY: plain read of this process's state.
        holding.level = unsafe { pg_sys::GetCurrentTransactionNestLevel() };
        body(holding)
    })
}

impl Subscriptions {
    fn note(&mut self, done: Done) {
        self.savepoints.note(self.level, self.done.len());
        self.done.push(done);
    }

    fn listen(&mut self, name: Name) {
        if self.names.insert(name) {
            self.note(Done::Listen(name));
        }
    }

    fn unlisten(&mut self, name: Name) {
        if self.names.remove(&name) {
            self.note(Done::Unlisten(name));
        }
    }

    fn unlisten_all(&mut self) {
        for name in std::mem::take(&mut self.names) {
            self.note(Done::Unlisten(name));
        }
        for (target, names) in std::mem::take(&mut self.opened) {
            self.note(Done::Open(target, names));
        }
        self.uses.clear();
    }

    fn open(&mut self, target: Target, names: Vec<Name>) -> Vec<Name> {
        let before = self.set_open(&target, names);
        let unused = before.iter().filter(|name| !self.uses.contains_key(*name)).copied().collect();
        self.note(Done::Open(target, before));
        unused
    }

    /// Returns the names that were open before.
    fn set_open(&mut self, target: &Target, names: Vec<Name>) -> Vec<Name> {
        for name in &names {
            *self.uses.entry(*name).or_insert(0) += 1;
        }
        let before = match names.is_empty() {
            true => self.opened.remove(target),
            false => self.opened.insert(target.clone(), names),
        };
        let before = before.unwrap_or_default();
        for name in &before {
            if let Some(uses) = self.uses.get_mut(name) {
                *uses -= 1;
                if *uses == 0 {
                    self.uses.remove(name);
                }
            }
        }
        before
    }

    /// Everything that can fail, before commit.
    fn prepare(&mut self) {
        if self.done.is_empty() {
            return;
        }
        if self.database.is_none() {
            // SAFETY: set when the process connected to its database.
            let oid = unsafe { pg_sys::MyDatabaseId };
            // After a crash a client may be back before the worker. If there is no place for the database, nobody
            // notifies.
            let make = || extension::member_table().and_then(|_| Database::get(oid).ok());
            self.database = Database::find(oid).or_else(make);
        }
        if !AT_EXIT.replace(true) {
            // SAFETY: the callback has the right signature; registered once a process.
            unsafe { pg_sys::before_shmem_exit(Some(at_exit), pg_sys::Datum::from(0)) };
        }
    }

    fn commit(&mut self) {
        // If no names were ever made in this database, none is ours.
        let Some(database) = self.database else { return self.roll_back() };
        self.savepoints.clear();
        for done in self.done.drain(..) {
            match done {
                Done::Listen(name) => {
                    database.held.add(name.counted_at);
                    database.retired.ask(&name.text);
                }
                Done::Unlisten(name) => database.held.remove(name.counted_at),
                Done::Open(..) => {}
            }
        }
        // Check after they are counted: from then on the worker notifies them.
        let old = self.opened_by.drain(..).rfind(|(as_of, _)| !database.names.are_as_of(as_of));
        if let Some((_, channel)) = old {
            tell_client(database, &channel);
        }
    }

    fn roll_back(&mut self) {
        self.undo_from(0);
        self.opened_by.clear();
        self.savepoints.clear();
    }

    /// Undo the steps after this length.
    fn undo_from(&mut self, length: usize) {
        while self.done.len() > length {
            match self.done.pop() {
                Some(Done::Listen(name)) => drop(self.names.remove(&name)),
                Some(Done::Unlisten(name)) => drop(self.names.insert(name)),
                Some(Done::Open(target, names)) => drop(self.set_open(&target, names)),
                None => {}
            }
        }
    }
}

unsafe extern "C-unwind" {
    fn NotifyMyFrontEnd(channel: *const c_char, payload: *const c_char, sender: i32);
}

/// Notify this session's own client as if the worker had.
fn tell_client(database: &Database, channel: &CStr) {
    let payload = payload::relisten(database.seq.load(Acquire), None);
    let Ok(payload) = CString::new(payload) else { return };
    // SAFETY: C strings; a message of some hundred bytes to the client, if there is one, which no interrupt breaks off: they
    // are held while a transaction commits.
    unsafe {
        if pg_sys::whereToSendOutput == pg_sys::CommandDest::DestRemote {
            NotifyMyFrontEnd(channel.as_ptr(), payload.as_ptr(), database.worker.pid.load(Acquire));
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn at_transaction_end(
    event: pg_sys::XactEvent::Type,
    _argument: *mut std::ffi::c_void,
) {
    use pg_sys::XactEvent::*;
    SUBSCRIPTIONS.with_borrow_mut(|holding| match event {
        XACT_EVENT_PRE_COMMIT => holding.prepare(),
        XACT_EVENT_COMMIT => holding.commit(),
        XACT_EVENT_ABORT | XACT_EVENT_PREPARE => holding.roll_back(),
        _ => {}
    });
}

#[pg_guard]
unsafe extern "C-unwind" fn at_subtransaction_end(
    event: pg_sys::SubXactEvent::Type,
    _mine: pg_sys::SubTransactionId,
    _parent: pg_sys::SubTransactionId,
    _argument: *mut std::ffi::c_void,
) {
    // SAFETY: plain read of this process's state.
    let level = unsafe { pg_sys::GetCurrentTransactionNestLevel() };
    SUBSCRIPTIONS.with_borrow_mut(|holding| match event {
        pg_sys::SubXactEvent::SUBXACT_EVENT_COMMIT_SUB => holding.savepoints.release(level),
        pg_sys::SubXactEvent::SUBXACT_EVENT_ABORT_SUB => {
            if let Some(length) = holding.savepoints.roll_back(level) {
                holding.undo_from(length);
            }
        }
        _ => {}
    });
}

#[pg_guard]
unsafe extern "C-unwind" fn at_exit(_code: i32, _argument: pg_sys::Datum) {
    let mut holding = SUBSCRIPTIONS.take();
    // Open transactions never commit.
    holding.roll_back();
    if let Some(database) = holding.database {
        holding.names.iter().for_each(|name| database.held.remove(name.counted_at));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::savepoints::tests::{Step, steps};
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Act {
        Listen(u8),
        Unlisten(u8),
        UnlistenAll,
        Open(u8, Vec<u8>),
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            3 => (0..6u8).prop_map(Act::Listen),
            2 => (0..6u8).prop_map(Act::Unlisten),
            1 => Just(Act::UnlistenAll),
            4 => (0..3u8, prop::collection::vec(0..6u8, 0..4)).prop_map(|(room, names)| Act::Open(room, names)),
        ]
    }

    type State = (HashSet<Name>, HashMap<Target, Vec<Name>>, HashMap<Name, usize>);

    fn state(holding: &Subscriptions) -> State {
        (holding.names.clone(), holding.opened.clone(), holding.uses.clone())
    }

    proptest! {
        /// Compared with a stack of copies.
        #[test]
        fn what_is_rolled_back_never_was(steps in steps(act())) {
            let name = |number: u8| Name { text: [number; LENGTH], counted_at: CountedAt::of_hash(0) };
            let (mut holding, mut copies) = (Subscriptions::default(), vec![state(&Subscriptions::default())]);
            for step in steps {
                holding.level = copies.len() as i32;
                match step {
                    Step::Do(Act::Listen(number)) => holding.listen(name(number)),
                    Step::Do(Act::Unlisten(number)) => holding.unlisten(name(number)),
                    Step::Do(Act::UnlistenAll) => holding.unlisten_all(),
                    Step::Do(Act::Open(room, names)) => {
                        let before = holding.uses.clone();
                        let unused = holding.open(Target::Room(vec![room]), names.into_iter().map(name).collect());
                        prop_assert!(unused.iter().all(|name| before.contains_key(name)));
                        let is_split = |name| unused.contains(name) != holding.uses.contains_key(name);
                        prop_assert!(before.keys().all(is_split));
                    }
                    Step::Savepoint => copies.push(state(&holding)),
                    Step::Release if copies.len() > 1 => {
                        copies.pop();
                        holding.savepoints.release(holding.level);
                    }
                    Step::RollBack if copies.len() > 1 => {
                        if let Some(length) = holding.savepoints.roll_back(holding.level) {
                            holding.undo_from(length);
                        }
                        prop_assert_eq!(Some(state(&holding)), copies.pop());
                    }
                    Step::Release | Step::RollBack => {}
                }
            }
            holding.roll_back();
            prop_assert_eq!(state(&holding), state(&Subscriptions::default()));
        }
    }
}
