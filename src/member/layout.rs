//! Where a descriptor has the columns of `presence.member`: that of the table, or of a query for its columns.

use super::column::{COLUMNS, LATER, OLDEST, TYPES};
use crate::error::{Error, Result};
use crate::pg::datum::{attribute, begins_with};
use pgrx::pg_sys::{self, Datum};
use std::ffi::CStr;

/// A descriptor with our columns. Others may follow.
#[derive(Clone, Copy)]
pub struct Layout {
    descriptor: pg_sys::TupleDesc,
    /// The places of the later columns that exist.
    later: [Option<usize>; LATER.len()],
}

impl Layout {
    /// # Safety
    /// A descriptor, which lives as long as rows are read with it.
    pub unsafe fn of(descriptor: pg_sys::TupleDesc) -> Result<Layout> {
        // SAFETY: the caller's promise.
        unsafe {
            if !begins_with(descriptor, &TYPES[..OLDEST]) {
                return Err(Error::TooManyColumns);
            }
            Ok(Layout { descriptor, later: std::array::from_fn(|at| place(descriptor, at)) })
        }
    }

    pub fn descriptor(&self) -> pg_sys::TupleDesc {
        self.descriptor
    }

    pub fn width(&self) -> usize {
        // SAFETY: the descriptor of `of`.
        unsafe { (*self.descriptor).natts as usize }
    }

    /// Whether it has all of our columns and no others.
    pub fn is_ours_alone(&self) -> bool {
        self.width() == COLUMNS
            && self.later.iter().enumerate().all(|(at, place)| *place == Some(OLDEST + at))
    }

    /// For each existing column of ours: its number, and its place.
    pub fn places(&self) -> impl Iterator<Item = (usize, usize)> {
        let later = self.later.into_iter().enumerate();
        let later = later.filter_map(|(at, place)| place.map(|place| (OLDEST + at, place)));
        (0..OLDEST).map(|at| (at, at)).chain(later)
    }

    /// # Safety
    /// `tuple` is one of this layout.
    pub unsafe fn deform(
        &self,
        tuple: pg_sys::HeapTuple,
        values: &mut [Datum; COLUMNS],
        nulls: &mut [bool; COLUMNS],
    ) {
        // SAFETY: the caller's promise; there is room for all columns.
        unsafe {
            if self.is_ours_alone() {
                return pg_sys::heap_deform_tuple(
                    tuple,
                    self.descriptor,
                    values.as_mut_ptr(),
                    nulls.as_mut_ptr(),
                );
            }
            let mut all_values = vec![Datum::from(0); self.width()];
            let mut all_nulls = vec![true; self.width()];
            pg_sys::heap_deform_tuple(
                tuple,
                self.descriptor,
                all_values.as_mut_ptr(),
                all_nulls.as_mut_ptr(),
            );
            for (column, place) in self.places() {
                (values[column], nulls[column]) = (all_values[place], all_nulls[place]);
            }
        }
    }

    /// The same tuple with these values in our columns.
    ///
    /// # Safety
    /// `tuple` is one of this layout, or null: then what is not ours is NULL. The values are of the columns' types.
    pub unsafe fn form(
        &self,
        tuple: pg_sys::HeapTuple,
        values: &mut [Datum; COLUMNS],
        nulls: &mut [bool; COLUMNS],
    ) -> pg_sys::HeapTuple {
        // SAFETY: the caller's promise; values and nulls have a place for each column.
        unsafe {
            if self.is_ours_alone() {
                return pg_sys::heap_form_tuple(self.descriptor, values.as_mut_ptr(), nulls.as_mut_ptr());
            }
            let mut all_values = vec![Datum::from(0); self.width()];
            let mut all_nulls = vec![true; self.width()];
            let mut ours = vec![false; self.width()];
            for (column, place) in self.places() {
                (all_values[place], all_nulls[place]) = (values[column], nulls[column]);
                ours[place] = true;
            }
            if tuple.is_null() {
                return pg_sys::heap_form_tuple(
                    self.descriptor,
                    all_values.as_mut_ptr(),
                    all_nulls.as_mut_ptr(),
                );
            }
            pg_sys::heap_modify_tuple(
                tuple,
                self.descriptor,
                all_values.as_mut_ptr(),
                all_nulls.as_mut_ptr(),
                ours.as_mut_ptr(),
            )
        }
    }
}

/// The place of a later column in a descriptor: usually its own.
///
/// # Safety
/// A descriptor.
unsafe fn place(descriptor: pg_sys::TupleDesc, at: usize) -> Option<usize> {
    // SAFETY: the caller's promise; no more attributes are looked at than there are, and their names are terminated.
    unsafe {
        let width = (*descriptor).natts as usize;
        let is_it = |place: &usize| {
            let column = &*attribute(descriptor, *place as i32);
            column.atttypid == TYPES[OLDEST + at]
                && !column.attisdropped
                && CStr::from_ptr(column.attname.data.as_ptr()) == LATER[at]
        };
        Some(OLDEST + at)
            .filter(|place| *place < width && is_it(place))
            .or_else(|| (OLDEST..width).find(is_it))
    }
}
