//! Functions that SQL calls: the door between PostgreSQL's calling convention and ours.
//!
//! The SQL side of every function (names, defaults, comment) is written in `sql/*.sql`; here is its body. We take
//! arguments as PostgreSQL has them, because names may be in any encoding and jsonb should pass through untouched.

use super::datum::{Texts, bytes_in, hash_of, interval_of, text_in, texts_of};
use crate::error::{Error, Result};
use pgrx::PgMemoryContexts;
use pgrx::pg_sys::ffi::pg_guard_ffi_boundary;
use pgrx::pg_sys::{self, Datum, Oid};
use std::marker::PhantomData;

/// Define a C function for SQL: `sql_function!(presence_heartbeat, presence_heartbeat_info, heartbeat);`
#[macro_export]
macro_rules! sql_function {
    ($symbol:ident, $info:ident, $body:expr) => {
        #[doc(hidden)]
        #[unsafe(no_mangle)]
        pub extern "C" fn $info() -> &'static pgrx::pg_sys::Pg_finfo_record {
            static INFO: pgrx::pg_sys::Pg_finfo_record = pgrx::pg_sys::Pg_finfo_record { api_version: 1 };
            &INFO
        }

        #[doc(hidden)]
        #[pgrx::pg_guard]
        #[unsafe(no_mangle)]
        pub unsafe extern "C-unwind" fn $symbol(call: pgrx::pg_sys::FunctionCallInfo) -> pgrx::pg_sys::Datum {
            let body: fn(&$crate::pg::function::Call) -> $crate::error::Result<Option<pgrx::pg_sys::Datum>> =
                $body;
            // SAFETY: PostgreSQL calls this with a valid call.
            unsafe { $crate::pg::function::enter(call, body) }
        }
    };
}

/// One call of a function.
pub struct Call {
    info: pg_sys::FunctionCallInfo,
    /// The memory context of the caller, which lives until the function returns: arguments are detoasted into it.
    memory: pg_sys::MemoryContext,
}

/// Run the body; None is SQL NULL.
///
/// # Safety
/// `call` is what PostgreSQL passed to a function of call convention 1.
pub unsafe fn enter(call: pg_sys::FunctionCallInfo, body: fn(&Call) -> Result<Option<Datum>>) -> Datum {
    // SAFETY: plain read of this process's state.
    let memory = unsafe { pg_sys::CurrentMemoryContext };
    let result = if crate::shared::is_available() {
        body(&Call { info: call, memory })
    } else {
        Err(Error::NotPreloaded)
    };
    match result {
        Ok(Some(datum)) => datum,
        Ok(None) => {
            // SAFETY: the caller's promise.
            unsafe { (*call).isnull = true };
            Datum::from(0)
        }
        Err(error) => error.raise(),
    }
}

/// A running query, identified by its memory context. (PL/pgSQL evaluates simple expressions in a context of the
/// transaction.)
#[derive(Clone, Copy, PartialEq)]
pub struct Query {
    memory: pg_sys::MemoryContext,
    started: i64,
}

struct AtEnd<F: FnOnce()>(Option<F>);

impl<F: FnOnce()> Drop for AtEnd<F> {
    fn drop(&mut self) {
        if let Some(body) = self.0.take() {
            body();
        }
    }
}

impl Call {
    /// An argument as passed by PostgreSQL; None is NULL, or one that the SQL of an older version does not have.
    pub fn datum(&self, index: usize) -> Option<Datum> {
        // SAFETY: as many arguments as the call says.
        unsafe {
            let arguments = (*self.info).args.as_slice((*self.info).nargs as usize);
            let argument = arguments.get(index)?;
            (!argument.isnull).then_some(argument.value)
        }
    }

    pub fn text(&self, index: usize) -> Option<&[u8]> {
        // SAFETY: declared text in SQL; arguments and memory live as long as the call.
        self.datum(index).map(|datum| unsafe { text_in(self, self.memory, datum) })
    }

    /// The elements of a one-dimensional text array; Err says what else it is.
    pub fn texts(&self, index: usize) -> std::result::Result<Option<Texts>, &'static str> {
        // SAFETY: declared text[] in SQL.
        self.datum(index).map(|datum| unsafe { texts_of(datum) }).transpose()
    }

    /// The bytes of a jsonb or an array, without their header.
    pub fn varlena(&self, index: usize) -> Option<&[u8]> {
        // SAFETY: declared as a varlena type in SQL; arguments and memory live as long as the call.
        self.datum(index).map(|datum| unsafe { bytes_in(self, self.memory, datum) })
    }

    pub fn int(&self, index: usize) -> Option<i32> {
        self.datum(index).map(|datum| datum.value() as i32)
    }

    pub fn bigint(&self, index: usize) -> Option<i64> {
        self.datum(index).map(|datum| datum.value() as i64)
    }

    pub fn bool(&self, index: usize) -> Option<bool> {
        self.datum(index).map(|datum| datum.value() as u8 != 0)
    }

    pub fn hash(&self, index: usize) -> Option<u128> {
        // SAFETY: declared uuid in SQL: a pointer to 16 bytes.
        self.datum(index).map(|datum| unsafe { hash_of(datum) })
    }

    /// Interval in microseconds; a month counts 30 days, as elsewhere in PostgreSQL's epoch arithmetic.
    pub fn interval(&self, index: usize) -> Option<i128> {
        // SAFETY: declared interval in SQL.
        self.datum(index).map(|datum| unsafe { interval_of(datum) })
    }

    /// The query that this call is part of.
    pub fn query(&self) -> Query {
        // SAFETY: the executor's description of the function, which it made in the memory of the query.
        unsafe {
            Query {
                memory: (*(*self.info).flinfo).fn_mcxt,
                started: pg_sys::GetCurrentStatementStartTimestamp(),
            }
        }
    }

    /// Run `body` when the query ends, in any way: once per query, wherever it calls the function.
    pub fn when_query_ends(&self, body: impl FnOnce() + 'static) {
        // SAFETY: as above; `fn_extra` is ours, and null until then.
        unsafe {
            let function = (*self.info).flinfo;
            if (*function).fn_extra.is_null() {
                let end = AtEnd(Some(body));
                let kept = PgMemoryContexts::For((*function).fn_mcxt).leak_and_drop_on_delete(end);
                (*function).fn_extra = kept.cast();
            }
        }
    }

    /// For triggers.
    pub fn trigger(&self) -> Option<&pg_sys::TriggerData> {
        // SAFETY: the context of a call is null or a node, whose tag says what it is.
        unsafe {
            let context = (*self.info).context;
            let is_trigger = !context.is_null() && (*context).type_ == pg_sys::NodeTag::T_TriggerData;
            is_trigger.then(|| &*(context as *const pg_sys::TriggerData))
        }
    }

    /// For set-returning functions that return at most one row: None is no row.
    pub fn at_most_one_row(&self, row: Option<Datum>) -> Result<Option<Datum>> {
        // SAFETY: resultinfo of a set-returning function is a ReturnSetInfo.
        unsafe {
            let info = (*self.info).resultinfo as *mut pg_sys::ReturnSetInfo;
            if !info.is_null() && (*info).type_ == pg_sys::NodeTag::T_ReturnSetInfo {
                (*info).isDone = match row {
                    Some(_) => pg_sys::ExprDoneCond::ExprSingleResult,
                    None => pg_sys::ExprDoneCond::ExprEndResult,
                };
            }
        }
        Ok(row)
    }

    /// For set-returning functions: the rows, each with as many columns as the SQL definition declares.
    pub fn rows(&self, rows: impl IntoIterator<Item = Vec<Option<Datum>>>) -> Result<Option<Datum>> {
        let set = self.set();
        for row in rows {
            let mut values: Vec<Datum> = row.iter().map(|value| value.unwrap_or(Datum::from(0))).collect();
            let mut nulls: Vec<bool> = row.iter().map(Option::is_none).collect();
            set.put(&mut values, &mut nulls)?;
        }
        Ok(None)
    }

    /// For set-returning functions: a sink for the rows.
    pub fn set(&self) -> Set<'_> {
        // SAFETY: it prepares the call's ReturnSetInfo or raises; the tuplestore and descriptor it makes are valid until the
        // call returns.
        unsafe {
            materialize(self.info);
            let info = (*self.info).resultinfo as *mut pg_sys::ReturnSetInfo;
            let (rows, descriptor) = ((*info).setResult, (*info).setDesc);
            Set { rows, descriptor, columns: (*descriptor).natts as usize, call: PhantomData }
        }
    }

    /// For set-returning functions: what another function, in SQL and with the same arguments and result, returns for
    /// this very call.
    ///
    /// # Safety
    /// There is such a function.
    pub unsafe fn pass_on(&self, function: Oid) -> Option<Datum> {
        // SAFETY: a call like our own, which lives as long; it fills our own ReturnSetInfo, as a whole, or raises.
        unsafe {
            let outer = &*self.info;
            let memory = (*outer.flinfo).fn_mcxt;
            let number = outer.nargs as usize;
            let size =
                size_of::<pg_sys::FunctionCallInfoBaseData>() + number * size_of::<pg_sys::NullableDatum>();
            let inner = pg_sys::MemoryContextAllocZero(memory, size) as pg_sys::FunctionCallInfo;
            let called = pg_sys::MemoryContextAllocZero(memory, size_of::<pg_sys::FmgrInfo>())
                as *mut pg_sys::FmgrInfo;
            pg_sys::fmgr_info_cxt(function, called, memory);
            (*inner).flinfo = called;
            (*inner).resultinfo = outer.resultinfo;
            (*inner).fncollation = outer.fncollation;
            (*inner).nargs = outer.nargs;
            let arguments = (*inner).args.as_mut_slice(number);
            arguments.copy_from_slice(outer.args.as_slice(number));
            let info = outer.resultinfo as *mut pg_sys::ReturnSetInfo;
            if !info.is_null() {
                (*info).allowedModes |= pg_sys::SetFunctionReturnMode::SFRM_Materialize_Preferred as i32;
            }
            let (body, mut result) = ((*called).fn_addr, Datum::from(0));
            if let Some(body) = body {
                result = pg_guard_ffi_boundary(|| body(inner));
            }
            (!(*inner).isnull).then_some(result)
        }
    }
}

/// The rows that a call returns.
pub struct Set<'c> {
    rows: *mut pg_sys::Tuplestorestate,
    descriptor: pg_sys::TupleDesc,
    pub columns: usize,
    call: PhantomData<&'c Call>,
}

impl Set<'_> {
    /// Add a row; the values have the columns' types.
    pub fn put(&self, values: &mut [Datum], nulls: &mut [bool]) -> Result<()> {
        if values.len() != self.columns || nulls.len() != self.columns {
            return Err(Error::TooManyColumns);
        }
        // SAFETY: as many values as there are columns; the store lives as long as the call.
        unsafe {
            pg_sys::tuplestore_putvalues(self.rows, self.descriptor, values.as_mut_ptr(), nulls.as_mut_ptr());
        }
        Ok(())
    }
}

#[cfg(feature = "pg15")]
unsafe fn materialize(call: pg_sys::FunctionCallInfo) {
    // SAFETY: the caller's promise. 15 knows it by its first name; a set of one-column rows needs the flag.
    unsafe { pg_sys::SetSingleFuncCall(call, scalar_flag(call)) };
}

#[cfg(not(feature = "pg15"))]
unsafe fn materialize(call: pg_sys::FunctionCallInfo) {
    // SAFETY: the caller's promise.
    unsafe { pg_sys::InitMaterializedSRF(call, scalar_flag(call)) };
}

/// A function that returns SETOF a scalar takes its descriptor from the caller: MAT_SRF_USE_EXPECTED_DESC.
unsafe fn scalar_flag(call: pg_sys::FunctionCallInfo) -> u32 {
    // SAFETY: asks the catalog about this very call.
    unsafe {
        let mut kind_type = pg_sys::InvalidOid;
        let kind = pg_sys::get_call_result_type(call, &mut kind_type, std::ptr::null_mut());
        if kind == pg_sys::TypeFuncClass::TYPEFUNC_SCALAR { 1 } else { 0 }
    }
}
