//! The channels that must get new names if a transaction's events are lost: nobody will publish its leaves, which would have
//! revoked the names, nor its requests to rotate.

use super::channel::{knower, present_cell, rotated_with};
use super::image::Field;
use super::net_effect::{Change, What};
use super::record::Kind;
use crate::extension::Extension;
use crate::shared::channel_epochs::{Cell, ChannelEpochs};
use std::collections::{HashMap, HashSet};

/// Bounded, so it also keeps what was rolled back to a savepoint: at worst a needless rotation.
#[derive(Default)]
pub struct Loss {
    /// Who left, by cell, as `channel_epochs` records users: one bit for each of 64 classes.
    left: HashMap<Cell, u64>,
    wishes: HashSet<Cell>,
    wish_for_all: bool,
}

impl Loss {
    /// This change's event may be lost.
    pub fn note(&mut self, extension: &Extension, change: &Change) {
        let field = |field| change.image.get(field).unwrap_or_default();
        match &change.what {
            What::Leave { .. } => self.left(extension, field(Field::UserId), field(Field::Room)),
            What::Update { old: Some(old), .. } => {
                let before = old.get(Field::UserId).unwrap_or_default();
                if before != field(Field::UserId) {
                    self.left(extension, before, field(Field::Room));
                }
            }
            What::Signal { kind: Kind::Rotate, .. } => match change.image.get(Field::Room) {
                Some(room) => self.wishes.extend(rotated_with(extension, room)),
                None => self.wish_for_all = true,
            },
            _ => {}
        }
    }

    fn left(&mut self, extension: &Extension, user_id: &[u8], room: &[u8]) {
        let knower = knower(extension, user_id, room);
        *self.left.entry(present_cell(extension, room)).or_default() |= 1 << (knower % 64);
    }

    /// The events are lost. Neither fails nor blocks.
    pub fn rotate(&self, names: &ChannelEpochs) {
        if self.wish_for_all {
            names.want_all();
        }
        self.wishes.iter().for_each(|cell| names.want(*cell));
        for (cell, users) in &self.left {
            if (0..64).any(|bit| users & 1 << bit != 0 && names.knows(*cell, bit)) {
                names.want(*cell);
            }
        }
    }

    pub fn clear(&mut self) {
        self.left.clear();
        self.wishes.clear();
        self.wish_for_all = false;
    }
}
