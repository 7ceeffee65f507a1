//! The file that a clean stop leaves, as bytes. It does not know shared memory, so its tests run without a server.
//!
//! A file is read whole or not at all: a checksum stands in front, for what is half written or rotten would bring back
//! ghosts at best.

use crate::event::record::Record;
use siphasher::sip::SipHasher13;
use std::hash::Hasher;

/// Identifies the file and its format: a library with another format does not read it.
const MAGIC: u64 = 0x5052_4553_4e43_0002;
/// Versions before 0.3.0 stored a number here. A library must read the file of the one before it.
const UNUSED: u64 = 0;

#[derive(Debug, Default, PartialEq)]
pub struct Saved {
    pub next_version: u64,
    /// Wall clock at the stop.
    pub stopped_at: i64,
    pub databases: Vec<SavedDatabase>,
    pub leases: Vec<SavedLease>,
    /// Missing in versions before 0.3.0.
    pub names: Option<SavedNames>,
}

/// Names of channels, and who may hear them.
#[derive(Debug, Default, PartialEq)]
pub struct SavedNames {
    /// Identifies the stop: the names are valid only for the start after it.
    pub stop: u64,
    /// For each database, in order.
    pub databases: Vec<SavedChannels>,
}

#[derive(Debug, Default, PartialEq)]
pub struct SavedChannels {
    pub names: Vec<u64>,
    pub retired: Vec<u64>,
    pub rights: Vec<u64>,
    pub authorizer: u64,
    pub told: u64,
}

#[derive(Debug, Default, PartialEq)]
pub struct SavedDatabase {
    pub index: u64,
    pub oid: u32,
    pub seq: u64,
    pub log_floor: u64,
    pub must_resync: bool,
    /// Not published yet.
    pub records: Vec<Record>,
}

#[derive(Debug, Default, PartialEq)]
pub struct SavedLease {
    /// The database's index.
    pub database: u64,
    pub relation: u32,
    pub hash: u128,
    /// Remaining time of the lease at the stop; 0 if it had ended, `NEVER` if it has no deadline.
    pub left: u64,
    pub ttl: u64,
    pub version: u64,
    pub generation: u64,
    pub owner: u64,
    pub session: u64,
}

impl Saved {
    /// Numbers are little endian, and lists are preceded by their length.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        let put = |body: &mut Vec<u8>, numbers: &[u64]| {
            numbers.iter().for_each(|number| body.extend(number.to_le_bytes()));
        };
        put(&mut body, &[self.next_version, self.stopped_at as u64, self.databases.len() as u64]);
        for database in &self.databases {
            let (oid, must_resync) = (database.oid as u64, database.must_resync as u64);
            put(&mut body, &[database.index, oid, UNUSED, database.seq, database.log_floor, must_resync]);
            let mut records = Vec::new();
            database.records.iter().for_each(|record| record.encode(&mut records));
            put(&mut body, &[records.len() as u64]);
            body.extend(records);
        }
        put(&mut body, &[self.leases.len() as u64]);
        for lease in &self.leases {
            let hash = [(lease.hash >> 64) as u64, lease.hash as u64];
            put(&mut body, &[lease.database, lease.relation as u64, hash[0], hash[1], lease.left, lease.ttl]);
            put(&mut body, &[lease.version, lease.generation, lease.owner, lease.session]);
        }
        if let Some(names) = &self.names {
            put(&mut body, &[names.stop]);
            for database in &names.databases {
                put(&mut body, &[database.authorizer, database.told]);
                for numbers in [&database.names, &database.retired, &database.rights] {
                    put(&mut body, &[numbers.len() as u64]);
                    put(&mut body, numbers);
                }
            }
        }
        let mut bytes = Vec::with_capacity(body.len() + 16);
        put(&mut bytes, &[MAGIC, checksum(&body)]);
        bytes.extend(body);
        bytes
    }

    /// None if the file is not ours, has another format, or is damaged.
    pub fn decode(bytes: &[u8]) -> Option<Saved> {
        let mut reader = Reader(bytes);
        if reader.number()? != MAGIC || reader.number()? != checksum(reader.0) {
            return None;
        }
        let mut saved =
            Saved { next_version: reader.number()?, stopped_at: reader.number()? as i64, ..Saved::default() };
        for _ in 0..reader.number()? {
            let (index, oid, _) = (reader.number()?, reader.number()? as u32, reader.number()?);
            saved.databases.push(SavedDatabase {
                index,
                oid,
                seq: reader.number()?,
                log_floor: reader.number()?,
                must_resync: reader.number()? != 0,
                records: reader.records()?,
            });
        }
        for _ in 0..reader.number()? {
            saved.leases.push(SavedLease {
                database: reader.number()?,
                relation: reader.number()? as u32,
                hash: (reader.number()? as u128) << 64 | reader.number()? as u128,
                left: reader.number()?,
                ttl: reader.number()?,
                version: reader.number()?,
                generation: reader.number()?,
                owner: reader.number()?,
                session: reader.number()?,
            });
        }
        if !reader.0.is_empty() {
            let mut names = SavedNames { stop: reader.number()?, databases: Vec::new() };
            for _ in &saved.databases {
                let (authorizer, told) = (reader.number()?, reader.number()?);
                let mut list = || reader.numbers();
                let (channels, retired, rights) = (list()?, list()?, list()?);
                let channels = SavedChannels { names: channels, retired, rights, authorizer, told };
                names.databases.push(channels);
            }
            saved.names = Some(names);
        }
        reader.0.is_empty().then_some(saved)
    }
}

fn checksum(bytes: &[u8]) -> u64 {
    let mut hasher = SipHasher13::new();
    hasher.write(bytes);
    hasher.finish()
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn number(&mut self) -> Option<u64> {
        let (head, rest) = self.0.split_first_chunk::<8>()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*head))
    }

    fn numbers(&mut self) -> Option<Vec<u64>> {
        let count = self.number()?;
        (0..count).map(|_| self.number()).collect()
    }

    fn records(&mut self) -> Option<Vec<Record>> {
        let length = self.number()? as usize;
        let (mut bytes, rest) = (self.0.get(..length)?, self.0.get(length..)?);
        self.0 = rest;
        let mut records = Vec::new();
        while !bytes.is_empty() {
            let (record, length) = Record::decode_first(bytes)?;
            bytes = &bytes[length..];
            records.push(record);
        }
        Some(records)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::record::strategies;
    use proptest::collection::vec;
    use proptest::prelude::*;

    prop_compose! {
        fn database()(index in any::<u64>(), oid in any::<u32>(), seq in any::<u64>(),
                      log_floor in any::<u64>(), must_resync in any::<bool>(), records in vec(strategies::record(), 0..4))
                     -> SavedDatabase {
            SavedDatabase { index, oid, seq, log_floor, must_resync, records }
        }
    }

    prop_compose! {
        fn lease()(database in any::<u64>(), relation in any::<u32>(), hash in any::<u128>(), numbers in any::<[u64; 6]>())
                  -> SavedLease {
            let [left, ttl, version, generation, owner, session] = numbers;
            SavedLease { database, relation, hash, left, ttl, version, generation, owner, session }
        }
    }

    prop_compose! {
        fn channels()(lists in vec(vec(any::<u64>(), 0..5), 3), authorizer in any::<u64>(), told in any::<u64>())
                     -> SavedChannels {
            let [names, retired, rights] = std::array::from_fn(|at| lists[at].clone());
            SavedChannels { names, retired, rights, authorizer, told }
        }
    }

    prop_compose! {
        fn saved()(next_version in any::<u64>(), stopped_at in any::<i64>(), databases in vec(database(), 0..4),
                   leases in vec(lease(), 0..8), stop in proptest::option::of(any::<u64>()),
                   channels in vec(channels(), 4)) -> Saved {
            let channels = channels.into_iter().take(databases.len()).collect();
            let names = stop.map(|stop| SavedNames { stop, databases: channels });
            Saved { next_version, stopped_at, databases, leases, names }
        }
    }

    /// With a valid checksum, so that the decoder itself is tested.
    fn sealed(body: &[u8]) -> Vec<u8> {
        [&MAGIC.to_le_bytes(), &checksum(body).to_le_bytes(), body].concat()
    }

    proptest! {
        #[test]
        fn decode_reads_what_encode_wrote(saved in saved()) {
            prop_assert_eq!(Saved::decode(&saved.encode()), Some(saved));
        }

        #[test]
        fn a_damaged_file_is_no_file(saved in saved(), at in any::<prop::sample::Index>(), with in 1..=255u8, cut in any::<bool>()) {
            let mut bytes = saved.encode();
            let at = at.index(bytes.len());
            if cut { bytes.truncate(at) } else { bytes[at] ^= with }
            prop_assert_eq!(Saved::decode(&bytes), None);
        }

        #[test]
        fn no_bytes_make_it_panic(body in vec(prop_oneof![0..3u8, any::<u8>()], 0..600)) {
            let _ = (Saved::decode(&body), Saved::decode(&sealed(&body)));
        }

        /// Somebody who knows the format changes single numbers.
        #[test]
        fn no_forged_file_makes_it_panic(
            saved in saved(), changes in vec((any::<prop::sample::Index>(), prop_oneof![Just(u64::MAX), Just(1 << 63), 0..99u64]), 1..4),
        ) {
            let mut body = saved.encode().split_off(16);
            for (at, number) in changes {
                let at = at.index(body.len() / 8) * 8;
                body[at..at + 8].copy_from_slice(&number.to_le_bytes());
            }
            if let Some(decoded) = Saved::decode(&sealed(&body)) {
                prop_assert!(decoded.encode().len() <= body.len() + 16, "it made up what was not there");
            }
        }
    }
}
