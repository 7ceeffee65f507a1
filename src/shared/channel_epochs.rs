//! Epochs of channels: part of each channel's name, so that a new epoch is a new name. Which epoch each room's channels have,
//! and which are to get a new one. In shared memory, so that nothing of it is forgotten when a worker dies; a clean restart
//! keeps it (`shared::persistence`). Only the worker renews; it marks what is
//! to be renewed, and so does a commit whose own leaves found no room in the buffer (`event::overflow`). Everybody reads.
//!
//! Rooms share epochs by hash, some in a cell: those who listen to any of them are told when the names of the cell change.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::*};

const CELLS: usize = 1 << 12;

/// A set of channels that get new names together. A room's two cells have the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Cell {
    /// The channels of rooms: `rotate_channels(room)`.
    Room(u32),
    /// The channels of those present in rooms: they get new names when somebody leaves who was given them.
    Present(u32),
}

impl Cell {
    /// The channels for all rooms, treated as one more room. (A multiple of 64, for the tables of bits.)
    pub const ALL_ROOMS: Cell = Cell::Room(CELLS as u32);

    pub fn of_room(hash: u64) -> Cell {
        Cell::Room((hash % CELLS as u64) as u32)
    }

    pub fn of_present(hash: u64) -> Cell {
        Cell::Present((hash % CELLS as u64) as u32)
    }
}

/// A renewal of names, effective from a commit on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// Of all channels: fulfils these requests.
    All(u64),
    Of(Cell),
}

#[repr(C)]
pub struct ChannelEpochs {
    /// Random, and part of every name: names that are not kept over a restart differ from all earlier ones. So do those
    /// of a database that is a copy of another.
    boot: AtomicU64,
    /// Of all channels.
    epoch: AtomicU32,
    /// The number of requests for new names of all channels, and how many of them are fulfilled.
    wanted: AtomicU64,
    fulfilled: AtomicU64,
    rooms: Cells,
    present: Cells,
    /// For each cell of those present: who was given its names, by hash, since they were renewed.
    knowers: [AtomicU64; CELLS],
    /// Incremented before and after names change, so it is odd meanwhile.
    changes: AtomicU64,
    /// How often users were told that their set of rooms changed, by hash.
    moves: [AtomicU32; CELLS],
}

/// The state of names when a user asked for theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AsOf {
    changes: u64,
    user: u64,
    moves: u32,
}

#[repr(C)]
struct Cells {
    epochs: [AtomicU32; CELLS + 1],
    /// New names are requested: until then the old ones carry doorbells only.
    stale: [AtomicU64; CELLS / 64 + 1],
}

impl ChannelEpochs {
    pub fn boot(&self) -> u64 {
        self.boot.load(Acquire)
    }

    /// Begin: nobody knows a name yet.
    pub fn begin(&self, boot: u64) {
        self.boot.store(boot, Release);
    }

    pub fn epoch(&self) -> u32 {
        self.epoch.load(Acquire)
    }

    pub fn epoch_of(&self, cell: Cell) -> u32 {
        let (cells, number) = self.cells(cell);
        cells.epochs[number].load(Acquire)
    }

    /// Request new names of all channels, because somebody may know names who must not. Neither fails nor blocks.
    pub fn want_all(&self) {
        self.wanted.fetch_add(1, AcqRel);
    }

    /// Whether new names of all channels are requested, and by how many requests.
    pub fn wants_all(&self) -> Option<u64> {
        let wanted = self.wanted.load(Acquire);
        (wanted > self.fulfilled.load(Acquire)).then_some(wanted)
    }

    /// Request new names for the cell.
    pub fn want(&self, cell: Cell) {
        let (cells, number) = self.cells(cell);
        cells.stale[number / 64].fetch_or(1 << (number % 64), AcqRel);
    }

    pub fn wants(&self, cell: Cell) -> bool {
        let (cells, number) = self.cells(cell);
        cells.stale[number / 64].load(Acquire) & 1 << (number % 64) != 0
    }

    /// The cells for which new names are requested.
    pub fn wanted(&self) -> impl Iterator<Item = Cell> + '_ {
        let rooms = self.rooms.wanted().map(Cell::Room);
        rooms.chain(self.present.wanted().map(Cell::Present))
    }

    /// A user (by hash) is about to be given names of those present in this cell.
    pub fn note_knower(&self, cell: Cell, hash: u64) {
        let (_, number) = self.cells(cell);
        self.knowers[number].fetch_or(1 << (hash % 64), SeqCst);
    }

    /// Whether a user was given names of this cell; there are false positives.
    pub fn knows(&self, cell: Cell, hash: u64) -> bool {
        let (_, number) = self.cells(cell);
        self.knowers[number].load(SeqCst) & 1 << (hash % 64) != 0
    }

    /// A user (by hash) is about to be told that their set of rooms changed.
    pub fn moved(&self, user: u64) {
        self.moves[user as usize % CELLS].fetch_add(1, SeqCst);
    }

    pub fn as_of(&self, user: u64) -> AsOf {
        let moves = self.moves[user as usize % CELLS].load(SeqCst);
        AsOf { changes: self.changes.load(SeqCst), user, moves }
    }

    /// Whether the same user would get the same names now.
    pub fn are_as_of(&self, then: &AsOf) -> bool {
        self.as_of(then.user) == *then
    }

    /// Do something under unchanged names; it is repeated if they change meanwhile.
    pub fn read<T, E>(&self, mut body: impl FnMut() -> Result<T, E>) -> Result<T, E> {
        loop {
            let before = self.changes.load(SeqCst);
            let value = body()?;
            if before.is_multiple_of(2) && before == self.changes.load(SeqCst) {
                return Ok(value);
            }
        }
    }

    pub fn renew(&self, renewal: Renewal) {
        self.changes.fetch_add(1, SeqCst);
        match renewal {
            Renewal::All(wishes) => {
                self.knowers.iter().for_each(|knowers| knowers.store(0, SeqCst));
                self.epoch.fetch_add(1, AcqRel);
                self.fulfilled.fetch_max(wishes, AcqRel);
                self.forget();
            }
            Renewal::Of(cell) => {
                let (cells, number) = self.cells(cell);
                if let Cell::Present(_) = cell {
                    self.knowers[number].store(0, SeqCst);
                }
                cells.epochs[number].fetch_add(1, AcqRel);
                cells.stale[number / 64].fetch_and(!(1 << (number % 64)), AcqRel);
            }
        }
        self.changes.fetch_add(1, SeqCst);
    }

    /// Nobody listens any more to the channels of these requests.
    pub fn forget(&self) {
        for cells in [&self.rooms, &self.present] {
            cells.stale.iter().for_each(|word| word.store(0, Release));
        }
    }

    /// The state for the next start.
    pub fn save(&self) -> Vec<u64> {
        let wants_all = self.wants_all().is_some().into();
        let kinds = [&self.rooms, &self.present];
        let epochs = kinds.iter().flat_map(|cells| &cells.epochs).map(|epoch| epoch.load(Acquire).into());
        let words = kinds.iter().flat_map(|cells| &cells.stale).chain(&self.knowers);
        let words = words.map(|word| word.load(Acquire));
        [self.boot(), self.epoch().into(), wants_all].into_iter().chain(epochs).chain(words).collect()
    }

    /// Restore into fresh memory. False: these numbers are not from `save`, and nothing is changed.
    pub fn restore(&self, saved: &[u64]) -> bool {
        let kinds = [&self.rooms, &self.present];
        let epochs: Vec<&AtomicU32> = kinds.iter().flat_map(|cells| &cells.epochs).collect();
        let words: Vec<&AtomicU64> =
            kinds.iter().flat_map(|cells| &cells.stale).chain(&self.knowers).collect();
        let Some((&[boot, epoch, wants_all], cells)) = saved.split_first_chunk() else { return false };
        if cells.len() != epochs.len() + words.len() {
            return false;
        }
        let (saved_epochs, saved_words) = cells.split_at(epochs.len());
        self.begin(boot);
        self.epoch.store(epoch as u32, Release);
        if wants_all != 0 {
            self.want_all();
        }
        epochs.into_iter().zip(saved_epochs).for_each(|(epoch, saved)| epoch.store(*saved as u32, Release));
        words.into_iter().zip(saved_words).for_each(|(word, saved)| word.store(*saved, Release));
        true
    }

    fn cells(&self, cell: Cell) -> (&Cells, usize) {
        match cell {
            Cell::Room(number) => (&self.rooms, number as usize),
            Cell::Present(number) => (&self.present, number as usize),
        }
    }
}

impl Cells {
    fn wanted(&self) -> impl Iterator<Item = u32> + '_ {
        // Asked after each batch, and nearly always all are zero.
        let words = self.stale.iter().map(|word| word.load(Acquire)).enumerate();
        words.filter(|(_, word)| *word != 0).flat_map(|(at, mut left)| {
            std::iter::from_fn(move || {
                let bit = left.trailing_zeros();
                left &= left.wrapping_sub(1);
                (bit < 64).then(|| at as u32 * 64 + bit)
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Box<ChannelEpochs> {
        // SAFETY: zero is a valid value of all atomics.
        unsafe { Box::new(std::mem::zeroed()) }
    }

    #[test]
    fn a_cell_is_stale_until_it_has_new_names() {
        let names = names();
        let (room, present) = (Cell::of_room(4_096 + 70), Cell::of_present(70));
        names.want(present);
        assert_eq!(names.wanted().collect::<Vec<_>>(), [present]);
        assert!(names.wants(present) && !names.wants(room));
        names.want(room);
        names.renew(Renewal::Of(present));
        assert_eq!(names.wanted().collect::<Vec<_>>(), [room]);
        assert_eq!((names.epoch_of(present), names.epoch_of(room), names.epoch()), (1, 0, 0));
    }

    #[test]
    fn nobody_knows_new_names() {
        let names = names();
        let (one, other) = (Cell::of_present(1), Cell::of_present(2));
        for cell in [one, other] {
            names.note_knower(cell, 70);
        }
        assert!(names.knows(one, 6) && !names.knows(one, 7));
        names.renew(Renewal::Of(one));
        assert!(!names.knows(one, 70) && names.knows(other, 70));
        names.renew(Renewal::All(0));
        assert!(!names.knows(other, 70));
    }

    #[test]
    fn what_is_saved_is_restored() {
        let before = names();
        before.begin(7);
        before.renew(Renewal::All(0));
        let (room, present, other) = (Cell::of_room(4_095), Cell::of_present(3), Cell::of_present(64));
        [room, present].into_iter().for_each(|cell| before.renew(Renewal::Of(cell)));
        [room, other].into_iter().for_each(|cell| before.want(cell));
        before.note_knower(present, 70);
        before.want_all();
        let after = names();
        assert!(after.restore(&before.save()));
        assert_eq!((after.boot(), after.epoch()), (7, 1));
        assert_eq!([room, present, other].map(|cell| after.epoch_of(cell)), [1, 1, 0]);
        assert_eq!([room, present, other].map(|cell| after.wants(cell)), [true, false, true]);
        assert!(after.knows(present, 70) && !after.knows(other, 70) && after.wants_all().is_some());
        assert_eq!(after.save(), before.save());
        let fresh = names();
        for other in [&before.save()[1..], &[7], &[]] {
            assert!(!fresh.restore(other));
        }
        assert_eq!(fresh.save(), names().save());
    }

    #[test]
    fn names_are_old_when_they_change_or_their_user_moves() {
        let names = names();
        let then = names.as_of(3);
        names.moved(4);
        assert!(names.are_as_of(&then));
        names.moved(3);
        assert!(!names.are_as_of(&then));
        let then = names.as_of(3);
        names.renew(Renewal::Of(Cell::of_room(9)));
        assert!(!names.are_as_of(&then));
    }

    #[test]
    fn names_that_change_while_one_reads_are_read_again() {
        let names = names();
        let mut turns = 0;
        let read = names.read(|| {
            turns += 1;
            if turns == 1 {
                names.renew(Renewal::All(0));
            }
            Ok::<_, ()>(names.epoch())
        });
        assert_eq!((read, turns), (Ok(1), 2));
    }

    #[test]
    fn new_names_for_all_fulfil_what_was_wanted_before() {
        let names = names();
        names.want(Cell::of_room(1));
        names.want_all();
        names.want_all();
        let wishes = names.wants_all().expect("wishes");
        names.want_all();
        names.renew(Renewal::All(wishes));
        assert_eq!(names.wanted().count(), 0);
        assert!(names.wants_all().is_some(), "one came later");
        names.renew(Renewal::All(wishes + 1));
        assert_eq!((names.wants_all(), names.epoch()), (None, 2));
    }
}
